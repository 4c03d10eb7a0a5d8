"""One operator over 1 to 64 devices: bytes moved and memory on each, from compiled HLO. Nothing is run.

n is split over the devices, which are fake: the CPU counts as so many, in a process for each number.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import shtopk
from benchmarks import collectives, devices_report, records

BASE = {"devices": 8, "n": 2**20, "k": 64, "d": 512}
SWEEPS = {
    "devices": [1, 2, 4, 8, 16, 32, 64],
    "n": [2**16, 2**18, 2**20, 2**22, 2**24],
    "k": [16, 64, 256, 1024],
    "d": [64, 256, 512, 1024],
}
LARGEST = {"devices": 64, "n": 2**24, "k": 64, "d": 512}
MODES = ("forward", "step")


def inside(**options):
    """`topk` inside `shard_map`, with an `axis_name`."""

    def method(k, mesh):
        def call(e, v):
            return shtopk.topk(e, v, k, axis_name="x", **{name: f(k) for name, f in options.items()})

        split, whole = PartitionSpec("x"), PartitionSpec()
        return jax.shard_map(call, mesh=mesh, in_specs=split, out_specs=whole)

    return method


def plain(k, mesh):
    """What users write without this library: the k best rows, gated by a sigmoid of their scores."""

    def call(e, v):
        best, index = jax.lax.top_k(v, k)
        return e[index] * jax.nn.sigmoid(best)[:, None], best

    return call


METHODS = {
    "axis_name": inside(),
    "axis_name, candidates=4k": inside(candidates=lambda k: 4 * k),
    "jit over NamedSharding": lambda k, mesh: lambda e, v: shtopk.topk(e, v, k),
    "lax.top_k + gather": plain,
}


def plan(quick):
    """The cell that sweeps start from, the largest, and all of them."""
    if quick:
        base = BASE | {"n": 2**14}
        return base, base, [base, base | {"devices": 1}]
    found = [BASE | {name: value} for name, values in SWEEPS.items() for value in values]
    return BASE, LARGEST, list({tuple(cell.values()): cell for cell in [*found, LARGEST]}.values())


def measure(cell):
    """One row, in a process that has the cell's number of devices."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["x"], []))
    n, k, d = cell["n"], cell["k"], cell["d"]
    shapes = [((n, d), split), ((n,), split), ((k, d), whole), ((k,), whole)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=at) for shape, at in shapes]
    found = {}
    for name, method in METHODS.items():
        call = method(k, mesh)
        found[name] = {mode: compiled(call, mode, arguments, split) for mode in MODES}
    return cell | {"methods": found}


def compiled(call, mode, arguments, split):
    """Bytes that each device sends, by collective, and its temporary bytes. A step is forward and backward."""

    def step(e, v, *cotangents):
        out, pull = jax.vjp(lambda *x: tuple(call(*x)), e, v)
        return out, pull(cotangents)

    if mode == "step":  # gradients stay where their arrays are
        function = jax.jit(step, out_shardings=(None, (split, split))).lower(*arguments)
    else:
        function = jax.jit(call).lower(*arguments[:2])
    made = function.compile()
    devices = len(jax.devices())
    moved = {}
    for kind, size in collectives.arrays(made):
        moved[kind] = moved.get(kind, 0) + round(collectives.sent(kind, size, devices))
    return {"sent": moved, "temporary": made.memory_analysis().temp_size_in_bytes}


def run(quick):
    started = time.monotonic()
    base, largest, cells = plan(quick)
    rows, by_count = [], {}
    for cell in cells:
        by_count.setdefault(cell["devices"], []).append(cell)
    for count, some in tqdm(sorted(by_count.items()), desc="devices", unit="count"):
        command = [sys.executable, "-m", "benchmarks.devices", str(count), json.dumps(some)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    path = records.directory(quick) / "devices.json"
    settings = {"dtype": "float32", "base": base, "largest": largest, "modes": MODES}
    records.write(path, started=started, rows=rows, settings=settings)
    devices_report.report(path)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    print(json.dumps([measure(cell) for cell in json.loads(sys.argv[2])]))
