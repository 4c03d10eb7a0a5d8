"""The benchmark that runs on a GPU, without one: its programs on a CPU, and the kernels read from a profile."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import processes, profiled
from benchmarks.compiled.cells import Cell
from benchmarks.profiled import profile, report

pytestmark = pytest.mark.usefixtures("little_effort")

CELL = Cell(2, 64, 4, 8)


@pytest.mark.parametrize("way", profiled.FUNCTIONS)
def test_a_gradient_includes_the_forward_pass(way, x32):
    _, _, calls, arguments = profiled.prepare((tuple(CELL), way))
    out = calls["forward"](*arguments)
    again, gradients = calls["gradient"](*arguments)
    np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-6)
    given = [x for x in arguments[0] if jax.numpy.issubdtype(x.dtype, np.floating)]
    assert [x.shape for x in gradients] == [x.shape for x in given]


def test_a_pause_separates_the_programs_of_a_profile():
    def line(name, *events):
        return SimpleNamespace(
            name=name,
            events=[SimpleNamespace(start_ns=1e6 * start, duration_ns=1e6 * ms) for start, ms in events],
        )

    gpu = [
        line("Stream #7", (100, 1), (130, 2), (0, 3)),
        line("Stream #8", (102, 4)),
        line("XLA Ops", (0, 9)),
    ]
    planes = [SimpleNamespace(name="/device:GPU:0", lines=gpu), SimpleNamespace(name="/host:CPU", lines=gpu)]
    assert profile._programs(SimpleNamespace(planes=planes)) == [[3e6], [1e6, 4e6], [2e6]]


def test_what_runs_in_a_process_of_its_own_comes_back_in_order():
    assert processes.rows([3, 1, 2], float, str) == ["3.0", "1.0", "2.0"]


def test_what_fails_in_a_process_is_said():
    with pytest.raises(RuntimeError, match="could not convert string to float: 'many'"):
        processes.rows(["many"], float, str)


def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="JAX finds no GPU here"):
        profiled.run(quick=True)


def test_the_table_has_what_was_measured_and_marks_what_is_older():
    cell = CELL._asdict()
    rows = [
        {"way": "default", **cell, "mode": "forward", "busy_ms": 0.123, "kernels": 7.0},
        {"way": "default", **cell, "mode": "gradient", "busy_ms": 4.0, "kernels": 9.0, "note": "Older."},
        {"way": "topk_mask", **cell, "mode": "gradient", "busy_ms": 5.0, "kernels": 8.0},
    ]
    assert list(report.table(rows)) == [
        "| way | n = 64, k = 4, d = 8 |",
        "| ---: | ---: |",
        "| default | 0.12 / 4* ms, 7 / 9 |",
        "| topk_mask | - / 5 ms, - / 8 |",
    ]
