"""Fake devices in a mesh, and `shard_map` as this JAX has it.

Before 0.6.1 it is in `jax.experimental`, and its check of what is replicated refuses primitives that it does not
know: there only the unchecked form is tried.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

try:
    from jax import shard_map

    CHECKED: dict[str, dict[str, Any]] = {"checked": {"check_vma": True}, "unchecked": {"check_vma": False}}
except ImportError:
    from jax.experimental.shard_map import shard_map

    CHECKED = {"unchecked": {"check_rep": False}}

P = PartitionSpec
DEVICES = 8


def mesh(*names):
    """All eight devices along one axis, or four along the first axis and two along the second."""
    return Mesh(np.array(jax.devices()[:DEVICES]).reshape(*((4, 2) if len(names) == 2 else (-1,))), names)


def mapped(f, in_specs, out_specs, check=None, over=None):
    """`shard_map` of `f`, compiled, over the mesh of one axis, "x", unless told otherwise."""
    over = mesh("x") if over is None else over
    options = CHECKED[check or next(iter(CHECKED))]
    return jax.jit(shard_map(f, mesh=over, in_specs=in_specs, out_specs=out_specs, **options))


def put(x, over, *spec):
    """`x` laid out over a mesh."""
    return jax.device_put(x, NamedSharding(over, P(*spec)))
