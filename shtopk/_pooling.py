"""Weighted pooling of the payload: three bilinear operations, each a derivative of the others.

Slot s has members `indices[s, j]` with weights `weights[s, j]`. Row i has the place `places[i] = s * M + j`, or k * M
if it is in no slot. Write `E` for the payload `(n, d)` and `G` for any array of the shape of the slots, `(k, d)`. The
three operations are

    pool(w, E)[s]    = sum_j w[s, j] * E[indices[s, j]]      (k, d)
    spread(w, G)[i]  = w[s, j] * G[s] with s, j = places[i]   (n, d)
    dots(E, G)[s, j] = <E[indices[s, j]], G[s]>                (k, M)

Derivation of the rules. Take the scalar `<G, pool(w, E)> = sum_sj w[s, j] * <E[indices[s, j]], G[s]>`. This scalar is
linear in each of `w`, `E` and `G`, and can be written in three ways: `<G, pool(w, E)>`, `<E, spread(w, G)>`, or
`<w, dots(E, G)>`. So the transpose of any one operation with respect to one of its arguments is one of the other two.
Each operation is bilinear, hence its derivative is the product rule, `d f(x, y) = f(dx, y) + f(x, dy)`. As primitives
with these rules alone, the operations have forward and reverse mode to every order. The backward pass keeps only
`indices`, `places`, `w` and `E`: no second array of size n*d, and none of size n*k.

A `custom_jvp` whose tangent is a `segment_sum` would need no primitives. Its gradient was 1.6 to 2.1 times slower on a
CPU, from n = 1024 to 16384, and started 1 to 3 kernels more on an H100 (JAX 0.10.2). Its forward mode scatters.

Within a row of scores a candidate is a member of one slot, once; a bye repeats a member of its own slot with weight 0.
A row of weight exactly 0 takes no part: a NaN in its payload reaches no slot.
"""

import math
from functools import partial, reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from shtopk._jit import implementation, over_rows
from shtopk._precision import accumulation_dtype
from shtopk._reorder import one_long_row
from shtopk._seeding import filled, taken
from shtopk._sharding import is_split, match_sharding, match_varying_axes, xla_splits

# XLA fuses gathers into a sum of terms at the speed of memory, but not into a reduction. So sums are taken in two
# steps: this many terms at a time in one fused kernel, then the partial sums. (As measured on CPU; compiled for an
# H100, a reduction of gathered rows copies the payload.)
_TERMS = 32
# A TPU writes the gathered rows of each term to memory. With a barrier after this many terms, the temporary memory
# at 16 x 8192 scores, k = 256 and d = 256 is 0 of the payload forward and 0.08 with the gradient. Without, it is 0.35
# and 0.41 (v5e, JAX 0.10).
_TERMS_ON_TPU = 16
_LANES = 8  # the fewest partial sums of a row, a vector register full


def pool(members, weights, payload, dtype=None):
    """Slots `(..., k, d)` in `dtype`, that of `payload` `(..., n, d)`; `weights` `(..., k, M)`."""
    return _bind(_pool_p, members, weights, payload, dtype or payload.dtype)


def spread(members, weights, slots, sum_axis=None):
    """Rows `(..., n, d)` in the dtype of `slots` `(..., k, d)`, summed over the leading axis `sum_axis` if not None."""
    if sum_axis is not None and any(is_split(x, sum_axis) for x in (*members, weights, slots)):
        return jnp.sum(spread(members, weights, slots), sum_axis)  # a sum between devices
    rows = _bind(_spread_p, members, weights, slots, slots.dtype, sum_axis)
    return rows if sum_axis is None else jnp.squeeze(rows, sum_axis)


def dots(members, payload, slots):
    """Weights `(..., k, M)` in the dtype of `slots`; `payload` `(..., n, d)`, `slots` `(..., k, d)`."""
    return _bind(_dots_p, members, payload, slots, slots.dtype)


def _bind(primitive, members, x, y, dtype, sum_axis=None):
    """`members` is the pair of `indices` `(..., k, M)` and `places` `(..., n)`. `sum_axis` keeps size 1."""
    indices, places, x, y = match_sharding(match_varying_axes(*members, x, y), y.ndim - 2)
    lead = jnp.broadcast_shapes(indices.shape[:-2], x.shape[:-2], y.shape[:-2])
    if sum_axis is not None:
        lead = (*lead[:sum_axis], 1, *lead[sum_axis + 1 :])
    return primitive.bind(indices, places, x, y, dtype=dtype, lead=lead)


