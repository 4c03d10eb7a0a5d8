"""Tables and figures of the training benchmark, from its results files."""

import json
import statistics

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import records
from benchmarks.learning.methods import OURS
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.train import RUNS

HEAD = ("method", "score", "worst", "recall", "failed", "steps to 90 %", "rate, number")
FORMS = {  # of the recipe, as the docs name them
    "recipe": "mask",
    "recipe, mask then drawn slots": "mask, then drawn slots",
    "recipe, by slots": "plain slots",
    "recipe, by drawn slots": "drawn slots",
}
COMPARED = (*FORMS, "threshold mask", "gated top k")  # the lines of the figure
SHOWN = (*COMPARED, "threshold mask, by the recipe")  # in the docs
FURTHER = (*SHOWN, "recipe, 0.03 to 30")  # the methods with further seeds
UNITS = (
    "recipe, gaps as played",
    "recipe, gaps as played, unit differentiated",
)  # in the docs, beside each other


def path(directory, task):
    """The results file of a task."""
    return directory / f"learning-{task}.json"


def read(directory):
    """Each task's results, in the order of `TASKS`, as far as there are any."""
    paths = {name: path(directory, name) for name in TASKS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def of_first_seeds(result):
    """`result` without the further seeds, `MORE_SEEDS`, which some of its rows have."""
    first = len(result["settings"]["seeds"])
    rows = [row | {name: row[name][:first] for name in RUNS} for row in result["rows"]]
    return result | {"rows": rows}


def with_further_seeds(row, further, first):
    """`row` of the `first` seeds and more, with the runs of `further` in place of those after the first."""
    return row | {name: row[name][:first] + further[name] for name in RUNS}


def summary(result):
    """One dict for each method: final scores over its seeds, recall, share of failures, steps to 90 %.

    A seed has failed if it ends nearer to chance than to the best method's mean over the first seeds. Steps to 90 % are
    those after which a run is above, for good, chance + 90 % of the way from there to the best mean; the median over
    seeds.
    """
    chance, top = result["settings"]["chance"], best_mean(result)
    out = []
    for row in result["rows"]:
        final = [run[-1] for run in row["score"]]
        each = row["steps"] // result["settings"]["segments"]
        reached = [each * since(run, chance + 0.9 * (top - chance)) for run in row["score"]]
        steps = statistics.median(reached)
        steps = None if np.isinf(steps) else int(steps)
        out.append(
            {
                "method": row["method"],
                "mean": statistics.mean(final),
                "error": statistics.stdev(final) / len(final) ** 0.5 if len(final) > 1 else 0.0,
                "median": statistics.median(final),
                "worst": min(final),
                "recall": statistics.mean(run[-1] for run in row["recall"]),
                "failed": sum(x < (chance + top) / 2 for x in final),
                "seeds": len(final),
                "steps": steps,
                "finite": bool(np.all(np.isfinite([row["loss"], row["largest_norm"]]))),
                "tuned": f"{row['rate']:g}, {row['number']:g}",
            }
        )
    return out


def best_mean(result):
    """The best method's mean score over the first seeds."""
    return max(statistics.mean(run[-1] for run in row["score"]) for row in of_first_seeds(result)["rows"])


def since(run, level):
    """From which evaluation on, counted from 1, a run stays above a level; infinite if it ends below."""
    below = [i for i, x in enumerate(run) if x < level]
    last = below[-1] + 1 if below else 0
    return float("inf") if last == len(run) else last + 1


def table(result):
    """A task's table, best mean score first."""
    for s in sorted(summary(result), key=lambda s: -s["mean"]):
        yield (
            s["method"],
            _score(s),
            f"{s['worst']:.3f}",
            f"{s['recall']:.2f}",
            f"{s['failed']} of {s['seeds']}",
            s["steps"],
            s["tuned"],
        )


def by_all_seeds(results, methods=FURTHER):
    """A line for each task and a column for each method: the score over all seeds and how many of them failed.

    A method that lacks the further seeds has a dash, and a task that no method was measured on has no line.
    """
    lines = []
    for name, result in results.items():
        found = [s for s in summary(result) if s["method"] in methods]
        if not found:
            continue
        seeds = max(s["seeds"] for s in found)
        entries = {s["method"]: f"{_score(s)}, {s['failed']}" for s in found if s["seeds"] == seeds}
        lines.append([name, seeds, *map(entries.get, methods)])
    return records.markdown(["task", "seeds", *(FORMS.get(method, method) for method in methods)], lines)


def scores(result, methods):
    """The score of each method, in a line."""
    found = {s["method"]: s for s in summary(result)}
    return ", ".join(f"{FORMS.get(name, name)} {_score(found[name])}" for name in methods)


def _score(s):
    return f"{s['mean']:.3f} ± {s['error']:.3f}"


def text(results):
    """The tables as a page."""
    lines = ["# Training through a top k: results", ""]
    for name, result in results.items():
        settings = result["settings"]
        lines += [f"## {name}", ""]
        lines += [
            f"{settings['k']} of {settings['n']}; chance {settings['chance']}; {len(settings['seeds'])} seeds.",
            "",
            *records.markdown(HEAD, table(of_first_seeds(result))),
            "",
        ]
    return "\n".join([*lines, "## All seeds", "", *by_all_seeds(results), ""])


def figure(results, path):
    """Score at hard evaluation over training, the mean of the seeds: a panel a task, lines named at their ends."""
    across = 2
    down = -(-len(results) // across)
    fig, axes = plt.subplots(down, across, figsize=(10.5, 3.2 * down), squeeze=False, layout="constrained")
    for ax in axes.flat[len(results) :]:
        ax.set_axis_off()
    for ax, (name, result) in zip(axes.flat, results.items(), strict=False):
        rows = {row["method"]: row for row in of_first_seeds(result)["rows"]}
        ends = {}
        for place, method in enumerate(COMPARED):
            if method not in rows:
                continue
            score = np.mean(rows[method]["score"], axis=0)
            steps = np.linspace(0, rows[method]["steps"], len(score) + 1)[1:]
            style = "-" if method in OURS else "--"
            ax.plot(steps, score, style, color=f"C{place}", lw=2 if method in FORMS else 1.2)
            ends[method] = (score[-1], f"C{place}")
        for method, height in apart({method: y for method, (y, _) in ends.items()}, ax.get_ylim()).items():
            ax.annotate(
                FORMS.get(method, method),
                (1.01, height),
                xycoords=("axes fraction", "data"),
                color=ends[method][1],
                fontsize=9,
                va="center",
            )
        ax.set(title=name, xlabel="steps", ylabel="score at hard evaluation")
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def apart(heights, limits):
    """Where to write labels that belong at `heights`, a dict, so that none covers another or leaves the panel."""
    low, high = limits
    gap = 0.075 * (high - low)
    names, out = sorted(heights, key=heights.get), {}
    for place, name in enumerate(names):
        below = out[names[place - 1]] + gap if place else low
        out[name] = max(heights[name], below)
    for place, name in reversed(list(enumerate(names))):
        above = out[names[place + 1]] - gap if place + 1 < len(names) else high
        out[name] = min(out[name], above)
    return out


def write(directory):
    results = read(directory)
    records.replace(directory / "learning.md", text(results))
    figure(results, directory / "learning.png")
