"""The dtype that sums and scores are computed in."""

import jax.numpy as jnp


def accumulation_dtype(*dtypes):
    """The widest of `dtypes`, float32 at least: half precision is computed in float32 inside."""
    return max((jnp.dtype(jnp.float32), *dtypes), key=lambda dtype: jnp.finfo(dtype).bits)
