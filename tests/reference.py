"""The paper's two algorithms and its measure, in NumPy float64, line by line, for one sequence at a time."""

import math

import numpy as np


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def scaled(sharpness):
    """softmax(Cx, Cy), first entry."""
    return lambda high, low, favourites=None: sigmoid(sharpness * (high - low))


def power(base):
    return lambda high, low, favourites=None: sigmoid(base**high - base**low)


class relative:
    """The gap in units of the round's own gaps: their quantile from the widest, between two neighbours.

    The gaps are those between `favourites`, the seeds that would meet if the better one had won every match before.

    The derivative holds the units constant, so a finite difference must: it passes a list `units`, which
    the first run fills, round by round, and later runs read back.
    """

    def __init__(self, sharpness, quantile, units=None):
        self.sharpness, self.quantile = sharpness, quantile
        self.units = [] if units is None else units
        self.recorded = iter(list(self.units))

    def __call__(self, high, low, favourites=None):
        gaps = np.abs(np.subtract(*(favourites or (high, low))))
        position = self.quantile * (len(gaps) - 1)
        below = math.floor(position)
        above = min(below + 1, len(gaps) - 1)
        unit = gaps[below] + (position - below) * (gaps[above] - gaps[below])
        unit = next(self.recorded, unit)
        self.units.append(unit)
        return sigmoid(self.sharpness * (high - low) / unit)


def algorithm2(embeddings, scores, k, boost, reseed):
    """Algorithm 2, TOPK(E, v): the embeddings go through every round, as printed."""
    E, v = np.asarray(embeddings, np.float64), np.asarray(scores, np.float64)
    E, v = sort(E, v)
    seeds = v
    while len(v) > k:
        if reseed:
            E, v = sort(E, v)
        E, v = tournament(E, v, target(len(v), k), boost, seeds[: len(v)])
    return E, v


def target(n, k):
    """How many survive a round of n: k times a power of two, at least half of them."""
    survivors = k
    while 2 * survivors < n:
        survivors *= 2
    return survivors


def sort(E, v):
    order = np.argsort(-v, kind="stable")
    return E[order], v[order]


def tournament(E, v, survivors, boost, seeds):
    """Line 15 to 26 of Algorithm 2; the 2 * survivors - n best have no opponent."""
    byes = 2 * survivors - len(v)
    E_next, v_next = E[:survivors].copy(), v[:survivors].copy()
    rest, rest_v = E[byes:], v[byes:]
    n = survivors - byes
    sides = rest_v[:n], rest_v[::-1][:n]
    favourites = seeds[byes:][:n], seeds[byes:][::-1][:n]
    w = boost(*sides, favourites)
    for i in range(n):
        j = 2 * n - 1 - i
        E_next[byes + i] = rest[i] * w[i] + rest[j] * (1 - w[i])
        v_next[byes + i] = rest_v[i] * w[i] + rest_v[j] * (1 - w[i])
    return E_next, v_next


def mask(scores, k, boost, reseed):
    """The weight each candidate carries: what comes of pooling the identity, summed over slots."""
    return algorithm2(np.eye(len(scores)), scores, k, boost, reseed)[0].sum(0)


def algorithm1(embeddings, scores, k, alpha=1.0, normalizer="softmax"):
    """Algorithm 1, CONTINUOUSTOPK(E, v), and the same combination of the scores."""
    E, original = np.asarray(embeddings, np.float64), np.asarray(scores, np.float64)
    v = original.copy()
    pooled, slots = [], []
    for _ in range(k):
        m, a = v.max(), v.argmax()
        p = peaked_softmax(-alpha * (v - m) ** 2, normalizer)
        pooled.append(p @ E)
        slots.append(p @ original)
        v[a] = -10000
    return np.array(pooled), np.array(slots)


def peaked_softmax(v, normalizer):
    denominator = np.exp(v).sum()
    if normalizer == "paper":
        denominator -= np.exp(v.max())
    return np.exp(v) / denominator


def nccs(reference, approximation):
    """The mean over the reference's rows of the best cosine among the approximation's."""

    def cosine(a, b):
        return a @ b / math.sqrt((a @ a) * (b @ b))

    best = [max(cosine(y, z) for z in approximation) for y in reference]
    return sum(best) / len(best)


def numeric_gradient(f, x, step=1e-6):
    """Central differences of a scalar function of one array."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (f(up) - f(down)) / (2 * step)
    return gradient
