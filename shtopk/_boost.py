"""Boosts: how much of a match its better-seeded side takes.

A boost is called as `boost(high, low, where) -> w`. `high` and `low`, both `(h,)`, hold the scores of a
round's matches, best seed first, so that the gaps `high - low` come widest first; `where`, `(h,)` boolean,
marks the live matches, which stand side by side; `w`, `(h,)` in [0, 1], is the weight of `high`, and
`1 - w` that of `low`. The scores handed over are always finite. Each boost is a pytree whose leaves are its
numbers: they may be traced, annealed or learned, and changing them compiles nothing.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from shtopk import _checks
from shtopk._pytree import pytree

# Ratios of gaps are held below this: far past saturation for any useful sharpness, far from overflow.
_WIDEST_RATIO = 1e6
# Gaps within so many roundings of the largest score are what is left of a tie after a few rounds.
_ROUNDINGS = 64


def _half_gap(high, low):
    # Half of each first: the difference of two finite scores may overflow, half of it cannot.
    return 0.5 * high - 0.5 * low


@pytree("sharpness")
@dataclass(frozen=True)
class Scaled:
    """The two-way softmax of scaled scores, `w = sigmoid(C * (high - low))`.

    This is `softmax(C*x, C*y)` of Pietruszka et al. 2021, "Novel Successive Halving Top-k".

    Attributes:
      sharpness: `C >= 0`, scalar, in units of 1 / score. Large is close to a hard choice, 0 an even mix.

    >>> w = Scaled(2.0)(jnp.array([1.0]), jnp.array([0.5]), jnp.array([True]))
    >>> f"{w[0]:.3f}"  # sigmoid(2 * (1 - 0.5))
    '0.731'
    """

    sharpness: jax.typing.ArrayLike

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        high, low, where = _checks.matches(high, low, where)
        sharpness = _checks.number("Scaled.sharpness", self.sharpness, high.dtype)
        return jax.nn.sigmoid(2 * (sharpness * _half_gap(high, low)))


@pytree("base")
@dataclass(frozen=True)
class Power:
    """The softmax of powers, `w = sigmoid(base**high - base**low)`.

    The BoostedSoftmax behind the figures of Pietruszka et al. 2021, made for scores in [0, 1]: it tells
    apart high scores well and low scores hardly at all.

    Attributes:
      base: scalar > 0, 20 as published.

    >>> w = Power(2.0)(jnp.array([1.0]), jnp.array([0.0]), jnp.array([True]))
    >>> f"{w[0]:.3f}"  # sigmoid(2**1 - 2**0)
    '0.731'
    """

    base: jax.typing.ArrayLike = 20.0

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        high, low, where = _checks.matches(high, low, where)
        log_base = jnp.log(_checks.number("Power.base", self.base, high.dtype))
        limit = float(jnp.finfo(high.dtype).max)
        high = jnp.clip(high * log_base, -limit, limit)
        low = jnp.clip(low * log_base, -limit, limit)
        # Above exp(60) the sigmoid is 0, 1 or (in a tie) 1/2 whatever the scale. So both powers are brought
        # down to it together, which leaves no inf - inf, and are held constant, as the sigmoid there is.
        excess = jnp.maximum(jnp.maximum(high, low) - 60, 0)
        power_gap = jnp.exp(high - excess) - jnp.exp(low - excess)
        return jax.nn.sigmoid(jnp.where(excess > 0, jax.lax.stop_gradient(power_gap), power_gap))


@pytree("sharpness", "quantile")
@dataclass(frozen=True)
class Relative:
    """The two-way softmax of scores measured in the round's own gaps (the default boost).

    `w = sigmoid(C * (high - low) / g)`, where `g` is a quantile, linearly interpolated, of the gaps of the
    round's live matches counted from the widest, held constant under differentiation. Multiplying all
    scores by a positive number or adding a number to them changes nothing. Gaps are read where they stand:
    they come sorted out of a sorted round, and nearly so under `reseed=False`. Where `g` is 0, tied scores
    share evenly and any others are decided outright; gaps within 64 roundings of the largest score are ties.

    Attributes:
      sharpness: `C >= 0`, scalar, without unit. Anneal it upwards to go from soft to hard.
      quantile: scalar, 0 to measure by the round's widest gap, 1 by its narrowest; read as clipped to [0, 1].

    >>> scores = jnp.array([8.0, 4.0, 2.0, 0.0])  # gaps 8 - 0 and 4 - 2; their median is 5
    >>> w = Relative(1.0, 0.5)(scores[:2], scores[:1:-1], jnp.array([True, True]))
    >>> [f"{x:.3f}" for x in w]  # sigmoid(8 / 5), sigmoid(2 / 5)
    ['0.832', '0.599']
    """

    sharpness: jax.typing.ArrayLike = 6.0
    quantile: jax.typing.ArrayLike = 0.75

    def __call__(self, high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        high, low, where = _checks.matches(high, low, where)
        gap = _half_gap(high, low)
        size = jnp.abs(gap)
        entries = gap.shape[0]
        first = jnp.min(jnp.where(where, jax.lax.iota(jnp.int32, entries), entries))  # faster than argmax
        # Half the largest score, which is an end of the first live match.
        ends = jnp.stack([high.at[first].get(mode="clip"), low.at[first].get(mode="clip")])
        largest = jnp.max(jnp.abs(0.5 * ends))
        unit = self._unit(size, where, first)
        tie = jnp.maximum(unit, size) <= _ROUNDINGS * float(jnp.finfo(gap.dtype).eps) * largest
        # A unit far below this match's own gap saturates the sigmoid anyway. In a tie any unit gives w = 1/2,
        # and the largest score, or 1 for one below the range of normal numbers, keeps the gradient tame.
        unit = jnp.where(tie, largest, jnp.maximum(unit, size / _WIDEST_RATIO))
        tiny = float(jnp.finfo(gap.dtype).tiny) * 2**24
        unit = jax.lax.stop_gradient(jnp.where(unit > tiny, unit, 1))
        sharpness = _checks.number("Relative.sharpness", self.sharpness, gap.dtype)
        return jax.nn.sigmoid(sharpness * (gap / unit))

    def _unit(self, gaps, where, first):
        """The quantile of `gaps` `(h,)`, read by position among the live matches from `first` on, scalar."""
        count = jnp.sum(where, dtype=jnp.int32)
        quantile = jnp.clip(_checks.number("Relative.quantile", self.quantile, gaps.dtype), 0, 1)
        position = quantile * (count - 1).astype(gaps.dtype)
        below = jnp.floor(position)
        part = position - below
        index = first + below.astype(first.dtype)
        ends = jnp.stack([index, jnp.minimum(index + 1, first + count - 1)])
        wide, narrow = gaps.at[ends].get(mode="clip")
        return (1 - part) * wide + part * narrow
