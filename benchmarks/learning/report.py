"""Tables and figures of the training benchmark, from its results files."""

import json
import statistics

import matplotlib.pyplot as plt
import numpy as np

from benchmarks import records
from benchmarks.learning.methods import METHODS, OURS
from benchmarks.learning.tasks import TASKS

HEAD = (
    "method",
    "score",
    "worst",
    "recall",
    "failed",
    "steps to 90 %",
    "seconds to 90 %",
    "ms a step",
    "rate, number",
)


def read(directory):
    """Each task's results, in the order of `TASKS`, as far as there are any."""
    paths = {name: directory / f"learning-{name}.json" for name in TASKS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def summary(result):
    """One dict for each method: final scores over seeds, recall, share of failures, steps and seconds to 90 %.

    A seed has failed if it ends nearer to chance than to the best method's mean. Steps to 90 % are those after
    which a run is above, for good, chance + 90 % of the way from there to the best mean; the median over seeds.
    """
    rows, chance = result["rows"], result["settings"]["chance"]
    top = max(statistics.mean(run[-1] for run in row["score"]) for row in rows)
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
                "seconds": None if steps is None else steps * row["step_ms"] / 1e3,
                "step_ms": row["step_ms"],
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
        seconds = None if s["seconds"] is None else f"{s['seconds']:.1f}"
        yield (
            s["method"],
            f"{s['mean']:.3f} ± {s['error']:.3f}",
            f"{s['worst']:.3f}",
            f"{s['recall']:.2f}",
            f"{s['failed']} of {s['seeds']}",
            s["steps"],
            seconds,
            f"{s['step_ms']:.1f}",
            s["tuned"],
        )


def headline(results):
    """The recipe beside the best of the peers, a line for each task; ± is one standard error over the seeds."""
    yield "| task | recipe | its worst seed | best peer | its score | its median seed | failed seeds, recipe / peer |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, result in results.items():
        rows = {s["method"]: s for s in summary(result)}
        recipe = rows["recipe"]
        peer = max((s for s in rows.values() if s["method"] not in OURS), key=lambda s: s["mean"])
        cells = [
            name,
            f"{recipe['mean']:.3f} ± {recipe['error']:.3f}",
            f"{recipe['worst']:.3f}",
            peer["method"],
            f"{peer['mean']:.3f} ± {peer['error']:.3f}",
            f"{peer['median']:.3f}",
            f"{recipe['failed']} / {peer['failed']} of {recipe['seeds']}",
        ]
        yield "| " + " | ".join(cells) + " |"


def text(results):
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
    return "\n".join(lines)


def figure(results, path):
    """Score at hard evaluation, and gradient norm, over training; the mean of the seeds."""
    across, down = 4, -(-len(results) // 4)
    fig, axes = plt.subplots(
        2 * down, across, figsize=(14, 6 * down + 1), squeeze=False, layout="constrained"
    )
    for place, (name, result) in enumerate(results.items()):
        top, bottom = axes[2 * (place // across) :, place % across][:2]
        for row in result["rows"]:
            ours = row["method"] in OURS
            style = {
                "color": plt.cm.tab20(list(METHODS).index(row["method"]) % 20),
                "ls": "-" if ours else "--",
            }
            style |= {"lw": 3 if row["method"] == "recipe" else 1.2, "label": row["method"]}
            steps = np.linspace(0, row["steps"], len(row["score"][0]) + 1)[1:]
            top.plot(steps, np.mean(row["score"], axis=0), **style)
            bottom.semilogy(steps, np.mean(row["gradient_norm"], axis=0), **style)
        top.set(title=name, ylabel="score at hard evaluation")
        bottom.set(xlabel="steps", ylabel="gradient norm")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    fig.savefig(path, dpi=70)
    plt.close(fig)


def write(directory):
    results = read(directory)
    records.replace(directory / "learning.md", text(results))
    figure(results, directory / "learning.png")
