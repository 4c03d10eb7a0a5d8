"""n candidates split over the devices of a mesh axis: what the devices exchange, and what each device adds up.

Inside `shard_map` each of D devices holds `n / D` rows. One all-gather exchanges the scores, and every device plays the
same tournament on all n scores. The payload stays where it is: each device adds up the rows that it holds, and one sum
over the devices, of `(k, d)`, gives the slots.

Derivation of the backward pass. Write `v_j`, `E_j` for the scores and the payload of device j, and `m_j(v_1, ..., v_D)`
for the weights of its rows. Then `out = sum_j pool(m_j, E_j)`. If the cotangent G of `out` is equal on all devices, as
`out` is, device j computes `dE_j = spread(m_j, G)` without communication. It also computes its part of the cotangent of
all scores, through the tournament from its own `m_j`. One reduce-scatter, the transpose of the all-gather, adds these
parts. So the rules of the collectives are enough, and none is written here. (Under `check_vma=False` JAX cannot infer
that G is equal on all devices, and adds D copies of it.)
"""

from functools import reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from shtopk import _checks
from shtopk._precision import accumulation_dtype
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

    `indices`, `weights` `(..., blocks, B)` and `places` `(..., rows)`, as in `_pooling`, among the device's rows;
    `slots` `(..., blocks)` int32, ascending, or None where there is one block for each slot, in their order.
    """

    indices: jax.Array
    weights: jax.Array
    places: jax.Array
    slots: jax.Array | None

    def by_block(self, values):
        """`values` `(..., k, d)` of the slots as those of the blocks `(..., blocks, d)`."""
        return values if self.slots is None else jnp.take_along_axis(values, self.slots[..., None], axis=-2)

    def by_slot(self, sums, k):
        """The sums of the slots `(..., k, d)`, from those of the blocks `(..., blocks, d)`."""
        return sums if self.slots is None else _sum_blocks(sums, self.slots, k)

    def dtype_of_sums(self, dtype):
        """The dtype of sums of rows in `dtype`: float32 at least if other devices add theirs."""
        return dtype if self.slots is None else accumulation_dtype(self.weights.dtype, dtype)


def _sum_blocks(sums, slots, k):
    if slots.ndim > 1:
        return jax.vmap(lambda sums, slots: _sum_blocks(sums, slots, k))(sums, slots)
    return jax.ops.segment_sum(sums, slots, k, indices_are_sorted=True)


class Whole(NamedTuple):
    """All n rows are here."""

    axis_name, size = None, 1

    def enter(self, scores, where, candidates):
        return Entry(scores, where, None)

    def members(self, indices, weights, places):
        return Members(indices, weights, places, None)

    def held(self, indices, rows):
        return indices, jnp.ones(indices.shape, bool)

    def total(self, tree, scatter=None):
        return tree

    # On one device, each of these returns its first argument.
    part = replicate = most = own_key = total


class Split(NamedTuple):
    """n is split over the devices of a mesh axis, inside `shard_map`."""

    axis_name: Any

    @property
    def size(self):
        return lax.psum(1, self.axis_name)

    def enter(self, scores, where, candidates):
        """The rows of all devices; this device holds `scores`, `where` `(rows,)`.

        Each device sends only its best `candidates`, because no other row can be among the best of all. The rows are in
        the order of the devices, and tied rows in the order of their indices. So a stable sort breaks ties as if no row
        were missing.
        """
        entry, rows = Entry(scores, where, None), scores.shape[0]
        if candidates < rows:
            best, _ = seed_order(scores, where, candidates)
            indices = best + lax.axis_index(self.axis_name) * rows
            entry = Entry(scores[best], None if where is None else where[best], indices)
        return lax.all_gather(entry, self.axis_name, tiled=True)

    def members(self, indices, weights, places):
        """This device's share of slots whose members are `indices`, `weights` `(..., k, M)`; `places` `(..., n)`.

        The number of members of a slot that this device holds is known only at run time, and is between 0 and M. But
        all members together are its rows, each once, or twice if a bye repeats it. So each slot takes as many blocks as
        it needs, from a fixed number that always suffices. The work is that of `rows` rows, whatever the number of
        devices.
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
        # The position of each member in the blocks of its slot; `size`, out of bounds, drops the others' members.
        at = jnp.where(own, start[:, None] + jnp.cumsum(own, axis=1, dtype=jnp.int32) - 1, size)

        # Members are in the order of the slots. An unused entry, of weight 0, repeats the entry before it, so that each
        # row is only in blocks of its own slot.
        member = lax.iota(jnp.int32, indices.size).reshape(indices.shape)
        member = lax.cummax(jnp.zeros(size, jnp.int32).at[at].set(member, mode="drop"))
        own_places = filled(at.reshape(-1), self.part(places), size)
        weights = jnp.zeros(size, weights.dtype).at[at].set(weights, mode="drop")
        own_indices = own_indices.ravel()[member].reshape(-1, block)
        return Members(own_indices, weights.reshape(-1, block), own_places, member[::block] // members)

    def held(self, indices, rows):
        """Global `indices` as indices of this device's rows, 0 for rows of other devices; and which rows it holds."""
        local = indices - lax.axis_index(self.axis_name) * rows
        own = (local >= 0) & (local < rows)
        return jnp.where(own, local, 0), own

    def part(self, x):
        """This device's rows of `x` `(..., n)`."""
        rows = x.shape[-1] // self.size
        return lax.dynamic_slice_in_dim(x, lax.axis_index(self.axis_name) * rows, rows, axis=-1)

    def replicate(self, tree):
        """`tree`, which is equal on all devices, typed as such."""
        first = lax.axis_index(self.axis_name) == 0
        # One sum for each array: JAX 0.6 cannot transpose a sum of floats and integers together.
        return jax.tree.map(lambda x: lax.psum(jnp.where(first, x, jnp.zeros_like(x)), self.axis_name), tree)

    def total(self, tree, scatter=None):
        """The sum over the devices; with `scatter`, an axis of the arrays, this device's part of it along that axis."""
        if scatter is None:
            return lax.psum(tree, self.axis_name)
        return lax.psum_scatter(tree, self.axis_name, scatter_dimension=scatter, tiled=True)

    def most(self, x):
        """The largest `x` over all devices."""
        return lax.pmax(x, self.axis_name)

    def own_key(self, key):
        """A key for this device alone, from a key that all devices share.

        The number is counted from the largest one down, because a caller may fold small numbers into the same key.
        """
        return jax.random.fold_in(key, ~lax.axis_index(self.axis_name).astype(jnp.uint32))


def over(axis_name):
    """Where the rows are: all here if `axis_name` is None, else split over that mesh axis, which must be bound here."""
    if axis_name is None:
        return Whole()
    try:
        hash(axis_name)
        lax.psum(1, axis_name)
    except (TypeError, ValueError):  # an int would be the position of an axis
        raise TypeError(
            f"axis_name must be the name of a mesh axis or a tuple of names, got {axis_name!r}"
        ) from None
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not bound here: call this inside jax.shard_map, over a mesh that has "
            "that axis, with scores and embeddings split along n"
        ) from None
    return Split(axis_name)


