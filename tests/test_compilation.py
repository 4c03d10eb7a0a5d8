"""What compiles, and how often; what an import does."""

import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

import calls
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk
from benchmarks import timing
from shtopk import _pooling

FULL_EFFORT = pytest.mark.usefixtures("full_effort")


@pytest.fixture
def compilations(caplog):
    """The number of functions compiled since the fixture, or since `clear`, was called, as its length."""

    class Log:
        def clear(self):
            caplog.clear()

        def __len__(self):
            return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)

    jax.config.update("jax_log_compiles", True)
    yield Log()
    jax.config.update("jax_log_compiles", False)


@FULL_EFFORT
def test_rows_that_experts_share_are_in_memory_once():
    """Pooled by each of 16 experts and added up again: forward and backward, no array has a row for each of them."""
    experts, n, k, d = 16, 512, 32, 64
    tokens, scores = jnp.ones((n, d)), jnp.zeros((experts, n))

    def loss(tokens, scores):
        selection = shtopk.select(scores, k)
        return jnp.sum(selection.unpool(selection.pool(tokens[None]), sum_axis=0) ** 2)

    temporary = timing.temporary(timing.compiled(jax.value_and_grad(loss, (0, 1)), tokens, scores))
    assert 0 < temporary < experts * n * d * tokens.dtype.itemsize / 2


def test_few_frames_lead_from_topk_to_the_pooling(monkeypatch):
    """What a user reads in a traceback: the library's frames from `topk` to the operation on the embeddings."""
    package, depths = Path(shtopk.__file__).parent, {}

    def recorded(name, function):
        def call(*arguments, **options):
            stack = traceback.extract_stack()
            depths[name] = sum(Path(frame.filename).parent == package for frame in stack)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(_pooling._pool_p, "bind", recorded("traced", _pooling._pool_p.bind))
    monkeypatch.setattr(_pooling, "taken", recorded("lowered", _pooling.taken))
    shtopk.topk(jnp.ones((2, 11, 3)), jnp.zeros((2, 11)), 4)
    assert set(depths) == {"traced", "lowered"} and max(depths.values()) <= 8


# Each test has sizes of its own, because a size that another has compiled compiles nothing.
CALLS = {
    "topk": lambda e, v, b: shtopk.topk(e, v, 3, boost=b),
    "select": lambda e, v, b: shtopk.select(v, 3, boost=b),
    "topk_mask": lambda e, v, b: shtopk.topk_mask(v, 3, boost=b),
    "traced_k": lambda e, v, b: shtopk.topk_mask(v, jnp.int32(3), boost=b),
    "iterative_topk": lambda e, v, b: shtopk.iterative_topk(e, v, 3, alpha=b.sharpness),
    "hard_topk": lambda e, v, b: shtopk.hard_topk(e, v, 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_new_values_and_new_numbers_compile_nothing(name, compilations):
    rng = np.random.default_rng(0)
    arguments = [
        (jnp.asarray(rng.normal(size=(2, 4, 3))), jnp.asarray(rng.normal(size=(2, 4)))) for _ in "ab"
    ]
    compilations.clear()
    CALLS[name](*arguments[0], shtopk.Relative(1.0, 0.5))
    assert len(compilations) > 0  # the count counts
    compilations.clear()
    CALLS[name](*arguments[1], shtopk.Relative(2.0, 0.25))
    assert len(compilations) == 0


@pytest.mark.parametrize("name", CALLS)
def test_a_bare_call_is_one_compiled_call(name, compilations):
    embeddings, scores, boost = jnp.ones((2, 5, 3)), jnp.ones((2, 5)), shtopk.Relative(1.0, 0.5)
    if name == "traced_k":  # what the caller does with k and its shape is not ours
        call = partial(shtopk.topk_mask, scores[0], jnp.int32(3), boost=boost)
    else:
        call = partial(CALLS[name], embeddings, scores, boost)
    compilations.clear()
    call()
    assert len(compilations) == 1


@pytest.mark.parametrize("name", [name for name in calls.CALLS if name.startswith(("Selection.", "nccs"))])
def test_a_bare_method_is_one_compiled_call(name, compilations):
    call = calls.CALLS[name]
    jax.clear_caches()  # the table has called some of them
    compilations.clear()
    call.function(*call.arguments)
    assert len(compilations) == 1


def test_a_new_part_of_a_real_k_compiles_nothing(compilations):
    scores = jnp.linspace(0, 1, 3)
    shtopk.topk_mask(scores, 2.25)
    compilations.clear()
    for k in (2.5, np.float32(2.75)):
        shtopk.topk_mask(scores, k)
    assert len(compilations) == 0


def test_one_step_serves_every_k_and_every_sharpness(compilations):
    step = jax.jit(jax.grad(lambda v, k, c: jnp.sum(shtopk.topk_mask(v, k, boost=shtopk.Relative(c)) ** 2)))
    scores = jnp.linspace(0, 1, 4)
    ks, cs = [jnp.int32(2), jnp.int32(3)], [jnp.asarray(1.0), jnp.asarray(9.0)]
    step(scores, ks[0], cs[0])
    compilations.clear()
    for k in ks:
        for c in cs:
            step(scores, k, c)
    assert len(compilations) == 0


@pytest.mark.parametrize("name", CALLS)
def test_one_compilation_for_each_shape(name, compilations):
    shapes = [(3, 4), (3, 5), (4,)]
    for again in (False, True):
        for shape in shapes:
            embeddings, scores = jnp.ones((*shape, 3)), jnp.ones(shape)
            compilations.clear()
            CALLS[name](embeddings, scores, shtopk.Relative(1.0, 0.5))
            assert (len(compilations) == 0) == again


def test_import_brings_jax_alone_and_starts_no_backend():
    """Beside the standard library."""
    code = """
import sys, jax, jax.numpy
before = set(sys.modules)
import shtopk
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
jax.config.update("jax_platforms", "no_such_platform")  # would fail if the backends had been started
try:
    jax.devices()
except RuntimeError:
    print("not started")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, backend = done.stdout.splitlines()
    assert set(modules.split()) <= {"shtopk", "jax", "jaxlib", "numpy", "ml_dtypes"}
    assert backend == "not started"


@FULL_EFFORT
def test_a_gradient_that_reads_the_slots_computes_them_once():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 256, 32), (32, 256))]

    def traffic(loss):
        gradient = jax.grad(lambda e, v: loss(shtopk.topk(e, v, 8).embeddings), argnums=(0, 1))
        cost = jax.jit(gradient).lower(*shapes).compile().cost_analysis()
        assert cost is not None
        return cost["bytes accessed"]

    assert traffic(lambda x: jnp.sum(x**2)) < 2 * traffic(jnp.sum)


@FULL_EFFORT
def test_few_candidates_cost_no_sort_of_all():
    """XLA's top k, which it gives up for a sort if the values that come beside the indices are read."""
    scores = jnp.zeros((2, 1024), jnp.float32)
    program = jax.jit(lambda v: shtopk.topk_mask(v, 4, candidates=16)).lower(scores).compile().as_text()
    assert program is not None
    assert 'custom_call_target="TopK"' in program
    assert " sort(" not in program
