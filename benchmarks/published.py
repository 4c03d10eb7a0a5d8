"""The figures the paper published, as numbers."""

import csv
import math
from pathlib import Path


def published():
    """`{(method, n, k): (nccs, standard error)}` of the paper's Figure 2.

    The means are from the authors' own log of their benchmark (an A100), 16 batches of 16 draws in each of
    the 85 cells; `nccs_std` is the spread of the batches' means, so the standard error is that over
    sqrt(batches). Methods: "iterative" (Algorithm 1) and "successive_halving" (Algorithm 2, base 20).
    """
    with (Path(__file__).parent / "published_figures.csv").open(newline="") as file:
        return {
            (row["method"], int(row["n"]), int(row["k"])): (
                float(row["nccs"]),
                float(row["nccs_std"]) / math.sqrt(int(row["batches"])),
            )
            for row in csv.DictReader(file)
        }
