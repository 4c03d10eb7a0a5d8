"""Seeding: the order of the candidates from best to worst. A sort, whose derivative is zero."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from shtopk._precision import accumulation_dtype

# Enables 64-bit integers in a block, whatever the user's setting. JAX before 0.8 has it in another module, and lowers
# such a block wrongly.
_enable_x64 = getattr(jax, "enable_x64", None)


@partial(jax.jit, inline=True)  # run eagerly, it would make an array of NaN, which `jax.debug_nans` reports
def _canonical(scores):
    # One zero and one NaN, so that -0.0 ties with 0.0 and every NaN ranks alike.
    scores = jnp.where(scores == 0, jnp.zeros_like(scores), scores)
    return jnp.where(jnp.isnan(scores), jnp.full_like(scores, jnp.nan), scores)


def _sort(scores, where):
    """The indices `(n,)` of `scores` `(n,)` from best to worst, rows outside `where` last; the scores in that order.

    The bits of a float, read as an integer, are in the order of the floats once the negative ones are reversed.
    Integers leave room for a key below every score, -inf included, for the rows outside `where`. A sorted key gives
    its score back without a gather. A row outside `where` gives 0.
    """
    bits_dtype = jnp.dtype(f"int{8 * scores.dtype.itemsize}")
    dead = jnp.iinfo(bits_dtype).max
    bits = lax.bitcast_convert_type(_canonical(scores), bits_dtype)
    key = ~_ordered(bits) if where is None else jnp.where(where, ~_ordered(bits), dead)
    index = lax.iota(jnp.int32, scores.shape[0])
    key, order = _sort_pairs(key, index)
    bits = _ordered(~key) if where is None else jnp.where(key == dead, 0, _ordered(~key))
    return order, lax.bitcast_convert_type(bits, scores.dtype)


def _ordered(bits):
    """The bits of floats as integers in the order of the floats, and back: the negative ones are reversed."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _sort_pairs(key, index):
    """`key` `(n,)` int32 or int64 and `index` `(n,)` int32, sorted by both.

    A key of 32 bits is packed above its index in one 64-bit integer. XLA sorts one operand 6 to 9 times faster on CPU
    than two. No two are equal, so the sort need not be stable, and a GPU sorts no index beside it.
    """
    if key.dtype.itemsize == 8 or _enable_x64 is None:
        return lax.sort((key, index), num_keys=1, is_stable=True)
    # The 32 is widened as an array: a literal of 64 bits would be cut to 32 when the user's setting is back in force,
    # at lowering.
    with _enable_x64(True):
        high, low, shift = (
            lax.convert_element_type(x, jnp.int64) for x in (key, index, jnp.full_like(key, 32))
        )
        packed = lax.sort(lax.bitwise_or(lax.shift_left(high, shift), low), is_stable=False)
        key = lax.convert_element_type(lax.shift_right_arithmetic(packed, shift), jnp.int32)
        return key, lax.convert_element_type(packed, jnp.int32)  # keeps the lower half


# The permutation is piecewise constant in the scores: its derivative is 0 wherever it exists. The custom_vjp is the
# rule for reverse mode. Forward mode needs none, because `seed_order` passes the scores through `stop_gradient`, so
# they carry no tangent. `_reorder.by_seed` differentiates the sorted scores.
_permutation = jax.custom_vjp(_sort)
_permutation.defvjp(
    lambda scores, where: (_sort(scores, where), scores),
    lambda scores, _: (jnp.zeros_like(scores), None),
)


def seed_order(scores, where=None, best=None):
    """The candidates' indices by seed, `(n,)` scores to `(best,)` int32, and their scores `(best,)`, as constants.

    Seed 0 has the best score. Ties go to the lower index, and NaN ranks above inf, as for `lax.top_k`. -0.0 ties with
    0.0. Rows outside `where`, `(n,)` boolean, come last. `best=None` stands for all n. The scores are in float32 at
    least.
    """
    scores = lax.stop_gradient(scores).astype(accumulation_dtype(scores.dtype))
    if best is None or best == scores.shape[0] or where is not None:
        order, ranked = _permutation(scores, where)
        return order[:best], ranked[:best]
    # Gather the scores instead of reading the values of `top_k`. If anything reads those values, XLA on CPU sorts all n
    # in place of its top k, 17 times slower at n = 16384 (seen in JAX 0.12).
    order = lax.top_k(_canonical(scores), best)[1]
    return order, taken(scores, order)


def taken(x, index):
    """`x[index]` for indices that are known to be less than the size of `x`."""
    return x.at[index].get(mode="promise_in_bounds")


def filled(x, index, fill_value=0):
    """`x[index]` for `x` `(n,)`, and `fill_value` where `index` is n or more."""
    size = x.shape[0]
    return jnp.where(index < size, taken(x, jnp.minimum(index, size - 1)), fill_value)
