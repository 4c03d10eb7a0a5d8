"""From a function of one row of scores to a public one: mapped over leading axes, compiled at one seam."""

from collections.abc import Callable
from typing import Any

import jax


def lift(*static: str) -> Callable[[Callable], Callable[..., Any]]:
    """Decorate `row(*arrays, *shared, **options)`, which sees one row, scores `(n,)`.

    The result maps `row` with `vmap` over `axes` leading axes of the arrays (pytrees, too); what is `shared`,
    a boost say, every row sees as it is. It is jit-compiled once for each shape and each value of the
    `static` options, with arrays and a boost's numbers traced; inside a user's own `jit` it melts into theirs.
    """

    def decorate(row):
        def over_rows(arrays, shared, axes, **options):
            def mapped(*arrays):
                return row(*arrays, *shared, **options)

            for _ in range(axes):
                mapped = jax.vmap(mapped)
            return mapped(*arrays)

        over_rows.__name__ = row.__name__  # what profiles and logs will show
        compiled = jax.jit(over_rows, static_argnames=("axes", *static))

        def call(*arrays, axes, shared=(), **options):
            # A plain function as boost has no numbers to trace, and may close over values or tracers
            # that change unseen: run as it stands, it is never answered from a stale cache.
            plain = any(callable(leaf) for leaf in jax.tree.leaves(shared))
            return (over_rows if plain else compiled)(arrays, shared, axes, **options)

        return call

    return decorate
