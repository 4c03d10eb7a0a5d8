"""How close a soft selection comes to the hard one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from shtopk import _checks
from shtopk._jit import compiled
from shtopk._precision import accumulation_dtype, as_divisor
from shtopk._reorder import value_of
from shtopk._sharding import unsplit


def nccs(reference: ArrayLike, approximation: ArrayLike) -> jax.Array:
    """Compute the Normalized Chamfer Cosine Similarity, `1/k * sum_i max_j cos(y_i, yhat_j)`.

    This is the quality measure of Pietruszka et al. 2021, "Evaluation". For each reference row, take the cosine with
    the most similar row of the approximation. The result is the mean of these cosines. It is 1 if every reference row
    has the direction of some row of the approximation. A row of zeros has cosine 0 with every row.

    Args:
      reference: `(..., k, d)` floating, the rows `y_i` of the hard top k.
      approximation: `(..., k, d)` floating, the rows `yhat_j` to compare.

    Returns:
      `(...)` in [-1, 1], float32 at least.

    Raises:
      TypeError: a dtype is not floating.
      ValueError: the shapes differ, have fewer than two axes, or have no rows or no features.

    >>> f"{nccs(jnp.eye(2), jnp.array([[1.0, 1.0], [0.0, 2.0]])):.3f}"  # (cos 45 degrees + 1) / 2
    '0.854'
    """
    return _nccs(*_checks.same_vectors(reference, approximation))


@compiled()
def _nccs(reference, approximation):
    """`nccs` for checked arguments."""
    dtype = accumulation_dtype(reference.dtype, approximation.dtype)
    y, yhat = _directions(reference.astype(dtype)), _directions(approximation.astype(dtype))
    # On a mesh with explicit axes, einsum refuses to sum over an axis that is split in both arguments.
    y, yhat = unsplit(y, -1), unsplit(yhat, -1)
    cosines = jnp.einsum("...id,...jd->...ij", y, yhat, precision=lax.Precision.HIGHEST)
    nearest = jnp.max(cosines, axis=-1)
    nearest = value_of(jnp.clip(nearest, -1, 1), nearest)  # a rounding beyond 1
    return jnp.mean(nearest, axis=-1)


def _directions(x):
    # So that no square overflows or vanishes. A direction does not depend on a length, which may be constant here.
    x = x / as_divisor(lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True)))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square == 0, 1, square))
