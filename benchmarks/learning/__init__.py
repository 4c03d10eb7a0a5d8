"""Does a model learn through it? Nine tasks, every way to choose, at hard evaluation.

`python -m benchmarks learning [--task NAME ...] [--method NAME ...] [--quick]`. Each method is tuned over the same
budget, two learning rates by two values of its own number, on a seed of its own; the best of the four is then
trained on fresh seeds: five, or as many as the task asks for. The recipe has no number to tune. A variant of the recipe
is not tuned: it takes the recipe's rate.

`--more-seeds` trains a few methods on 15 further seeds, as they were tuned, where five seeds say too little.
"""

import json
import time

from tqdm import tqdm

from benchmarks import records
from benchmarks.learning import report
from benchmarks.learning.methods import BY_LOGS, METHODS
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.train import HELD_OUT, RATES, SEGMENTS, TUNING_SEED, configurations, measure

MORE_SEEDS = list(range(5, 20))
QUICKLY = ("recipe", "gated top k", "iterative, annealed")  # the methods of a quick run


def write(path, settings, row, started):
    """Write the row of one method among the results of a task; under the same settings the others stay.

    The head of the file is that of its newest row, so each row has its own date, versions and hardware.
    """
    rows = {row["method"]: row | {"made": records.environment()}}
    if path.exists():
        before = json.loads(path.read_text())
        if before["settings"] == json.loads(json.dumps(settings)):
            rows = {row["method"]: row for row in before["rows"]} | rows
    rows = [rows[name] for name in METHODS if name in rows]
    records.write(path, settings=settings, rows=rows, started=started)


def grid(task, method, quick, more_seeds):
    """The configurations to tune over: one if it is known, from the row of the method itself or of that it is like."""
    like = method if more_seeds else METHODS[method].tuned_as
    rows = report.read(records.directory(quick)).get(task, {"rows": []})["rows"]
    known = [(row["rate"], row["number"]) for row in rows if row["method"] == like]
    if like and not known:
        raise SystemExit(f"{task}: measure {like!r} first, whose rate {method!r} takes")
    return known or configurations(method)


def seeds_of(task, quick, more_seeds):
    if more_seeds:
        return MORE_SEEDS[:2] if quick else MORE_SEEDS
    return list(range(1 if quick else TASKS[task].seeds))


def run(quick, tasks=None, methods=None, more_seeds=False):
    # A task with more seeds has had most of the further ones among its first.
    known_tasks = report.MORE if more_seeds else tuple(TASKS)
    tasks = tasks or (["marked-tokens"] if quick else known_tasks)
    some = report.FURTHER if more_seeds else METHODS
    methods = methods or [method for method in some if not quick or method in QUICKLY]
    for given, known in ((tasks, known_tasks), (methods, METHODS)):
        if unknown := set(given) - set(known):
            raise SystemExit(f"unknown: {sorted(unknown)}; there are {list(known)}")
    seeds = {t: seeds_of(t, quick, more_seeds) for t in tasks}
    pairs = [(t, m) for t in tasks for m in methods if m in BY_LOGS or not TASKS[t].reads_logs]
    tuned = [pair for pair in pairs if not more_seeds and METHODS[pair[1]].tuned_as is None]
    runs = sum(len(seeds[t]) for t, _ in pairs) + sum(len(configurations(m)) for _, m in tuned)
    with tqdm(total=runs * SEGMENTS, unit="segment") as progress:
        for name, method in pairs:
            progress.set_description(f"{name}, {method}")
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
            configs = grid(name, method, quick, more_seeds)
            row = measure(task, method, steps, seeds[name], progress, configs)
            write(report.path(records.directory(quick), name, more_seeds), settings, row, started)
    report.write(records.directory(quick))
