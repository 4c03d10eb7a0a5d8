"""Boosts: the weight of the better-seeded side of each match. `Boost` defines the arguments and the result.

Each boost here is a pytree whose leaves are its numbers, so new numbers compile nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from shtopk import _checks
from shtopk._pytree import pytree
from shtopk._reorder import value_of
from shtopk._seeding import taken

# Ratios of gaps are clipped to this: far past saturation for any useful sharpness, far from overflow.
_WIDEST_RATIO = 1e6
# Scores within this many roundings of each other count as tied: a few rounds can separate equal scores by that much.
_ROUNDINGS = 4
# A round whose quantile is wider than this many spreads of its better scores spans clusters, or padding.
_CLUSTERS = 100
# If one gap is this many times as wide as the next one, it is that of an outlier: do not interpolate between the two.
# With 100, the nCCS of two clusters at n = 16 and k = 2 would be 0.997 and not 0.951, but models would learn less: on
# orange skin the recipe with `Relative` scores 0.734 with 100, and 0.814 with 1e4.
_ABYSS = 1e4


class Boost(Protocol):
    """The type of every `boost` argument: a callable that divides each match between its two sides.

    The weight of the better side is `w = boost(high, low, where)`, that of the other side `1 - w`. `Relative`,
    `Scaled` and `Power` are boosts, and so is any function of this form. To trace, anneal or learn numbers of your
    own, write a boost that is a pytree with these numbers as leaves.

    >>> def halves(high, low, where):  # both sides of every match count the same
    ...     return jnp.full(high.shape, 0.5)
    >>> boost: Boost = halves
    >>> topk_mask(jnp.array([3.0, 2.0, 1.0, 0.0]), 2, boost=boost).tolist()
    [0.5, 0.5, 0.5, 0.5]
    """

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array, /) -> jax.Array:
        """Return the weights of the better sides in one round of h matches.

        Args:
          high: `(h,)` floating and finite, the scores of the better-seeded sides, best seed first.
          low: `(h,)`, the scores of their opponents. In the first round, and with `reseed=True` in every round,
            `high - low` is 0 or more and comes widest first. In later rounds of a tournament that is sorted once,
            a better seed may have the lower score.
          where: `(h,)` boolean, True for the matches that are played between two finite scores. These matches are
            contiguous. `high` and `low` are 0 in the others.

        Returns:
          `(h,)` in [0, 1]; a weight outside is clipped. Entries outside `where` are ignored.
        """
        ...


def checked_boost(boost):
    """`boost`, an argument of a public function, its numbers checked against their ranges if they are not traced."""
    boost = _checks.boost(boost)
    if type(boost) in (Relative, Scaled):
        _checks.within("boost.sharpness", boost.sharpness, lambda x: x >= 0, "0 (an even mix) or more")
    elif type(boost) is Power:
        _checks.within(
            "boost.base", boost.base, lambda x: 0 < x < jnp.inf, "above 0 and finite, for instance 20.0"
        )
    # Not in a boost of the user's own, where an integer may be meant as one.
    return jax.tree.map(_checks.whole_as_float, boost) if by_match(boost) else boost


def units(boost, ranked, halves, above):
    """Half the unit of `Relative` in each round, `(rounds,)`; no other boost reads it.

    `ranked` `(n,)` has the scores before any round, best first, of which the first `above` take part and are above
    -inf. `halves` `(rounds,)` has each round's number of survivors. The gaps are those that the round would have if the
    better seed had won every earlier match. Matches against -inf have no gap.
    """
    if type(boost) is not Relative:
        return jnp.zeros(len(halves), ranked.dtype)
    halves = jnp.asarray(halves, jnp.int32)
    first = jnp.clip(2 * halves - above, 0, halves - 1)
    return _relative_unit(boost, ranked, halves, first, halves - first)


def low_weights(boost, high, low, where, unit):
    """The weights of `low` in a round, of which `where` marks the contested matches, and `unit` is from `units`.

    The worse side nearly always has the smaller weight, and a small number keeps its digits. 1 minus the weight of
    `high` would be a multiple of 6e-8. The boosts of this module are symmetric: `boost(low, high) = 1 - boost(high,
    low)`.
    """
    if type(boost) is Relative:
        return _relative_weights(boost, low, high, where, unit)
    high, low = jnp.where(where, high, 0), jnp.where(where, low, 0)
    if by_match(boost):
        return boost(low, high, where)
    return 1 - _checks.win_weights(boost(high, low, where), high)


def by_match(boost):
    """Whether the weight of a match depends on its own scores and the unit alone, so that matches have no order.

    A subclass may override `__call__`, so it counts as a function of the user's own.
    """
    return type(boost) in (Relative, Scaled, Power)


def centred(boost, ranked, last):
    """The scores `ranked` `(n,)`, best first, minus the one at position `last`, the worst of the k best.

    The difference of two floats of similar size is exact, so scores far from 0 keep the digits in which they differ.
    Infinities and NaN do not change. No score does if that one is not finite, or if the boost reads more than gaps.
    """
    if type(boost) not in (Relative, Scaled):
        return ranked
    pivot, most = lax.stop_gradient(ranked[last]), float(jnp.finfo(ranked.dtype).max)
    pivot = jnp.where(jnp.isfinite(pivot), pivot, 0)
    moved = jnp.where(jnp.isfinite(ranked), jnp.clip(ranked - pivot, -most, most), ranked)
    # A clip would halve the derivative at its limit. With the whole one, a gradient starts one kernel less (H100).
    return value_of(moved, ranked)


def half_gap(high, low):
    """`(high - low) / 2`."""
    # Halve each score first: the difference of two finite scores may overflow, half of it cannot.
    return 0.5 * high - 0.5 * low


def _sigmoid(name, sharpness, gap):
    """`sigmoid(sharpness * gap)`; for an infinite sharpness its limit 0, 1/2 or 1, a constant."""
    sharpness = _checks.number(name, sharpness, gap.dtype)
    soft = jax.nn.sigmoid(_checks.clipped(sharpness) * gap)
    return jnp.where(sharpness == jnp.inf, 0.5 + 0.5 * jnp.sign(gap), soft)


@pytree("sharpness")
@dataclass(frozen=True)
class Scaled:
    """The boost that multiplies both scores by a constant and takes their softmax, `w = sigmoid(C * (high - low))`.

    This is `softmax(C*x, C*y)` of Pietruszka et al. 2021, "Novel Successive Halving Top-k". `anneal` returns it.

    Attributes:
      sharpness: `C >= 0`, scalar, in units of 1 / score. 0 gives an even mix; a large value is close to a hard choice.
        An infinite one is the hard choice: 1 to the higher score, 1/2 each in a tie, and a gradient of 0.

    >>> w = Scaled(2.0)(jnp.array([1.0]), jnp.array([0.5]), jnp.array([True]))
    >>> f"{w[0]:.3f}"  # sigmoid(2 * (1 - 0.5))
    '0.731'
    """

    sharpness: jax.typing.ArrayLike

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        high, low, where = _checks.matches(high, low, where)
        # Twice a wider half would overflow, and its derivative in the sharpness would be infinity times 0.
        most = float(jnp.finfo(high.dtype).max) / 4
        return _sigmoid("Scaled.sharpness", self.sharpness, 2 * jnp.clip(half_gap(high, low), -most, most))


@pytree("base")
@dataclass(frozen=True)
class Power:
    """The boost that takes a softmax of powers of a base, `w = sigmoid(base**high - base**low)`.

    This is the BoostedSoftmax behind the figures of Pietruszka et al. 2021. It is made for scores in [0, 1], and
    separates high scores far better than low scores.

    Attributes:
      base: scalar > 0, finite; 20 in the published figures.

    >>> w = Power(2.0)(jnp.array([1.0]), jnp.array([0.0]), jnp.array([True]))
    >>> f"{w[0]:.3f}"  # sigmoid(2**1 - 2**0)
    '0.731'
    """

    base: jax.typing.ArrayLike = 20.0

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        high, low, where = _checks.matches(high, low, where)
        log_base = jnp.log(_checks.number("Power.base", self.base, high.dtype))
        limit = float(jnp.finfo(high.dtype).max)
        high, low = (jnp.clip(x * log_base, -limit, limit) for x in (high, low))
        # Above exp(60) the sigmoid is 0, 1 or (in a tie) 1/2 whatever the scale. So both powers are scaled down to
        # exp(60) together, which avoids inf - inf, and are constant under differentiation, as the sigmoid is there.
        # The larger one is subtracted first, because `high - 60` is `high` where the spacing of floats is above 60.
        top = jnp.maximum(high, low)
        steep = top > 60
        high, low = (jnp.where(steep, lax.stop_gradient(x - top + 60), x) for x in (high, low))
        return jax.nn.sigmoid(jnp.exp(high) - jnp.exp(low))


@pytree("sharpness", "quantile")
@dataclass(frozen=True)
class Relative:
    """The default boost: the softmax of the two scores in units of a typical gap of the round.

    `w = sigmoid(C * (high - low) / g)`. The unit `g` is a quantile of the gaps of the matches that are played in the
    round, counted from the widest, interpolated linearly, and constant under differentiation. Matches against a score
    of -inf do not count. If all scores are multiplied by a positive number, or if a number is added to all of them, the
    weights stay the same.

    A round may span clusters. For example, most of its matches may be between rows and finite padding, and the quantile
    is then the distance to the padding. So a spread `s` is measured as well, the distance between the better sides an
    eighth and half of the way down the matches. (If these two tie, `s` is the distance between the best side and the
    side half of the way down.) The quantile lies between a wider and a narrower gap:

    - If `s > 0` and the wider gap exceeds `100 * s`, then `g = s`. Matches across clusters are then decided outright.
    - Otherwise, if the narrower gap is not 0 and the wider one exceeds 1e4 times the narrower one, as next to an
      outlier, then `g` is the narrower gap.
    - If the quantile is a gap between infinite scores, `g` is the narrowest gap.

    In a tournament the gaps are those that the round would have if the better seed had won every earlier match. These
    gaps come widest first, and do not depend on the sharpness. A match is a tie if its gap and `g` are both at most 4
    eps times the larger absolute score of its two sides. (A tournament first subtracts the k-th best score from all
    scores.) If `g` is 0, tied scores share evenly, and every other match is decided outright.

    Attributes:
      sharpness: `C >= 0`, scalar, without unit. Increase it during training to go from soft to hard.
      quantile: scalar, clipped to [0, 1]. At 0 the unit is the widest gap of the round, at 1 the narrowest.

    >>> scores = jnp.array([8.0, 4.0, 2.0, 0.0])  # gaps 8 - 0 and 4 - 2; their median is 5
    >>> w = Relative(1.0, 0.5)(scores[:2], scores[:1:-1], jnp.array([True, True]))
    >>> [f"{x:.3f}" for x in w]  # sigmoid(8 / 5), sigmoid(2 / 5)
    ['0.832', '0.599']
    """

    sharpness: jax.typing.ArrayLike = 6.0
    quantile: jax.typing.ArrayLike = 0.75

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        high, low, where = _checks.matches(high, low, where)
        entries = high.shape[0]
        first = jnp.min(jnp.where(where, lax.iota(jnp.int32, entries), entries))  # faster than argmax
        ranked, count = jnp.concatenate([high, jnp.flip(low)]), jnp.sum(where, dtype=jnp.int32)
        return _relative_weights(self, high, low, where, _relative_unit(self, ranked, entries, first, count))


def _relative_weights(boost, high, low, where, unit):
    """The weights `(h,)` of `high` by `Relative`, for half the unit, a scalar; 1/2 where a match is not contested."""
    gap = jnp.where(where, half_gap(high, low), 0)
    wider, larger = jnp.maximum(unit, jnp.abs(gap)), 0.5 * jnp.maximum(jnp.abs(high), jnp.abs(low))
    tie = wider <= _ROUNDINGS * float(jnp.finfo(gap.dtype).eps) * larger
    # In a tie any unit gives w = 1/2, and the larger score keeps the gradient moderate. Elsewhere a unit far below the
    # gap saturates the sigmoid anyway. Divided by a unit below 2^24 times the smallest normal number, a cotangent could
    # overflow.
    unit = jnp.where(tie, larger, jnp.maximum(unit, wider / _WIDEST_RATIO))
    unit = lax.stop_gradient(jnp.where(unit > float(jnp.finfo(gap.dtype).tiny) * 2**24, unit, 1))
    return _sigmoid("Relative.sharpness", boost.sharpness, gap / unit)


def _relative_unit(boost, ranked, half, first, count):
    """Half the unit `g` of `Relative` in each round, `()` or `(rounds,)` as the shape of `first` and `count`.

    Entry i of `ranked` `(n,)` plays entry 2 * half - 1 - i. The `count` live matches begin at `first`.
    """
    ranked, last = lax.stop_gradient(ranked), first + count - 1

    def score(entry):
        return taken(ranked, jnp.clip(entry, 0, ranked.shape[0] - 1))

    def gap(entry):
        return jnp.abs(half_gap(score(entry), score(2 * half - 1 - entry)))

    quantile = jnp.clip(_checks.number("Relative.quantile", boost.quantile, ranked.dtype), 0, 1)
    position = (1 - quantile) * (count - 1).astype(ranked.dtype)
    depth = jnp.floor(position).astype(jnp.int32)
    least, narrower, wider = gap(last), gap(last - depth), gap(jnp.maximum(last - depth - 1, first))
    narrower = jnp.where(narrower < jnp.inf, narrower, least)  # the gaps of infinite scores are the widest
    outlying = ((narrower > 0) & (wider > _ABYSS * narrower)) | ~(wider < jnp.inf)
    part = jnp.where(outlying, 0, position - jnp.floor(position))
    unit = jnp.where(part > 0, (1 - part) * narrower + part * wider, narrower)

    best, upper, middle = (score(first + entry) for entry in (0, count // 8, count // 2))
    spread = jnp.abs(half_gap(jnp.where(upper == middle, best, upper), middle))
    unit = jnp.where((spread > 0) & (wider > _CLUSTERS * spread), spread, unit)
    return jnp.where(unit < jnp.inf, unit, float(jnp.finfo(ranked.dtype).max))
