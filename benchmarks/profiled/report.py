"""The table of what a GPU ran, from the results file alone."""

from benchmarks import records
from benchmarks.compiled.cells import MODES, Cell, key
from benchmarks.speed.summary import in_words, two_digits

# Two ways, and the k of the cells in which they are compared, None for all cells.
COMPARED = [
    ("default", "plain port", None),
    ("default", "reseed=True", None),
    ("reseed=True", "plain port", None),
    ("default", "where=", None),
    ("candidates=4k", "default", None),
    ("default", "soft sort", (2, 32)),
    ("default", "soft sort", (256,)),
    ("default", "gated top k", None),
    ("topk_mask", "threshold mask", None),
    ("topk_mask", "topk_mask, traced k", None),
]


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


def comparisons(rows):
    """A line for each pair of ways: how many times faster or slower the kernels of the first run."""
    cells = {}
    for row in rows:
        ways = cells.setdefault(Cell(*key(row)[1:5]), {})
        ways.setdefault(row["way"], {})[row["mode"]] = {"ms": row["busy_ms"]}
    lines = []
    for way, other, ks in COMPARED:
        found = [{"methods": ways} for cell, ways in cells.items() if ks is None or cell.k in ks]
        words = "all" if ks is None else "k = " + ", ".join(map(str, ks))
        lines.append([f"{way} and {other}", words, *(in_words(found, way, other, mode) for mode in MODES)])
    return records.markdown(["compared", "cells", "forward", "training step"], lines)
