"""From soft to sharp: scores and boost for a training step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shtopk import _checks, _sharding
from shtopk._boost import Scaled
from shtopk._jit import compiled
from shtopk._precision import accumulation_dtype, as_divisor


class Annealed(NamedTuple):
    """The scores and the boost that `anneal` returns, for `topk`, `topk_mask` or `select`.

    Attributes:
      scores: `(..., n)` in the dtype of the scores given.
      boost: `Scaled`, with the sharpness of this step.
    """

    scores: jax.Array
    boost: Scaled


def anneal(
    scores: ArrayLike,
    progress: ArrayLike,
    key: jax.Array | None = None,
    *,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    noise: ArrayLike = 0.5,
    sharpness: tuple[ArrayLike, ArrayLike] = (0.1, 100.0),
) -> Annealed:
    """Prepare scores and boost for a training step: soft and noisy at first, sharp and without noise at the end.

    The scores are `(v - mean) / spread + noise * (1 - progress) * z` with standard normals `z`. The boost is
    `Scaled(first ** (1 - progress) * last**progress)`. Mean and spread (the standard deviation) are taken over all
    candidates of the batch that take part, and are constant under differentiation. So the scale of the scores does
    not matter, and the choice can still be clearer in one example of the batch than in another. But one score far from
    all others widens the spread, and the choice among the others then stays soft. docs/training.md gives the reason for
    each part.

    Args:
      scores: `(..., n)` floating, larger is better, of the whole batch. Under a `jax.vmap` over the batch, each example
        has its own mean and spread. Do that only if the examples are not comparable.
      progress: scalar, plain or traced, from 0 at the start of the training to 1 at its end. A traced value is clipped
        to [0, 1].
      key: a key of `jax.random`, a new one for each step; None for no noise.
      where: boolean, broadcastable to `(..., n)`; True = takes part. Scores outside `where`, and infinite or NaN
        scores, do not count in mean and spread. Pass `where` to `topk` or `topk_mask` as well.
      axis_name: a mesh axis (or a tuple of names) over which the batch or n is split, inside `jax.shard_map`. Mean and
        spread are then those of all devices, and each device draws its own noise.
      noise: scalar, the standard deviation of the noise at progress 0, in units of the spread.
      sharpness: the first and the last sharpness of `Scaled`, in units of 1 / spread, both positive.

    Returns:
      `Annealed(scores, boost)`, with scores `(..., n)` in their own dtype. A spread of at most 4 eps times the largest
      absolute score counts as 1. Here eps is that of float32, or of float64 for such scores.

    Raises:
      TypeError: an argument has the wrong type or dtype.
      ValueError: a shape or a value is out of range. Both come at trace time, and name the argument and the remedy.

    >>> scores, boost = anneal(jnp.array([1.0, 2.0, 3.0]), progress=0.5)
    >>> [f"{v:.3f}" for v in scores], f"{boost.sharpness:.3f}"  # sqrt(0.1 * 100)
    (['-1.225', '0.000', '1.225'], '3.162')
    >>> [f"{m:.2f}" for m in topk_mask(scores, 1, boost=boost)]
    ['0.00', '0.02', '0.98']
    """
    scores = _checks.scores(scores)
    return _anneal(
        scores,
        _checks.where(where, scores.shape),
        _checks.fraction("progress", progress, "pass step / steps"),
        None if key is None else _checks.key(key),
        _checks.within("noise", noise, lambda x: 0 <= x < jnp.inf, "0 or more, and finite"),
        _checks.sharpness_range(sharpness),
        devices=_sharding.over(axis_name),
    )


@compiled("devices")
def _anneal(scores, where, progress, key, noise, sharpness, *, devices):
    """`anneal` for checked arguments."""
    dtype = accumulation_dtype(scores.dtype)
    progress, noise = progress.astype(dtype), _checks.number("noise", noise, dtype)
    first, last = (_checks.number("sharpness", number, dtype) for number in sharpness)
    standard = _standardised(scores.astype(dtype), where, devices)
    if key is not None:
        normals = jax.random.normal(devices.own_key(key), scores.shape, dtype)
        standard += noise * (1 - progress) * normals
    return Annealed(standard.astype(scores.dtype), Scaled(first ** (1 - progress) * last**progress))


def _standardised(scores, where, devices):
    """`scores` minus their mean, divided by their spread, both over finite scores inside `where`, and constant."""
    still = lax.stop_gradient(scores)
    part = jnp.isfinite(still) if where is None else where & jnp.isfinite(still)
    largest = devices.most(jnp.max(jnp.where(part, jnp.abs(still), 0), initial=0))
    size = as_divisor(largest)  # no square of the numbers below overflows

    def mean(x):
        total, count = devices.total((jnp.sum(jnp.where(part, x, 0)), jnp.sum(part, dtype=x.dtype)))
        return total / jnp.maximum(count, 1)

    centre = mean(still / size)
    spread = jnp.sqrt(mean((still / size - centre) ** 2))
    equal = spread <= 4 * float(jnp.finfo(scores.dtype).eps)  # up to rounding
    return (scores / size - centre) * jnp.where(equal, size, 1 / spread)
