"""The table of `topk` beside PyTorch, from the results file alone."""

from benchmarks import records
from benchmarks.speed.summary import OURS, STEP, in_words, two_digits


def text(results):
    hardware, versions, settings = results["hardware"], results["versions"], results["settings"]
    yield "# Beside PyTorch"
    yield ""
    yield (
        f"{hardware['device_kind']}, JAX {versions['jax']}, PyTorch {results['pytorch']}, batch 16, "
        f"{settings['dtype']}. "
        f"Forward / training step: the milliseconds of one call in a queue of {settings['queue']}."
    )
    yield from ["", *table(results["rows"]), ""]


def table(rows):
    """A line for each method, a column for each cell."""
    head = ["method", *("n = {n}, k = {k}, d = {d}".format(**row) for row in rows)]
    lines = []
    for name in rows[0]["methods"]:
        times = [row["methods"][name].values() for row in rows]
        lines.append([name, *(" / ".join(two_digits(x["ms"]) for x in both) for both in times)])
    return records.markdown(head, lines)


def compared(rows):
    """In words, how many times faster a training step of `topk` is than those of both ports."""
    plain, by_compiler = (in_words(rows, OURS, port, STEP) for port in ("PyTorch", "PyTorch, compiled"))
    return f"{plain} than that of the port in PyTorch, and {by_compiler} than that of the compiled port"
