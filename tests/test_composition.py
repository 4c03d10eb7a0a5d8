"""What the guides promise: inside each framework the operator is called, differentiated, trained and saved."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization

import shtopk

N, D, K = 5, 4, 3

pytestmark = pytest.mark.usefixtures("x32")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def tokens():
    return normal(2, N, D)


def by_hand(kernel, sharpness, x):
    """What every module below computes: linear scores `x @ kernel`, `(rows, n)`, and the slots' embeddings."""
    boost = shtopk.Relative(sharpness)
    return shtopk.topk(x, (x @ kernel)[..., 0], K, boost=boost).embeddings


def loss(slots):
    return -jnp.mean(slots[..., 0])


@jax.jit
@partial(jax.grad, argnums=(0, 1))
def gradient_by_hand(kernel, sharpness):
    return loss(by_hand(kernel, sharpness, tokens()))


def assert_same_and_trainable(gradient, kernel, sharpness):
    """`gradient`, of kernel and sharpness, is that of the computation by hand, and neither is 0."""
    for got, want in zip(gradient, gradient_by_hand(kernel, sharpness), strict=True):
        assert np.any(np.asarray(want) != 0)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


class NnxPool(nnx.Module):
    def __init__(self, rngs):
        self.score = nnx.Linear(D, 1, use_bias=False, rngs=rngs)
        self.sharpness = nnx.Param(jnp.array(1.5))

    def __call__(self, x):
        boost = shtopk.Relative(self.sharpness[...])
        return shtopk.topk(x, self.score(x)[..., 0], K, boost=boost).embeddings


class LinenPool(nn.Module):
    @nn.compact
    def __call__(self, x):
        scores = nn.Dense(1, use_bias=False)(x)[..., 0]
        sharpness = self.param("sharpness", nn.initializers.constant(1.5), ())
        return shtopk.topk(x, scores, K, boost=shtopk.Relative(sharpness)).embeddings


def test_flax_nnx():
    model = NnxPool(nnx.Rngs(0))

    @nnx.jit
    @partial(nnx.grad, has_aux=True)
    def gradient(model, x):
        slots = model(x)
        return loss(slots), slots

    state, slots = gradient(model, tokens())
    want = by_hand(model.score.kernel[...], 1.5, tokens())
    for got in (slots, model(tokens())):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    got = state["score"]["kernel"][...], state["sharpness"][...]
    assert_same_and_trainable(got, model.score.kernel[...], model.sharpness[...])


def test_flax_linen():
    model = LinenPool()
    params = jax.jit(model.init)(jax.random.key(1), tokens())
    gradient = jax.jit(jax.grad(lambda params: loss(model.apply(params, tokens()))))(params)["params"]
    got = gradient["Dense_0"]["kernel"], gradient["sharpness"]
    assert_same_and_trainable(got, params["params"]["Dense_0"]["kernel"], params["params"]["sharpness"])


def test_haiku():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")

    def pool(x):
        scores = hk.Linear(1, with_bias=False)(x)[..., 0]
        sharpness = hk.get_parameter("sharpness", (), init=hk.initializers.Constant(1.5))
        return shtopk.topk(x, scores, K, boost=shtopk.Relative(sharpness)).embeddings

    model = hk.without_apply_rng(hk.transform(pool))
    params = jax.jit(model.init)(jax.random.key(1), tokens())
    gradient = jax.jit(jax.grad(lambda params: loss(model.apply(params, tokens()))))(params)
    (top,) = (name for name in params if "sharpness" in params[name])
    got = gradient["linear"]["w"], gradient[top]["sharpness"]
    assert_same_and_trainable(got, params["linear"]["w"], params[top]["sharpness"])


def equinox_model(eqx):
    class Pool(eqx.Module):
        score: Any
        boost: shtopk.Relative
        k: int = eqx.field(static=True)

        def __call__(self, x):
            scores = jax.vmap(self.score)(x)[..., 0]
            return shtopk.topk(x, scores, self.k, boost=self.boost).embeddings

    linear = eqx.nn.Linear(D, 1, use_bias=False, key=jax.random.key(1))
    return Pool(linear, shtopk.Relative(jnp.array(1.5)), K)


