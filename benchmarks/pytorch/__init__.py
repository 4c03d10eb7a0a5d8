"""`topk` beside Algorithm 2 in PyTorch, on the GPU of this machine: the same cells as `profiled`, the same arrays.

A step includes both gradients, for a loss that is quadratic in the outputs. Times are those of a call in a queue.
"""

import time

from benchmarks import peers, processes, records
from benchmarks.compiled.cells import CELLS, QUICK_CELLS
from benchmarks.pytorch import report
from benchmarks.speed.measure import MODES, OURS, SEED, arrays, cell, task
from benchmarks.timing import compiled, interleaved, pace

IN_JAX = {"shtopk": OURS["shtopk"], "plain port in JAX": peers.plain_port}


def run(quick):
    started = time.monotonic()
    processes.need_gpu()
    try:
        import torch
    except ImportError:
        raise SystemExit("PyTorch is not installed: pip install torch") from None
    sizes = QUICK_CELLS if quick else CELLS
    rows = processes.rows([cell("pytorch", *size) for size in sizes], prepare, finish)
    path = records.directory(quick) / "gpu-pytorch.json"
    settings = {"dtype": "float32", "modes": MODES, "queue": pace().queue, "seed": SEED}
    records.write(path, started=started, rows=rows, settings=settings, pytorch=torch.__version__)
    records.page(path, report.text)


def prepare(c):
    """The cell, `{(method, mode): call}`, and the arrays that each call takes."""
    from benchmarks.pytorch import port  # PyTorch may be missing

    arguments = arrays(c)
    calls = {
        (name, mode): compiled(task(method, mode, c["k"]), *arguments)
        for name, method in IN_JAX.items()
        for mode in MODES
    }
    for name, function in {"PyTorch": port.halving, "PyTorch, compiled": port.compiled()}.items():
        for mode, call in zip(MODES, port.calls(function, c["k"], *arguments), strict=True):
            call()
            calls[name, mode] = lambda *_, call=call: call()
    return c, calls, arguments


def finish(prepared):
    """A row: the milliseconds of each method and mode."""
    c, calls, arguments = prepared
    methods = {}
    for (name, mode), figure in interleaved(calls, arguments).items():
        methods.setdefault(name, {})[mode] = figure
    return c | {"methods": methods}