@jax.custom_batching.custom_vmap
def _materialize(x, indices):
    """Compute `x` before any kernel reads it, on CPU: XLA does not fuse the result of a branch into other kernels.

    Otherwise XLA fuses the operations that compute `x` into each kernel that reads `x`, and runs them once for each
    element read. The branch is always taken, because indices are not negative, but XLA cannot infer that. (The compiler
    of JAX 0.10 drops an `optimization_barrier` too early to help; on GPU and TPU one serves.)
    """
    return lax.cond(jnp.all(indices.reshape(-1)[:1] >= 0), lambda x: x, jnp.zeros_like, x)


@_materialize.def_vmap
def _materialize_all(axis_size, batched, x, indices):
    """One branch for all rows: under `vmap` a branch for each of them would become a `where`, which XLA does fuse."""
    return _materialize(x, indices), batched[0]


def _fence(x, indices):
    """Compute `x` before any kernel reads it, on other backends: a barrier is enough there."""
    return lax.optimization_barrier(x)


def _sum_terms(parts):
    """The sum over axis 1, `_TERMS` at a time: a reduction would have XLA transpose the gathered rows first (H100).

    Without the barrier, XLA gathers the terms of several sums in one kernel. Pooling at 256 x 8192 scores, k = 64 and
    d = 64 then takes 1.46 ms instead of 0.16 (H200, JAX 0.11).
    """
    while parts.shape[1] > 1:
        parts = lax.optimization_barrier(parts)
        together = math.gcd(parts.shape[1], _TERMS)
        if together == 1:
            return jnp.sum(parts, axis=1)
        parts = reduce(add, (parts[:, t::together] for t in range(together)))
    return parts[:, 0]


def _sum_cpu(parts):
    """The sum over axis 1 as a product with ones, which XLA fuses with nothing and which is faster than a sum."""
    if parts.shape[1] == 1:
        return parts[:, 0]
    ones = jnp.ones((parts.shape[0], 1, parts.shape[1]), parts.dtype)
    return jnp.matmul(ones, parts, precision=lax.Precision.HIGHEST)[:, 0]


