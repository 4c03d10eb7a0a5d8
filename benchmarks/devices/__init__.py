"""One operator over 1 to 64 devices: bytes moved and memory on each, from compiled HLO. Nothing is run.

n is split over the devices, which are fake: the CPU counts as so many, in a process for each number.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
from tqdm import tqdm

from benchmarks import records
from benchmarks.devices import report
from benchmarks.devices.cells import plan
from benchmarks.devices.measure import MODES


def run(quick):
    started = time.monotonic()
    jax.config.update("jax_platforms", "cpu")  # so that the results name the CPU as their hardware
    base, largest, cells = plan(quick)
    rows, by_count = [], {}
    for cell in cells:
        by_count.setdefault(cell["devices"], []).append(cell)
    for count, some in tqdm(sorted(by_count.items()), desc="devices", unit="count"):
        command = [sys.executable, "-m", "benchmarks.devices", str(count), json.dumps(some)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        rows += json.loads(done.stdout.splitlines()[-1])
    path = records.directory(quick) / "devices.json"
    settings = {"dtype": "float32", "base": base, "largest": largest, "modes": MODES}
    records.write(path, started=started, rows=rows, settings=settings)
    records.page(path, report.text)
