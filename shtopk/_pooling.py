"""Weighted pooling of the payload: three bilinear operations, each the others' derivative.

Slot s has members `indices[s, j]` with weights `weights[s, j]`, and row i stands at `places[i] = s * M + j`, or at
k * M if it is in no slot. Write `E` for the payload `(n, d)` and `G` for anything of the slots' shape `(k, d)`. The
three are

    pool(w, E)[s]    = sum_j w[s, j] * E[indices[s, j]]      (k, d)
    spread(w, G)[i]  = w[s, j] * G[s] with s, j = places[i]   (n, d)
    dots(E, G)[s, j] = <E[indices[s, j]], G[s]>                (k, M)

Derivation of their rules. Take the scalar `<G, pool(w, E)> = sum_sj w[s, j] * <E[indices[s, j]], G[s]>`. It is
linear in each of `w`, `E` and `G`, and it can be read three ways: `<G, pool(w, E)>`, `<E, spread(w, G)>`, or
`<w, dots(E, G)>`. So the transpose of any one operation with respect to one of its arguments is one of the
other two. Each operation is bilinear, hence its derivative is the product rule, `d f(x, y) = f(dx, y) + f(x, dy)`.
As primitives with just these rules they have forward and reverse mode to every order, and the backward
pass keeps nothing but `indices`, `places`, `w` and `E`: no array of size n*d, none of size n*k.

Within a row of scores a candidate is a member of one slot, once; a bye repeats a member of its own slot with
weight 0. A weight of exactly 0 takes no part: a NaN in its payload row reaches no slot.
"""

import math
from functools import partial, reduce
from operator import add

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from shtopk._jit import implementation, over_axis
from shtopk._precision import accumulation_dtype
from shtopk._seeding import filled
from shtopk._sharding import match_varying_axes, xla_splits

# XLA fuses gathers into a sum of terms at the speed of memory, but not into a reduction. So sums are taken in two
# steps: so many terms at a time in one fused kernel, then the sum of what is left. (By measurement, on CPU; compiled
# for an H100, a reduction of gathered rows copies the payload.)
_TERMS = 32
_LANES, _MOST_ROWS = 8, 2**31 - 1  # the fewest partial sums of a row, a vector register full; int32's limit


def pool(members, weights, payload, dtype=None):
    """Slots `(..., k, d)` in `dtype`, that of `payload` `(..., n, d)`; `weights` `(..., k, M)`."""
    return _bind(_pool_p, members, weights, payload, dtype or payload.dtype)


def spread(members, weights, slots):
    """Rows `(..., n, d)` in the dtype of `slots` `(..., k, d)`."""
    return _bind(_spread_p, members, weights, slots, slots.dtype)


def dots(members, payload, slots):
    """Weights `(..., k, M)` in the dtype of `slots`; `payload` `(..., n, d)`, `slots` `(..., k, d)`."""
    return _bind(_dots_p, members, payload, slots, slots.dtype)


def _bind(primitive, members, x, y, dtype):
    """`members` is the pair of `indices` `(..., k, M)` and `places` `(..., n)`."""
    return primitive.bind(*match_varying_axes(*members, x, y), dtype=dtype)


def _take(rows, index):
    return rows.at[index].get(mode="promise_in_bounds")


def _materialize(x, indices):
    """On CPU: `x`, computed before it is read: what comes out of a branch joins no other kernel.

    Else the operations that make `x` join a kernel that gathers from it, or several that read it, and run once for
    each element read. The branch is always taken, for indices are not negative, which XLA cannot know. (The compiler
    of JAX 0.10 drops an `optimization_barrier` too early to help; on GPU and TPU one serves.)
    """
    return lax.cond(jnp.all(indices[:1, :1] >= 0), lambda x: x, jnp.zeros_like, x)


def _fence(x, indices):
    """Elsewhere, a barrier does that."""
    return lax.optimization_barrier(x)


def _sum_terms(parts):
    """The sum over axis 1, `_TERMS` at a time: a reduction would have XLA transpose the gathered rows first (H100)."""
    while parts.shape[1] > 1:
        together = math.gcd(parts.shape[1], _TERMS)
        if together == 1:
            return jnp.sum(parts, axis=1)
        parts = reduce(add, (parts[:, t::together] for t in range(together)))
    return parts[:, 0]


