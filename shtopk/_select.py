"""The selection: the members of each slot and their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shtopk import _checks, _pooling, _rounds, _sharding
from shtopk._boost import Boost, Relative, checked_boost
from shtopk._bracket import bracket
from shtopk._jit import compiled, over_rows
from shtopk._precision import accumulation_dtype, narrowed
from shtopk._pytree import pytree
from shtopk._reorder import reordered
from shtopk._seeding import filled

Payload = TypeVar("Payload")  # an array or a pytree of arrays; the result has k rows instead of n


@pytree("indices", "weights", "scores", "places", meta=("n", "axis_name"))
@dataclass(frozen=True, eq=False)  # arrays have no truth value to compare by
class Selection:
    """The result of `select`: k slots, each a weighted set of M members.

    M is 2^R, for R = ceil(log2(n / k)) rounds. With `candidates`, R is ceil(log2(candidates / k)). A slot is *surplus*
    if fewer than k rows take part and none is left for it.

    Attributes:
      indices: `(..., k, M)` int32, the members of each slot among the n candidates. A bye repeats a member of
        its own slot.
      weights: `(..., k, M)` float32 or float64, the weights of the members; 0 for byes and for rows outside `where`.
        The weights of a slot sum to 1; those of a surplus slot are 0. If you replace them, set those of byes to 0.
      scores: `(..., k)` in the dtype of the scores given, the scores of the slots; -inf for a surplus slot.
      places: `(..., n)` int32, the place of each candidate among the members, `slot * M + member`; k * M for a
        candidate in no slot.
      n: int, the number of candidates on all devices.
      axis_name: the `axis_name` given to `select`. If it is not None, the slots are those of all devices and equal on
        each, and `indices` and `champions` refer to all n candidates. The argument of `pool` and the results of
        `unpool`, `mask` and `matrix` are this device's share of n. Outside of `shard_map`,
        `dataclasses.replace(selection, axis_name=None)` is the same selection for the whole arrays.

    >>> s = select(jnp.array([0.0, 3.0, 1.0, 2.0]), 2, boost=lambda high, low, where: 0.75 * where)
    >>> s.indices.tolist(), s.weights.tolist()  # score 3 plays 0, and 2 plays 1
    ([[1, 0], [3, 2]], [[0.75, 0.25], [0.75, 0.25]])
    >>> s.pool(jnp.array([[0.0], [3.0], [1.0], [2.0]])).tolist()
    [[2.25], [1.75]]
    """

    indices: jax.Array
    weights: jax.Array
    scores: jax.Array
    places: jax.Array
    n: int
    axis_name: Any = None

    def pool(self, embeddings: Payload, *, scatter: bool = False) -> Payload:
        """Pool the embeddings into the slots, `E'_s = sum over members i of slot s of m_i * E_i`.

        This is `E_i * w_i + E_j * w_j` of Pietruszka et al. 2021, over all rounds at once. `embeddings` is an array
        or a pytree of arrays, each `(..., n, *features)` floating. Each leaf becomes `(..., k, *features)` in its own
        dtype. A leaf that is not floating, or that does not fit `scores`, raises TypeError or ValueError.

        With an `axis_name` the result is equal on all D devices. With `scatter=True` each device gets its own k / D
        slots, `(..., k / D, *features)`, by a reduce-scatter instead of the sum.
        """
        devices, (*lead, k, _) = self._devices, self.indices.shape
        embeddings = _checks.embeddings(embeddings, (*lead, self.n // devices.size))
        return _pool(self, embeddings, scatter=_sharding.scatters(scatter, k, devices))

    def unpool(self, pooled: Payload, *, sum_axis: int | None = None) -> Payload:
        """Apply the adjoint of `pool`: row i becomes `m_i * pooled[slot of i]`, or 0 if it is in no slot.

        `pooled` is an array or a pytree of arrays, each `(..., k, *features)` floating. Each leaf becomes
        `(..., n, *features)` in its own dtype. A leaf that is not floating, or that does not fit the slots, raises
        TypeError or ValueError.

        With `sum_axis` the rows are added up over this leading axis of `pooled`, 0 for the first, as by
        `unpool(pooled).sum(sum_axis)`, but no array `(..., n, *features)` is made, forward or backward. In a mixture of
        experts with scores `(experts, tokens)`, `sum_axis=0` gives each token the results of its experts.
        """
        pooled = _checks.embeddings(pooled, self.indices.shape[:-1], axis="k", name="pooled")
        return _unpool(self, pooled, sum_axis=_checks.sum_axis(sum_axis, self.indices.ndim - 2))

    @compiled()
    def mask(self) -> jax.Array:
        """Return the soft mask `m`, `(..., n)` in [0, 1], in the dtype of `scores`.

        The mask sums to k, or to the number of rows that take part if that is smaller.

        >>> select(jnp.array([0.0, 3.0, 1.0, 2.0]), 4).mask().tolist()
        [1.0, 1.0, 1.0, 1.0]
        """
        return row_weights(self).astype(self.scores.dtype)

    @compiled()
    def matrix(self) -> jax.Array:
        """Return the weights as a dense matrix `(..., k, n)`, in the dtype of `scores`: `matrix @ E` is `pool(E)`."""
        k, members = self.indices.shape[-2:]
        own = jax.nn.one_hot(self._devices.part(self.places) // members, k, dtype=bool, axis=-2)
        return jnp.where(own, self.mask()[..., None, :], 0)

    @property
    @compiled()
    def champions(self) -> jax.Array:
        """The member with the largest weight of each slot, `(..., k)` int32; n for a surplus slot.

        If weights tie, the champion is the better-seeded member (with `reseed=True`, the one whose side had the better
        seed in the last round in which the two were on different sides).
        """
        return members_at(self, jnp.argmax(self.weights, axis=-1))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one member of each slot by its weight, `(..., k)` int32; n for a surplus slot.

        Slots are drawn independently, and no candidate is in two slots. So the k indices are distinct, and candidate i
        is among them with probability `m_i`, its entry of the mask. `key` is a key of `jax.random`. With an
        `axis_name`, pass the same key on all devices of that axis. The indices are constant under differentiation;
        `log_prob` has a gradient.

        >>> s = select(jnp.array([4.0, 3.0, 2.0, 1.0]), 2, boost=lambda high, low, where: 1.0 * where)
        >>> s.sample(jax.random.key(0)).tolist()  # the best two, for sure
        [0, 1]
        """
        return _sample(self, _checks.key(key))

    def log_prob(self, indices: jax.Array) -> jax.Array:
        """Return the logarithm of the probability that `sample` draws `indices`, in any order.

        `indices` is an array `(..., k)` of integers, with n for each surplus slot. Its leading axes broadcast with
        those of the selection. The result `(...)`, float32 or float64, is the sum of the log weights, `log p = sum over
        i in indices of log m_i`. It is -inf for a subset that cannot be drawn: with two members of one slot, a row
        outside `where`, or an index that occurs twice. A surplus slot has probability 1. The gradient is finite, and 0
        for a subset that cannot be drawn.

        >>> s = select(jnp.array([0.0, 3.0, 1.0, 2.0]), 2, boost=lambda high, low, where: 0.75 * where)
        >>> jnp.exp(s.log_prob(jnp.array([[1, 3], [1, 0]]))).tolist()  # 0.75 * 0.75; 1 and 0 share a slot
        [0.5625, 0.0]
        """
        return _log_prob(self, _checks.subset(indices, self.indices.shape[:-1]))

    @compiled()
    def entropy(self) -> jax.Array:
        """Return the entropy of the subsets that `sample` draws, in nats: `- sum over members i of m_i * log m_i`.

        Slots are independent, so their entropies add up. The result is `(...)`, float32 or float64. Its gradient is
        finite.

        >>> s = select(jnp.zeros(4), 2, boost=Scaled(1.0))  # two slots of two members, even
        >>> f"{s.entropy() / jnp.log(2.0):.3f}"
        '2.000'
        """
        logs = log_weight(jnp.where(self.weights == 0, 1, self.weights))
        return jnp.sum(-self.weights.astype(logs.dtype) * logs, axis=(-2, -1))

    @property
    def _devices(self):
        return _sharding.over(self.axis_name)

    @property
    def _without_byes(self):
        """This selection with weight 0 wherever a bye repeats a member, whatever weights a caller has set."""
        *lead, k, members = self.indices.shape
        found = jnp.take_along_axis(self.places, self.indices.reshape(*lead, k * members), axis=-1)
        own = found == lax.broadcasted_iota(jnp.int32, found.shape, found.ndim - 1)
        return replace(self, weights=jnp.where(own.reshape(self.indices.shape), self.weights, 0))

    @property
    def _members(self):
        """The members that this device holds."""
        return self._devices.members(self.indices, self.weights, self.places)


