"""The benchmarks that run on a GPU, without one: their programs on a CPU, and the kernels read from a profile."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import peers, processes, profiled, pytorch
from benchmarks.compiled.cells import Cell
from benchmarks.profiled import profile, report
from benchmarks.speed.measure import arrays, cell, task

CELL = Cell(2, 16, 4, 8)


@pytest.mark.parametrize("way", ["default", "where=", "topk_mask, traced k", "plain port"])
def test_a_gradient_includes_the_forward_pass(way, x32):
    _, _, calls, arguments = profiled.prepare((CELL, way))
    out = calls["forward"](*arguments)
    again, gradients = calls["gradient"](*arguments)
    np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-6)
    given = [x for x in arguments[0] if jax.numpy.issubdtype(x.dtype, np.floating)]
    assert [x.shape for x in gradients] == [x.shape for x in given]


def test_the_longest_gaps_separate_the_programs_of_a_profile():
    def line(name, *events):
        return SimpleNamespace(
            name=name,
            events=[SimpleNamespace(start_ns=1e6 * start, duration_ns=1e6 * ms) for start, ms in events],
        )

    gpu = [
        line("Stream #7", (100, 1), (130, 2), (0, 3)),
        line("Stream #8", (112, 4)),
        line("XLA Ops", (0, 9)),
    ]
    planes = [SimpleNamespace(name="/device:GPU:0", lines=gpu), SimpleNamespace(name="/host:CPU", lines=gpu)]
    profiled = SimpleNamespace(planes=planes)
    assert profile.programs(profiled, 3) == [[3e6], [1e6, 4e6], [2e6]]
    assert profile.programs(profiled, 1) == [[3e6, 1e6, 4e6, 2e6]]


@pytest.fixture
def three_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)


def test_what_runs_in_processes_comes_back_in_order(three_cores):
    assert processes.rows([3, 1, 2, 5], float, str) == ["3.0", "1.0", "2.0", "5.0"]


def test_what_fails_in_a_process_is_said(three_cores):
    with pytest.raises(RuntimeError, match="could not convert string to float: 'many'"):
        processes.rows([1, "many", 2], float, str)


def test_a_process_that_dies_is_noticed(three_cores):
    with pytest.raises(RuntimeError, match="a process died"):
        processes.rows([0, 7], os._exit, str)


@pytest.mark.parametrize("module", [profiled, pytorch])
def test_without_a_gpu_it_says_so(module, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(SystemExit, match="JAX finds no GPU here"):
        module.run(quick=True)


def test_the_table_has_what_was_measured():
    cell = CELL._asdict()
    rows = [
        {"way": "default", **cell, "mode": "forward", "busy_ms": 0.123, "kernels": 7.0},
        {"way": "default", **cell, "mode": "gradient", "busy_ms": 4.0, "kernels": 9.0},
        {"way": "topk_mask", **cell, "mode": "gradient", "busy_ms": 5.0, "kernels": 8.0},
    ]
    assert list(report.table(rows)) == [
        "| way | n = 16, k = 4, d = 8 |",
        "| ---: | ---: |",
        "| default | 0.12 / 4 ms, 7 / 9 |",
        "| topk_mask | - / 5 ms, - / 8 |",
    ]


def test_the_port_in_pytorch_is_that_in_jax(x32):
    pytest.importorskip(
        "torch", reason="PyTorch is not installed, and only a benchmark needs it: pip install torch"
    )
    from benchmarks.pytorch import port

    arguments = arrays(cell("pytorch", *CELL))
    for mode, call in zip(pytorch.MODES, port.calls(port.halving, CELL.k, *arguments), strict=True):
        ours = jax.tree.leaves(task(peers.plain_port, mode, CELL.k)(*arguments))
        theirs = jax.tree.leaves(jax.block_until_ready(call()).outputs)
        assert len(ours) == len(theirs) == {"forward": 2, "gradient": 4}[mode]
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y.detach().cpu().numpy(), rtol=1e-4, atol=1e-5)
