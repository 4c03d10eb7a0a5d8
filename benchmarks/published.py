"""The figures the paper published, as numbers."""

import csv
import math
from pathlib import Path

GRID = [(2**i, 2**j) for i in range(4, 15) for j in range(1, 12) if j < i]  # the 85 cells (n, k)


def published():
    """`{(method, n, k): (nccs, standard error)}` of the paper's Figure 2.

    The means are from the authors' own log of their benchmark (an A100), 16 batches of 16 draws in each of
    the 85 cells; `nccs_std` is the spread of the batches' means, so the standard error is that over
    sqrt(batches). Methods: "iterative" (Algorithm 1) and "successive_halving" (Algorithm 2, base 20).
    """
    return {
        cell: (float(row["nccs"]), float(row["nccs_std"]) / math.sqrt(int(row["batches"])))
        for cell, row in _rows()
    }


def published_seconds():
    """`{(method, n, k): seconds}` of the paper's Figure 1, forward, a batch of 16 rows, on an A100."""
    return {cell: float(row["seconds"]) for cell, row in _rows()}


def _rows():
    with (Path(__file__).parent / "published_figures.csv").open(newline="") as file:
        return [((row["method"], int(row["n"]), int(row["k"])), row) for row in csv.DictReader(file)]