@compiled("scatter")
def _pool(selection, embeddings, *, scatter):
    """`Selection.pool` for checked arguments."""
    axis = selection.indices.ndim - 2 if scatter else None
    pooled = selection._devices.total(sums(selection._without_byes, embeddings), scatter=axis)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), pooled, embeddings)


@compiled("sum_axis")
def _unpool(selection, pooled, *, sum_axis):
    """`Selection.unpool` for checked arguments."""
    held = selection._without_byes._members

    def spread(slots):
        return _pooling.spread((held.indices, held.places), held.weights, held.by_block(slots), sum_axis)

    return jax.tree.map(partial(_on_matrices, spread, selection.indices.ndim - 1), pooled)


@compiled()
def _sample(selection, key):
    """`Selection.sample` for checked arguments."""
    return members_at(selection, drawn_member(selection, key))


@compiled()
def _log_prob(selection, indices):
    """`Selection.log_prob` for checked arguments."""
    k, members = selection.indices.shape[-2:]
    axes = max(indices.ndim - 1, selection.indices.ndim - 2)

    def row(weights, places, indices):
        place = filled(places, jnp.where(indices >= 0, indices, selection.n), k * members)
        # Each live slot must occur once, and n once for each surplus slot. Both n and such slots count as slot k.
        drawn = jnp.where(place < k * members, place // members, jnp.where(indices == selection.n, k, -1))
        slots = jnp.where(jnp.any(weights != 0, axis=-1), lax.iota(jnp.int32, k), k)
        chosen = filled(weights.reshape(-1), place, 1)
        possible = jnp.all(jnp.sort(drawn) == jnp.sort(slots)) & jnp.all(chosen != 0)
        return jnp.where(possible, jnp.sum(log_weight(chosen)), -jnp.inf)

    arrays = (selection.weights, 2), (selection.places, 1), (indices, 1)
    return over_rows(row, axes)(*(jnp.expand_dims(x, range(axes + own - x.ndim)) for x, own in arrays))


def row_weights(selection):
    """The weight of each row that this device holds `(..., rows)`, in the dtype of the weights."""
    devices = selection._devices

    def row(places, weights):
        return devices.part(filled(jnp.ravel(weights), places))  # also of NumPy arrays

    return over_rows(row, selection.places.ndim - 1)(selection.places, selection.weights)


def members_at(selection, member):
    """The candidate at position `member` `(..., k)` of each slot, `(..., k)`; n for a surplus slot."""
    index = jnp.take_along_axis(selection.indices, member[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.any(selection.weights != 0, axis=-1), index, selection.n)


def drawn_member(selection, key):
    """A member `(..., k)` int32 of each slot, drawn by its weight: its position among the members of the slot."""
    return jax.random.categorical(key, jnp.log(lax.stop_gradient(selection.weights))).astype(jnp.int32)


def moved(selection, member, fraction):
    """`selection` with the weights of each slot moved by `fraction` towards weight 1 for its `member` `(..., k)`.

    The step is constant under differentiation, so the gradient is that of the original weights.
    """
    weights = selection.weights
    member = jnp.where(jnp.any(weights != 0, axis=-1), member, -1)  # a surplus slot stays empty
    chosen = lax.broadcasted_iota(jnp.int32, weights.shape, weights.ndim - 1) == member[..., None]
    step = jnp.asarray(fraction, weights.dtype) * (chosen.astype(weights.dtype) - weights)
    return replace(selection, weights=weights + lax.stop_gradient(step))


def log_weight(weights):
    """`log(weights)`, -inf at 0.

    Below 2^24 times the smallest normal number, `1 / weights` times a cotangent could overflow. Such weights, which are
    0 to any softmax, get gradient 0.
    """
    weights = weights.astype(accumulation_dtype(weights.dtype))  # half precision if a selection was cast
    least = float(jnp.finfo(weights.dtype).tiny) * 2**24
    held = jnp.where(weights < least, lax.stop_gradient(weights), weights)
    return jnp.log(jnp.where(held == 0, 1, held)) + jnp.where(held == 0, -jnp.inf, 0)


def sums(selection, embeddings):
    """The sums of this device's rows in each slot: for a leaf `(..., rows, *features)` an array `(..., k, *features)`.

    The dtype is that of the leaf if this device holds all rows, and float32 at least if other devices add theirs.
    """
    k, held = selection.indices.shape[-2], selection._members

    def pool(payload):
        dtype = held.dtype_of_sums(payload.dtype)
        pooled = _pooling.pool((held.indices, held.places), held.weights, payload, dtype)
        return held.by_slot(pooled, k)

    return jax.tree.map(partial(_on_matrices, pool, selection.indices.ndim - 1), embeddings)


def _on_matrices(operation, lead, leaf):
    """Apply `operation` to `leaf`, the features after its `lead` axes flattened to one, and unflatten them.

    On a mesh with explicit axes, axes that are split can be flattened only if they are the first of the features.
    """
    first = lead - leaf.ndim
    split = [axis for axis in range(first, 0) if _sharding.is_split(leaf, axis)]
    front = [first + i for i in range(len(split))]
    if split != front:
        out = _on_matrices(operation, lead, jnp.moveaxis(leaf, split, front))
        return jnp.moveaxis(out, front, split)
    out = operation(leaf.reshape(*leaf.shape[:lead], math.prod(leaf.shape[lead:])))
    return out.reshape(*out.shape[:-1], *leaf.shape[lead:])


def select(
    scores: ArrayLike,
    k: int,
    *,
    boost: Boost = Relative(),  # noqa: B008 (frozen, so sharing it is safe)
    reseed: bool = False,
    where: ArrayLike | None = None,
    candidates: int | None = None,
    axis_name: Any = None,
) -> Selection:
    """Select k of n by their scores, and return the members and weights of each slot.

    This is Algorithm 2 of Pietruszka et al. 2021 on the scores alone; `topk` explains the terms.

    Args:
      scores: `(..., n)` floating, larger is better.
      k: static int, `1 <= k <= n`.
      boost, reseed, where, candidates, axis_name: see `topk`.

    Returns:
      A `Selection`, whose arrays have the leading axes of `scores`.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: a shape or a value is out of range. Both come at trace time, and name the argument and the remedy.

    >>> select(jnp.array([0.1, 0.9, 0.2, 0.8]), 2).champions.tolist()
    [1, 3]
    """
    scores = _checks.scores(scores)
    devices = _sharding.over(axis_name)
    n = scores.shape[-1] * devices.size
    k = _checks.k(k, n)
    return _select(
        scores,
        _checks.where(where, scores.shape),
        checked_boost(boost),
        k=k,
        reseed=_checks.flag("reseed", reseed),
        candidates=_checks.candidates(candidates, k, n),
        devices=devices,
    )


@compiled("k", "reseed", "candidates", "devices")
def _select(scores, where, boost, *, k, reseed, candidates, devices):
    """`select` for checked arguments."""
    selection = tournament(scores, where, boost, k, reseed, candidates, devices)[0]
    return replace(selection, scores=devices.replicate(selection.scores))


def tournament(scores, where, boost, k, reseed, candidates, devices):
    """The selection from `scores` and `where` `(..., rows)`, and the `Entry` of rows that may compete."""
    n = scores.shape[-1] * devices.size

    def row(scores, where):
        entry = devices.enter(scores, where, candidates)
        slot_scores, weights, indices, places = bracket(entry, n, boost, k, reseed, candidates)
        members = weights.shape[0] // k
        block, slot = _rounds.block_and_slot(places, k)
        places = jnp.where(places < k * members, slot * members + block, k * members)
        indices, weights = _snake(indices, k), _snake(weights, k)
        slot_scores = narrowed(slot_scores, scores.dtype)
        return Selection(indices, weights, slot_scores, places, n, devices.axis_name), entry

    return over_rows(row, scores.ndim - 1)(scores, where)


def _snake(x, k):
    """Places `(k * M,)` to slots `(k, M)`: up and down the slots in turn, as in a snake draft.

    By a gather, because a GPU transposes in a kernel of its own. On a TPU gathers are slow: a forward pass at
    16 x 8192 scores, k = 256 and d = 256 would take 1.7 times the compiler's estimate of cycles (v5e, JAX 0.10).
    """
    return lax.platform_dependent(x, tpu=partial(_transposed, k=k), default=partial(_gathered, k=k))


def _transposed(x, k):
    blocks = x.reshape(-1, k)
    odd = lax.broadcasted_iota(jnp.int32, blocks.shape, 0) & 1 == 1
    return jnp.where(odd, jnp.flip(blocks, 1), blocks).T


def _gathered(x, k):
    members = x.shape[0] // k
    slot, block = jnp.indices((k, members), jnp.int32)
    place = block * k + _rounds.mirrored(block, slot, k)
    block, column = jnp.indices((members, k), jnp.int32)
    member = _rounds.mirrored(block, column, k) * members + block
    return reordered(x, place.reshape(-1), member.reshape(-1)).reshape(k, members)
