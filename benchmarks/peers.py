"""What a researcher would use instead, each in a few lines: `(embeddings, scores, k) -> (pooled, slot scores)`.

Embeddings are `(batch, n, d)`, scores `(batch, n)`, the result `(batch, k, d)` and `(batch, k)`; a
mask is `(batch, n)`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax


def rows(embeddings, index):
    """The rows `index` `(batch, k)` of `embeddings` `(batch, n, ...)`."""
    return jax.vmap(lambda e, i: e.at[i].get(mode="promise_in_bounds"))(embeddings, index)


def gated(embeddings, scores, k):
    """Hard top k, its rows gated by their scores: no gradient reaches a row that was not chosen."""
    best, index = lax.top_k(scores, k)
    return rows(embeddings, index) * jax.nn.sigmoid(best)[..., None], best


def plain_port(embeddings, scores, k, base=20.0):
    """Algorithm 2 line by line, embeddings carried through every round, ordinary autodiff. n / k a power of 2."""
    rounds = round(math.log2(scores.shape[-1] / k))
    if scores.shape[-1] != k * 2**rounds:
        raise ValueError(f"n / k must be a power of 2, not {scores.shape[-1]} / {k}")
    for _ in range(rounds):
        order = jnp.argsort(scores, axis=-1, descending=True)
        scores, embeddings = jnp.take_along_axis(scores, order, -1), rows(embeddings, order)
        half = scores.shape[-1] // 2
        high, low = scores[:, :half], jnp.flip(scores[:, half:], -1)
        w = jax.nn.sigmoid(jnp.exp(math.log(base) * high) - jnp.exp(math.log(base) * low))
        best, worst = embeddings[:, :half], jnp.flip(embeddings[:, half:], 1)
        embeddings = w[..., None] * best + (1 - w[..., None]) * worst
        scores = w * high + (1 - w) * low
    return embeddings, scores


def thresholded(scores, k, temperature):
    """A sigmoid mask about the threshold at which it sums to k (LapSum's form); implicit derivative."""
    return jax.nn.sigmoid(over_threshold(scores, k, temperature))


def over_threshold(scores, k, temperature):
    """The logits of that mask."""
    v = scores / temperature
    still = lax.stop_gradient(v)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        over = jnp.sum(jax.nn.sigmoid(still - middle), -1, keepdims=True) > k
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    ends = still.min(-1, keepdims=True) - 20, still.max(-1, keepdims=True) + 20
    level = sum(lax.fori_loop(0, 40, halve, ends)) / 2
    slope = jax.nn.sigmoid(still - level) * jax.nn.sigmoid(level - still)
    share = slope / jnp.maximum(slope.sum(-1, keepdims=True), 1e-9)
    return v - level - jnp.sum(share * (v - still), -1, keepdims=True)


@functools.cache
def softsort():
    """softjax's softsort with `index @ payload`; None, and a printed line, where softjax is not installed."""
    try:
        import softjax
    except ImportError:
        print("softjax is not installed (it needs Python 3.12 or later): its columns are left out.")
        return None

    def pooled(embeddings, scores, k):
        best, index = softjax.top_k(scores, k, method="softsort")
        return index @ embeddings, best

    return pooled
