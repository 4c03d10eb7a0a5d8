"""Scores by seed, the inverse of an order, and entries in another order: a gather whose transpose is also a gather.

The rule of JAX for a gather is a scatter that adds. On a GPU, a scatter costs three kernels and an index list of twice
the bytes of the entries. Where the order is known both ways, a gather by the inverse does the same.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from shtopk._jit import implementation
from shtopk._seeding import filled, seed_order
from shtopk._sharding import match_varying_axes, xla_splits

_MOST_ENTRIES = 2**31 - 1  # int32's limit


def by_seed(scores, where=None, best=None):
    """`scores` `(n,)` by seed, `(best,)` in float32 at least; their indices `(best,)`; each candidate's seed `(n,)`.

    See `seed_order`. The seed of a candidate that is not among the best is `best`.
    """
    order, ranked = seed_order(scores, where, best)
    rank = ranks(order, scores.shape[0])
    # The sort has the scores in order as well: only their derivative is gathered.
    ranked = value_of(ranked, reordered(scores.astype(ranked.dtype), order, rank))
    return ranked, order, rank


@jax.custom_jvp
def value_of(value, like):
    """`value` with the derivative of `like`, an array or a pytree of the same shapes and dtypes: d out = d like."""
    del like
    return value


@value_of.defjvp
def _value_of_jvp(primals, tangents):
    return value_of(*primals), tangents[1]


def whole_cotangent(x):
    """`x`. In the backward pass its cotangent is computed in full before any kernel gathers from that cotangent.

    Without this barrier, XLA's GPU compiler fuses the backward pass of all rounds into the kernel that gathers the
    gradient by candidate, and computes that pass again for each score. On an H200 that kernel took three quarters of a
    gradient at 16 x 16384 scores and k = 2 (JAX 0.11).
    """
    return value_of(x, lax.optimization_barrier(x))


def reordered(x, index, inverse):
    """`x[index]` for `x` `(n,)`, and 0 where `index` `(m,)` is n or more.

    `inverse` `(n,)` has the position of each entry in `index`, m or more for an entry that is not in `index`.
    """
    return _reordered_p.bind(*match_varying_axes(x, index, inverse))


def ranks(order, n):
    """The position in `order` `(m,)` of each of n candidates, `(n,)`; m for a candidate that is not in it."""
    return _ranks_p.bind(order, n=n)


# Under `vmap` all rows become one long row. For a batched gather or scatter XLA makes an index list, and JAX's checkify
# fails on a batched scatter (seen in JAX 0.10.2).


def _entries(x, index, inverse):
    *lead, n = x.shape
    rows = index.reshape(math.prod(lead), -1)
    rows = jnp.where(rows < n, _in_long_row(rows, n), x.size)
    return filled(x.reshape(-1), rows).reshape(index.shape)


def _positions(order, *, n):
    *lead, best = order.shape
    rows = order.reshape(math.prod(lead), best)
    put = jnp.full(rows.shape[0] * n, best, jnp.int32).at[_in_long_row(rows, n)].set
    position = lax.broadcasted_iota(jnp.int32, rows.shape, 1)
    return put(position, mode="promise_in_bounds", unique_indices=True).reshape(*lead, n)


def one_long_row(lead, n, split):
    """Whether `(*lead, n)` entries may be one row: XLA does not split it, its size is known, and int32 indexes it."""
    known = not split and all(isinstance(size, int) for size in lead)
    return not lead or (known and 0 < math.prod(lead) * n <= _MOST_ENTRIES)


def _in_long_row(index, n):
    """`index` `(rows, m)` into rows of n entries, as an index into one long row."""
    return index + n * lax.broadcasted_iota(index.dtype, index.shape, 0)


def _row_primitive(name, long_row, out, *static):
    """A primitive on one row, to which `vmap` adds leading axes.

    `long_row(*operands, **params)` computes it, with all leading axes together if `one_long_row` allows it. The type of
    the result is `out(*operands, **params)`, for any leading axes. `static` names the parameters.
    """

    def lower(ctx, *operands, **params):
        split, longest = xla_splits(ctx), max(x.shape[-1] for x in (*ctx.avals_in, *ctx.avals_out))

        def rows(*operands):
            if one_long_row(operands[0].shape[:-1], longest, split):
                return long_row(*operands, **params)
            return jax.vmap(rows)(*operands)

        return mlir.lower_fun(rows, multiple_results=False)(ctx, *operands)

    def batch(operands, dims, **params):
        # The batch axis goes to the front. An unbatched operand is added to zeros with the batch's layout.
        in_front = [
            None if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(operands, dims, strict=True)
        ]
        zero = jnp.zeros_like(next(x for x in in_front if x is not None)[..., :1])
        operands = (
            x[None] + zero.astype(x.dtype) if moved is None else moved
            for x, moved in zip(operands, in_front, strict=True)
        )
        return primitive.bind(*operands, **params), 0

    primitive = Primitive(f"shtopk_{name}")
    primitive.def_abstract_eval(out)
    primitive.def_impl(implementation(primitive, *static))
    mlir.register_lowering(primitive, lower)
    batching.primitive_batchers[primitive] = batch
    return primitive


_ranks_p = _row_primitive(
    "ranks",
    _positions,
    lambda order, *, n: order.update(shape=(*order.shape[:-1], n), dtype=jnp.dtype(jnp.int32)),
    "n",
)
_reordered_p = _row_primitive("reordered", _entries, lambda x, index, inverse: x.update(shape=index.shape))
ad.defjvp(_reordered_p, lambda dx, x, index, inverse: _reordered_p.bind(dx, index, inverse), None, None)
ad.primitive_transposes[_reordered_p] = lambda dx, x, index, inverse: (
    _reordered_p.bind(dx, inverse, index),
    None,
    None,
)
