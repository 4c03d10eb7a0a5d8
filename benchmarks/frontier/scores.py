"""Scores to try a boost on: `DISTRIBUTIONS[name](key, (draws, n))`."""

import jax
import jax.numpy as jnp


def _bimodal(key, shape):
    # One in ten is high; within a mode the spread is 1e-3 of the distance between the modes.
    mode, within = jax.random.split(key)
    high = jax.random.bernoulli(mode, 0.1, shape)
    return high + 1e-3 * jax.random.normal(within, shape)


DISTRIBUTIONS = {
    "uniform": jax.random.uniform,
    "normal": jax.random.normal,
    "log-normal": lambda key, shape: jnp.exp(3 * jax.random.normal(key, shape)),
    "cauchy": jax.random.cauchy,
    "bimodal": _bimodal,
    "exponential": lambda key, shape: 1e6 * jax.random.exponential(key, shape),
    "tiny": lambda key, shape: 0.5 + 1e-3 * jax.random.normal(key, shape),
    "quantised": lambda key, shape: jnp.floor(16 * jax.random.uniform(key, shape)) / 16,
}
