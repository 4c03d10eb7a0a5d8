"""n candidates split over the devices of a mesh axis: what travels, and what each device sums up.

Inside `shard_map` each of D devices holds `n / D` rows. Their scores travel, in one all-gather, and every device
plays the same tournament on all of them. The payload stays: each device sums up the rows that it holds, and one
sum over the devices, of `(k, d)`, finishes.

Derivation of the backward pass. Write `v_j`, `E_j` for what device j holds, `m_j(v_1, ..., v_D)` for its rows'
weights; then `out = sum_j pool(m_j, E_j)`. Where the cotangent G of `out` is, as `out`, the same everywhere, device j
has `dE_j = spread(m_j, G)` without a message. It also has its part of the cotangent of all scores: what comes
back through the tournament from its own `m_j`. These parts are added in one reduce-scatter, which is the transpose of
the all-gather. So the collectives' own rules serve, and none is written here. (Under `check_vma=False` JAX cannot
tell that G is the same everywhere, and takes D such parts of it, which it adds.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from shtopk._seeding import filled, seed_order

_MOST_TERMS = 32  # rows in a block of `Members`


class Entry(NamedTuple):
    """The rows that may enter the tournament, on every device.

    `scores` `(e,)`; `where` `(e,)` boolean, or None; `indices` `(e,)` int32 among all n, None if all n are here.
    """

    scores: jax.Array
    where: jax.Array | None
    indices: jax.Array | None


class Members(NamedTuple):
    """The members that a device holds, in blocks of one slot each.

    `indices`, `weights` `(..., blocks, B)` and `places` `(..., rows)`, as `_pooling` takes them, among the device's
    rows; `slots` `(..., blocks)` int32, ascending, or None where there is one block for each slot, in their order.
    """

    indices: jax.Array
    weights: jax.Array
    places: jax.Array
    slots: jax.Array | None


class Whole:
    """All n rows are here."""

    size = 1

    def enter(self, scores, where, candidates):
        return Entry(scores, where, None)

    def members(self, indices, weights, places):
        return Members(indices, weights, places, None)

    def held(self, indices, rows):
        return indices, jnp.ones(indices.shape, bool)

    def part(self, x, rows):
        return x

    def replicate(self, tree):
        return tree

    def total(self, tree, scatter=None):
        return tree

    def most(self, x):
        return x

    def own_key(self, key):
        return key


class Split(NamedTuple):
    """n is split over the devices of a mesh axis, inside `shard_map`."""

    axis_name: Any

    @property
    def size(self):
        return lax.psum(1, self.axis_name)

    def enter(self, scores, where, candidates):
        """All devices' rows, of which this one holds `scores`, `where` `(rows,)`.

        Each sends its best `candidates` alone, as no other can be among the best of all. They stand in the order of the
        devices, tied ones in the order of their indices: a stable sort breaks ties as if no row were missing.
        """
        entry, rows = Entry(scores, where, None), scores.shape[0]
        if candidates is not None and candidates < rows:
            best, _ = seed_order(scores, where, candidates)
            indices = best + lax.axis_index(self.axis_name) * rows
            entry = Entry(scores[best], None if where is None else where[best], indices)
        return jax.tree.map(lambda x: lax.all_gather(x, self.axis_name, tiled=True), entry)

    def members(self, indices, weights, places):
        """This device's share of slots whose members are `indices`, `weights` `(..., k, M)`; `places` `(..., n)`.

        How many members of a slot it holds is decided at run time only: M of one slot, or none. But in all they
        are its rows, each once, or twice if repeated by a bye. So slots take as many blocks as they need, of a
        number that always suffices, and the work is that of `rows` rows whatever the number of devices.
        """
        if indices.ndim > 2:
            return jax.vmap(self.members)(indices, weights, places)
        rows = places.shape[0] // self.size
        (slots, members), most = indices.shape, min(indices.size, 2 * rows)
        block = min(_MOST_TERMS, 1 << (max(1, most // slots).bit_length() - 1))
        size = (most // block + slots) * block

        own_indices, own = self.held(indices, rows)
        needed = -(-jnp.sum(own, axis=1, dtype=jnp.int32) // block)
        start = block * (jnp.cumsum(needed) - needed)
        at = start[:, None] + jnp.cumsum(own, axis=1, dtype=jnp.int32) - 1
        at = jnp.where(own, at, size)  # out of bounds, and dropped

        # Members enter in the order of the slots. An entry that is left over, of weight 0, repeats the one before it,
        # so that every row stands in blocks of one slot only.
        member = lax.iota(jnp.int32, indices.size).reshape(indices.shape)
        member = lax.cummax(jnp.zeros(size, jnp.int32).at[at].set(member, mode="drop"))
        own_places = filled(at.reshape(-1), self.part(places, rows), size)
        weights = jnp.zeros(size, weights.dtype).at[at].set(weights, mode="drop")
        own_indices = own_indices.ravel()[member]
        blocks = own_indices.reshape(-1, block), weights.reshape(-1, block)
        return Members(*blocks, own_places, member[::block] // members)

    def held(self, indices, rows):
        """Global `indices` as those of this device's rows, and where it holds them; 0 where it does not."""
        local = indices - lax.axis_index(self.axis_name) * rows
        own = (local >= 0) & (local < rows)
        return jnp.where(own, local, 0), own

    def part(self, x, rows):
        """This device's `rows` of `x` `(n,)`."""
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis_name) * rows, rows)

    def replicate(self, tree):
        """What all devices have, typed as equal on all."""
        first = lax.axis_index(self.axis_name) == 0
        return lax.psum(jax.tree.map(lambda x: jnp.where(first, x, jnp.zeros_like(x)), tree), self.axis_name)

    def total(self, tree, scatter=None):
        """The sum over the devices; with `scatter`, an axis of the arrays, each device's part of it along that axis."""
        if scatter is None:
            return lax.psum(tree, self.axis_name)
        return jax.tree.map(
            lambda x: lax.psum_scatter(x, self.axis_name, scatter_dimension=scatter, tiled=True), tree
        )

    def most(self, x):
        """The largest `x` of all devices."""
        return lax.pmax(x, self.axis_name)

    def own_key(self, key):
        """A key that no other device has, from one that all have."""
        return jax.random.fold_in(key, lax.axis_index(self.axis_name))


