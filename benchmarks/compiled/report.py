"""The tables and the figure of what was compiled, from the results files alone."""

import json

import matplotlib.pyplot as plt

from benchmarks import records
from benchmarks.compiled.cells import CELLS, MODES, PLOTTED, QUICK_CELLS, SERIES, SERIES_N, SERIES_WAYS, key
from benchmarks.compiled.targets import TARGETS
from benchmarks.compiled.ways import WAYS
from benchmarks.speed.summary import span

COLOURS = dict(zip(SERIES_WAYS, ("#0072b2", "#d55e00", "#cc79a7", "#009e73"), strict=True))
TPU_UNIT = "millions of cycles, as the compiler estimates them, without sorts, gathers, scatters and kernels of its own"
COUNTS = (2, 5, 10, 20, 50, 100, 200, 500)  # marked along y


def report(directory):
    """Write `compiled.md` and `compiled.png` from what `directory` holds."""
    results = read(directory)
    records.replace(directory / "compiled.md", "\n".join(text(results)))
    if PLOTTED in results:
        figure(results[PLOTTED], directory / "compiled.png")


def read(directory):
    """`{target: results}` of the targets that were compiled for."""
    paths = {target: directory / f"compiled-{target}.json" for target in TARGETS}
    return {target: json.loads(path.read_text()) for target, path in paths.items() if path.exists()}


def text(results):
    yield "# Compiled for a GPU or a TPU that is not there"
    yield ""
    yield (
        "Nothing was run. Forward / gradient of a sum of squares in embeddings and scores, batch 16, float32; then the "
        "larger temporary memory of the two, in units of the size of E; last the longest time to compile in the row. "
        "The second table of a GPU has the bytes that all kernels read and write, forward / gradient, in the same "
        "units. The bytes in the file of the TPU are the compiler's estimate, in which a loop counts once."
    )
    for target, found in results.items():
        versions = found["versions"] | found["settings"]["wheels"]
        unit = TPU_UNIT if target == "tpu" else "kernels started"
        yield from ["", f"## {found['settings']['target']}: {unit}", ""]
        yield ", ".join(f"{name} {version}" for name, version in versions.items() if name != "numpy") + "."
        yield from ["", *table(found["rows"], cycles if target == "tpu" else launches)]
        if target != "tpu":
            yield from ["", *bytes_moved(found["rows"])]
    yield ""


def table(rows, shown):
    """A line for each way: what it starts, the larger memory, and the longest time to compile."""

    def entry(pair):
        return f"{' / '.join(map(shown, pair))}, {max(row['temporary'] for row in pair):.2f}"

    def seconds(pairs):
        longest = max(row["compile_seconds"] for pair in pairs for row in pair)
        return f"{records.rounded(longest, 2):g} s"

    return by_way(rows, entry, {"compiling": seconds})


def bytes_moved(rows):
    """A line for each way: the bytes that its kernels read and write, in units of the size of E."""
    return by_way(rows, lambda pair: " / ".join(f"{at_least(row)}{row['moved']:.3g}" for row in pair), {})


def port_moves(rows):
    """In words, how many times as many bytes a training step of the plain port moves as one of the default."""
    moved = {key(row): row["moved"] for row in rows}
    cells = [(*cell, "gradient") for cell in CELLS]
    more = [moved["plain port", *cell] / moved["default", *cell] for cell in cells]
    return f"{span(min(more), max(more))} times as many bytes"


def by_way(rows, entry, last):
    """A line for each way, an entry for each cell of which all ways were compiled, and the `last` columns."""
    by_case = {key(row): row for row in rows}
    cells = [cell for cell in (*CELLS, *QUICK_CELLS) if ("where=", *cell, "forward") in by_case]
    lines = []
    for way in WAYS:
        found = [[by_case.get((way, *cell, mode)) for mode in MODES] for cell in cells]
        pairs = [pair for pair in found if None not in pair]
        if pairs:
            entries = (None if None in pair else entry(pair) for pair in found)
            lines.append([way, *entries, *(column(pairs) for column in last.values())])
    return records.markdown(["way", *(f"n = {c.n}, k = {c.k}, d = {c.d}" for c in cells), *last], lines)


def launches(row):
    return f"{at_least(row)}{row['launches']}"


def cycles(row):
    return f"{at_least(row)}{row['cycles'] / 1e6:.2f}"


def at_least(row):
    """What precedes a figure with a loop in it of which no more than one trip could be counted."""
    return ">= " if row["unknown_trips"] else ""


def figure(results, path):
    """Launches against n: a panel for each mode and each k."""
    by_case = {key(row): row for row in results["rows"]}
    fig, axes = plt.subplots(len(SERIES), len(MODES), figsize=(8, 6), sharex=True, sharey=True, squeeze=False)
    for line, (name, k) in zip(axes, SERIES.items(), strict=True):
        for axis, mode in zip(line, MODES, strict=True):
            panel(axis, by_case, mode, k)
            axis.set_title(f"{mode}, {name}", fontsize=10)
        line[0].set_ylabel("kernels started")
    fig.supxlabel("n", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=9, frameon=False)
    fig.suptitle(results["settings"]["target"] + ", batch 16, d = 32", y=0.93, fontsize=10)
    fig.tight_layout(rect=(0, 0, 1, 0.96))
    fig.savefig(path, dpi=130)
    plt.close(fig)


def panel(axis, by_case, mode, k):
    for way, colour in COLOURS.items():
        found = [(n, by_case.get((way, 16, n, k(n), 32, mode))) for n in SERIES_N]
        points = [(n, row["launches"]) for n, row in found if row is not None]
        axis.plot(
            *zip(*points, strict=True) if points else ([], []), "o-", color=colour, label=way, lw=1.6, ms=4
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.set_yticks(COUNTS, COUNTS)
    axis.set_xticks(SERIES_N, [str(n) for n in SERIES_N])
    axis.grid(alpha=0.25)
