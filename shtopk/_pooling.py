"""Weighted pooling of the payload: three bilinear operations, each the others' derivative.

Slot s has members `indices[s, j]` with weights `weights[s, j]`. Write `E` for the payload `(n, d)` and `G` for
anything of the slots' shape `(k, d)`. The three are

    pool(w, E)[s]    = sum_j w[s, j] * E[indices[s, j]]                           (k, d)
    spread(w, G)[i]  = sum of w[s, j] * G[s] over all (s, j) with indices[s, j] = i  (n, d)
    dots(E, G)[s, j] = <E[indices[s, j]], G[s]>                                    (k, M)

Derivation of their rules. Take the scalar `<G, pool(w, E)> = sum_sj w[s, j] * <E[indices[s, j]], G[s]>`. It is
linear in each of `w`, `E` and `G`, and it can be read three ways: `<G, pool(w, E)>`, `<E, spread(w, G)>`, or
`<w, dots(E, G)>`. So the transpose of any one operation with respect to one of its arguments is one of the
other two. Each operation is bilinear, hence its derivative is the product rule, `d f(x, y) = f(dx, y) + f(x, dy)`.
As primitives with just these rules they have forward and reverse mode to every order, and the backward
pass keeps nothing but `indices`, `w` and `E`: no array of size n*d, none of size n*k.

Within a row of scores a candidate is a member of one slot, once; a bye repeats a member of its own slot with
weight 0. A weight of exactly 0 takes no part: not even a NaN in its payload row is seen.
"""

import math
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from shtopk._barrier import settled
from shtopk._precision import wide
from shtopk._sharding import alike, xla_splits

# On CPU, XLA fuses gathers into a sum of terms at the speed of memory, but not into a reduction. So sums are
# taken in two steps: so many terms at a time in one fused kernel, then a product of what is left with ones,
# which nothing fuses with and which adds faster than a sum. (All three by measurement.)
_TERMS = 32
_LANES, _MOST_ROWS = 8, 2**31 - 1  # the fewest partial sums of a row, a vector register full; int32's limit


def pool(indices, weights, payload, dtype=None):
    """Slots `(..., k, d)` in `dtype`, that of `payload` `(..., n, d)`; `indices`, `weights` `(..., k, M)`."""
    return _bind(_pool_p, indices, weights, payload, payload.shape[-2], dtype or payload.dtype)


def spread(indices, weights, slots, rows):
    """Rows `(..., n, d)`, n = `rows`, in the dtype of `slots` `(..., k, d)`."""
    return _bind(_spread_p, indices, weights, slots, rows, slots.dtype)


def dots(indices, payload, slots):
    """Weights `(..., k, M)` in the dtype of `slots`; `payload` `(..., n, d)`, `slots` `(..., k, d)`."""
    return _bind(_dots_p, indices, payload, slots, payload.shape[-2], slots.dtype)


def _bind(primitive, indices, x, y, rows, dtype):
    return primitive.bind(*alike(indices, x, y), rows=rows, dtype=dtype)


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds")


def _present(weights, x):
    """`x`, and 0 where `weights`, of one axis less, is 0."""
    return jnp.where(weights[..., None] == 0, jnp.zeros_like(x), x)


def _slot_of(indices, rows):
    """Each row's slot `(n,)`; 0 for rows that are nobody's member."""
    slot = lax.broadcasted_iota(jnp.int32, indices.shape, 0)
    return jnp.zeros(rows, jnp.int32).at[indices].set(slot, mode="promise_in_bounds")


def _weight_of(indices, weights, rows):
    """Each row's weight `(n,)`; 0 for rows that are nobody's member."""
    return jnp.zeros(rows, weights.dtype).at[indices].add(weights, mode="promise_in_bounds")


def _pool_members(indices, weights, payload, *, rows, dtype):
    """One fused gather, product and sum: no copy of the payload where gathers fuse (GPU, TPU)."""
    sums = wide(weights.dtype, payload.dtype)
    parts = _present(weights, weights.astype(sums)[..., None] * _take(payload, indices).astype(sums))
    return lax.optimization_barrier(jnp.sum(parts, axis=1).astype(dtype))


