"""The GPUs and the TPU that are compiled for, none of which has to be there.

XLA's compilers come as wheels and need only a description of the chip: for a GPU a text file beside this one, for a
TPU the name of a topology. Of the wheels each target has its own, and they must fit the JAX that is installed.
"""

import importlib.metadata
import os
import site
import sys
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TARGETS = {"h100": "NVIDIA H100 SXM", "a100": "NVIDIA A100 SXM", "tpu": "TPU v5e"}
WHEELS = {
    "cuda": ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"),
    "tpu": ("libtpu",),
}
INSTALL = "in an environment of its own: pip install -e '.[compiled]'"


def platform(target):
    """JAX's name for the target's kind."""
    return "tpu" if target == "tpu" else "cuda"


def versions(target):
    """The versions of the target's wheels; None for one that is not installed."""
    return {name: _version(name) for name in WHEELS[platform(target)]}


def missing(target):
    """What keeps this environment from compiling for the target, and what to install; None if nothing does."""
    found = versions(target)
    absent = [name for name, version in found.items() if version is None]
    if absent:
        return f"{TARGETS[target]}: {', '.join(absent)} not installed; {INSTALL}"
    # JAX leaves out, with no more than a warning, a CUDA plugin that is not of its own version.
    for name, version in found.items():
        if name.startswith("jax-") and version != jax.__version__:
            install = f"pip install 'jax[cuda12-local]=={jax.__version__}'"
            return f"{TARGETS[target]}: {name} is {version} and JAX is {jax.__version__}; {install}"
    return None


def environment():
    """The variables of a process that compiles, which must be set before JAX starts there."""
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0"]  # tuning runs kernels
    flags += [f"--xla_gpu_cuda_data_dir={path}" for path in _toolkits()[:1]]  # libdevice and ptxas
    return os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "JAX_PLATFORMS": "cpu",  # the wheels are for compiling: nothing is to look for their devices
        "JAX_ENABLE_X64": "0",
        "JAX_ENABLE_COMPILATION_CACHE": "0",  # seconds to compile are one of the figures
        "JAX_TRACEBACK_FILTERING": "off",  # an error is to end with what went wrong
        "TPU_SKIP_MDS_QUERY": "1",  # libtpu would ask a cloud's metadata server, and wait
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def sharding(target):
    """Where an argument has to say that it lives, for a function to be compiled for the target."""
    if target == "tpu":
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    else:
        config = (Path(__file__).parent / f"{target}.txtpb").read_text()
        topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1")
    return NamedSharding(Mesh(topology.devices[:1], ("x",)), PartitionSpec())


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _toolkits():
    found = (Path(place) / "nvidia" / "cuda_nvcc" for place in [*site.getsitepackages(), *sys.path])
    return [path for path in found if path.is_dir()]
