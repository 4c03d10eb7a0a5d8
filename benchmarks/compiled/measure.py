"""One case compiled for one target, and its figures.

In a process of its own: JAX reads its variables at the start, and what they ask for is not what a caller's tests want.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import jax

from benchmarks.compiled import targets
from benchmarks.compiled.count import count, gathering
from benchmarks.compiled.ways import arrays, function
from benchmarks.records import rounded
from benchmarks.timing import temporary

ROOT = Path(__file__).parent.parent.parent


def measured(target, cases):
    """A row for each case, as it comes, from a process that compiles for `target`."""
    command = [sys.executable, "-m", "benchmarks.compiled", target]
    # The compilers report at length on the devices they do not find: what they say is shown if they fail.
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(
            command,
            env=targets.environment(),
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        ) as process:
            process.stdin.write(json.dumps(cases))
            process.stdin.close()
            yield from map(json.loads, process.stdout)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"compiling for {targets.TARGETS[target]} failed:\n{said.read()[-4000:]}")


def compile_all(target):
    """The process's side of `measured`: cases come in, and a line of figures goes out for each."""
    sharding = targets.sharding(target)
    for case in json.load(sys.stdin):
        print(json.dumps(case | figures(target, sharding, **case)), flush=True)


def figures(target, sharding, way, mode, batch, n, k, d):
    """Counts, memory and seconds of one case.

    Temporary memory and bytes moved are in units of the embeddings' size. The bytes are the compiler's estimate for a
    TPU, and counted from the program for a GPU, where XLA has no estimate.
    """
    started = time.perf_counter()
    traced = jax.jit(function(way, mode, k)).trace(*arrays(way, batch, n, d, sharding))
    lowered = traced.lower(lowering_platforms=(targets.platform(target),))
    middle = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    size = 4 * batch * n * d
    text = compiled.as_text()
    counts = asdict(count(text))
    moved = (compiled.cost_analysis() or {}).get("bytes accessed", counts["moved"])
    return counts | {
        "gathering": gathering(text, batch * n),
        "temporary": rounded(temporary(compiled) / size, 3),
        "moved": rounded(moved / size, 3),
        "trace_seconds": rounded(middle - started, 3),
        "compile_seconds": rounded(ended - middle, 3),
    }
