"""Scores by seed, and entries in another order: a gather whose transpose is also a gather, by the inverse.

The rule of JAX is a scatter that adds. On a GPU, a scatter costs three kernels and an index list of twice the bytes of
the entries.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from shtopk._jit import implementation
from shtopk._seeding import filled, ranks, seed_order
from shtopk._sharding import match_varying_axes, xla_splits


def by_seed(scores, live=None, best=None):
    """`scores` `(n,)` by seed, `(best,)` in float32 at least; their indices `(best,)`; each candidate's seed `(n,)`.

    See `seed_order`. The seed of a candidate that is not among the best is `best`.
    """
    order, ranked = seed_order(scores, live, best)
    rank = ranks(order, scores.shape[0])
    return _in_order(ranked, scores.astype(ranked.dtype), order, rank), order, rank


@jax.custom_jvp
def _in_order(ranked, scores, order, rank):
    """`scores[order]`, whose value the sort has as `ranked`: only the derivative is gathered."""
    del scores, order, rank
    return ranked


@_in_order.defjvp
def _in_order_jvp(primals, tangents):
    # d ranked[i] = d scores[order[i]], and 0 beyond n.
    _, _, order, rank = primals
    return _in_order(*primals), reordered(tangents[1], order, rank)


@jax.custom_jvp
def whole_cotangent(x):
    """`x`, whose cotangent is computed before any kernel gathers from it.

    Without it, XLA's GPU compiler fuses the backward pass of all rounds into the kernel that gathers the gradient by
    candidate, and computes that pass again for each score. On an H200 that kernel took three quarters of a gradient at
    16 x 16384 scores and k = 2 (JAX 0.11).
    """
    return x


@whole_cotangent.defjvp
def _whole_cotangent_jvp(primals, tangents):
    return whole_cotangent(*primals), lax.optimization_barrier(*tangents)


def reordered(x, index, inverse):
    """`x[index]` for `x` `(n,)`, and 0 where `index` `(m,)` is n or more.

    `inverse` `(n,)` has the position of each entry in `index`, m or more for an entry that is not in `index`.
    """
    return _reordered_p.bind(*match_varying_axes(x, index, inverse))


def _entries(x, index, inverse, split):
    """Leading axes as one long row, which needs no index list, unless XLA splits the axes over devices."""
    *lead, n = x.shape
    if not lead:
        return filled(x, index)
    batch = math.prod(lead) if all(isinstance(size, int) for size in x.shape) else 0
    if split or not 0 < batch * n < 2**31:
        return jax.vmap(partial(_entries, split=split))(x, index, inverse)
    flat = index.reshape(batch, -1)
    flat = jnp.where(flat < n, flat + n * lax.broadcasted_iota(jnp.int32, flat.shape, 0), batch * n)
    return filled(x.reshape(-1), flat).reshape(index.shape)


def _lower(ctx, *operands):
    return mlir.lower_fun(partial(_entries, split=xla_splits(ctx)), multiple_results=False)(ctx, *operands)


def _batch(operands, dims):
    """Move the batch axis of each operand to the front. Add an unbatched operand to zeros with the batch's layout."""
    batched = next(jnp.moveaxis(x, dim, 0) for x, dim in zip(operands, dims, strict=True) if dim is not None)
    zero = jnp.zeros_like(batched[..., :1])
    operands = (
        x[None] + zero.astype(x.dtype) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(operands, dims, strict=True)
    )
    return _reordered_p.bind(*operands), 0


_reordered_p = Primitive("shtopk_reordered")
_reordered_p.def_abstract_eval(lambda x, index, inverse: x.update(shape=index.shape))
_reordered_p.def_impl(implementation(_reordered_p))
mlir.register_lowering(_reordered_p, _lower)
batching.primitive_batchers[_reordered_p] = _batch
ad.defjvp(_reordered_p, lambda dx, x, index, inverse: _reordered_p.bind(dx, index, inverse), None, None)
ad.primitive_transposes[_reordered_p] = lambda dx, x, index, inverse: (
    _reordered_p.bind(dx, inverse, index),
    None,
    None,
)
