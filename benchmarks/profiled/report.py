"""The table of what a GPU ran, from the results file alone."""

from benchmarks import records
from benchmarks.compiled.cells import MODES, Cell

EARLIER = "*"  # marks a figure that was measured before a change to the code, which its row names


def text(results):
    hardware, versions = results["hardware"], results["versions"]
    yield "# Profiled on a GPU"
    yield ""
    yield (
        f"{hardware['device_kind']}, JAX {versions['jax']}, batch 16, float32. Forward / training step: the "
        "milliseconds in which kernels run, then the kernels started."
    )
    yield from ["", *table(results["rows"]), ""]
    for note in dict.fromkeys(row["note"] for row in results["rows"] if "note" in row):
        yield f"{EARLIER} {note}"
    yield ""


def table(rows):
    """A line for each way, a column for each cell."""
    found = {key(row): row for row in rows}
    ways = dict.fromkeys(row["way"] for row in rows)
    cells = dict.fromkeys(Cell(row["batch"], row["n"], row["k"], row["d"]) for row in rows)
    lines = [
        [way, *(entry([found.get((way, *cell, mode)) for mode in MODES]) for cell in cells)] for way in ways
    ]
    return records.markdown(["way", *(f"n = {c.n}, k = {c.k}, d = {c.d}" for c in cells)], lines)


def key(row):
    return row["way"], row["batch"], row["n"], row["k"], row["d"], row["mode"]


def entry(pair):
    """`.1 / .2 ms, 10 / 20`; None if neither mode was measured."""
    if not any(pair):
        return None
    busy = " / ".join("-" if row is None else f"{milliseconds(row)}" for row in pair)
    started = " / ".join("-" if row is None else f"{row['kernels']:.0f}" for row in pair)
    return f"{busy} ms, {started}"


def milliseconds(row):
    return f"{records.rounded(row['busy_ms'], 2):g}" + (EARLIER if "note" in row else "")
