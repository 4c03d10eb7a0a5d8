"""Speed over the paper's Figure 1 and beyond: time, compile time and memory, beside the limits and the peers.

Everything in a cell is timed in turn on the same arrays, so that ratios hold within it; what makes giant arrays comes
after the others, for whoever comes next pays for the gigabytes it gives back. A gradient is a whole training step's
share, outputs and gradients by `jax.vjp`, for a loss that is quadratic in the outputs: a linear one would let XLA leave
out what real losses need.

On a GPU the calls of a method are timed in a queue, as in training. The seconds to compile are those of `compiled`.
"""

import time

import jax
from tqdm import tqdm

from benchmarks import processes, records
from benchmarks.speed import measure, report, stages
from benchmarks.timing import pace

PARTS = {"stages": stages, "cells": measure}


def run(quick):
    started = time.monotonic()
    processes.share_memory()
    gpu = jax.default_backend() == "gpu"
    jobs = [("stages", size) for size in (stages.SIZES[:1] if quick else stages.SIZES)]
    jobs += [("cells", c) for c in measure.cells(quick, gpu)]
    if gpu:
        compiling = []
        found = processes.rows(jobs, prepare, finish)
    else:
        compiling = measure.compile_times(quick)
        found = [finish(prepare(job)) for job in tqdm(jobs, desc="speed", unit="job")]
    rows = {part: [row for (name, _), row in zip(jobs, found, strict=True) if name == part] for part in PARTS}
    path = records.path("speed", quick)
    settings = {"dtype": "float32", "seed": measure.SEED, "modes": measure.MODES, "queue": pace().queue}
    records.write(
        path,
        started=started,
        rows=rows["cells"],
        settings=settings,
        compile_seconds=compiling,
        stages=rows["stages"],
    )
    report.report(path)


def prepare(job):
    """A job `(part, size)`, compiled for its size."""
    part, size = job
    return part, PARTS[part].prepare(size)


def finish(prepared):
    """The row of a prepared job."""
    part, ready = prepared
    return PARTS[part].finish(ready)
