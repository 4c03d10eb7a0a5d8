"""The ways to choose that are compiled: functions of a cell's arrays, ours and what others write instead.

A way is a function `(*arrays, k)` to one array; `ARRAYS` names what it takes if that is not embeddings and scores.
"""

import jax
import jax.numpy as jnp
from jax import lax

import shtopk
from benchmarks import peers

SHARPNESS = 20.0  # of the plain port's matches
TEMPERATURE = 0.1  # of the soft sort, and of the threshold mask

OURS = {
    "default": lambda e, v, k: shtopk.topk(e, v, k).embeddings,
    "reseed=True": lambda e, v, k: shtopk.topk(e, v, k, reseed=True).embeddings,
    "candidates=4k": lambda e, v, k: shtopk.topk(e, v, k, candidates=4 * k).embeddings,
    "where=": lambda e, v, where, k: shtopk.topk(e, v, k, where=where).embeddings,
    "select, pool": lambda e, v, k: shtopk.select(v, k).pool(e),
    "topk_mask": shtopk.topk_mask,
    "topk_mask, traced k": lambda v, traced, k: shtopk.topk_mask(v, traced),
    "iterative_topk": lambda e, v, k: shtopk.iterative_topk(e, v, k).embeddings,
}


def plain_port(embeddings, scores, k):
    """Algorithm 2 as it is printed, embeddings carried through every round; n / k a power of 2."""

    def row(e, v):
        while v.shape[0] > k:
            order, half = jnp.argsort(-v), v.shape[0] // 2
            v, e = v[order], e[order]
            w = jax.nn.sigmoid(SHARPNESS * (v[:half] - v[half:][::-1]))
            e = e[:half] * w[:, None] + e[half:][::-1] * (1 - w)[:, None]
            v = v[:half] * w + v[half:][::-1] * (1 - w)
        return e

    return jax.vmap(row)(embeddings, scores)


def softsort(embeddings, scores, k):
    """Prillo and Eisenschlos 2020: a softmax over all n for each of the k largest scores."""

    def row(e, v):
        best = lax.top_k(v, k)[0]
        return jax.nn.softmax(-jnp.abs(best[:, None] - v[None]) / TEMPERATURE, axis=-1) @ e

    return jax.vmap(row)(embeddings, scores)


PEERS = {
    "plain port": plain_port,
    "soft sort": softsort,
    "gated top k": lambda e, v, k: peers.gated(e, v, k)[0],
    "threshold mask": lambda v, k: peers.thresholded(v, k, TEMPERATURE),
}
WAYS = OURS | PEERS
ARRAYS = {
    "where=": ("embeddings", "scores", "where"),
    "topk_mask": ("scores",),
    "topk_mask, traced k": ("scores", "traced k"),
    "threshold mask": ("scores",),
}


def taken(way):
    """The names of the arrays that the way is called with."""
    return ARRAYS.get(way, ("embeddings", "scores"))


def floating(way):
    """How many of these have a gradient; they come first."""
    return sum(name in ("embeddings", "scores") for name in taken(way))


def arrays(way, batch, n, d, sharding):
    """What the way is called with, as shapes."""
    kinds = {
        "embeddings": ((batch, n, d), jnp.float32),
        "scores": ((batch, n), jnp.float32),
        "where": ((batch, n), jnp.bool_),
        "traced k": ((), jnp.int32),
    }
    return [jax.ShapeDtypeStruct(*kinds[name], sharding=sharding) for name in taken(way)]


def function(way, mode, k):
    """The way's forward pass, or the gradient of the sum of its squares in embeddings and scores."""

    def forward(*arrays):
        return WAYS[way](*arrays, k)

    if mode == "forward":
        return forward
    return jax.grad(lambda *arrays: jnp.sum(forward(*arrays) ** 2), tuple(range(floating(way))))
