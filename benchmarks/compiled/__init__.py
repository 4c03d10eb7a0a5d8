"""Compiled for a GPU or a TPU that is not there: how many kernels would start, and with how much memory.

`python -m benchmarks compiled [--target h100|a100|tpu] [--quick]`. Nothing is run, and no such device is needed.
"""

import time

import jax
from tqdm import tqdm

from benchmarks import records
from benchmarks.compiled import report, targets
from benchmarks.compiled.cells import MODES, cases
from benchmarks.compiled.measure import measured


def run(quick, target=None):
    jax.config.update(
        "jax_platforms", "cpu"
    )  # this process only writes; the wheels would look for their devices
    chosen = list(targets.TARGETS) if target is None else [target]
    for reason in filter(None, map(targets.missing, chosen)):
        raise SystemExit(reason)
    directory = records.directory(quick)
    for name in chosen:
        started = time.monotonic()
        found, skipped = cases(name, quick)
        for left in skipped:
            print("left out: {way} at n = {n}, k = {k}, d = {d}: {reason}".format(**left))
        rows = list(tqdm(measured(name, found), desc=name, total=len(found), unit="program"))
        settings = {
            "dtype": "float32",
            "modes": MODES,
            "target": targets.TARGETS[name],
            "wheels": targets.versions(name),
        }
        path = directory / f"compiled-{name}.json"
        records.write(path, started=started, rows=rows, settings=settings, skipped=skipped)
    report.report(directory)
