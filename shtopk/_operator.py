"""topk and hard_topk: check, select, pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shtopk import _checks, _sharding
from shtopk._boost import Boost, Relative, checked_boost
from shtopk._jit import compiled, over_rows
from shtopk._precision import lowest
from shtopk._reorder import ranks, value_of
from shtopk._seeding import filled, seed_order
from shtopk._select import Payload, drawn_member, members_at, moved, row_weights, sums, tournament


class TopK(NamedTuple, Generic[Payload]):
    """The k slots that `topk`, `hard_topk` and `iterative_topk` return.

    A slot is *surplus* if fewer than k rows take part and none is left for it.

    Attributes:
      embeddings: a pytree like the embeddings given, each leaf `(..., k, *features)` in its own dtype; zeros in a
        surplus slot.
      scores: `(..., k)` in the dtype of the scores given; -inf for a surplus slot.
      indices: `(..., k)` int32, the index of one row for each slot; n for a surplus slot. From `topk` the row is the
        champion (the member with the largest weight), or with `draw` the drawn member. From `hard_topk`, and from
        `topk` with `straight_through`, it is the chosen row, and from `iterative_topk` the row with the largest
        remaining score.
    """

    embeddings: Payload
    scores: jax.Array
    indices: jax.Array


def topk(
    embeddings: Payload,
    scores: ArrayLike,
    k: int,
    *,
    boost: Boost = Relative(),  # noqa: B008 (frozen, so sharing it is safe)
    reseed: bool = False,
    where: ArrayLike | None = None,
    candidates: int | None = None,
    straight_through: bool = False,
    draw: ArrayLike | None = None,
    key: jax.Array | None = None,
    order: str = "score",
    axis_name: Any = None,
) -> TopK[Payload]:
    """Select k of n rows by their scores, softly, so that the result has a gradient in the scores.

    This is the successive-halving top-k operator (Pietruszka et al. 2021, Algorithm 2). It sorts the candidates and
    plays `R = ceil(log2(n / k))` rounds. In each round the best candidate plays the worst, and the second best plays
    the second worst. With `w = boost(high, low, where)` the two sides become one, `w * high + (1 - w) * low`, in scores
    and embeddings alike. The weight `m_i` of a candidate is the product of its match weights. The embeddings are pooled
    once, `E'_s = sum over members i of slot s of m_i * E_i`. If n is not `k * 2^R`, the best seeds have a bye in the
    first round.

    Args:
      embeddings: `(..., n, *features)` floating, or a pytree of such arrays. The leading axes are those of `scores`; an
        axis of size 1 is shared by all rows of scores.
      scores: `(..., n)` floating, larger is better. Of two tied candidates, the one with the lower index is the better
        seed. Under the boosts of this library, two that play each other in their first match share it evenly. NaN ranks
        first. The score of its slot is NaN, and so is the row if the NaN plays a match.
      k: static int, `1 <= k <= n`.
      boost: sets the weight of the better side of each match (see `Boost`): `Relative`, which does not depend on the
        scale of the scores, `Scaled`, `Power`, or your own function. If the boost is a pytree, its numbers are
        traced, and new values do not recompile. Outside of `jit`, a call with a plain function is not compiled as a
        whole.
      reseed: if True, sort the survivors before every round, exactly as in Algorithm 2. If False, sort only once, at
        the start, which is usually faster. The quality of the default boost is the same.
      where: boolean, broadcastable to `(..., n)`; True = takes part. With fewer than k such rows the surplus
        slots are rows of zeros with score -inf.
      candidates: static int, `k <= candidates <= n`. Only this many candidates compete, those with the best scores, in
        `ceil(log2(candidates / k))` rounds. The other rows get weight and gradient exactly 0, so a
        model may fail to learn with few candidates (docs/training.md).
      straight_through: if True, return the values of `hard_topk`, each row with the gradient of its soft slot. Use it
        to fine-tune a selection that already works. Do not train from scratch with it: models then often fail
        to learn (docs/training.md).
      draw: scalar t in [0, 1], plain or traced. A traced t is clipped. Each slot moves from its mixture towards one
        member j, drawn by its weight: `(1 - t) * E'_s + t * E_j`, and its score likewise. At t = 1 each slot is a row
        of the embeddings. The mean over draws is the mixture. In the backward pass the scores get the gradient of the
        mixture, the embeddings that of the rows that were returned, and t gets 0. `draw` needs `key`, and excludes
        `straight_through`.
      key: a key of `jax.random` for `draw`. With an `axis_name`, pass the same key on all devices of that axis.
      order: "score" returns the slots in the order of the bracket. Their scores may be out of order, because a soft
        boost mixes the scores of its members. "position" sorts the slots by `indices`, the positions of their champions
        or drawn members in the input. Surplus slots come last.
      axis_name: the name of a mesh axis (or a tuple of names) over which n is split, inside `jax.shard_map`.
        `embeddings`, `scores` and `where` are then this device's share, of the same size on all devices. The devices
        exchange all scores and masks, and add up `(k, *features)`. The result is that of the whole arrays, and equal on
        all devices. docs/devices.md describes the gradients.

    Returns:
      `TopK(embeddings, scores, indices)`: `(..., k, *features)` for each leaf, in its dtype; `(..., k)` in the dtype of
      `scores`; and `(..., k)` int32. Sums are computed in float32 at least.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: a shape or a value is out of range. Both come at trace time, and name the argument and the remedy.

    >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> scores = jnp.array([0.9, 0.1, 0.8, 0.2])
    >>> topk(embeddings, scores, 2, straight_through=True).embeddings.tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    >>> loss = lambda v: jnp.sum(topk(embeddings, v, 2).embeddings[:, 1])
    >>> jnp.sign(jax.grad(loss)(scores)).tolist()  # more of row 1 and 2, less of row 0 and 3
    [-1.0, 1.0, 1.0, -1.0]
    """
    devices = _sharding.over(axis_name)
    scores, embeddings, where, k = checked(embeddings, scores, k, where, order, devices.size)
    straight_through = _checks.flag("straight_through", straight_through)
    draw, key = _checks.draw(draw, key, straight_through)
    return _topk(
        embeddings,
        scores,
        where,
        checked_boost(boost),
        draw,
        key,
        k=k,
        reseed=_checks.flag("reseed", reseed),
        candidates=_checks.candidates(candidates, k, scores.shape[-1] * devices.size),
        straight_through=straight_through,
        order=order,
        devices=devices,
    )


def hard_topk(
    embeddings: Payload,
    scores: ArrayLike,
    k: int,
    *,
    where: ArrayLike | None = None,
    order: str = "score",
) -> TopK[Payload]:
    """Select the k rows with the best scores, as `lax.top_k` and a gather do.

    Evaluate a model trained with `topk` or `topk_mask` with this function. The chosen rows and their scores have a
    gradient. The choice has none. If n is split over devices, use `topk` with `straight_through` and `axis_name`.

    Args:
      embeddings: `(..., n, *features)` of any dtype but random keys, for example token ids, or a pytree of such arrays.
        The leading axes are those of `scores`; an axis of size 1 is shared by all rows of scores.
      scores: `(..., n)` floating, larger is better; ties go to the lower index, NaN ranks first, -0.0 ties with 0.0.
      k, where: see `topk`.
      order: "score" returns the best row first, "position" keeps the order of the input.

    Returns:
      `TopK(embeddings, scores, indices)`: `(..., k, *features)` for each leaf, in its dtype; `(..., k)` in the dtype of
      `scores`; and `(..., k)` int32.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: a shape or a value is out of range. Both come at trace time, and name the argument and the remedy.

    >>> hard_topk(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([0.3, 0.1, 0.2]), 2).embeddings.tolist()
    [[1.0], [3.0]]
    """
    scores, embeddings, where, k = checked(embeddings, scores, k, where, order, any_dtype=True)
    return _hard(embeddings, scores, where, k=k, order=order)


def checked(embeddings, scores, k, where, order="score", devices=1, any_dtype=False):
    """The arguments that `topk`, `hard_topk` and `iterative_topk` share."""
    scores = _checks.scores(scores)
    embeddings = _checks.embeddings(embeddings, scores.shape, any_dtype=any_dtype)
    where = _checks.where(where, scores.shape)
    _checks.choice("order", order, ("score", "position"))
    return scores, embeddings, where, _checks.k(k, scores.shape[-1] * devices)


@compiled("k", "reseed", "candidates", "straight_through", "order", "devices")
def _topk(
    embeddings, scores, where, boost, draw, key, *, k, reseed, candidates, straight_through, order, devices
):
    """`topk` for checked arguments: select, pool."""
    selection, entry = tournament(scores, where, boost, k, reseed, candidates, devices)
    chosen = selection.champions
    if draw is not None:
        member = drawn_member(selection, key)
        chosen = members_at(selection, member)
        selection = moved(selection, member, draw)
    if order == "position" and not straight_through:
        selection, chosen = over_rows(_in_order_of_position, scores.ndim - 1)(selection, chosen)
    soft = TopK(sums(selection, embeddings), selection.scores, chosen)
    if straight_through:
        hard = _hard_rows(embeddings, entry, selection.n, k, order, devices)
        soft = over_rows(_straight_through, scores.ndim - 1)(hard, soft, selection)
    pooled = devices.total(soft.embeddings)
    if draw is not None:  # the score of a slot moves as its row does
        # An infinite score of weight 0 is left out, because 0 times infinity is NaN in the backward pass.
        unread = jnp.isinf(lax.stop_gradient(scores)) & (row_weights(selection) == 0)
        slot_scores = devices.total(sums(selection, jnp.where(unread, 0, scores)))
        soft = soft._replace(scores=jnp.where(soft.indices < selection.n, slot_scores, lowest(scores.dtype)))
    pooled = jax.tree.map(lambda x, like: x.astype(like.dtype), pooled, embeddings)
    return TopK(pooled, *devices.replicate((soft.scores.astype(scores.dtype), soft.indices)))


def _in_order_of_position(selection, chosen):
    """The selection of one row of scores, its slots sorted by their `chosen` rows `(k,)`, and the sorted `chosen`."""
    k, members = selection.indices.shape
    order = jnp.argsort(chosen)
    slot = filled(ranks(order, k), selection.places // members, k)
    places = slot * members + selection.places % members
    slots = {name: getattr(selection, name)[order] for name in ("indices", "weights", "scores")}
    return replace(selection, places=places, **slots), chosen[order]


@compiled("k", "order")
def _hard(embeddings, scores, where, *, k, order):
    """`hard_topk` for checked arguments."""
    entry = _sharding.Entry(scores, where, None)
    return _hard_rows(embeddings, entry, scores.shape[-1], k, order, _sharding.Whole())


def _hard_rows(embeddings, entry, n, k, order, devices):
    """The best k of the n rows: this device's rows and zeros for the others, with the scores and indices of all k."""

    def row(embeddings, entry):
        best, _ = seed_order(entry.scores, entry.where, k)
        index = best if entry.indices is None else entry.indices[best]
        index = index if entry.where is None else jnp.where(entry.where[best], index, n)
        if order == "position":
            rank = jnp.argsort(index)
            best, index = best[rank], index[rank]
        live = index < n

        def rows(leaf):
            local, own = devices.held(index, leaf.shape[0])
            return jnp.where(column(live & own, leaf), leaf[local], jnp.zeros((), leaf.dtype))

        chosen = jnp.where(live, entry.scores[best], lowest(entry.scores.dtype))
        return TopK(jax.tree.map(rows, embeddings), chosen, index)

    return over_rows(row, entry.scores.ndim - 1)(embeddings, entry)


def column(x, like):
    """`x` `(n,)` with the axes of `like` `(n, *features)`, those of the features of size 1."""
    return x.reshape(x.shape + (1,) * (like.ndim - 1))


def _straight_through(hard, soft, selection):
    """The rows of `hard`, each with the derivative of the slot of `soft` that it is in; for one row of scores.

    If two of these rows are in one slot, both get its derivative.
    """
    k, members = selection.indices.shape
    # A row that is missing (index n) gets the last slot, which is then surplus.
    slot = filled(selection.places, hard.indices, (k - 1) * members) // members
    rows, scores = jax.tree.map(
        lambda x, like: value_of(x.astype(like.dtype), like[slot]), hard[:2], soft[:2]
    )
    return TopK(rows, scores, hard.indices)
