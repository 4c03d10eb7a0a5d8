"""Does a model learn through it? Nine tasks, every way to choose, at hard evaluation.

`python -m benchmarks learning [--task NAME ...] [--method NAME ...] [--quick]`. Each method is tuned over the same
budget, two learning rates by two values of its own number, on a seed of its own; the best of the four is then
trained on fresh seeds: five, or as many as the task asks for. The recipe has no number to tune. A variant of the recipe
is not tuned: it takes the recipe's rate.

`--more-seeds` trains a few methods on 15 further seeds, at the rate of their rows, where five seeds say too little. A
method that is trained again loses its further seeds: run `--more-seeds` after it.
"""

import json
import time

from tqdm import tqdm

from benchmarks import records
from benchmarks.learning import report
from benchmarks.learning.methods import BY_LOGS, LEFT_OUT, METHODS
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.train import HELD_OUT, RATES, SEGMENTS, TUNING_SEED, configurations, measure

MORE_SEEDS = list(range(5, 20))
QUICKLY = ("recipe", "gated top k", "iterative, annealed")  # the methods of a quick run


def write(path, settings, row, started):
    """Write the row of one method among the results of a task; under the same settings the others stay.

    The head of the file is that of its newest row. Each row has the date, versions and hardware of its first seeds.
    """
    rows = {row["method"]: {"made": records.environment()} | row}
    if path.exists():
        before = json.loads(path.read_text())
        if before["settings"] == json.loads(json.dumps(settings)):
            rows = {row["method"]: row for row in before["rows"]} | rows
    rows = [rows[name] for name in METHODS if name in rows]
    records.write(path, settings=settings, rows=rows, started=started)


def row_of(directory, task, method):
    """The row of a method in the results of a task."""
    rows = report.read(directory).get(task, {"rows": []})["rows"]
    found = [row for row in rows if row["method"] == method]
    if not found:
        raise SystemExit(f"{task}: measure {method!r} first, because its rate is needed")
    return found[0]


def run(quick, tasks=None, methods=None, more_seeds=False):
    # A task with more seeds has had most of the further ones among its first.
    known_tasks = [name for name, task in TASKS.items() if task.seeds <= MORE_SEEDS[0] or not more_seeds]
    tasks = tasks or (["marked-tokens"] if quick else known_tasks)
    some = report.FURTHER if more_seeds else METHODS
    methods = methods or [method for method in some if not quick or method in QUICKLY]
    for given, known in ((tasks, known_tasks), (methods, METHODS)):
        if unknown := set(given) - set(known):
            raise SystemExit(f"unknown: {sorted(unknown)}; there are {list(known)}")
    further = MORE_SEEDS[:2] if quick else MORE_SEEDS
    pairs = [(task, method) for task in tasks for method in methods_of(task) if method in methods]
    if not pairs:
        raise SystemExit("none of these methods is measured on these tasks")
    tuned = [m for _, m in pairs if not more_seeds and METHODS[m].tuned_as is None]
    runs = sum(len(further) if more_seeds else seeds(t, quick) for t, _ in pairs)
    runs += sum(len(configurations(m)) for m in tuned)
    with tqdm(total=runs * SEGMENTS, unit="segment") as progress:
        for name, method in pairs:
            progress.set_description(f"{name}, {method}")
            train(name, method, quick, further if more_seeds else None, progress)
    report.write(records.directory(quick))


def train(name, method, quick, further, progress):
    """Train a task by a method on its first seeds, or on `further` ones, and write its row."""
    started, task, directory = time.monotonic(), TASKS[name], records.directory(quick)
    steps, first = task.steps // 3 if quick else task.steps, seeds(name, quick)
    like = METHODS[method].tuned_as if further is None else method
    known = like and row_of(directory, name, like)
    configs = [(known["rate"], known["number"])] if known else configurations(method)
    row = measure(task, method, steps, further or range(first), progress, configs)
    if further:
        row = report.with_further_seeds(known, row, first)
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
        "seeds": list(range(first)),
    }
    write(report.path(directory, name), settings, row, started)


def methods_of(task):
    """The methods that a task is trained by."""
    fit = BY_LOGS if TASKS[task].reads_logs else METHODS
    return [method for method in fit if method not in LEFT_OUT.get(task, ())]


def seeds(task, quick):
    """How many seeds a task is first trained on."""
    return 1 if quick else TASKS[task].seeds