def scatters(scatter, k, devices):
    """`scatter`, which may be True only where k slots can be split evenly over the devices of an axis."""
    if not _checks.flag("scatter", scatter):
        return False
    if devices.axis_name is None:
        raise ValueError(
            "scatter=True needs a selection with an axis_name, got None; select inside jax.shard_map"
        )
    if k % devices.size:
        raise ValueError(
            f"scatter=True splits k={k} slots over the {devices.size} devices of axis_name={devices.axis_name!r}; "
            "select with a k that this number divides, or pool with scatter=False"
        )
    return True


def xla_splits(ctx):
    """Whether XLA still has to split the computation of `ctx` over devices: not inside `shard_map`."""
    context = ctx.module_context.axis_context
    if hasattr(context, "manual_axes"):
        return set(context.manual_axes) != set(context.mesh.axis_names)
    return getattr(context, "num_devices", 1) > 1


def match_varying_axes(*tree):
    """The arrays of `tree`, typed as varying over the same mesh axes.

    Within `shard_map` a type says over which axes a value differs from device to device. Functions of `jax.numpy`
    convert their operands to a common type; loops and primitives do not.
    """
    if not any(isinstance(x, Tracer) for x in jax.tree.leaves(tree)):
        return tree
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, shape=(), dtype=jnp.int32), tree)
    zero = reduce(add, jax.tree.leaves(zeros))  # varies over all of their axes

    def like_all(x, own):
        return x if jax.typeof(own) == jax.typeof(zero) else x + zero.astype(x.dtype)

    return jax.tree.map(like_all, tree, zeros)


def is_split(x, axis):
    """Whether `x` is split along `axis` over a mesh, by its type, as only a mesh with explicit axes has it."""
    return jax.typeof(x).sharding.spec[axis] is not None


def unsplit(x, axis):
    """`x`, whole along `axis` on each device, if the type of `x` splits that axis over a mesh."""
    return _resharded(x, axis, None) if is_split(x, axis) else x


def match_sharding(tree, axes=1):
    """The arrays of `tree`, their first `axes` axes split over a mesh as those of one of them are by its type.

    This is for meshes with explicit axes, where operations refuse arrays that are split differently. Beside an axis
    that is split, one of size 1 is repeated, so that each device has the part that it reads.
    """
    leaves, structure = jax.tree.flatten(tree)
    for axis in range(axes):
        like = next((x for x in leaves if is_split(x, axis)), None)
        if like is not None:
            leaves = [_split_as(x, axis, like) for x in leaves]
    return jax.tree.unflatten(structure, leaves)


def _split_as(x, axis, like):
    over = jax.typeof(like).sharding.spec[axis]
    if jax.typeof(x).sharding.spec[axis] == over:
        return x
    shape = (*x.shape[:axis], like.shape[axis], *x.shape[axis + 1 :])
    return _resharded(jnp.broadcast_to(x, shape), axis, over)


def _resharded(x, axis, over):
    """`x` with `axis` split over the mesh axes `over`, and the other axes as they are."""
    spec = list(jax.typeof(x).sharding.spec)
    spec[axis] = over
    return jax.sharding.reshard(x, PartitionSpec(*spec))
