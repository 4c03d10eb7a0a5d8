"""The dtype that sums and scores are computed in."""

import jax.numpy as jnp
import numpy as np


def accumulation_dtype(*dtypes):
    """The widest of `dtypes`, float32 at least: half precision is computed in float32 inside."""
    return max((jnp.dtype(jnp.float32), *dtypes), key=lambda dtype: jnp.finfo(dtype).bits)


def lowest(dtype):
    """The score of a surplus slot: -inf, or the lowest number of a dtype without infinities."""
    return -np.inf if np.isinf(np.float32(-np.inf).astype(dtype)) else float(jnp.finfo(dtype).min)


def narrowed(scores, dtype):
    """`scores` cast to `dtype`, with `lowest(dtype)` for -inf, which a cast to float8_e4m3fn would turn into NaN."""
    low = lowest(dtype)
    return (scores if np.isinf(low) else jnp.where(scores == -jnp.inf, low, scores)).astype(dtype)
