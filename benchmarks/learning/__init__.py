"""Does a model learn through it? Nine tasks, every way to choose, at hard evaluation.

`python -m benchmarks learning [--task NAME ...] [--method NAME ...] [--quick]`. Each method is tuned over the same
budget, two learning rates by two values of its own number, on a seed of its own; the best of the four is then
trained on fresh seeds: five, or as many as the task asks for. The recipe has no number to tune.
"""

import json
import time

from tqdm import tqdm

from benchmarks import records
from benchmarks.learning import report
from benchmarks.learning.methods import BY_LOGS, METHODS
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.train import HELD_OUT, RATES, SEGMENTS, TUNING_SEED, measure


def write(path, settings, row, started):
    """Write the row of one method among the results of a task, the other rows as they are under the same settings."""
    rows = {row["method"]: row}
    if path.exists():
        before = json.loads(path.read_text())
        if before["settings"] == json.loads(json.dumps(settings)):
            rows = {row["method"]: row for row in before["rows"]} | rows
    rows = [rows[name] for name in METHODS if name in rows]
    records.write(path, settings=settings, rows=rows, started=started)


def run(quick, tasks=None, methods=None):
    tasks = tasks or (["marked-tokens"] if quick else list(TASKS))
    methods = methods or (["recipe", "gated top k", "iterative, annealed"] if quick else list(METHODS))
    for given, known in ((tasks, TASKS), (methods, METHODS)):
        if unknown := set(given) - set(known):
            raise SystemExit(f"unknown: {sorted(unknown)}; there are {list(known)}")
    seeds = {name: list(range(1 if quick else TASKS[name].seeds)) for name in tasks}
    pairs = {name: [m for m in methods if m in BY_LOGS or not TASKS[name].reads_logs] for name in tasks}
    runs = sum(len(RATES) * len(METHODS[m].numbers) + len(seeds[name]) for name in tasks for m in pairs[name])
    with tqdm(total=runs * SEGMENTS, unit="segment") as progress:
        for name, applicable in pairs.items():
            started, task = time.monotonic(), TASKS[name]
            steps = task.steps // 3 if quick else task.steps
            settings = {
                "task": name,
                "chance": task.chance,
                "n": task.n,
                "k": task.k,
                "batch": task.batch,
                "held_out": HELD_OUT * task.batch,
                "segments": SEGMENTS,
                "rates": RATES,
                "tuning_seed": TUNING_SEED,
                "seeds": seeds[name],
            }
            for method in applicable:
                progress.set_description(f"{name}, {method}")
                row = measure(task, method, steps, seeds[name], progress)
                write(records.directory(quick) / f"learning-{name}.json", settings, row, started)
    report.write(records.directory(quick))
