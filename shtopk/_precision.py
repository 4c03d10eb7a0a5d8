"""The dtype that sums and scores are computed in, and the ends of its range."""

import jax.numpy as jnp
import numpy as np


def accumulation_dtype(*dtypes):
    """The widest of `dtypes`, float32 at least: half precision is computed in float32 inside."""
    return max((jnp.dtype(jnp.float32), *dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def as_divisor(size):
    """`size`, an array of 0 or more, by which numbers of at most that size may be divided.

    It is 1 where `size` is 0, and at most an eighth of the largest number: XLA may multiply by the reciprocal, which
    would be subnormal beyond a quarter, and a CPU may read a subnormal number as 0.
    """
    return jnp.minimum(jnp.where(size == 0, 1, size), float(jnp.finfo(size.dtype).max) / 8)


def lowest(dtype):
    """The score of a surplus slot: -inf, or the lowest number of a dtype without infinities."""
    return -np.inf if np.isinf(np.float32(-np.inf).astype(dtype)) else float(jnp.finfo(dtype).min)


def narrowed(scores, dtype):
    """`scores` cast to `dtype`, with `lowest(dtype)` for -inf, which a cast to float8_e4m3fn would turn into NaN."""
    low = lowest(dtype)
    return (scores if np.isinf(low) else jnp.where(scores == -jnp.inf, low, scores)).astype(dtype)