def _pool_rows(
    indices, places, weights, payload, *, dtype, materialize=_fence, add_up=_sum_terms, at_once=_TERMS
):
    """Add up `_TERMS` members at a time, then these partial sums. A bit mask clears rows of weight 0.

    A barrier follows each `at_once` terms but the last.

    (A `where` instead of the bit mask becomes a branch on CPU, and takes a quarter longer.)
    """
    (k, members), sum_dtype = indices.shape, accumulation_dtype(weights.dtype, payload.dtype)
    bits = jnp.dtype(f"int{8 * sum_dtype.itemsize}")
    together = math.gcd(members, _TERMS)

    def by_term(x):  # (together, k, members / together)
        return jnp.moveaxis(x.reshape(k, members // together, together), -1, 0)

    # A barrier, because a GPU would otherwise slice each term in a kernel of its own.
    indices_of, weight_of = lax.optimization_barrier((by_term(indices), by_term(weights.astype(sum_dtype))))

    def term(t):
        kept = jnp.where(weight_of[t] == 0, 0, -1).astype(bits)[..., None]
        row = lax.bitcast_convert_type(taken(payload, indices_of[t]).astype(sum_dtype), bits)
        return weight_of[t][..., None] * lax.bitcast_convert_type(row & kept, sum_dtype)

    first, *rest = (range(together)[t : t + at_once] for t in range(0, together, at_once))
    parts = reduce(add, map(term, first))
    for terms in rest:
        parts = reduce(add, map(term, terms), lax.optimization_barrier(parts))
    return materialize(add_up(parts).astype(dtype), indices)


def _row_slots(places, k, members):
    """The slot of each row `(n,)`; an arbitrary slot for a row that is in none."""
    return jnp.minimum(places // members, k - 1)


def _spread_rows(indices, places, weights, slots, *, dtype, materialize=_fence):
    """`spread`, which writes each row once, in the order of the rows."""
    sum_dtype, slots = accumulation_dtype(weights.dtype, slots.dtype), materialize(slots, indices)
    weight = filled(weights.reshape(-1), places).astype(sum_dtype)[:, None]
    parts = weight * taken(slots, _row_slots(places, *indices.shape)).astype(sum_dtype)
    return jnp.where(weight == 0, 0, parts).astype(dtype)


def _dots_rows(indices, places, payload, slots, *, dtype):
    """`dots` on GPU and TPU: one fused product and sum, which reads each row once, in the order of the rows."""
    sum_dtype, slots = accumulation_dtype(payload.dtype, slots.dtype), lax.optimization_barrier(slots)
    own = taken(slots, _row_slots(places, *indices.shape)).astype(sum_dtype)
    # The barrier keeps XLA from computing the sum inside the kernel that gathers, which made the gradient at 2^20
    # scores a seventh slower on an H200 (JAX 0.11).
    by_row = lax.optimization_barrier(jnp.sum(payload.astype(sum_dtype) * own, axis=-1))
    return taken(by_row, indices).astype(dtype)


def _dots_cpu(indices, places, payload, slots, *, dtype):
    """`dots` on CPU: sums of `_TERMS` features, then their sum; in the order of the rows, unless few are members."""
    sum_dtype, features = accumulation_dtype(payload.dtype, slots.dtype), payload.shape[-1]
    if not isinstance(features, int):  # a symbolic size, in an export
        return _dots_rows(indices, places, payload, slots, dtype=dtype)
    slots = _materialize(slots, indices)
    slot = _row_slots(places, *indices.shape) if 2 * indices.size > places.size else None
    lanes = max(1, min(features, max(_LANES, -(-features // _TERMS))))

    def partial_sum(start):
        e, g = payload[:, start : start + lanes], slots[:, start : start + lanes]
        e, g = (taken(e, indices), g[:, None]) if slot is None else (e, taken(g, slot))
        product = e.astype(sum_dtype) * g.astype(sum_dtype)
        return jnp.pad(product, [(0, 0)] * (product.ndim - 1) + [(0, lanes - product.shape[-1])])

    total = sum(partial_sum(start) for start in range(0, max(1, features), lanes))
    out = jnp.matmul(total, jnp.ones(lanes, sum_dtype), precision=lax.Precision.HIGHEST).astype(dtype)
    return out if slot is None else taken(out, indices)


def _leading(f, shape, dtype, split):
    """`f`, for one row of scores, extended to leading axes; an axis of size 1 is shared by the others.

    If no axis is shared, the batch becomes one larger problem with more slots and more rows. This avoids batched
    gathers and scatters, for which XLA makes an index list. But if XLA splits the batch over devices, it needs the
    batched form to infer that the members of a row are in that row.
    """

    def mapped(indices, places, x, y):
        operands = indices, places, x, y
        leads = [indices.shape[:-2], places.shape[:-1], x.shape[:-2], y.shape[:-2]]
        if leads[0] == ():
            return f(*operands, dtype=dtype)
        sizes, rows, width = leads[0], places.shape[-1], indices.shape[-2] * indices.shape[-1]
        if leads.count(sizes) == 4 and one_long_row(sizes, max(rows, width), split):
            batch = math.prod(sizes)
            row = lax.iota(jnp.int32, batch)
            indices = indices.reshape(batch, *indices.shape[-2:]) + rows * row[:, None, None]
            places = places.reshape(batch, rows)
            places = jnp.where(places < width, places + width * row[:, None], batch * width)
            indices, x, y = (a.reshape(batch * a.shape[-2], a.shape[-1]) for a in (indices, x, y))
            return f(indices, places.reshape(-1), x, y, dtype=dtype).reshape(*sizes, *shape(*operands))
        return over_rows(mapped, 1)(*operands)

    return mapped


def _summed(f, axes, *operands):
    """`f(*operands)`, summed over the leading `axes`, which keep size 1."""
    return jnp.sum(f(*operands), axes, keepdims=True)


def _summed_one_by_one(f, axes, *operands):
    """`_summed` on CPU, where the entries of an axis are computed one after the other.

    XLA would keep all of them in memory, and its sum over a leading axis is slow on CPU: the sum of 8 x 2048 x 512
    numbers takes 5 times as long as their computation. Other backends compute entries and sum in one kernel.
    """
    if any(0 in x.shape for x in operands):
        return _summed(f, axes, *operands)
    axis, *others = axes
    entries = next(x.shape[axis] for x in operands if x.shape[axis] != 1)

    def part(entry):
        own = (x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, entry, 1, axis) for x in operands)
        return _summed_one_by_one(f, others, *own) if others else f(*own)

    return lax.fori_loop(1, entries, lambda entry, total: total + part(entry), part(0))


def _primitive(name, like, shape, default, **platforms):
    """A bilinear primitive `(indices, places, x, y)`: `shape` gives its last two axes, operand `like` its mesh axes.

    It is computed by `default`, except on the `platforms` that have a function of their own. The leading axes of the
    result are `lead`. An axis that has size 1 there, but not in all operands, is summed over.
    """
    primitive = Primitive(f"shtopk_{name}")

    def abstract(indices, places, x, y, dtype, lead):
        return (indices, places, x, y)[like].update(shape=lead + shape(indices, places, x, y), dtype=dtype)

    def batch(operands, dims, *, lead, dtype):
        operands = [
            jnp.expand_dims(x, 0) if dim is None else jnp.moveaxis(x, dim, 0)
            for x, dim in zip(operands, dims, strict=True)
        ]
        (size,) = {x.shape[0] for x, dim in zip(operands, dims, strict=True) if dim is not None}
        return primitive.bind(*operands, lead=(size, *lead), dtype=dtype), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(implementation(primitive, "dtype", "lead"))
    for platform, f in {None: default, **platforms}.items():
        summed = _summed_one_by_one if platform == "cpu" else _summed
        mlir.register_lowering(primitive, _lowering(shape, default, f, summed), platform=platform)
    batching.primitive_batchers[primitive] = batch
    ad.defjvp(  # d f(x, y) = f(dx, y) + f(x, dy)
        primitive,
        None,
        None,
        lambda dx, indices, places, x, y, **params: primitive.bind(indices, places, dx, y, **params),
        lambda dy, indices, places, x, y, **params: primitive.bind(indices, places, x, dy, **params),
    )
    return primitive


def _lowering(shape, default, f, summed):
    """The rule that computes a primitive by `f`, and sums over axes by `summed`; see `_primitive` for the others."""

    def rule(ctx, *operands, dtype, lead):
        split = xla_splits(ctx)
        # The CPU forms split the work into parts, which XLA would send between devices.
        form, total = (default, _summed) if split else (f, summed)
        axes = [i for i, size in enumerate(lead) if size == 1 and any(x.shape[i] != 1 for x in ctx.avals_in)]
        sum_dtype = accumulation_dtype(dtype) if axes else dtype
        rows = _leading(form, shape, split=split, dtype=sum_dtype)

        def run(*operands):
            return (total(rows, axes, *operands) if axes else rows(*operands)).astype(dtype)

        return mlir.lower_fun(run, multiple_results=False)(ctx, *operands)

    return rule


_pool_p = _primitive(
    "pool",
    3,
    lambda i, p, w, e: (i.shape[-2], e.shape[-1]),
    _pool_rows,
    cpu=partial(_pool_rows, materialize=_materialize, add_up=_sum_cpu),
    tpu=partial(_pool_rows, at_once=_TERMS_ON_TPU),
)
_spread_p = _primitive(
    "spread",
    3,
    lambda i, p, w, g: (p.shape[-1], g.shape[-1]),
    _spread_rows,
    cpu=partial(_spread_rows, materialize=_materialize),
)
_dots_p = _primitive("dots", 0, lambda i, p, e, g: i.shape[-2:], _dots_rows, cpu=_dots_cpu)


def _transpose(wrt_x, wrt_y):
    """The transpose rule of a primitive, from the rules for its two arguments."""

    def rule(cotangent, indices, places, x, y, **_):
        if type(cotangent) is ad.Zero:
            return None, None, None, None
        if ad.is_undefined_primal(x):
            like = {"dtype": x.aval.dtype, "lead": x.aval.shape[:-2]}
            return None, None, wrt_x(indices, places, y, cotangent, **like), None
        like = {"dtype": y.aval.dtype, "lead": y.aval.shape[:-2]}
        return None, None, None, wrt_y(indices, places, x, cotangent, **like)

    return rule


# pool(w, E): in w, G -> dots(E, G); in E, G -> spread(w, G). The others in the same way.
ad.primitive_transposes[_pool_p] = _transpose(wrt_x=_dots_p.bind, wrt_y=_spread_p.bind)
ad.primitive_transposes[_spread_p] = _transpose(
    wrt_x=lambda i, p, slots, rows, **like: _dots_p.bind(i, p, rows, slots, **like), wrt_y=_pool_p.bind
)
ad.primitive_transposes[_dots_p] = _transpose(
    wrt_x=lambda i, p, slots, w, **like: _spread_p.bind(i, p, w, slots, **like),
    wrt_y=lambda i, p, rows, w, **like: _pool_p.bind(i, p, w, rows, **like),
)
