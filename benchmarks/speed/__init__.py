"""Speed over the paper's Figure 1 and beyond: time, compile time and memory, beside the limits and the peers.

Everything in a cell is timed in turn on the same arrays, so that ratios hold within it; what makes giant arrays comes
after the others, for whoever comes next pays for the gigabytes it gives back. A gradient is a whole training step's
share, outputs and gradients by `jax.vjp`, for a loss that is quadratic in the outputs: a linear one would let XLA leave
out what real losses need.
"""

import time

import jax
from tqdm import tqdm

from benchmarks import peers, records
from benchmarks.published import published_seconds
from benchmarks.speed import report, stages
from benchmarks.speed.measure import MODES, OURS, PEERS, SEED, cells, compile_times, measure


def run(quick):
    started = time.monotonic()
    softsort = peers.softsort()
    available = OURS | PEERS | ({} if softsort is None else {"softsort": softsort})
    compiling = compile_times(quick)
    parts = stages.measured(quick)
    rows, paper = [], published_seconds()
    for c in tqdm(cells(quick), desc="speed", unit="cell"):
        row = measure(c, available)
        if c["section"] == "grid":
            row["published_seconds"] = {
                name: paper[name, c["n"], c["k"]] for name in ("successive_halving", "iterative")
            }
        rows.append(row)
    backend = jax.default_backend()
    path = records.directory(quick) / ("speed.json" if backend == "cpu" else f"{backend}-speed.json")
    settings = {"dtype": "float32", "seed": SEED, "modes": MODES}
    records.write(
        path, started=started, rows=rows, settings=settings, compile_seconds=compiling, stages=parts
    )
    report.report(path)
