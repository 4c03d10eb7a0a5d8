"""Every test runs under the strictest settings a user may have, in float64 unless it asks for less.

The CPU counts as eight devices; whatever is not split over them uses the first alone.
"""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x32():
    """JAX as it comes: 32 bits and the standard promotion."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def little_effort():
    """A module's programs are compiled with little optimization: it tests what they compute, not the compiler."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def little_effort_in_processes(monkeypatch):
    """The same for the processes that a test starts: a short run spends most of its time in the compiler."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_their_module():
    """A process may map so many pieces of memory (65530 on Linux), and every compiled program maps some."""
    yield
    jax.clear_caches()
