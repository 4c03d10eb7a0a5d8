"""The table of what a GPU ran, from the results file alone."""

from benchmarks import records
from benchmarks.compiled.cells import MODES, Cell, key
from benchmarks.speed.summary import two_digits


def text(results):
    hardware, versions = results["hardware"], results["versions"]
    yield "# Profiled on a GPU"
    yield ""
    yield (
        f"{hardware['device_kind']}, JAX {versions['jax']}, batch 16, float32. Forward / training step: the "
        "milliseconds of the kernels, then their number."
    )
    yield from ["", *table(results["rows"]), ""]


def table(rows):
    """A line for each way, a column for each cell."""
    found = {key(row): row for row in rows}
    ways = dict.fromkeys(row["way"] for row in rows)
    cells = dict.fromkeys(Cell(row["batch"], row["n"], row["k"], row["d"]) for row in rows)
    lines = [
        [way, *(entry([found.get((way, *cell, mode)) for mode in MODES]) for cell in cells)] for way in ways
    ]
    return records.markdown(["way", *(f"n = {c.n}, k = {c.k}, d = {c.d}" for c in cells)], lines)


def entry(pair):
    """`.1 / .2 ms, 10 / 20`; None if neither mode was measured."""
    if not any(pair):
        return None
    busy = " / ".join("-" if row is None else two_digits(row["busy_ms"]) for row in pair)
    started = " / ".join("-" if row is None else f"{row['kernels']:.0f}" for row in pair)
    return f"{busy} ms, {started}"
