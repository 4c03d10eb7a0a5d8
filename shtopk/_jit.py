"""The one place where public functions are compiled."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from shtopk._sharding import match_sharding

Function = TypeVar("Function", bound=Callable)


def compiled(*static: str) -> Callable[[Function], Function]:
    """Decorate `function(*arrays, **options)`: compiled once for each shape and value of the `static` options.

    Arrays and pytrees, such as a boost, are traced. Inside the user's own `jit` the call is compiled as a part of it.
    """

    def decorate(function) -> Any:
        fast = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def call(*arguments, **options):
            # A plain function as boost has no numbers to trace, and may close over values or tracers that change.
            # Without `jit` it is never answered from a stale cache.
            plain = any(callable(leaf) for leaf in jax.tree.leaves(arguments))
            return (function if plain else fast)(*arguments, **options)

        return call

    return decorate


def over_rows(row, axes) -> Any:
    """`row(*arrays)`, for one row of scores, mapped over `axes` leading axes; an array of size 1 there is shared."""
    if axes == 0:
        return row
    f = over_rows(row, axes - 1)

    def mapped(*arrays):
        arrays = match_sharding(arrays)
        shared = jax.tree.map(lambda x: x.shape[0] == 1, arrays)
        if all(jax.tree.leaves(shared)) or not any(jax.tree.leaves(shared)):
            return jax.vmap(f)(*arrays)
        in_axes = jax.tree.map(lambda one: None if one else 0, shared)
        return jax.vmap(f, in_axes)(*jax.tree.map(lambda x, one: x[0] if one else x, arrays, shared))

    return mapped


def implementation(primitive, *static):
    """The implementation of `primitive` outside of a trace: always compiled, even under `jax.disable_jit()`."""
    run = jax.jit(primitive.bind, static_argnames=static)

    def call(*operands, **params):
        with jax.disable_jit(False):
            return run(*operands, **params)

    return call
