"""Compiling takes nearly all of the time of a test that transforms a call."""

import jax


def quickly(f, *x):
    """`f(*x)` compiled with little effort: what is tested is the transformation, not the compiler.

    Things that have much in common are compiled in one `f`.
    """
    return jax.jit(f).lower(*x).compile({"xla_backend_optimization_level": "0"})(*x)
