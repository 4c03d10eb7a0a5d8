"""The figures of the README, from the results files."""

from benchmarks import records
from benchmarks.learning import report as learning_report
from benchmarks.speed import summary

HARDEST = (16384, 2)  # n and k of the quality sentence: the paper's longest tournament
PEERS = ("plain port", "soft sort", "gated top k")
LEARNING = {
    "`anneal`, `topk_mask`": "recipe",
    "`anneal`, threshold mask": "threshold mask, by the recipe",
    "threshold mask": "threshold mask",
    "gated top k": "gated top k",
}


def quality():
    """nCCS of the hardest cell beside the published figures, and the lowest of all cells."""
    rows = records.read("quality")["rows"]
    n, k = HARDEST
    ours = {(row["n"], row["k"]): row["methods"]["default"]["nccs"][0] for row in rows}
    (published,) = (row["published"] for row in rows if (row["n"], row["k"]) == HARDEST)
    return (
        f"\nIn the paper's longest tournament, n = {n} and k = {k}, `topk` has an nCCS of {ours[n, k]:.3f}. The "
        f"published figures are {published['power'][0]:.3f}\nfor the tournament and {published['iterative'][0]:.3f} "
        f"for the iterative operator. Over the paper's {len(rows)} sizes, the lowest nCCS of `topk` is "
        f"{min(ours.values()):.3f}."
    )


def speed():
    """Training steps beside the peers, on a CPU and on a GPU."""
    head, parts = ["`topk` compared with"], []
    for machine, name in (("CPU", "speed"), ("GPU", "gpu-speed")):
        cells = summary.large(records.read(name)["rows"])
        head += [f"{machine}, k < 256", f"{machine}, k ≥ 256"]
        parts += [[row for row in cells if row["k"] < 256], [row for row in cells if row["k"] >= 256]]
    lines = [
        [peer, *(summary.in_words(part, summary.OURS, peer, summary.STEP) for part in parts)]
        for peer in PEERS
    ]
    return "\n".join(["", *records.markdown(head, lines, left=len(head)), ""])


def kernels():
    """The time in kernels of a training step of the longest tournament, beside two peers; its time beside PyTorch's."""
    n, k = HARDEST
    rows = [
        row
        for row in records.read("gpu-profiled")["rows"]
        if (row["n"], row["k"], row["mode"]) == (n, k, "gradient")
    ]
    busy, started = ({row["way"]: row[name] for row in rows} for name in ("busy_ms", "kernels"))
    cells = [row for row in records.read("gpu-pytorch")["rows"] if (row["n"], row["k"]) == (n, k)]
    ((torch, _),) = summary.ratios(cells, summary.OURS, "PyTorch, compiled", summary.STEP)

    def beside(peer):
        return f"{summary.times(busy['default'] / busy[peer])} than the {peer} ({started[peer]:.0f})"

    return (
        f"\nThe GPU columns include the host's time. With it included, a step at n = {n} and k = {k} is "
        f"{summary.times(torch)} than Algorithm 2\ncompiled by PyTorch. In kernels alone the step takes "
        f"{summary.two_digits(busy['default'])} ms ({started['default']:.0f} kernels), "
        f"{beside('plain port')} and {beside('gated top k')}."
    )


def learning():
    """Mean scores at hard evaluation, a column for each task, and the seeds that failed."""
    results = learning_report.read(records.RESULTS)
    found = {
        task: {s["method"]: s for s in learning_report.summary(result)} for task, result in results.items()
    }
    lines = [["*chance*", *(f"{result['settings']['chance']:.2f}" for result in results.values()), ""]]
    for name, way in LEARNING.items():
        scores = [methods.get(way) for methods in found.values()]
        failed, seeds = (sum(s[key] for s in scores if s) for key in ("failed", "seeds"))
        lines.append([name, *(f"{s['mean']:.2f}" if s else None for s in scores), f"{failed} of {seeds}"])
    tasks = [task.removeprefix("features-").replace("-", " ") for task in found]
    head = ["trained by", *tasks, "failed seeds"]
    return "\n".join(["", *records.markdown(head, lines, left=len(head)), ""])
