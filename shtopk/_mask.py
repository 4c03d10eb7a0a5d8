"""The soft mask over the candidates, for a k that may be traced or real."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shtopk import _checks, _rounds, _sharding
from shtopk._boost import Boost, Relative, centred, checked_boost
from shtopk._bracket import bracket, seeded
from shtopk._jit import compiled, over_rows
from shtopk._precision import accumulation_dtype, narrowed
from shtopk._reorder import reordered
from shtopk._select import log_weight


def topk_mask(
    scores: ArrayLike,
    k: ArrayLike,
    *,
    boost: Boost = Relative(),  # noqa: B008 (frozen, so sharing it is safe)
    reseed: bool = False,
    where: ArrayLike | None = None,
    candidates: int | None = None,
    log: bool = False,
    axis_name: Any = None,
) -> jax.Array:
    """Compute the soft top-k mask, the weight of each candidate in its slot.

    The weights sum to k, or to the number of rows that take part if that is smaller.

    The mask is that of `select(scores, k, ...).mask()` (Pietruszka et al. 2021, Algorithm 2). Here k may also be
    traced, and under `vmap` it may differ from row to row. A real k interpolates: the mask is `(1 - f) * mask(floor
    k) + f * mask(floor k + 1)` with `f = k - floor k`. This is continuous in k, and its derivative in k is `mask(floor
    k + 1) - mask(floor k)`, which sums to 1 up to the number of rows that take part. So k can be learned.

    Args:
      scores: `(..., n)` floating, larger is better.
      k: int, float, or array of shape (), `1 <= k <= n`. An int and the whole part of a float are static. A JAX array
        is traced; out of range, it gives a mask and a gradient of NaN.
      boost, reseed, where: see `topk`. `Scaled(jnp.inf)` gives the hard mask, 1 for the k best and 0 for the others.
        Rows that tie at the k-th place may share its weight.
      candidates: static int, `k <= candidates <= n`. Only this many candidates compete, those with the best scores. A
        traced k above `candidates` gives a mask of NaN.
      log: if True, return the logarithm of the mask, to add to attention logits: -inf where the mask is 0 (in a dtype
        without infinities, its lowest number). Its gradient is finite, and 0 where the mask is below 2e-31 (4e-301 in
        float64), which is 0 to any softmax. The softmax of a row in which no candidate takes part is NaN.
      axis_name: the mesh axis over which n is split, inside `jax.shard_map`, see `topk`. `scores`, `where` and the mask
        are this device's share.

    Returns:
      `(..., n)` in [0, 1], in the dtype of `scores`; with `log`, 0 or less.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: a shape or a value is out of range. Both come at trace time, and name the argument and the remedy.

    >>> topk_mask(jnp.array([0.0, 3.0, 1.0, 2.0]), 2, boost=Scaled(0.0)).tolist()
    [0.5, 0.5, 0.5, 0.5]
    >>> jax.vmap(topk_mask)(jnp.ones((2, 2)), jnp.array([1, 2])).tolist()
    [[0.5, 0.5], [1.0, 1.0]]
    >>> topk_mask(jnp.ones(2), 1.5).tolist()  # halfway between k = 1 and k = 2
    [0.75, 0.75]
    """
    scores = _checks.scores(scores)
    where = _checks.where(where, scores.shape)
    boost = checked_boost(boost)
    devices = _sharding.over(axis_name)
    n = scores.shape[-1] * devices.size
    options = {"reseed": _checks.flag("reseed", reseed), "log": _checks.flag("log", log), "devices": devices}
    k = _checks.real_or_traced_k(k, n)
    if isinstance(k, jax.Array):
        candidates = _checks.candidates(candidates, 1, n)
        return _mask_of_traced_k(scores, where, k, boost, candidates=candidates, **options)
    candidates = _checks.candidates(candidates, math.ceil(k), n)
    whole = math.floor(k)
    part = None if k == whole else k - whole
    return _mask(scores, where, boost, part, k=whole, candidates=candidates, **options)


@compiled("k", "reseed", "candidates", "log", "devices")
def _mask(scores, where, boost, part, *, k, reseed, candidates, log, devices):
    """`topk_mask` for a static k and a traced `part` of the next slot, or None: a new part compiles nothing."""

    def row(scores, where):
        n = scores.shape[0] * devices.size
        entry = devices.enter(scores, where, candidates)

        def mask(k):
            _, weights, indices, places = bracket(entry, n, boost, k, reseed, candidates)
            return devices.part(reordered(weights, places, indices))

        out = mask(k) if part is None else (1 - part) * mask(k) + part * mask(k + 1)
        return narrowed(log_weight(out) if log else out, scores.dtype)

    return over_rows(row, scores.ndim - 1)(scores, where)


@compiled("reseed", "candidates", "log", "devices")
def _mask_of_traced_k(scores, where, k, boost, *, reseed, candidates, log, devices):
    """`topk_mask` for a traced k `()`."""
    n = scores.shape[-1] * devices.size
    k = _in_range(k, candidates)

    def row(scores, where):
        ranked, count, above, order, rank = seeded(devices.enter(scores, where, candidates), n, candidates)

        def mask(k):
            own = centred(boost, ranked, jnp.minimum(k, count) - 1)
            weights = _rounds.play_traced_k(own, count, above, k, boost, reseed)
            return devices.part(reordered(weights, rank, order))

        if jnp.issubdtype(k.dtype, jnp.integer):
            out = mask(jnp.maximum(k, 1))
        else:
            # Interpolate between the masks of `low` and `low + 1`. At k = count these are count - 1 and count, so that
            # the derivative in k is that from below. (`jnp.minimum` would halve it there.)
            last = jnp.maximum(count, 1)
            low = jnp.clip(k.astype(jnp.int32), 1, jnp.maximum(1, last - 1))
            most = last.astype(k.dtype)
            part = jnp.where(k > most, most, k) - low.astype(k.dtype)
            part = part.astype(accumulation_dtype(scores.dtype))
            lower, upper = jax.vmap(mask)(jnp.stack([low, jnp.minimum(low + 1, candidates)]))
            out = _weighed(1 - part, lower) + _weighed(part, upper)
        out *= jnp.where(k > 0, 1, jnp.nan).astype(out.dtype)  # NaN in the gradient, too
        return narrowed(log_weight(out) if log else out, scores.dtype)

    return over_rows(row, scores.ndim - 1)(scores, where)


def _weighed(part, mask):
    """`part * mask`, and 0 where `part` is 0 and `mask` is NaN."""
    # Only there: elsewhere the derivative in `part` is `mask`, also where `part` is 0.
    return jnp.where((part == 0) & jnp.isnan(mask), 0, part * mask)


def _in_range(k, most):
    """k as int32, or in float32 at least if it is real; 0 or NaN instead of a number out of range."""
    if jnp.issubdtype(k.dtype, jnp.floating):
        k = k.astype(accumulation_dtype(k.dtype))
        return k * jnp.where((k >= 1) & (k <= most), 1, jnp.nan).astype(k.dtype)  # the gradient is NaN, too
    # Check before the cast, which could wrap a larger number into the range.
    return jnp.where((k >= 1) & (k <= min(most, jnp.iinfo(k.dtype).max)), k, 0).astype(jnp.int32)