def over(axis_name):
    """Where the rows are: all here if `axis_name` is None, else split over that mesh axis."""
    return Whole() if axis_name is None else Split(axis_name)


def sum_blocks(sums, slots, k):
    """The sums of blocks `(..., blocks, d)`, blocks of `slots` `(..., blocks)`, to those of slots `(..., k, d)`."""
    if slots.ndim > 1:
        return jax.vmap(lambda sums, slots: sum_blocks(sums, slots, k))(sums, slots)
    return jax.ops.segment_sum(sums, slots, k, indices_are_sorted=True)


def xla_splits(ctx):
    """Whether XLA has yet to split over devices what is lowered in `ctx`: inside `shard_map` that is done."""
    context = ctx.module_context.axis_context
    if hasattr(context, "manual_axes"):
        return set(context.manual_axes) != set(context.mesh.axis_names)
    return getattr(context, "num_devices", 1) > 1


def match_varying_axes(*tree):
    """The arrays of `tree`, typed as varying over the same mesh axes.

    Within `shard_map` a type says over which axes a value differs from device to device. Functions of `jax.numpy`
    bring their operands together by themselves; loops and primitives do not.
    """
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(tree)):
        return tree
    zeros = [jnp.zeros_like(x, shape=(), dtype=jnp.int32) for x in jax.tree.leaves(tree)]
    zero = sum(zeros[1:], start=zeros[0])  # varies over all of their axes

    def like_all(x, own):
        return x if jax.typeof(own) == jax.typeof(zero) else x + zero.astype(x.dtype)

    return jax.tree.map(like_all, tree, jax.tree.unflatten(jax.tree.structure(tree), zeros))
