"""The frontier that the default boost is chosen on: quality against the reach of the gradient.

For each family of boosts, each of its numbers, each (n, k) and each distribution of scores: nCCS (d = 32,
E ~ U[-1, 1]), and the reach of the gradient of a random linear loss on the outputs, the number of candidates that
receive at least 1e-3 of the largest, in units of k.
"""

import time

from benchmarks import records
from benchmarks.boosts import COMPROMISE, FAMILIES, SHARPNESS
from benchmarks.frontier import plot
from benchmarks.frontier.measure import draws_of
from benchmarks.frontier.scores import DISTRIBUTIONS
from benchmarks.frontier.sweep import CELLS, FINALISTS, QUICK_CELLS, SEED, sweep


def run(quick):
    started = time.monotonic()
    cells = QUICK_CELLS if quick else CELLS
    grid = [(name, c, x) for name, (_, xs) in FAMILIES.items() for c in SHARPNESS for x in xs]
    rows = sweep(grid, cells, quick)
    finalists = [
        row
        for reseed in (False, True)
        for row in sweep(FINALISTS, cells, quick, reseed=reseed, scale=2, seed=SEED + 1)
    ]
    path = records.directory(quick) / "frontier.json"
    records.write(
        path,
        started=started,
        rows=rows,
        finalists=finalists,
        settings={
            "cells": cells,
            "draws": [draws_of(n, quick) for n, _ in cells],
            "seed": SEED,
            "distributions": list(DISTRIBUTIONS),
            "default": FINALISTS[0],
            "compromise": COMPROMISE,
        },
    )
    plot.draw(path)
