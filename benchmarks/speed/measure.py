"""The time and memory of one cell, and the seconds that compiling takes."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

import shtopk
from benchmarks import peers, records
from benchmarks.published import GRID, published_seconds
from benchmarks.timing import compiled, compiled_together, interleaved, read, temporary, write

SEED = 0
MODES = ("forward", "gradient")

OURS = {
    "shtopk": shtopk.topk,
    "shtopk, candidates=4k": lambda e, v, k: shtopk.topk(e, v, k, candidates=4 * k),
    "shtopk, reseed=True": partial(shtopk.topk, reseed=True),
}
PEERS = {
    "gated top k": peers.gated,
    "plain port": peers.plain_port,
    "iterative": shtopk.iterative_topk,
}
LIMITS = {
    "read E": lambda e, v, weights: read(e),
    "write E": lambda e, v, weights: write(e),
}
# The numbers that the cost of the giants grows with, and where they are not asked any more.
GIANTS = {
    "soft sort": ("batch * k * n weights", lambda c: c["batch"] * c["k"] * c["n"], 2**28),
    "iterative": ("batch * k * n * d products", lambda c: c["batch"] * c["k"] * c["n"] * c["d"], 2**27),
}
SOFTSORT_ON_GPU = 2**26  # weights; over it XLA takes minutes to compile the gradient for a GPU

FEW = ("width", "batch")  # sections of a few cells, in which reseed=True is measured too
PANELS = (2, 16, 128, 1024)  # the k of the figure, and of the grid on a GPU
POWERS_OF_4 = [4**i for i in range(2, 8)]  # the n of the grid on a GPU


def cell(section, batch, n, k, d):
    return {"section": section, "batch": batch, "n": n, "k": k, "d": d}


def cells(quick, gpu):
    """What is measured; on a GPU, which takes longer to compile for, a third of the cells."""
    if quick:
        sizes = [("grid", 16, 1024, 32, 32), ("width", 16, 1024, 32, 256), ("growth", 1, 2**14, 64, 64)]
        return [cell(*size) for size in sizes]
    found = [cell("grid", 16, n, k, 32) for n, k in GRID if not gpu or (k in PANELS and n in POWERS_OF_4)]
    found += [cell("width", 16, n, n // 32, d) for n in (1024, 8192) for d in (32, 256, 1024)]
    found += [cell("batch", batch, n, n // 32, 64) for batch in (1, 256) for n in (1024, 8192)]
    sizes = (2**12, 2**16, 2**20) if gpu else [2**i for i in range(10, 21)]
    found += [cell("growth", 1, n, k, 64) for n in sizes for k in (n // 16, 64)]
    return list({tuple(c.values()): c for c in found}.values())


def task(method, mode, k):
    """What is timed: a function of `(embeddings, scores, weights)`, the loss `sum(weights * outputs**2) / 2`."""

    def slots(embeddings, scores):
        return tuple(method(embeddings, scores, k))[:2]

    def forward(embeddings, scores, weights):
        return slots(embeddings, scores)

    def gradient(embeddings, scores, weights):
        out, pull = jax.vjp(slots, embeddings, scores)
        return out, pull(jax.tree.map(jnp.multiply, weights, out))

    return forward if mode == "forward" else gradient


def arrays(c):
    keys = jax.random.split(jax.random.key(SEED), 4)
    batch, n, k, d = c["batch"], c["n"], c["k"], c["d"]
    embeddings = jax.random.uniform(keys[0], (batch, n, d), minval=-1)
    scores = jax.random.uniform(keys[1], (batch, n))
    weights = (jax.random.normal(keys[2], (batch, k, d)), jax.random.normal(keys[3], (batch, k)))
    return jax.block_until_ready((embeddings, scores, weights))


def methods_for(c):
    """The methods of a cell, and what is left out of it, with the reason."""
    softsort, gpu = peers.softsort(), jax.default_backend() == "gpu"
    available = OURS | PEERS | ({} if softsort is None else {"soft sort": softsort})
    skipped = {}
    for name in available:
        what, cost, most = GIANTS.get(name, ("", lambda c: 0, 0))
        most = SOFTSORT_ON_GPU if gpu and name == "soft sort" else most
        if cost(c) > most:
            skipped[name] = f"not run: over {most} {what}"
        elif name == "shtopk, candidates=4k" and 4 * c["k"] >= c["n"]:
            skipped[name] = "4k is not below n"
        elif name == "shtopk, reseed=True" and c["section"] not in FEW:
            skipped[name] = f"measured in the sections {' and '.join(FEW)} alone"
    return {name: method for name, method in available.items() if name not in skipped}, skipped


class Prepared(NamedTuple):
    """A cell whose functions are compiled: `{limit or (method, mode): call}`."""

    cell: dict
    functions: dict
    arguments: Any
    skipped: dict


def prepare(c):
    methods, skipped = methods_for(c)
    tasks = {(name, mode): task(method, mode, c["k"]) for name, method in methods.items() for mode in MODES}
    arguments = arrays(c)
    return Prepared(c, compiled_together(LIMITS | tasks, arguments), arguments, skipped)


def finish(prepared):
    """One row of the results."""
    c, functions, arguments, skipped = prepared
    figures = {}
    for giant in (False, True):
        calls = {name: call for name, call in functions.items() if (name[0] in GIANTS) == giant}
        figures |= interleaved(calls, arguments)
    row = c | {"limits": {name: figures.pop(name) for name in LIMITS}, "methods": {}, "skipped": skipped}
    for (name, mode), figure in figures.items():
        row["methods"].setdefault(name, {})[mode] = figure | memory(functions[name, mode], c)
    if c["section"] == "grid":
        paper, methods = published_seconds(), ("successive_halving", "iterative")
        row["published_seconds"] = {name: paper[name, c["n"], c["k"]] for name in methods}
    return row


def memory(call, c):
    """Peak temporary memory, in units of the size of E."""
    return {"temporary": records.rounded(temporary(call) / (4 * c["batch"] * c["n"] * c["d"]), 3)}


def seconds_to_compile(function, arguments):
    """Seconds to trace, lower and compile; from its caches JAX would take the traces of jitted functions."""
    jax.clear_caches()
    started = time.perf_counter()
    compiled(function, *arguments)
    return time.perf_counter() - started


def compile_times(quick):
    """Seconds to compile one function at a time, batch 16, d = 32."""
    rows = []
    sizes = [(1024, 32)] if quick else [(1024, 32), (16384, 2), (16384, 4096)]
    for n, k in tqdm(sizes, desc="compiling", unit="size"):
        c = cell("compile", 16, n, k, 32)
        arguments = arrays(c)
        seconds = {}
        for name, method in (OURS | {"plain port": peers.plain_port}).items():
            for mode in MODES:
                taken = [seconds_to_compile(task(method, mode, k), arguments) for _ in range(3)]
                seconds.setdefault(name, {})[mode] = records.rounded(sorted(taken)[1], 3)
        rows.append({"n": n, "k": k, "seconds": seconds})
    return rows
