"""The guide to many devices: its code runs as it stands, its numbers are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import records
from benchmarks.devices import report
from benchmarks.devices.cells import plan
from benchmarks.devices.measure import measure

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "devices.md").read_text()
DEVICES = records.read("devices")
ROWS = DEVICES["rows"]


@pytest.mark.usefixtures("little_effort_in_processes")
@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="the guide imports it from where it now is")
def test_the_guides_program_runs_and_learns():
    program = "\n".join(re.findall(r"```{code-cell}\n(.*?)```", GUIDE, flags=re.DOTALL))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *steps, selection = done.stdout.splitlines()
    right = [float(line.split("right ")[1]) for line in steps]
    assert right[0] < 0.5  # of four classes
    assert max(right[-2:]) > 0.5
    assert selection == "128 (32, 128)"


def test_the_whole_plan_was_measured():
    base, largest, cells = plan(quick=False)
    assert (DEVICES["settings"]["base"], DEVICES["settings"]["largest"]) == (base, largest)
    measured = [{name: row[name] for name in base} for row in ROWS]
    assert sorted(map(str, measured)) == sorted(map(str, cells))
    assert {row["devices"] for row in ROWS} == {1, 2, 4, 8, 16, 32, 64}


def test_the_formula_is_what_was_measured():
    for row in ROWS:
        size = [row[name] for name in ("devices", "n", "k", "d")]
        assert report.sent(row, "axis_name", "step") == report.formula(*size)
        narrowed = report.formula(*size, candidates=4 * row["k"])
        assert report.sent(row, "axis_name, candidates=4k", "step") == narrowed


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="the formula is that of its checked form")
def test_a_cell_as_it_is_now_agrees_with_the_formula():
    row = measure({"devices": 8, "n": 128, "k": 8, "d": 4})
    assert report.sent(row, "axis_name", "step") == report.formula(8, 128, 8, 4)


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="the committed results are of its checked form")
def test_the_memory_of_a_cell_is_what_was_committed():
    """To a quarter, as versions of XLA differ: the memory of a step must not grow without notice."""
    cell = DEVICES["settings"]["base"] | {"devices": 8}
    methods = "axis_name", "axis_name, candidates=4k"
    committed, now = report.cell_of(ROWS, cell), measure(cell, methods, modes=["step"])
    for method in methods:
        assert report.temporary(now, method) < 1.25 * report.temporary(committed, method)


def test_the_guides_numbers_for_64_gpus():
    cell = DEVICES["settings"]["largest"]
    assert cell == {"devices": 64, "n": 2**24, "k": 64, "d": 512}
    payload = 4 * cell["n"] * cell["d"]
    assert (report.size(payload), report.size(payload / 64)) == ("34.4 GB", "537 MB")
    assert report.size(4 * 63 / 64 * (2 * 2**24 + 2 * 64 * 513)) == "132 MB"
    row = report.cell_of(ROWS, cell)
    assert report.size(report.sent(row, "axis_name", "step")) == "132 MB"
    for method, bytes_in_all, each in (
        ("axis_name", "1.14 GB", 68),
        ("axis_name, candidates=4k", "70.2 MB", 4),
    ):
        memory = report.temporary(row, method)
        assert (report.size(memory), round(memory / cell["n"])) == (bytes_in_all, each)
    assert report.BYTES_PER_SECOND == 400e9 / 8
    assert report.sent(row, "jit over NamedSharding", "step") > payload
