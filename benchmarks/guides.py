"""The tables of docs/benchmarks.md and of the guides, from the results files."""

import numpy as np

from benchmarks.records import markdown, read

METHODS = ("shtopk", "shtopk, candidates=4k", "gated top k", "plain port", "soft sort", "iterative")


def mean(values, digits=3):
    """The mean and one standard error over seeds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def noted(table, *notes):
    """The lines of a table, and notes below it, a paragraph each."""
    yield from table
    for note in notes:
        yield from ("", note)


def machines():
    head = ["results", "date", "backend", "machine", "JAX", "Python"]
    lines = []
    for name in ("quality", "speed"):
        results = read(name)
        hardware, versions = results["hardware"], results["versions"]
        cores = f"{hardware['machine']}, {hardware['cpu_count']} cores"
        lines.append(
            [f"{name}.json", results["date"], hardware["backend"], cores, versions["jax"], versions["python"]]
        )
    return markdown(head, lines, left=1)


def quality():
    """nCCS of the default boost, and of the published operator in brackets: a line for each n."""
    cells = {(row["n"], row["k"]): row for row in read("quality")["rows"]}
    ks = (2, 8, 32, 128, 512, 2048)

    def cell(n, k):
        row = cells.get((n, k))
        return (
            f"{row['methods']['default']['nccs'][0]:.3f} ({row['published']['power'][0]:.3f})" if row else ""
        )

    ns = sorted({n for n, _ in cells})
    return markdown(["n", *(f"k = {k}" for k in ks)], [[n, *(cell(n, k) for k in ks)] for n in ns])


def milliseconds():
    """The time of a training step on a CPU, a column for each method."""

    def cell(row, name):
        method = row["methods"].get(name)
        return f"{method['gradient']['ms']:.3g}" if method else None

    rows = [row for row in read("speed")["rows"] if row["section"] == "grid"]
    rows = [row for row in rows if row["n"] in (256, 1024, 4096, 16384) and row["k"] in (2, 32, 256)]
    lines = [[row["n"], row["k"], *(cell(row, name) for name in METHODS)] for row in rows]
    return markdown(["n", "k", *METHODS], lines)


def experts():
    results, modes = read("experts"), ("forward", "gradient")
    rows = {(row["capacity"], row["way"], row["mode"]): row for row in results["rows"]}
    cells = {key: f"{row['ms']:.3g} ms, {row['temporary_mib']:.0f} MiB" for key, row in rows.items()}
    ways = dict.fromkeys((capacity, way) for capacity, way, _ in rows)
    lines = [[way, capacity, *(cells[capacity, way, mode] for mode in modes)] for capacity, way in ways]
    machine = "JAX {jax}, {backend}, {cpu_count} cores.".format(**results["versions"], **results["hardware"])
    return noted(markdown(["method", "capacity", *modes], lines, left=1), machine)


def subsets():
    results = read("subsets")
    lines = [
        [
            name,
            f"{row['reward']:.3f} ± {row['standard_error']:.3f}",
            f"{min(curve[-1] for curve in row['curves']):.3f}",
        ]
        for name, row in results["ways"].items()
    ]
    limits = {"random": "five at random", "best": "the five that are right most often"}
    lines += [[text, f"{results['limits'][name]:.3f}", None] for name, text in limits.items()]
    head = ["way", "votes right, by the five best scores", "worst seed"]
    note = (
        "{steps} steps of {episodes} episodes and {draws} draws each, {seeds} seeds, ± one standard error; JAX {jax}, "
        "{backend}."
    )
    return noted(markdown(head, lines, left=1), note.format(**results["settings"]))


def sparse_attention():
    results = read("sparse_attention")
    whole, *rows = results["rows"]
    ks = sorted({row["k"] for row in rows})
    found = {(row["way"], row["k"]): mean(row["perplexity"], 2) for row in rows}
    lines = [[way, *(found[way, k] for k in ks)] for way in dict.fromkeys(way for way, _ in found)]
    full = (
        f"Full attention has {mean(whole['perplexity'], 2)}. ± is one standard error over "
        f"{results['settings']['seeds']} seeds."
    )
    note = (
        "{steps} steps on {batch} pieces of 64 characters, of {characters} characters; Python {python}, JAX {jax}, "
        "{backend}."
    )
    table = markdown(["keys chosen by", *(f"k = {k}" for k in ks)], lines, left=1)
    return noted(table, full, note.format(**results["settings"]))


def pooled_transformer():
    results = read("pooled_transformer")
    head = ["encoder", "questions answered right", "ms a training step", "temporary memory of it, MiB"]
    lines = [
        [name, f"{row['accuracy']:.1%}", f"{1e3 * row['step_seconds']:.1f}", f"{row['memory'] / 2**20:.1f}"]
        for name, row in results["encoders"].items()
    ]
    first, second = results["wanted_kept"]
    kept = f"Of the facts that may be asked about, the first `topk` keeps {first:.1%}, and the second {second:.1%}."
    note = "{steps} steps on {documents} documents each, seed {seed}, JAX {jax}, {backend}, cores: {cores}."
    return noted(markdown(head, lines, left=1), kept, note.format(**results["settings"]))


def choose_features(choice):
    """The accuracies of both tables for a `choice`, "global" or "input by input"."""
    rows = [row for row in read("choose_the_features")["rows"] if row["choice"] == choice]
    for table in dict.fromkeys(row["table"] for row in rows):
        own = [row for row in rows if row["table"] == table]
        fixed = {(row["way"], row["k"][0]): mean(row["accuracy"]) for row in own if row["price"] == 0}
        learned = [row for row in own if row["price"] > 0]
        ks, ways = sorted({k for _, k in fixed}), dict.fromkeys(way for way, _ in fixed)
        yield from markdown(
            [table, *(f"k = {k:.0f}" for k in ks)],
            [[way, *(fixed.get((way, k)) for k in ks)] for way in ways],
            left=1,
        )
        yield ""
        prices = [
            [f"{row['price']:.2f}", f"{np.mean(row['k']):.1f}", mean(row["accuracy"])] for row in learned
        ]
        yield from markdown(["k learned, price of a feature", "k", "accuracy"], prices)
        yield ""


def token_pruning():
    results = read("prune_the_tokens")
    head = ["tokens kept by", "k", "accuracy", "multiply-adds"]
    head += ["training step, times faster", "inference, times faster"]
    lines = [
        [
            row["way"],
            row["k"],
            mean(row["accuracy"]),
            f"{row['multiply_adds']:,}",
            f"{1 / row['step']:.1f}",
            f"{1 / row['inference']:.1f}",
        ]
        for row in results["rows"]
    ]
    note = (
        "± is one standard error over {seeds} seeds. Multiply-adds are those of one image, half of the operations "
        "that XLA counts. The last two columns are against no pruning, from medians of {repeats} turns: steps on "
        "{batch} images, inference on {inference_batch}. {steps} steps, {canvases} images to train on and {held_out} "
        "held out; Python {python}, JAX {jax}, scikit-learn {sklearn}, {backend}, cores: {cores}."
    )
    return noted(markdown(head, lines, left=1), note.format(**results["settings"]))


def how_many():
    results = read("how_many")
    settings, learned = results["settings"], results["learned"]
    head = ["", "features read", "squared error", f"with the price of {settings['price']}"]
    lines = [
        [
            name if name == "learned k" else f"{name} for all rows",
            f"{row['features']:.2f}",
            f"{row['error']:.3f}",
            f"{row['cost']:.3f}",
        ]
        for name, row in results["ways"].items()
    ]
    correlation = (
        f"The correlation of the learned k with the number needed is {min(learned['correlations']):.3f} to "
        f"{max(learned['correlations']):.3f} over the seeds. Rounded, the learned k is that number in "
        f"{learned['exact']:.1%} of held-out rows."
    )
    note = "{steps} steps of {rows} rows each, {seeds} seeds, JAX {jax}, {backend}."
    return noted(markdown(head, lines, left=1), correlation, note.format(**settings))
