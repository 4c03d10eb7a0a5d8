"""Runs the ways and sizes of `compiled` on the GPU of this machine, and profiles them.

A gradient includes the forward pass, as in a training step, for a loss that is quadratic in the outputs. The plain port
is the one of `speed`.
"""

import time

import jax
import jax.numpy as jnp

from benchmarks import peers, processes, records
from benchmarks.compiled.cells import MODES, pairs
from benchmarks.compiled.ways import WAYS, floating, taken
from benchmarks.profiled import report
from benchmarks.profiled.profile import kernels
from benchmarks.timing import compiled, interleaved, pace

SEED = 0
FUNCTIONS = WAYS | {"plain port": lambda e, v, k: peers.plain_port(e, v, k)[0]}


def run(quick):
    started = time.monotonic()
    processes.need_gpu()
    jobs, skipped = pairs(quick)
    rows = [row for both in processes.rows(jobs, prepare, finish) for row in both]
    path = records.directory(quick) / "gpu-profiled.json"
    settings = {"dtype": "float32", "modes": MODES, "queue": pace().queue, "seed": SEED}
    records.write(path, started=started, rows=rows, settings=settings, skipped=skipped)
    records.page(path, report.text)


def arrays(way, cell):
    """What the way is called with, and the weights of the loss."""
    batch, n, k, d = cell
    keys = jax.random.split(jax.random.key(SEED), 4)
    known = {
        "embeddings": jax.random.uniform(keys[0], (batch, n, d), minval=-1),
        "scores": jax.random.uniform(keys[1], (batch, n)),
        "where": jax.random.uniform(keys[3], (batch, n)) < 0.8,
        "traced k": jnp.int32(k),
    }
    shape = (batch, k, d) if "embeddings" in taken(way) else (batch, n)
    return [known[name] for name in taken(way)], jax.random.normal(keys[2], shape)


def prepare(job):
    """The cell, the way, its two functions compiled, and their arguments."""
    cell, way = job
    given, weights = arrays(way, cell)
    first = floating(way)

    def forward(given, weights):
        return FUNCTIONS[way](*given, cell.k)

    def gradient(given, weights):
        out, pull = jax.vjp(lambda *x: forward([*x, *given[first:]], weights), *given[:first])
        return out, pull(weights * out)

    calls = {mode: compiled(f, given, weights) for mode, f in zip(MODES, (forward, gradient), strict=True)}
    return cell, way, calls, (given, weights)


def finish(prepared):
    """A row for each mode: kernels, the sum of their milliseconds, and the milliseconds of a call in a queue."""
    cell, way, calls, arguments = prepared
    times, profiled = interleaved(calls, arguments), kernels(calls, arguments)
    return [
        {"way": way, **cell._asdict(), "mode": mode, "ms": times[mode]["ms"], **profiled[mode]}
        for mode in MODES
    ]
