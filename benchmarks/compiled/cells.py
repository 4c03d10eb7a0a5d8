"""What is compiled: the cells, and which ways in each of them."""

from typing import NamedTuple

from benchmarks.compiled.ways import WAYS

MODES = ("forward", "gradient")


class Cell(NamedTuple):
    """A batch of n candidates with rows of d numbers, of which k are chosen; float32."""

    batch: int
    n: int
    k: int
    d: int


CELLS = [Cell(16, 16384, 2, 32), Cell(16, 16384, 256, 32), Cell(16, 8192, 256, 256), Cell(16, 1024, 32, 512)]
# Launches against n, for a fixed k, so that rounds are added, and for a fixed n / k, on one target.
PLOTTED = "h100"
SERIES_N = (256, 1024, 4096, 16384)
SERIES = {"k = 8": lambda n: 8, "k = n / 32": lambda n: n // 32}
SERIES_WAYS = ("default", "plain port", "soft sort", "gated top k")

QUICK_CELLS = [Cell(16, 256, 8, 32), Cell(16, 1024, 32, 128)]
QUICK_WAYS = ("default", "where=", "topk_mask", "plain port", "gated top k")

SOFTSORT_MOST = 2**26  # batch * k * n weights; over it XLA takes minutes to compile the gradient
ITERATIVE_MOST = 2**28  # batch * k * n * d products; over it nobody would run this way


def cases(target, quick):
    """What is compiled, `[{"way", "mode", "batch", "n", "k", "d"}]`, and what is left out, as `pairs` says it."""
    chosen, skipped = pairs(quick, plotted=target == PLOTTED)
    found = [{"way": way, **cell._asdict(), "mode": mode} for cell, way in chosen for mode in MODES]
    return found, skipped


def pairs(quick, plotted=False):
    """The cells, each with a way, and what is left out, `[{"way", "batch", "n", "k", "d", "reason"}]`."""
    found = [(cell, way) for cell in QUICK_CELLS for way in QUICK_WAYS]
    if not quick:
        found = [(cell, way) for cell in CELLS for way in WAYS]
        found += [(cell, way) for cell in series() for way in SERIES_WAYS if plotted]
    reasons = {(cell, way): left_out(way, cell) for cell, way in found}
    skipped = [
        {"way": way, **cell._asdict(), "reason": reason}
        for (cell, way), reason in reasons.items()
        if reason is not None
    ]
    return [pair for pair, reason in reasons.items() if reason is None], skipped


def key(row):
    """What a row of results was measured of."""
    return (row["way"], row["batch"], row["n"], row["k"], row["d"], row["mode"])


def series():
    """The cells of the plot."""
    return [Cell(16, n, k(n), 32) for k in SERIES.values() for n in SERIES_N]


def left_out(way, cell):
    """Why the way is not compiled in the cell; None if it is."""
    if way == "candidates=4k" and 4 * cell.k >= cell.n:
        return "4k is not below n"
    if way == "soft sort" and cell.batch * cell.k * cell.n > SOFTSORT_MOST:
        return f"over {SOFTSORT_MOST} batch * k * n weights, of which a gradient takes minutes to compile"
    if way == "iterative_topk" and cell.batch * cell.k * cell.n * cell.d > ITERATIVE_MOST:
        return f"over {ITERATIVE_MOST} batch * k * n * d products"
    return None