def _sum_cpu(parts):
    """The sum over axis 1 as a product with ones, which nothing fuses with and which adds faster than a sum."""
    if parts.shape[1] == 1:
        return parts[:, 0]
    ones = jnp.ones((parts.shape[0], 1, parts.shape[1]), parts.dtype)
    return jnp.matmul(ones, parts, precision=lax.Precision.HIGHEST)[:, 0]


def _pool_rows(indices, places, weights, payload, *, dtype, materialize, add_up):
    """Sums of `_TERMS` members, then the sum of those. Rows of weight 0 are cleared bit by bit.

    (A `where` in the place of the bits becomes a branch on CPU, and takes a quarter longer.)
    """
    (slots, members), sums = indices.shape, accumulation_dtype(weights.dtype, payload.dtype)
    bits = jnp.dtype(f"int{8 * sums.itemsize}")
    together = math.gcd(members, _TERMS)

    def by_term(x):  # (together, slots, members / together)
        return jnp.moveaxis(x.reshape(slots, members // together, together), -1, 0)

    # A barrier, for a GPU would slice the terms apart in kernels of their own.
    indices_of, weight_of = lax.optimization_barrier((by_term(indices), by_term(weights.astype(sums))))

    def term(t):
        kept = jnp.where(weight_of[t] == 0, 0, -1).astype(bits)[..., None]
        row = lax.bitcast_convert_type(_take(payload, indices_of[t]).astype(sums), bits)
        return weight_of[t][..., None] * lax.bitcast_convert_type(row & kept, sums)

    parts = reduce(add, map(term, range(together)))
    return materialize(add_up(parts).astype(dtype), indices)


def row_weights(places, weights):
    """Each row's weight `(n,)`; 0 for rows that are nobody's member."""
    return filled(weights.reshape(-1), places)


def _row_slots(places, slots, members):
    """Each row's slot `(n,)`; any, for rows that are nobody's member."""
    return jnp.minimum(places // members, slots - 1)


def _spread_rows(indices, places, weights, slots, *, dtype, materialize):
    """Written once, in the order of the rows."""
    sums, slots = accumulation_dtype(weights.dtype, slots.dtype), materialize(slots, indices)
    weight = row_weights(places, weights).astype(sums)[:, None]
    parts = weight * _take(slots, _row_slots(places, *indices.shape)).astype(sums)
    return jnp.where(weight == 0, 0, parts).astype(dtype)


def _dots_rows(indices, places, payload, slots, *, dtype):
    """Read once, in the order of the rows, one fused product and sum (GPU, TPU)."""
    sums, slots = accumulation_dtype(payload.dtype, slots.dtype), lax.optimization_barrier(slots)
    own = _take(slots, _row_slots(places, *indices.shape)).astype(sums)
    return _take(jnp.sum(payload.astype(sums) * own, axis=-1), indices).astype(dtype)


def _dots_cpu(indices, places, payload, slots, *, dtype):
    """Sums of `_TERMS` features, then the sum of those; in the order of the rows, unless few of them are members."""
    sums, features = accumulation_dtype(payload.dtype, slots.dtype), payload.shape[-1]
    if not isinstance(features, int):  # a symbolic size, in an export
        return _dots_rows(indices, places, payload, slots, dtype=dtype)
    slots = _materialize(slots, indices)
    slot = _row_slots(places, *indices.shape) if 2 * indices.size > places.size else None
    lanes = max(1, min(features, max(_LANES, -(-features // _TERMS))))

    def partial_sum(start):
        e, g = payload[:, start : start + lanes], slots[:, start : start + lanes]
        e, g = (_take(e, indices), g[:, None]) if slot is None else (e, _take(g, slot))
        product = e.astype(sums) * g.astype(sums)
        return jnp.pad(product, [(0, 0)] * (product.ndim - 1) + [(0, lanes - product.shape[-1])])

    total = sum(partial_sum(start) for start in range(0, max(1, features), lanes))
    out = jnp.matmul(total, jnp.ones(lanes, sums), precision=lax.Precision.HIGHEST).astype(dtype)
    return out if slot is None else _take(out, indices)


def _leading(f, shape, dtype, split):
    """`f` of one row of scores, for leading axes; an axis of size 1 serves all of the others.

    Where no axis is shared, batch rows are just more slots over more rows: one larger problem, without the
    batched gathers and scatters that XLA gives an index list of their own. But where XLA is to split the batch over
    devices, only those tell it that a row's members are in that row.
    """

    def mapped(indices, places, x, y):
        operands = indices, places, x, y
        leads = [indices.shape[:-2], places.shape[:-1], x.shape[:-2], y.shape[:-2]]
        if leads[0] == ():
            return f(*operands, dtype=dtype)
        sizes, rows, width = leads[0], places.shape[-1], indices.shape[-2] * indices.shape[-1]
        known = all(isinstance(size, int) for size in (*sizes, rows))
        batch = math.prod(sizes) if known else 0
        if not split and leads.count(sizes) == 4 and 0 < batch * max(rows, width) <= _MOST_ROWS:
            row = lax.iota(jnp.int32, batch)
            indices = indices.reshape(batch, *indices.shape[-2:]) + rows * row[:, None, None]
            places = places.reshape(batch, rows)
            places = jnp.where(places < width, places + width * row[:, None], batch * width)
            indices, x, y = (a.reshape(batch * a.shape[-2], a.shape[-1]) for a in (indices, x, y))
            return f(indices, places.reshape(-1), x, y, dtype=dtype).reshape(*sizes, *shape(*operands))
        return over_axis(mapped)(*operands)

    return mapped


def _primitive(name, like, shape, default, cpu):
    """A bilinear primitive `(indices, places, x, y)`: `shape` gives its last two axes, operand `like` its mesh axes."""
    primitive = Primitive(f"shtopk_{name}")

    def abstract(indices, places, x, y, dtype):
        lead = jnp.broadcast_shapes(indices.shape[:-2], places.shape[:-1], x.shape[:-2], y.shape[:-2])
        return (indices, places, x, y)[like].update(shape=lead + shape(indices, places, x, y), dtype=dtype)

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
        *members, x, y = primals
        *_, dx, dy = tangents
        parts = []
        if type(dx) is not ad.Zero:
            parts.append(primitive.bind(*members, dx, y, **params))
        if type(dy) is not ad.Zero:
            parts.append(primitive.bind(*members, x, dy, **params))
        return primitive.bind(*primals, **params), sum(parts[1:], start=parts[0])

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(implementation(primitive, "dtype"))
    mlir.register_lowering(primitive, lower(default))
    mlir.register_lowering(primitive, lower(cpu), platform="cpu")
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    return primitive


_pool_p = _primitive(
    "pool",
    3,
    lambda i, p, w, e: (i.shape[-2], e.shape[-1]),
    partial(_pool_rows, materialize=_fence, add_up=_sum_terms),
    partial(_pool_rows, materialize=_materialize, add_up=_sum_cpu),
)
_spread_p = _primitive(
    "spread",
    3,
    lambda i, p, w, g: (p.shape[-1], g.shape[-1]),
    partial(_spread_rows, materialize=_fence),
    partial(_spread_rows, materialize=_materialize),
)
_dots_p = _primitive("dots", 0, lambda i, p, e, g: i.shape[-2:], _dots_rows, _dots_cpu)


def _transpose(wrt_x, wrt_y):
    """The transpose rule of a primitive, made of those of its two arguments."""

    def rule(cotangent, indices, places, x, y, *, dtype):
        del dtype
        if type(cotangent) is ad.Zero:
            return None, None, None, None
        if ad.is_undefined_primal(x):
            out = wrt_x(indices, places, y, cotangent, dtype=x.aval.dtype)
            return None, None, _sum_to(out, x.aval.shape), None
        out = wrt_y(indices, places, x, cotangent, dtype=y.aval.dtype)
        return None, None, None, _sum_to(out, y.aval.shape)

    return rule


def _sum_to(x, shape):
    axes = [i for i, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want]
    return jnp.sum(x, axes, keepdims=True) if axes else x


# pool(w, E): in w, G -> dots(E, G); in E, G -> spread(w, G). The others in the same way.
ad.primitive_transposes[_pool_p] = _transpose(wrt_x=_dots_p.bind, wrt_y=_spread_p.bind)
ad.primitive_transposes[_spread_p] = _transpose(
    wrt_x=lambda i, p, slots, rows, **dtype: _dots_p.bind(i, p, rows, slots, **dtype), wrt_y=_pool_p.bind
)
ad.primitive_transposes[_dots_p] = _transpose(
    wrt_x=lambda i, p, slots, w, **dtype: _spread_p.bind(i, p, w, slots, **dtype),
    wrt_y=lambda i, p, rows, w, **dtype: _pool_p.bind(i, p, w, rows, **dtype),
)
