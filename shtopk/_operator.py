"""topk and hard_topk: check, select, pool."""

from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shtopk import _checks, _sharding
from shtopk._boost import Boost, Relative
from shtopk._jit import compiled, over_rows
from shtopk._seeding import ranks, seed_order
from shtopk._select import Payload, drawn_member, moved, sums, tournament

_ORDERS = ("score", "position")


class TopK(NamedTuple, Generic[Payload]):
    """k slots.

    Attributes:
      embeddings: what was given, with k rows for n: each leaf `(..., k, *features)` in its own dtype.
      scores: `(..., k)` in the dtype of the scores given; -inf for a surplus slot, which no row was left for.
      indices: `(..., k)` int32, one of the n rows for each slot: its champion (the member of largest weight), the
        member drawn, or the row that `hard_topk` chose; n for a surplus slot.
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
    """Select k of n rows by their scores, softly, so that gradients reach the scores.

    The successive-halving top-k operator (Pietruszka et al. 2021, Algorithm 2). Candidates are sorted; in each of
    `R = ceil(log2(n / k))` rounds the best meets the worst, the second best the second worst, and the two of
    a match become one, `w * high + (1 - w) * low` with `w = boost(high, low)`, scores and embeddings alike.
    A candidate's weight `m_i` is the product of its match weights, so the embeddings are pooled once:
    `E'_s = sum over members i of slot s of m_i * E_i`. If n is not `k * 2^R`, the best seeds have a bye in the
    first round.

    Args:
      embeddings: `(..., n, *features)` floating, or a pytree of such arrays; the leading axes are those of
        `scores`, or 1 where all rows of scores share one payload.
      scores: `(..., n)` floating, larger is better. Ties go to the lower index and share evenly. NaN ranks
        first and comes out as NaN in the slot it reaches.
      k: static int, `1 <= k <= n`.
      boost: how much of a match its better side takes, called as `boost(high, low, where) -> w`: `Relative`
        (free of the scores' scale), `Scaled`, `Power`, or your own function. A boost that is a pytree has
        its numbers traced and compiles once; a plain function is traced at every call outside of `jit`.
      reseed: sort the survivors again before every round (Algorithm 2 to the letter). False sorts once, at the
        start: faster, and of the same quality.
      where: boolean, broadcastable to `(..., n)`; True = takes part. With fewer than k such rows the surplus
        slots are rows of zeros with score -inf.
      candidates: static int, `k <= candidates <= n`: only so many of the best scores enter; the other rows
        get weight and gradient exactly 0.
      straight_through: the values of `hard_topk`, with the gradient of the soft operator. Made to fine-tune a
        selection that works already; from the start of a training it learns next to nothing (docs/training.md).
      draw: scalar t in [0, 1], plain or traced: each slot moves so far from its mixture to one member j, drawn by its
        weight, `(1 - t) * E'_s + t * E_j`; its score likewise. At t = 1 the slots are rows that exist. The mean
        over draws is the mixture. Gradients of the weights are those of the mixture, those of `embeddings` go where
        the values came from. Needs `key`; excludes `straight_through`.
      key: a key of `jax.random` for `draw`; with an `axis_name`, the same on all devices.
      order: "score" leaves the slots as the bracket does, best first; "position" puts them in the order in
        which their champions (members of largest weight), or the members drawn, stand in the input. Surplus
        slots come last.
      axis_name: the name of a mesh axis (or a tuple of names), inside `jax.shard_map`: n is split over it, and
        `embeddings`, `scores` and `where` are this device's share, of one size on all devices. Scores and masks
        alone travel, in one all-gather, and `(k, *features)` in one sum; the result, equal on all devices, is that
        of the whole arrays. docs/devices.md has the gradients.

    Returns:
      `TopK(embeddings, scores, indices)`: `(..., k, *features)` for each leaf, in its dtype, `(..., k)`, and
      `(..., k)` int32. Sums are taken in float32 at least.

    Raises:
      TypeError, ValueError: at trace time, naming the argument, its value and the remedy.

    >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    >>> scores = jnp.array([0.9, 0.1, 0.8, 0.2])
    >>> topk(embeddings, scores, 2, straight_through=True).embeddings.tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    >>> loss = lambda v: jnp.sum(topk(embeddings, v, 2).embeddings[:, 1])
    >>> jnp.sign(jax.grad(loss)(scores)).tolist()  # more of row 1 and 2, less of row 0 and 3
    [-1.0, 1.0, 1.0, -1.0]
    """
    devices = _checks.devices(axis_name)
    scores, embeddings, where, k = _checked(embeddings, scores, k, where, order, devices)
    draw, key = _checks.draw(draw, key, straight_through)
    return _topk(
        embeddings,
        scores,
        where,
        _checks.boost(boost),
        draw,
        key,
        k=k,
        reseed=_checks.flag("reseed", reseed),
        candidates=_checks.candidates(candidates, k, scores.shape[-1] * devices),
        straight_through=_checks.flag("straight_through", straight_through),
        order=order,
        axis_name=axis_name,
    )


def hard_topk(
    embeddings: Payload,
    scores: ArrayLike,
    k: int,
    *,
    where: ArrayLike | None = None,
    order: str = "score",
) -> TopK[Payload]:
    """The k rows with the best scores themselves: `lax.top_k` and a gather.

    What a model trained through `topk` is evaluated with. Arguments, result and errors are those of
    `topk`; gradients reach the chosen rows and scores, not the choice.

    Args:
      embeddings: `(..., n, *features)` of any dtype, or a pytree of such arrays; token ids, for instance.
      scores: `(..., n)` floating, larger is better; ties go to the lower index, NaN ranks first.
      k: static int, `1 <= k <= n`.
      where: boolean, broadcastable to `(..., n)`; True = takes part.
      order: "score", best first, or "position", as in the input.

    Returns:
      `TopK(embeddings, scores, indices)`, `(..., k, *features)` for each leaf, `(..., k)`, and `(..., k)` int32.

    Raises:
      TypeError, ValueError: at trace time, naming the argument, its value and the remedy.

    >>> hard_topk(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([0.3, 0.1, 0.2]), 2).embeddings.tolist()
    [[1.0], [3.0]]
    """
    scores, embeddings, where, k = _checked(embeddings, scores, k, where, order, any_dtype=True)
    return _hard(embeddings, scores, where, k=k, order=order)


def _checked(embeddings, scores, k, where, order, devices=1, any_dtype=False):
    scores = _checks.scores(scores)
    embeddings = _checks.embeddings(embeddings, scores.shape, any_dtype=any_dtype)
    where = _checks.where(where, scores.shape)
    _checks.choice("order", order, _ORDERS)
    return scores, embeddings, where, _checks.k(k, scores.shape[-1] * devices)


@compiled("k", "reseed", "candidates", "straight_through", "order", "axis_name")
def _topk(
    embeddings, scores, where, boost, draw, key, *, k, reseed, candidates, straight_through, order, axis_name
):
    """`topk` for checked arguments: select, pool."""
    devices = _sharding.over(axis_name)
    selection, entry = tournament(scores, where, boost, k, reseed, candidates, axis_name)
    chosen = selection.champions
    if draw is not None:
        member = drawn_member(selection, key)
        chosen = selection.members_at(member)
        selection = moved(selection, member, draw)
    if order == "position":
        selection, chosen = over_rows(_in_order_of_position, scores.ndim - 1)(selection, chosen)
    soft = TopK(sums(selection, embeddings), selection.scores, chosen)
    if straight_through:
        hard = _hard_rows(embeddings, entry, selection.n, k, order, devices)
        rows, slots = jax.tree.map(
            lambda hard, soft: _value_of(hard.astype(soft.dtype), soft), tuple(hard[:2]), tuple(soft[:2])
        )
        soft = TopK(rows, slots, hard.indices)
    pooled = devices.total(soft.embeddings)
    if draw is not None:  # a slot's score moves as its rows do
        slots = devices.total(sums(selection, scores[..., None]))[..., 0]
        soft = soft._replace(scores=jnp.where(soft.indices < selection.n, slots, -jnp.inf))
    pooled = jax.tree.map(lambda x, like: x.astype(like.dtype), pooled, embeddings)
    return TopK(pooled, *devices.replicate((soft.scores.astype(scores.dtype), soft.indices)))


def _in_order_of_position(selection, chosen):
    """The same selection of one row of scores, its slots in the order of their `chosen` rows `(k,)`, and those."""
    k, members = selection.indices.shape
    rank = jnp.argsort(chosen)
    new = ranks(rank, k, k)
    slot, member = selection.places // members, selection.places % members
    places = jnp.where(slot < k, new[jnp.minimum(slot, k - 1)] * members + member, selection.places)
    slots = (selection.indices, selection.weights, selection.scores)
    moved = type(selection)(*(x[rank] for x in slots), places, selection.n, selection.axis_name)
    return moved, chosen[rank]


@compiled("k", "order")
def _hard(embeddings, scores, where, *, k, order):
    """`hard_topk` for checked arguments."""
    entry = _sharding.Entry(scores, where, None)
    return _hard_rows(embeddings, entry, scores.shape[-1], k, order, _sharding.Whole())


def _hard_rows(embeddings, entry, n, k, order, devices):
    """The best k of the rows of n that enter: those held here, zeros for the others; all their scores and indices."""

    def row(embeddings, entry):
        best = seed_order(entry.scores, entry.where, k)
        live = jnp.ones(k, bool) if entry.where is None else entry.where[best]
        index = jnp.where(live, best if entry.indices is None else entry.indices[best], n)
        if order == "position":
            rank = jnp.argsort(index)
            best, live, index = best[rank], live[rank], index[rank]

        def rows(leaf):
            local, own = devices.held(index, leaf.shape[0])
            kept = (live & own).reshape((k,) + (1,) * (leaf.ndim - 1))
            return jnp.where(kept, leaf[local], jnp.zeros((), leaf.dtype))

        return TopK(jax.tree.map(rows, embeddings), jnp.where(live, entry.scores[best], -jnp.inf), index)

    return over_rows(row, entry.scores.ndim - 1)(embeddings, entry)


@jax.custom_jvp
def _value_of(hard, soft):
    """The value of `hard` with the derivative of `soft`: d out = d soft. Both `(k, ...)`."""
    del soft
    return hard


@_value_of.defjvp
def _value_of_jvp(primals, tangents):
    return _value_of(*primals), tangents[1]
