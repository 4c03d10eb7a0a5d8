"""Families of boosts to compare with the library's: a unit for the gaps, and a link from gap to weight.

A family is called as `family(sharpness, number) -> boost`. All are free of scale. The boosts are plain
functions that close over their numbers, which may be traced.
"""

import jax
import jax.numpy as jnp
from jax import lax

import shtopk


def _ends(gaps, where, position):
    """The live gaps on either side of a fractional position, and how far between them it lies."""
    first, count = jnp.argmax(where), jnp.sum(where)
    below = jnp.floor(position).astype(first.dtype)
    wide = gaps.at[first + below].get(mode="clip")
    narrow = gaps.at[first + jnp.minimum(below + 1, count - 1)].get(mode="clip")
    return wide, narrow, position - below


def quantile(gaps, where, q):
    """The q-quantile from the widest, linear between two neighbours: the unit of `shtopk.Relative`."""
    wide, narrow, part = _ends(gaps, where, q * (jnp.sum(where) - 1))
    return (1 - part) * wide + part * narrow


def geometric_quantile(gaps, where, q):
    """The same, linear in the logarithm between two neighbours."""
    wide, narrow, part = _ends(gaps, where, q * (jnp.sum(where) - 1))
    return wide ** (1 - part) * narrow**part


def late_quantile(gaps, where, q):
    """The same at position q * count: the narrowest gap of all when few matches are left."""
    last = jnp.sum(where) - 1
    wide, narrow, part = _ends(gaps, where, jnp.minimum(q * (last + 1), last))
    return (1 - part) * wide + part * narrow


def floored_quantile(gaps, where, q):
    """The quantile, but no less than 1/20 of the widest gap."""
    return jnp.maximum(quantile(gaps, where, q), gaps[jnp.argmax(where)] / 20)


def power_mean(gaps, where, p):
    """(mean of gap^p)^(1/p): the mean for p = 1, nearer the geometric mean for small p."""
    widest = jnp.max(jnp.where(where, gaps, 0))
    ratio = jnp.where(where, gaps / jnp.where(widest > 0, widest, 1), 0)
    powers = jnp.where(ratio > 0, jnp.where(ratio > 0, ratio, 1) ** p, 0)
    return widest * (jnp.sum(powers) / jnp.maximum(jnp.sum(where), 1)) ** (1 / p)


def blend(gaps, where, q):
    """The geometric mean of the quantile and the plain mean gap."""
    return jnp.sqrt(quantile(gaps, where, q)) * jnp.sqrt(power_mean(gaps, where, 1.0))


def logistic(x):
    """w = sigmoid(x)."""
    return jax.nn.sigmoid(x)


def algebraic(x):
    """w = (1 + x / sqrt(4 + x^2)) / 2: the slope of the logistic at a tie, and a tail of 1 / x^2 beyond."""
    half = x / 2
    return 0.5 * (1 + half * lax.rsqrt(1 + half * half))


def _family(unit, link, hold=lax.stop_gradient):
    """`hold` is applied to the unit."""

    def family(sharpness, number):
        def boost(high, low, where):
            gap = high - low
            g = jnp.maximum(unit(jnp.abs(gap), where, number), jnp.abs(gap) / 1e6)
            return link(sharpness * gap / hold(jnp.where(g > 1e-30, g, 1)))

        return boost

    return family


SHARPNESS = (2.0, 4.0, 6.0, 9.0)

# Each family with the grid of its second number.
FAMILIES = {
    "Relative": (shtopk.Relative, (0.75, 0.875)),
    "geometric": (_family(geometric_quantile, logistic), (0.75, 0.875, 0.95)),
    "late": (_family(late_quantile, logistic), (0.75,)),
    "floored": (_family(floored_quantile, logistic), (0.875,)),
    "power mean": (_family(power_mean, logistic), (0.25, 1.0)),
    "blend": (_family(blend, logistic), (0.75,)),
    "algebraic": (_family(quantile, algebraic), (0.75, 0.875)),
    "geometric algebraic": (_family(geometric_quantile, algebraic), (0.875, 0.95, 0.97)),
}

# The best of them beside the default: family, sharpness, number.
COMPROMISE = ("geometric algebraic", 4.0, 0.875)


def by_gaps_as_played(sharpness, constant):
    """The logistic boost whose unit is a quantile of the gaps, each round as it is played.

    `constant` says whether the unit is constant under differentiation. (`Relative` measures the gaps that a round would
    have if the better seed had won every earlier match.)
    """
    hold = lax.stop_gradient if constant else lambda unit: unit
    return _family(quantile, logistic, hold)(sharpness, shtopk.Relative().quantile)
