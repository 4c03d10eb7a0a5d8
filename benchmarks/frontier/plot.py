"""The trade-off as a plot, from the frontier's results file alone."""

import json
import statistics

import matplotlib.pyplot as plt

COLOURS = ["#0072b2", "#d55e00", "#888888", "#56b4e9", "#009e73", "#f0c000", "#cc79a7", "#000000"]


def draw(path):
    results = json.loads(path.read_text())
    rows = results["rows"]
    fig, axes = plt.subplots(2, 2, figsize=(11, 9), sharey="row", sharex="col")
    for line, key, words in zip(
        axes, ("worst", "worst but bimodal"), ("", ", bimodal left out"), strict=True
    ):
        line[0].set_ylabel("lowest nCCS over sizes and distributions" + words)
        for axis, reach in zip(line, (lowest_reach, median_reach), strict=True):
            panel(axis, rows, key, reach)
            mark(axis, rows, key, reach, results["settings"])
    for axis, word in zip(axes[1], ("lowest", "median"), strict=True):
        axis.set_xlabel(f"{word} reach of the gradient, in units of k")
    for axis in axes[:, 0]:
        axis.axvline(0.5, color="black", lw=0.8, ls="--")
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(*handles, loc="lower center", ncols=4, fontsize=9, frameon=False)
    fig.tight_layout(rect=(0, 0.08, 1, 1))
    fig.savefig(path.with_suffix(".png"), dpi=130)
    plt.close(fig)


def panel(axis, rows, key, reach):
    for family, colour in zip(dict.fromkeys(row["family"] for row in rows), COLOURS, strict=False):
        points = [(reach(row, key), row[key]["nccs"][0]) for row in rows if row["family"] == family]
        curve(axis, points, colour, family)
    axis.axhline(0.985, color="black", lw=0.8, ls="--")
    axis.set_ylim(0.9, 1.002)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.grid(alpha=0.25)


def lowest_reach(row, key):
    return row[key]["reach"][0]


def median_reach(row, key):
    left_out = ("quantised", "bimodal") if key == "worst but bimodal" else ("quantised",)
    per = [values for name, values in row["reach"].items() if name not in left_out]
    return statistics.median(x for values in per for x in values)


def curve(axis, points, colour, label):
    """All of a family as dots, and a line through those that none of it betters on both axes."""
    axis.plot(*zip(*points, strict=True), ".", color=colour, alpha=0.3, ms=5)
    best = [a for a in points if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in points)]
    axis.plot(*zip(*sorted(best), strict=True), "-", color=colour, lw=1.5, label=label)


def mark(axis, rows, key, reach, settings):
    """The default and the best compromise."""
    for name, marker in (("default", "o"), ("compromise", "*")):
        for row in rows:
            if [row["family"], row["sharpness"], row["number"]] == settings[name]:
                label = f"{name}: {row['family']}({row['sharpness']:g}, {row['number']:g})"
                spot = (reach(row, key), row[key]["nccs"][0])
                axis.plot(*spot, f"k{marker}", ms=12, mfc="none", mew=1.5, label=label)
