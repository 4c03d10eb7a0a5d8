"""The tables of the devices benchmark, from its results file alone."""

from benchmarks import records

# A device that is fed at 400 Gbit/s each way, as in many clusters of GPUs: 50 bytes a nanosecond.
BYTES_PER_SECOND = 50e9


def text(results):
    versions = results["versions"]
    yield "# One operator over many devices"
    yield ""
    yield (
        f"From HLO compiled for fake CPU devices, JAX {versions['jax']}, {results['settings']['dtype']}, no batch. Per "
        "device: bytes sent (as many are received) and temporary memory. A step is forward and backward."
    )
    for name in ("devices", "n", "k", "d"):
        yield from ["", f"## Against {name}", "", *sweep(results, name)]
    yield from ["", "## The largest", "", *largest(results), ""]


def cell_of(rows, cell):
    (found,) = (row for row in rows if all(row[name] == value for name, value in cell.items()))
    return found


def sent(row, method, mode):
    """Bytes that each device sends."""
    return sum(row["methods"][method][mode]["sent"].values())


def size(count):
    """Bytes, three digits."""
    return _in_units(count, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")))


def duration(seconds):
    """Seconds, three digits."""
    return _in_units(seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")))


def _in_units(x, units):
    unit, name = next((unit for unit in units if x >= unit[0]), units[-1])
    return f"{x / unit:.3g} {name}"


def sweep(results, name):
    """A table of the cells that differ from the base in `name` only: a step's bytes sent / temporary bytes."""
    base = results["settings"]["base"]
    cells = [
        row for row in results["rows"] if all(row[other] == base[other] for other in base if other != name)
    ]
    cells.sort(key=lambda row: row[name])
    methods = list(cells[0]["methods"])
    lines = [
        [row[name], *(f"{size(sent(row, m, 'step'))} / {size(temporary(row, m))}" for m in methods)]
        for row in cells
    ]
    rest = ", ".join(f"{other} = {base[other]}" for other in base if other != name)
    return records.markdown([f"{name} ({rest})", *methods], lines)


def temporary(row, method):
    """The temporary bytes of a step."""
    return row["methods"][method]["step"]["temporary"]


def formula(devices, n, k, d, candidates=None):
    """Bytes that each device sends in a step with an `axis_name`, float32, no batch, no mask.

    Forward: an all-gather of the scores, or of each device's best `candidates` with their indices, and the
    all-reduce of `(k, d)` slots and their k scores. Backward: the reduce-scatter of the scores' cotangents.
    """
    entrants, arrays = n, 2
    if candidates is not None and candidates < n // devices:
        entrants, arrays = devices * candidates, 3
    return 4 * (devices - 1) * (arrays * entrants + 2 * k * (d + 1)) // devices


def largest(results):
    """Markdown: one step at the largest size, method by method."""
    row = cell_of(results["rows"], results["settings"]["largest"])
    lines = [
        [
            method,
            size(sent(row, method, "forward")),
            size(sent(row, method, "step")),
            duration(sent(row, method, "step") / BYTES_PER_SECOND),
            size(temporary(row, method)),
        ]
        for method in row["methods"]
    ]
    head = ["method", "sent, forward", "sent, step", "at 50 GB/s", "temporary memory, step"]
    return records.markdown(head, lines)
