"""What every results file carries, and how it is written."""

import datetime
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import jaxlib
import numpy as np

import shtopk

RESULTS = Path(__file__).parent / "results"


def directory(quick):
    """Where results go: beside this file; for a quick run, which overwrites nothing, the temp directory."""
    path = Path(tempfile.gettempdir()) / "shtopk-benchmarks" if quick else RESULTS
    path.mkdir(parents=True, exist_ok=True)
    return path


def path(name, quick):
    """The results file of a benchmark that runs on any backend; a GPU's is not the CPU's."""
    backend = jax.default_backend()
    return directory(quick) / (f"{name}.json" if backend == "cpu" else f"{backend}-{name}.json")


def read(name):
    """The committed results `NAME.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def environment():
    """The date, versions and hardware."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "shtopk": shtopk.__version__,
        },
        "hardware": {
            "platform": platform.system(),
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "device_kind": jax.devices()[0].device_kind,
            "backend": jax.default_backend(),
        },
    }


def write(path, *, settings, rows, started, **sections):
    """Write a results file in one step: a reader never meets half of one.

    `rows`, the measurements, take a line each, so that a diff shows which of them moved.
    """
    head = {
        "seconds": round(time.monotonic() - started, 1),
        **environment(),
        "settings": settings,
        **sections,
    }
    lines = ",\n".join("  " + json.dumps(row, sort_keys=True) for row in rows)
    text = json.dumps(head, indent=1, sort_keys=True)[:-2] + ',\n "rows": [\n' + lines + "\n ]\n}\n"
    json.loads(text)
    replace(path, text)


def replace(path, text):
    """Write `text` to `path` in one step."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.replace(path)


def page(path, lines):
    """Write the page beside a results file, of `lines(results)`, and return the results."""
    results = json.loads(path.read_text())
    replace(path.with_suffix(".md"), "\n".join(lines(results)))
    return results


def markdown(head, rows, left=0):
    """The lines of a table, its first `left` columns aligned to the left; None is a dash."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * left + " ---: |" * (len(head) - left)
    for row in rows:
        yield "| " + " | ".join("-" if x is None else str(x) for x in row) + " |"


def rounded(x, digits=6):
    """A float short enough to read, `digits` significant ones."""
    return float(f"{float(x):.{digits}g}")
