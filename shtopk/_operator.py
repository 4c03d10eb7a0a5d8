"""topk and hard_topk: validate, select, pool."""

from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from shtopk import _checks
from shtopk._boost import Relative
from shtopk._lift import lift
from shtopk._seeding import seed_order
from shtopk._select import Payload, select_row

_ORDERS = ("score", "position")


class TopK(NamedTuple, Generic[Payload]):
    """k slots.

    Attributes:
      embeddings: what was given, with k rows for n: each leaf `(..., k, *features)` in its own dtype.
      scores: `(..., k)` in the dtype of the scores given; -inf for a slot that no row was left for.
    """

    embeddings: Payload
    scores: jax.Array


def topk(
    embeddings: Payload,
    scores: ArrayLike,
    k: int,
    *,
    boost: Any = Relative(),  # noqa: B008 (frozen, so sharing it is safe)
    reseed: bool = True,
    where: ArrayLike | None = None,
    candidates: int | None = None,
    straight_through: bool = False,
    order: str = "score",
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
        `scores`.
      scores: `(..., n)` floating, larger is better. Ties go to the lower index and share evenly. NaN ranks
        first and comes out as NaN in the slot it reaches.
      k: static int, `1 <= k <= n`.
      boost: how much of a match its better side takes, called as `boost(high, low, where) -> w`: `Relative`
        (free of the scores' scale), `Scaled`, `Power`, or your own function. A boost that is a pytree has
        its numbers traced and compiles once; a plain function is traced at every call outside of `jit`.
      reseed: sort the survivors again before every round (Algorithm 2 to the letter). False sorts once:
        faster, and of the same quality.
      where: boolean, broadcastable to `(..., n)`; True = takes part. With fewer than k such rows the surplus
        slots are rows of zeros with score -inf.
      candidates: static int, `k <= candidates <= n`: only so many of the best scores enter; the other rows
        get weight and gradient exactly 0.
      straight_through: the values of `hard_topk`, with the gradient of the soft operator.
      order: "score" leaves the slots as the bracket does, best first; "position" puts them in the order in
        which their champions (members of largest weight) stand in the input. Surplus slots come last.

    Returns:
      `TopK(embeddings, scores)`: `(..., k, *features)` for each leaf, in its dtype, and `(..., k)`. Sums are
      taken in float32 at least.

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
    scores, embeddings, where, k = _checked(embeddings, scores, k, where, order)
    return _topk(
        embeddings,
        scores,
        where,
        axes=scores.ndim - 1,
        shared=(_checks.boost(boost),),
        k=k,
        reseed=_checks.flag("reseed", reseed),
        candidates=_checks.candidates(candidates, k, scores.shape[-1]),
        straight_through=_checks.flag("straight_through", straight_through),
        order=order,
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
      embeddings: `(..., n, *features)` floating, or a pytree of such arrays.
      scores: `(..., n)` floating, larger is better; ties go to the lower index, NaN ranks first.
      k: static int, `1 <= k <= n`.
      where: boolean, broadcastable to `(..., n)`; True = takes part.
      order: "score", best first, or "position", as in the input.

    Returns:
      `TopK(embeddings, scores)`, `(..., k, *features)` for each leaf, and `(..., k)`.

    Raises:
      TypeError, ValueError: at trace time, naming the argument, its value and the remedy.

    >>> hard_topk(jnp.array([[1.0], [2.0], [3.0]]), jnp.array([0.3, 0.1, 0.2]), 2).embeddings.tolist()
    [[1.0], [3.0]]
    """
    scores, embeddings, where, k = _checked(embeddings, scores, k, where, order)
    return _hard(embeddings, scores, where, axes=scores.ndim - 1, k=k, order=order)


def _checked(embeddings, scores, k, where, order):
    scores = _checks.scores(scores)
    embeddings = _checks.embeddings(embeddings, scores.shape)
    where = _checks.where(where, scores.shape)
    _checks.choice("order", order, _ORDERS)
    return scores, embeddings, where, _checks.k(k, scores.shape[-1])


@lift("k", "reseed", "candidates", "straight_through", "order")
def _topk(embeddings, scores, where, boost, *, k, reseed, candidates, straight_through, order):
    """`topk` for one row of scores `(n,)`."""
    selection = select_row(scores, where, boost, k=k, reseed=reseed, candidates=candidates)
    if order == "position":
        taken = jnp.any(selection.weights != 0, axis=-1)
        rank = _by_position(selection.champions, taken, selection.n)
        selection = jax.tree.map(lambda x: x[rank], selection)
    soft = TopK(selection.pool(embeddings), selection.scores)
    if not straight_through:
        return soft
    return jax.tree.map(_value_of, _hard_row(embeddings, scores, where, k=k, order=order), soft)


def _hard_row(embeddings, scores, where, *, k, order):
    """`hard_topk` for one row of scores `(n,)`."""
    n = scores.shape[0]
    best = seed_order(scores, where, k)
    live = jnp.ones(k, bool) if where is None else where[best]
    if order == "position":
        rank = _by_position(best, live, n)
        best, live = best[rank], live[rank]

    def rows(leaf, otherwise):
        shape = (k,) + (1,) * (leaf.ndim - 1)
        return jnp.where(live.reshape(shape), leaf[best], jnp.asarray(otherwise, leaf.dtype))

    return TopK(jax.tree.map(lambda leaf: rows(leaf, 0), embeddings), rows(scores, -jnp.inf))


_hard = lift("k", "order")(_hard_row)


def _by_position(index, live, n):
    """The permutation `(k,)` that puts slots in the order of `index`, those not `live` last."""
    return jnp.argsort(jnp.where(live, index, n))


@jax.custom_jvp
def _value_of(hard, soft):
    """The value of `hard` with the derivative of `soft`: d out = d soft. Both `(k, ...)`."""
    del soft
    return hard


@_value_of.defjvp
def _value_of_jvp(primals, tangents):
    return _value_of(*primals), tangents[1]
