"""Scores that are hard on a tournament: outliers, offsets, finite padding, clusters."""

import numpy as np


def _clusters(centres, shares):
    return lambda v, rng, far: rng.choice(centres, p=shares, size=v.shape) + 1e-3 * v


def _first_moved(v, by):
    return np.concatenate([v[:, :1] + by, v[:, 1:]], axis=1)


# Each makes scores `(rows, n)` of normal ones, of the same shape, and of a magnitude `far` > 0.
KINDS = {
    "normal": lambda v, rng, far: v,
    "one outlier low": lambda v, rng, far: _first_moved(v, -far),
    "one outlier high": lambda v, rng, far: _first_moved(v, far),
    "many outliers": lambda v, rng, far: v + far * rng.choice([-1, 0, 0, 0, 1], size=v.shape),
    "offset": lambda v, rng, far: v + min(far, 1e5),
    "padding": lambda v, rng, far: np.where(np.arange(v.shape[1]) < v.shape[1] // 2, v, -1e4 * far),
    "bimodal": _clusters([0, 1], [0.9, 0.1]),
    "trimodal": _clusters([0, 1, 2], [0.8, 0.15, 0.05]),
}


def scores(kind, seed, rows, n, far=1e5):
    """Scores `(rows, n)` of a kind, float64."""
    rng = np.random.default_rng(seed)
    return KINDS[kind](rng.normal(size=(rows, n)), rng, far)
