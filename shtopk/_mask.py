"""The soft mask over the candidates, for a k that may be traced."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shtopk import _checks, _rounds, _sharding
from shtopk._boost import Relative, offset
from shtopk._jit import compiled, over_rows
from shtopk._precision import accumulation_dtype
from shtopk._seeding import permuted, permuted_back, seed_order
from shtopk._select import centred, count, tournament


def topk_mask(
    scores: ArrayLike,
    k: int | jax.Array,
    *,
    boost: Any = Relative(),  # noqa: B008 (frozen, so sharing it is safe)
    reseed: bool = False,
    where: ArrayLike | None = None,
    axis_name: Any = None,
) -> jax.Array:
    """The soft top-k mask: the weight each candidate carries into its slot. It sums to k.

    The same as `select(scores, k, ...).mask()`, for a `k` that may also be traced: an integer array of shape (), and
    a different one for each row under `vmap`.

    Args:
      scores: `(..., n)` floating, larger is better.
      k: int or integer array of shape (), `1 <= k <= n`. A traced k out of range gives a mask of NaN.
      boost, reseed, where: as for `select`.
      axis_name: inside `jax.shard_map`, the mesh axis that n is split over, see `topk`; `scores`, `where` and the
        mask are this device's share.

    Returns:
      `(..., n)` in [0, 1], in the dtype of `scores`.

    Raises:
      TypeError, ValueError: at trace time, naming the argument, its value and the remedy.

    >>> topk_mask(jnp.array([0.0, 3.0, 1.0, 2.0]), 2, boost=Scaled(0.0)).tolist()
    [0.5, 0.5, 0.5, 0.5]
    >>> jax.vmap(topk_mask)(jnp.ones((2, 2)), jnp.array([1, 2])).tolist()
    [[0.5, 0.5], [1.0, 1.0]]
    """
    scores = _checks.scores(scores)
    where = _checks.where(where, scores.shape)
    boost = _checks.boost(boost)
    options = {"reseed": _checks.flag("reseed", reseed), "axis_name": axis_name}
    n = scores.shape[-1] * _checks.devices(axis_name)
    if isinstance(k, jax.Array):
        ks = jnp.broadcast_to(_checks.traced_k(k, n), scores.shape[:-1])
        return _mask_of_traced_k(scores, where, ks, boost, **options)
    return _mask(scores, where, boost, k=_checks.k(k, n), **options)


@compiled("k", "reseed", "axis_name")
def _mask(scores, where, boost, *, k, reseed, axis_name):
    """`topk_mask` for a static k."""
    return tournament(scores, where, boost, k, reseed, None, axis_name)[0].mask()


@compiled("reseed", "axis_name")
def _mask_of_traced_k(scores, where, k, boost, *, reseed, axis_name):
    """`topk_mask` for a traced k `(...)`."""

    def row(scores, where, k):
        return _row_of_traced_k(scores, where, k, boost, reseed, _sharding.over(axis_name))

    return over_rows(row, scores.ndim - 1)(scores, where, k)


def _row_of_traced_k(scores, where, k, boost, reseed, devices):
    """The mask of one row of scores `(n,)` and one traced k: every round in the loop."""
    rows = scores.shape[0]
    scores, where, _ = devices.enter(scores, where, None)
    n = scores.shape[0]
    order = seed_order(scores, where)
    live = jnp.int32(n) if where is None else count(where, n)
    ranked = permuted(scores.astype(accumulation_dtype(scores.dtype)), order)
    ranked = centred(ranked, offset(boost, ranked, jnp.minimum(k, live) - 1))
    # Survivors of each round: k * 2^r, down to k. Rounds with more than n to survive change nothing;
    # theirs is cut to n before it can overflow.
    power = jnp.arange(max(1, _rounds.round_count(n, 1)), dtype=jnp.int32)[::-1]
    halves = jnp.where(k > (n >> power), n, k << power)
    _, survivors, wins, orders = _rounds.loop_up(ranked, live, halves, boost, reseed)
    slots = lax.iota(jnp.int32, n) < jnp.minimum(survivors, k)
    weights, _ = _rounds.loop_down(slots.astype(ranked.dtype), halves, wins, orders)
    weights = jnp.where(lax.iota(jnp.int32, n) < live, weights, 0)
    mask = devices.part(permuted_back((weights,), order)[0], rows)
    return jnp.where(k > 0, mask, jnp.nan).astype(scores.dtype)