def _pool_cpu(indices, weights, payload, *, rows, dtype):
    """Sums of `_TERMS` members, then the sum of those.

    Rows of weight 0 are cleared bit by bit: a `where` becomes a branch, and takes a quarter longer.
    """
    (slots, members), sums = indices.shape, wide(weights.dtype, payload.dtype)
    bits = jnp.dtype(f"int{8 * sums.itemsize}")
    weights = weights.astype(sums)
    kept = jnp.where(weights == 0, 0, -1).astype(bits)
    together = math.gcd(members, _TERMS)

    def term(t):
        at = (slice(None), slice(t, None, together))  # (slots, members / together)
        row = lax.bitcast_convert_type(_take(payload, indices[at]).astype(sums), bits)
        return weights[at][..., None] * lax.bitcast_convert_type(row & kept[at][..., None], sums)

    parts = reduce(add, map(term, range(together)))
    if together < members:
        ones = jnp.ones((slots, 1, members // together), sums)
        parts = jnp.matmul(ones, parts, precision=lax.Precision.HIGHEST)
    return settled(parts[:, 0].astype(dtype), indices)


def _spread_rows(indices, weights, slots, *, rows, dtype):
    """Written once, in the order of the rows."""
    sums, slots = wide(weights.dtype, slots.dtype), lax.optimization_barrier(slots)
    weight = _weight_of(indices, weights, rows).astype(sums)
    parts = weight[:, None] * _take(slots, _slot_of(indices, rows)).astype(sums)
    return _present(weight, parts).astype(dtype)


def _dots_rows(indices, payload, slots, *, rows, dtype):
    """Read once, in the order of the rows, one fused product and sum (GPU, TPU)."""
    sums, slots = wide(payload.dtype, slots.dtype), lax.optimization_barrier(slots)
    own = _take(slots, _slot_of(indices, rows)).astype(sums)
    return _take(jnp.sum(payload.astype(sums) * own, axis=-1), indices).astype(dtype)


def _dots_cpu(indices, payload, slots, *, rows, dtype):
    """Sums of `_TERMS` features, then the sum of those; in the order of the rows, unless few of them are members."""
    sums, features, slots = wide(payload.dtype, slots.dtype), payload.shape[-1], settled(slots, indices)
    slot = _slot_of(indices, rows) if 2 * indices.size > rows else None
    lanes = max(1, min(features, max(_LANES, -(-features // _TERMS))))

    def partial_sum(start):
        e, g = payload[:, start : start + lanes], slots[:, start : start + lanes]
        e, g = (_take(e, indices), g[:, None]) if slot is None else (e, _take(g, slot))
        product = e.astype(sums) * g.astype(sums)
        return jnp.pad(product, [(0, 0)] * (product.ndim - 1) + [(0, lanes - product.shape[-1])])

    total = sum(partial_sum(start) for start in range(0, max(1, features), lanes))
    out = jnp.matmul(total, jnp.ones(lanes, sums), precision=lax.Precision.HIGHEST).astype(dtype)
    return out if slot is None else _take(out, indices)


def _leading(f, shape, rows, dtype, split):
    """`f` of one row of scores, for leading axes; an axis of size 1 serves all of the others.

    Where no axis is shared, batch rows are just more slots over more rows: one larger problem, without the
    batched gathers and scatters that XLA gives an index list of their own. But where XLA is to split the batch over
    devices, only those tell it that a row's members are in that row.
    """

    def mapped(*operands):
        leads = [x.shape[:-2] for x in operands]
        if leads[0] == ():
            return f(*operands, rows=rows, dtype=dtype)
        batch = math.prod(leads[0])
        if not split and leads.count(leads[0]) == len(leads) and 0 < batch * rows <= _MOST_ROWS:
            indices, x, y = (a.reshape(batch, *a.shape[-2:]) for a in operands)
            indices += rows * lax.broadcasted_iota(jnp.int32, (batch, 1, 1), 0)
            flat = (a.reshape(batch * a.shape[-2], a.shape[-1]) for a in (indices, x, y))
            out = shape(*(a.shape for a in operands), rows)
            return f(*flat, rows=batch * rows, dtype=dtype).reshape(*leads[0], *out)
        axes = [None if x.shape[0] == 1 else 0 for x in operands]
        operands = [x[0] if axis is None else x for x, axis in zip(operands, axes, strict=True)]
        if all(axis is None for axis in axes):
            return mapped(*operands)[None]
        return jax.vmap(mapped, axes)(*operands)

    return mapped


def _primitive(name, like, shape, default, cpu):
    """A bilinear primitive `(indices, x, y)`: `shape` gives its last two axes, operand `like` its mesh axes."""
    primitive = Primitive(f"shtopk_{name}")

    def abstract(*operands, rows, dtype):
        shapes = [a.shape for a in operands]
        lead = jnp.broadcast_shapes(*(one[:-2] for one in shapes))
        return operands[like].update(shape=lead + shape(*shapes, rows), dtype=dtype)

    def lower(f):
        def rule(ctx, *operands, **params):
            split = xla_splits(ctx)
            # What is made for the CPU takes the features in parts, which would be sent about.
            run = _leading(default if split else f, shape, split=split, **params)
            return mlir.lower_fun(run, multiple_results=False)(ctx, *operands)

        return rule

    def batch(operands, dims, **params):
        operands = [
            jnp.expand_dims(x, 0) if dim is None else jnp.moveaxis(x, dim, 0)
            for x, dim in zip(operands, dims, strict=True)
        ]
        return primitive.bind(*operands, **params), 0

    def jvp(primals, tangents, **params):
        indices, x, y = primals
        _, dx, dy = tangents
        parts = []
        if type(dx) is not ad.Zero:
            parts.append(primitive.bind(indices, dx, y, **params))
        if type(dy) is not ad.Zero:
            parts.append(primitive.bind(indices, x, dy, **params))
        return primitive.bind(*primals, **params), sum(parts[1:], start=parts[0])

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("rows", "dtype")))
    mlir.register_lowering(primitive, lower(default))
    mlir.register_lowering(primitive, lower(cpu), platform="cpu")
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    return primitive


_pool_p = _primitive("pool", 2, lambda i, w, e, n: (i[-2], e[-1]), _pool_members, _pool_cpu)
_spread_cpu = lambda i, w, slots, **params: _spread_rows(i, w, settled(slots, i), **params)  # noqa: E731
_spread_p = _primitive("spread", 2, lambda i, w, g, n: (n, g[-1]), _spread_rows, _spread_cpu)
_dots_p = _primitive("dots", 0, lambda i, e, g, n: i[-2:], _dots_rows, _dots_cpu)


def _transpose(wrt_x, wrt_y):
    """The transpose rule of a primitive, made of those of its two arguments."""

    def rule(cotangent, indices, x, y, *, rows, dtype):
        del dtype
        if type(cotangent) is ad.Zero:
            return None, None, None
        if ad.is_undefined_primal(x):
            out = wrt_x(indices, y, cotangent, rows=rows, dtype=x.aval.dtype)
            return None, _sum_to(out, x.aval.shape), None
        out = wrt_y(indices, x, cotangent, rows=rows, dtype=y.aval.dtype)
        return None, None, _sum_to(out, y.aval.shape)

    return rule


def _sum_to(x, shape):
    axes = [i for i, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want]
    return jnp.sum(x, axes, keepdims=True) if axes else x


# pool(w, E): in w, G -> dots(E, G); in E, G -> spread(w, G). The others in the same way.
ad.primitive_transposes[_pool_p] = _transpose(wrt_x=_dots_p.bind, wrt_y=_spread_p.bind)
ad.primitive_transposes[_spread_p] = _transpose(
    wrt_x=lambda i, slots, rows_, **p: _dots_p.bind(i, rows_, slots, **p), wrt_y=_pool_p.bind
)
ad.primitive_transposes[_dots_p] = _transpose(
    wrt_x=lambda i, slots, w, **p: _spread_p.bind(i, w, slots, **p),
    wrt_y=lambda i, rows_, w, **p: _pool_p.bind(i, w, rows_, **p),
)