def test_equinox():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    model = equinox_model(eqx)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model, x):
        return loss(jax.vmap(model)(x))

    got = gradient(model, tokens())
    assert got.boost.quantile is None  # a Python float is no parameter
    assert_same_and_trainable((got.score.weight.T, got.boost.sharpness), model.score.weight.T, jnp.array(1.5))


def test_an_optax_step_with_a_schedule_compiles_once_and_learns():
    sharpness = optax.exponential_decay(0.5, transition_steps=60, decay_rate=16)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, 60))
    x = jax.random.normal(jax.random.key(0), (8, 20, D))

    traces = []

    @jax.jit
    def update(kernel, state, step):
        traces.append(step)
        value, gradient = jax.value_and_grad(lambda kernel: loss(by_hand(kernel, sharpness(step), x)))(kernel)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(kernel, updates), state, value

    kernel = jax.random.normal(jax.random.key(2), (D, 1))
    state = optimizer.init(kernel)
    values = []
    for step in range(60):
        kernel, state, value = update(kernel, state, step)
        values.append(value)
    best = loss(shtopk.hard_topk(x, x[..., 0], K).embeddings)
    assert values[0] - best > 0.5 > 10 * (values[-1] - best)
    assert len(traces) == 1


def test_checkpoint_recomputes_the_same_gradient():
    def of(f):
        return jax.jit(jax.grad(lambda kernel: loss(f(kernel))))(jnp.ones((D, 1)))

    layer = lambda kernel: by_hand(kernel, 1.5, tokens())  # noqa: E731
    np.testing.assert_allclose(of(jax.checkpoint(layer)), of(layer), rtol=1e-5)


def test_bfloat16_slots_leave_the_parameters_in_float32():
    def mean(kernel, inside):
        x = tokens().astype(jnp.bfloat16)
        scores = (x @ kernel.astype(jnp.bfloat16))[..., 0]
        slots = shtopk.topk(x.astype(inside), scores.astype(inside), K).embeddings
        assert slots.dtype == inside
        return loss(slots.astype(jnp.float32))

    kernel = normal(D, 1)
    half, single = (jax.jit(jax.grad(mean), static_argnums=1)(kernel, d) for d in (jnp.bfloat16, jnp.float32))
    assert half.dtype == jnp.float32
    # Of the same rounded scores: what differs is the rounding of results, to 8 bits.
    np.testing.assert_allclose(half, single, atol=0.02 * float(jnp.linalg.norm(single)))
    assert np.all(np.asarray(half) != 0)


@pytest.fixture
def trained():
    """Parameters of a Linen model next to the boost that it learned."""
    params = jax.jit(LinenPool().init)(jax.random.key(1), tokens())
    return {"params": params, "boost": shtopk.Relative(jnp.array(2.5), jnp.array(0.25))}


def assert_equal_trees(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_boost_is_saved_and_restored_by_orbax(trained, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    blank = jax.tree.map(jnp.zeros_like, trained)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", trained)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", blank)
    assert_equal_trees(restored, trained)
    shtopk.topk_mask(jnp.arange(4.0), 2, boost=restored["boost"])


def test_flax_restores_a_model_with_a_learned_sharpness():
    model = LinenPool()
    params, apply = jax.jit(model.init)(jax.random.key(1), tokens()), jax.jit(model.apply)
    blank = jax.tree.map(jnp.zeros_like, params)
    restored = serialization.from_bytes(blank, serialization.to_bytes(params))
    np.testing.assert_array_equal(apply(restored, tokens()), apply(params, tokens()))


def test_a_model_with_a_boost_is_saved_and_restored_by_equinox(tmp_path):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    model = equinox_model(eqx)
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    blank = jax.tree.map(lambda leaf: leaf * 0, model)
    restored = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", blank)
    assert_equal_trees(restored, model)
