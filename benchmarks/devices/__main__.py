"""`python -m benchmarks.devices COUNT CELLS`: the rows of CELLS, JSON, on COUNT fake devices. `run` starts this."""

import json
import sys

import jax

from benchmarks.devices.measure import measure

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    print(json.dumps([measure(cell) for cell in json.loads(sys.argv[2])]))
