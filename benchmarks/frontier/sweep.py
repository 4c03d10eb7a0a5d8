"""Every boost over every size and distribution of scores, and the worst that each comes to."""

import itertools

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks import records
from benchmarks.boosts import COMPROMISE, FAMILIES
from benchmarks.frontier.measure import draws_of, measurement, sample
from benchmarks.frontier.scores import DISTRIBUTIONS

SEED = 0
CELLS = [(16, 2), (64, 4), (256, 16), (1000, 7), (1024, 32), (4096, 256), (16384, 2), (16384, 256)]
QUICK_CELLS = [(16, 2), (256, 16)]

# Measured again, with more draws and with `reseed=True`: the default and the best compromise.
FINALISTS = [("Relative", 6.0, 0.75), COMPROMISE]


def sweep(boosts, cells, quick, *, reseed=False, scale=1, seed=SEED):
    """One row for each boost `(family, sharpness, number)`: `{quantity: {distribution: [one per cell]}}`."""
    grids = {name: [b for b in boosts if b[0] == name] for name in dict.fromkeys(b[0] for b in boosts)}
    rows = {b: {"family": b[0], "sharpness": b[1], "number": b[2], "reseed": reseed} for b in boosts}
    progress = tqdm(total=len(cells) * len(grids), desc="frontier", unit="cell")
    for n, k in cells:
        embeddings, direction, scores = sample(n, k, draws_of(n, quick, scale), seed)
        for name, grid in grids.items():
            measure = measurement(FAMILIES[name][0], k, reseed)
            numbers = jnp.array([b[1:] for b in grid])
            for distribution, v in scores.items():
                found = jax.device_get(measure(numbers, embeddings, direction, v))
                for (what, values), i in itertools.product(found.items(), range(len(grid))):
                    per = rows[grid[i]].setdefault(what, {}).setdefault(distribution, [])
                    per.append(records.rounded(values[i], 4))
            progress.update()
    progress.close()
    return [
        row | {"worst": worst(row, cells), "worst but bimodal": worst(row, cells, without="bimodal")}
        for row in rows.values()
    ]


def worst(row, cells, without=None):
    """The lowest nCCS and the lowest reach, and where: exact ties are a case apart."""
    names = [name for name in DISTRIBUTIONS if name not in ("quantised", without)]
    found = {}
    for what in ("nccs", "reach"):
        places = [
            (value, name, *cell) for name in names for value, cell in zip(row[what][name], cells, strict=True)
        ]
        found[what] = list(min(places))
    return found
