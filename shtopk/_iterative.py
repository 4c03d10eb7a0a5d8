"""Algorithm 1: the iterative baseline, k peaked softmaxes over all n scores."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shtopk import _checks
from shtopk._jit import compiled, over_rows
from shtopk._operator import TopK, checked, column
from shtopk._precision import accumulation_dtype, narrowed
from shtopk._select import Payload


def iterative_topk(
    embeddings: Payload,
    scores: ArrayLike,
    k: int,
    *,
    alpha: ArrayLike = 1.0,
    normalizer: str = "softmax",
    where: ArrayLike | None = None,
) -> TopK[Payload]:
    """Select k of n rows by a peaked softmax for each slot (Goyal et al. 2017), the baseline of the paper.

    This is Algorithm 1 of Pietruszka et al. 2021. Step i finds the largest remaining score `m`. It gives row j a weight
    `p_ij` proportional to `exp(-alpha * (v_j - m)^2)`, pools `E'_i = sum over j of p_ij * E_j`, and removes the row of
    `m`. A removed row has a weight of exactly 0 in later steps. The paper overwrites the score of this row with -10000
    instead. A NaN or an infinity in the embeddings of a row that takes part reaches every slot, because 0 times it is
    NaN.

    Args:
      embeddings: `(..., n, *features)` floating, or a pytree of such arrays. The leading axes are those of `scores`; an
        axis of size 1 is shared by all rows of scores.
      scores: `(..., n)` floating, larger is better.
      k: static int, `1 <= k <= n`.
      alpha: scalar, 0 or more, in units of 1 / score^2. Algorithm 1 is printed with 1; 2 gives the published nCCS
        (docs/boosts.md). May be traced, annealed or learned.
      normalizer: "softmax" divides by the sum of all terms. "paper" leaves the term of the maximum out of the sum, as
        Algorithm 1 prints it. The weights then sum to more than 1, without bound if no other score is near. If no other
        row is left, as in the last step for k = n, the slot is NaN.
      where: see `topk`.

    Returns:
      `TopK(embeddings, scores, indices)`: `(..., k, *features)` for each leaf, in its dtype; `(..., k)` in the dtype of
      `scores`, the same combination of the scores; and `(..., k)` int32, the row of the maximum of each step, n for a
      surplus slot.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: a shape or a value is out of range. Both come at trace time, and name the argument and the remedy.

    >>> out = iterative_topk(jnp.eye(3), jnp.array([2.0, 1.0, 0.0]), 1, alpha=jnp.log(2.0))
    >>> [f"{x:.4f}" for x in out.embeddings[0] / out.embeddings[0, 0]]  # 2**0, 2**-1, 2**-4
    ['1.0000', '0.5000', '0.0625']
    """
    scores, embeddings, where, k = checked(embeddings, scores, k, where)
    _checks.choice("normalizer", normalizer, ("softmax", "paper"))
    alpha = _checks.within("alpha", alpha, lambda x: x >= 0, "0 (all rows weigh the same) or more")
    return _iterative(embeddings, scores, where, alpha, k=k, normalizer=normalizer)


@compiled("k", "normalizer")
def _iterative(embeddings, scores, where, alpha, *, k, normalizer):
    """`iterative_topk` for checked arguments."""
    row = partial(_iterative_row, alpha=alpha, k=k, normalizer=normalizer)
    return over_rows(row, scores.ndim - 1)(embeddings, scores, where)


def _iterative_row(embeddings, scores, where, alpha, k, normalizer):
    """`iterative_topk` for one row of scores `(n,)`."""
    n = scores.shape[0]
    v = scores.astype(accumulation_dtype(scores.dtype))
    alpha = _checks.number("alpha", alpha, v.dtype)
    everyone = (v == v) | True  # so that it varies over the mesh axes of v, as the loop's carry must
    everyone = everyone if where is None else everyone & where

    def step(left, _):
        # argmax takes the first NaN if there is one, else the first of the largest.
        winner = jnp.argmax(jnp.where(left, v, -jnp.inf))
        winner = jnp.where(left[winner], winner, jnp.argmax(left))  # only -inf are left
        p = _peaked_softmax(v, left, winner, alpha, normalizer)
        return left & (lax.iota(winner.dtype, n) != winner), (p, winner.astype(jnp.int32))

    weights, winners = lax.scan(step, everyone, length=k)[1]
    live = lax.iota(jnp.int32, k) < jnp.sum(everyone, dtype=jnp.int32)

    def pool(leaf):
        dtype = accumulation_dtype(leaf.dtype, v.dtype)
        rows = jnp.where(column(everyone, leaf), leaf, 0).astype(dtype)
        pooled = jnp.tensordot(weights.astype(dtype), rows, 1, precision=lax.Precision.HIGHEST)
        return jnp.where(column(live, pooled), pooled, 0).astype(leaf.dtype)

    # Rows of weight 0 do not count: 0 * inf is NaN.
    parts = weights * jnp.where((weights == 0) | ~everyone[None], 0, v[None])
    slot_scores = jnp.where(live, jnp.sum(parts, axis=-1), -jnp.inf)
    return TopK(
        jax.tree.map(pool, embeddings), narrowed(slot_scores, scores.dtype), jnp.where(live, winners, n)
    )


def _peaked_softmax(v, left, winner, alpha, normalizer):
    """PEAKEDSOFTMAX(-(v - m)^2) over the rows `left` `(n,)`, lines 13 to 20 of Algorithm 1: `(n,)`."""
    m = v[winner]
    # An infinite gap or alpha gives weight 0, and two equal infinities have a gap of 0, without inf - inf.
    near = left & ((v == m) | ~(jnp.isinf(v) | jnp.isinf(m) | jnp.isinf(alpha)))
    gap = jnp.where(near & (v != m), v - m, 0)
    # Where a square would overflow, the weight is 0 for any alpha. Clipped there, its derivative is 0 as well.
    limit = 0.5 * float(jnp.finfo(v.dtype).max) ** 0.5
    gap = jnp.clip(gap, -limit, limit)
    logits = jnp.where(near, -_checks.clipped(alpha) * gap**2, -jnp.inf)
    if normalizer == "softmax":  # the largest logit is 0, that of the winner, so no term overflows
        terms = jnp.exp(logits)
        total = jnp.sum(terms)
        return terms / jnp.where(total == 0, 1, total)
    # The paper leaves the winner out. The logs keep a quotient of two small terms, and its derivative, in range.
    among = near & (lax.iota(winner.dtype, v.shape[0]) != winner)
    none = ~jnp.any(among)
    total = jax.nn.logsumexp(jnp.where(none, 0, logits), where=among | none)
    p = jnp.where(near, jnp.exp(logits - total), 0)
    return jnp.where(none & jnp.any(left), jnp.nan, p)
