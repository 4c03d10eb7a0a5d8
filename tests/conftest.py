"""Every test runs under the strictest settings a user may have, in float64 unless it asks for less.

The CPU counts as eight devices; whatever is not split over them uses the first alone.

Three quarters of the suite's time go into tracing, lowering and compiling. So programs are compiled with little
optimization, except in tests that ask for `full_effort`, and without the tracebacks of their operations, which take
a tenth of the time. Garbage is collected less often: at Python's own rate that takes a twentieth of the time.
"""

import gc

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_traceback_in_locations_limit", 0)
gc.set_threshold(50_000, 50, 1000)


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


@pytest.fixture
def full_effort():
    """A test's programs are compiled as a user's: it tests the programs themselves, or their rounding."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def little_effort_in_processes(monkeypatch):
    """The same settings for the processes that a test starts: a short run spends most of its time in the compiler."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_their_module():
    """A process may map so many pieces of memory (65530 on Linux), and every compiled program maps some."""
    yield
    jax.clear_caches()
    gc.collect()
