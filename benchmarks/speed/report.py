"""The tables and the figure of the speed benchmark, from its results file alone."""

import matplotlib.pyplot as plt

from benchmarks import records
from benchmarks.speed import summary
from benchmarks.speed.measure import MODES, PANELS
from benchmarks.speed.stages import AGAINST

COLOURS = {
    "shtopk": ("#0072b2", "-"),
    "shtopk, candidates=4k": ("#0072b2", ":"),
    "shtopk, reseed=True": ("#0072b2", "--"),
    "gated top k": ("#009e73", "-"),
    "plain port": ("#d55e00", "-"),
    "soft sort": ("#cc79a7", "-"),
    "iterative": ("#888888", "-"),
}


def report(path):
    results = records.page(path, text)
    figure([row for row in results["rows"] if row["section"] == "grid"], path.with_suffix(".png"))


def text(results):
    hardware, versions, settings = results["hardware"], results["versions"], results["settings"]
    yield "# Speed"
    yield ""
    yield (
        f"{hardware['device_kind']} ({hardware['machine']}, {hardware['cpu_count']} cores), JAX {versions['jax']}, "
        f"Python {versions['python']}, {settings['dtype']}; milliseconds, medians of interleaved "
        "repetitions. Compare within a row only. A gradient includes the forward pass."
    )
    if settings["queue"] > 1:
        yield f"A time is that of one call in a queue of {settings['queue']}."
    yield from ["", *summary.lines(results["rows"]), "", *summary.growth_lines(results["rows"])]
    for section in dict.fromkeys(row["section"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["section"] == section]
        for mode in MODES:
            yield from ["", f"## {section}: {mode}", "", *times(rows, mode)]
        yield from ["", f"## {section}: temporary memory, in units of the size of E", "", *memory(rows)]
    yield from ["", "## Stages", "", *stages(results["stages"])]
    if results["compile_seconds"]:
        yield from ["", "## Seconds to compile", "", *compilation(results["compile_seconds"])]
    yield ""


def size(row):
    return [row["batch"], row["n"], row["k"], row["d"]]


def names(rows):
    return list(dict.fromkeys(name for row in rows for name in row["methods"]))


def times(rows, mode):
    published = mode == "forward" and any("published_seconds" in row for row in rows)
    head = ["batch", "n", "k", "d", "read E", "write E", *names(rows)]
    head += ["published, an A100", "published iterative, an A100"] if published else []
    lines = []
    for row in rows:
        line = [*size(row), row["limits"]["read E"]["ms"], row["limits"]["write E"]["ms"]]
        line += [row["methods"][name][mode]["ms"] if name in row["methods"] else None for name in names(rows)]
        if published:
            theirs = row["published_seconds"]
            line += [records.rounded(1e3 * theirs[name], 3) for name in ("successive_halving", "iterative")]
        lines.append(line)
    return records.markdown(head, lines)


def memory(rows):
    head = ["batch", "n", "k", "d", *(f"{name}: forward / gradient" for name in names(rows))]
    lines = []
    for row in rows:
        methods = row["methods"]
        lines.append(
            size(row)
            + [
                f"{methods[name]['forward']['temporary']:.2g} / {methods[name]['gradient']['temporary']:.2g}"
                if name in methods
                else None
                for name in names(rows)
            ]
        )
    return records.markdown(head, lines)


def stages(rows):
    head = ["stage", "limit", *("{batch} x {n}, k = {k}, d = {d}".format(**row) for row in rows)]
    lines = []
    for stage, limit in AGAINST.items():  # the results are sorted by name
        ratios = [f"{row['ms'][stage]:.3g} / {row['ms'][limit]:.3g}" for row in rows]
        lines.append([stage, limit, *ratios])
    return records.markdown(head, lines)


def compilation(rows):
    head = ["n", "k", "method", *MODES]
    lines = [
        [row["n"], row["k"], name, *(seconds[mode] for mode in MODES)]
        for row in rows
        for name, seconds in row["seconds"].items()
    ]
    return records.markdown(head, lines)


def figure(rows, path):
    """The paper's arrangement: a panel for each k, n along x, seconds along y; the gradient beneath."""
    ks = sorted({row["k"] for row in rows})
    ks = [k for k in ks if k in PANELS] or ks
    fig, axes = plt.subplots(
        2, len(ks), figsize=(2.4 * len(ks) + 1, 6.5), sharex=True, sharey="row", squeeze=False
    )
    for line, mode in zip(axes, MODES, strict=True):
        for axis, k in zip(line, ks, strict=True):
            panel(axis, [row for row in rows if row["k"] == k], mode)
            axis.set_title(f"{mode}, k = {k}", fontsize=10)
        line[0].set_ylabel("milliseconds")
    fig.supxlabel("n", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.tight_layout(rect=(0, 0, 1, 0.9))
    fig.legend(handles, labels, loc="upper center", ncols=4, fontsize=9, frameon=False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def panel(axis, rows, mode):
    for name, (colour, style) in COLOURS.items():
        found = [(row["n"], row["methods"][name][mode]["ms"]) for row in rows if name in row["methods"]]
        if found:
            axis.plot(*zip(*found, strict=True), style, color=colour, label=name, lw=1.6)
        elif rows:
            axis.plot([], [], style, color=colour, label=name)
    limits = [
        sum(row["limits"][x]["ms"] for x in (["read E"] if mode == "forward" else row["limits"]))
        for row in rows
    ]
    axis.plot([row["n"] for row in rows], limits, color="black", lw=0.8, label="limit: read E (and write E)")
    if mode == "forward":
        theirs = [
            1e3 * row["published_seconds"]["successive_halving"] for row in rows if "published_seconds" in row
        ]
        if theirs:
            axis.plot(
                [row["n"] for row in rows],
                theirs,
                "o",
                color="#d55e00",
                mfc="white",
                ms=4,
                label="published, an A100",
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks([2**4, 2**8, 2**12], ["16", "256", "4096"])
    axis.grid(alpha=0.25)
