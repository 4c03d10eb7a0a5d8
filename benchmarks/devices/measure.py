"""One cell: what its compiled HLO sends and holds."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import shtopk
from benchmarks.devices import collectives
from benchmarks.timing import temporary

MODES = ("forward", "step")


def inside(k, mesh, candidates=None):
    """`topk` inside `shard_map`, with an `axis_name`."""

    def call(e, v):
        return shtopk.topk(e, v, k, candidates=candidates, axis_name="x")

    split, whole = PartitionSpec("x"), PartitionSpec()
    return jax.shard_map(call, mesh=mesh, in_specs=split, out_specs=whole)


def plain(k, mesh):
    """What users write without this library: the k best rows, gated by a sigmoid of their scores."""

    def call(e, v):
        best, index = jax.lax.top_k(v, k)
        return e[index] * jax.nn.sigmoid(best)[:, None], best

    return call


METHODS = {
    "axis_name": inside,
    "axis_name, candidates=4k": lambda k, mesh: inside(k, mesh, 4 * k),
    "jit over NamedSharding": lambda k, mesh: lambda e, v: shtopk.topk(e, v, k),
    "lax.top_k + gather": plain,
}


def measure(cell, methods=tuple(METHODS), modes=MODES):
    """One row, in a process that has the cell's number of devices."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["x"], []))
    n, k, d = cell["n"], cell["k"], cell["d"]
    shapes = [((n, d), split), ((n,), split), ((k, d), whole), ((k,), whole)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at) for shape, at in shapes]
    found = {}
    for name in methods:
        call = METHODS[name](k, mesh)
        found[name] = {mode: compiled(call, mode, arguments, split) for mode in modes}
    return cell | {"methods": found}


def compiled(call, mode, arguments, split):
    """Bytes that each device sends, by collective, and its temporary bytes. A step is forward and backward."""

    def slots(e, v):
        return tuple(call(e, v))[:2]

    def step(e, v, *cotangents):
        out, pull = jax.vjp(slots, e, v)
        return out, pull(cotangents)

    if mode == "step":  # gradients stay where their arrays are
        function = jax.jit(step, out_shardings=(None, (split, split))).lower(*arguments)
    else:
        function = jax.jit(slots).lower(*arguments[:2])
    made = function.compile()
    devices = len(jax.devices())
    moved = {}
    for kind, size in collectives.arrays(made):
        moved[kind] = moved.get(kind, 0) + round(collectives.sent(kind, size, devices))
    return {"sent": moved, "temporary": temporary(made)}
