"""`python -m benchmarks.devices COUNT CELLS`: the rows of CELLS, JSON, on COUNT fake devices. `run` starts this."""

import json
import sys

import jax

from benchmarks.devices.measure import measure

if __name__ == "__main__":
    count, cells = map(json.loads, sys.argv[1:])
    jax.config.update("jax_platforms", "cpu")  # fake devices are the CPU's, and a GPU would come first
    jax.config.update("jax_num_cpu_devices", count)
    found = len(jax.devices())
    if found != count:
        raise SystemExit(f"JAX has {found} CPU devices, not {count}; set no number of devices in XLA_FLAGS")
    print(json.dumps([measure(cell) for cell in cells]))
