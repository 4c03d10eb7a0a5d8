"""Tables and figures of the training benchmark, from its results files."""

import json
import statistics

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import records
from benchmarks.learning.methods import OURS
from benchmarks.learning.tasks import TASKS

HEAD = ("method", "score", "worst", "recall", "failed", "steps to 90 %", "rate, number")
FORMS = ("recipe", "recipe, mask then drawn slots", "recipe, by drawn slots", "recipe, by slots")
COMPARED = (*FORMS, "threshold mask", "gated top k")  # the lines of the figure
FURTHER = (*COMPARED, "recipe, 0.03 to 30")  # the methods with further seeds, on these tasks
MORE = tuple(name for name, task in TASKS.items() if task.seeds == 5)


def path(directory, task, more_seeds=False):
    """The results file of a task, or that of its further seeds."""
    return directory / f"learning-{'more-' if more_seeds else ''}{task}.json"


def read(directory, more_seeds=False):
    """Each task's results, in the order of `TASKS`, as far as there are any."""
    paths = {name: path(directory, name, more_seeds) for name in TASKS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def summary(result):
    """One dict for each method: final scores over seeds, recall, share of failures, steps to 90 %.

    A seed has failed if it ends nearer to chance than to the best method's mean. Steps to 90 % are those after
    which a run is above, for good, chance + 90 % of the way from there to the best mean; the median over seeds.
    """
    rows, chance = result["rows"], result["settings"]["chance"]
    top = max((statistics.mean(run[-1] for run in row["score"]) for row in rows), default=chance)
    out = []
    for row in rows:
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


def headline(results):
    """The recipe in its four forms beside the best of the peers, a line a task; ± is one standard error over seeds."""
    yield (
        "| task | recipe, by the mask | by the mask, then drawn slots | by drawn slots | by plain slots | best peer "
        "| its score | failed seeds |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |"
    for name, result in results.items():
        rows = {s["method"]: s for s in summary(result)}
        peer = max((s for s in rows.values() if s["method"] not in OURS), key=lambda s: s["mean"])
        shown = [rows.get(method) for method in FORMS] + [peer]
        scores = ["-" if s is None else _score(s) for s in shown]
        failed = " / ".join("-" if s is None else str(s["failed"]) for s in shown)
        yield "| " + " | ".join([name, *scores[:-1], peer["method"], scores[-1], failed]) + " |"


def with_further_seeds(result, more):
    """The rows of `result` that have further seeds in `more`, over all of these seeds."""
    further = {row["method"]: row for row in more["rows"]}
    runs = ("score", "recall", "loss", "largest_norm")
    rows = [row for row in result["rows"] if row["method"] in further]
    rows = [row | {name: row[name] + further[row["method"]][name] for name in runs} for row in rows]
    seeds = result["settings"]["seeds"] + more["settings"]["seeds"]
    return result | {"rows": rows, "settings": result["settings"] | {"seeds": seeds}}


def with_all_seeds(directory):
    """Each task's results as `read` gives them, and over all seeds where there are further ones."""
    more = read(directory, more_seeds=True)
    return {
        name: with_further_seeds(result, more[name]) if name in more else result
        for name, result in read(directory).items()
    }


def by_all_seeds(results, more):
    """A line for each task and a column for each method with further seeds: the score over all seeds, how many fail."""
    lines = []
    for name, further in more.items():
        found = summary(with_further_seeds(results[name], further)) if name in results else []
        entries = {s["method"]: f"{_score(s)}, {s['failed']}" for s in found}
        lines.append([name, *map(entries.get, FURTHER)])
    return records.markdown(["task", *FURTHER], lines)


def _score(s):
    return f"{s['mean']:.3f} ± {s['error']:.3f}"


def text(results, more):
    """The tables as a page."""
    lines = ["# Training through a top k: results", ""]
    for name, result in results.items():
        settings = result["settings"]
        lines += [f"## {name}", ""]
        lines += [
            f"{settings['k']} of {settings['n']}; chance {settings['chance']}; {len(settings['seeds'])} seeds.",
            "",
            *records.markdown(HEAD, table(result)),
            "",
        ]
    return "\n".join([*lines, "## More seeds", "", *by_all_seeds(results, more), ""])


def figure(results, path):
    """Score at hard evaluation over training, the mean of the seeds: a panel a task, lines named at their ends."""
    across = 2
    down = -(-len(results) // across)
    fig, axes = plt.subplots(down, across, figsize=(10.5, 3.2 * down), squeeze=False, layout="constrained")
    for ax in axes.flat[len(results) :]:
        ax.set_axis_off()
    for ax, (name, result) in zip(axes.flat, results.items(), strict=False):
        rows = {row["method"]: row for row in result["rows"] if row["method"] in COMPARED}
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
                method,
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
    records.replace(directory / "learning.md", text(results, read(directory, more_seeds=True)))
    if results:  # a quick run of further seeds may be the first of all
        figure(results, directory / "learning.png")
