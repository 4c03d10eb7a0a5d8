"""Meshes whose axes are part of an array's type (`AxisType.Explicit`), a batch split over one of them."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from meshes import CHECKED, P, put

import shtopk

pytestmark = pytest.mark.skipif(
    "checked" not in CHECKED, reason="meshes of this kind are unfinished in this JAX"
)

B, N, K, D = 8, 5, 3, 4
rng = np.random.default_rng(0)
E, V = rng.normal(size=(B, N, D)), rng.normal(size=(B, N))
WHERE = np.arange(B * N).reshape(B, N) % 7 != 3  # leaves at least four rows of five
KEY = jax.random.key(0)


def explicit(**sizes):
    kinds = (jax.sharding.AxisType.Explicit,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def of_a_selection(e, v, where):
    selection = shtopk.select(v, K, where=where)
    rows = selection.matrix(), selection.pool(e), selection.unpool(e[:, :K])
    return *rows, selection.sample(KEY), selection.entropy()


def mask_and_log(e, v, where):
    return shtopk.topk_mask(v, K, where=where), jnp.exp(shtopk.topk_mask(v, K, where=where, log=True))


CALLS = {
    "topk": lambda e, v, where: shtopk.topk(e, v, 2, where=where),  # two rounds, most others have one
    "topk, resorted": lambda e, v, where: shtopk.topk(
        e, v, 1, where=where, reseed=True, boost=shtopk.Scaled(0.1)
    ),
    "topk, one round": lambda e, v, where: shtopk.topk(e, v, K, where=where, reseed=True),
    "topk, few candidates": lambda e, v, where: shtopk.topk(e, v, 2, where=where, candidates=4),
    "topk, hard values": lambda e, v, where: shtopk.topk(
        e, v, K, where=where, straight_through=True, order="position"
    ),
    "topk, drawn": lambda e, v, where: shtopk.topk(e, v, K, where=where, draw=0.5, key=KEY),
    "topk, Scaled": lambda e, v, where: shtopk.topk(e, v, K, where=where, boost=shtopk.Scaled(2.0)),
    "topk, a function": lambda e, v, where: shtopk.topk(
        e, v, K, where=where, boost=lambda high, low, _: jax.nn.sigmoid(high - low)
    ),
    "topk_mask": mask_and_log,
    "topk_mask, real k": lambda e, v, where: shtopk.topk_mask(v, 2.5, where=where),
    "topk_mask, traced k": lambda e, v, where: shtopk.topk_mask(v, jnp.int32(K), where=where),
    "topk_mask, traced real k": lambda e, v, where: shtopk.topk_mask(v, jnp.float32(2.5), where=where),
    "Selection": of_a_selection,
    "log_prob": lambda e, v, where: shtopk.select(v, K).log_prob(shtopk.hard_topk(e, v, K).indices),
    "anneal": lambda e, v, where: shtopk.anneal(v, 0.5, KEY, where=where).scores,
    "hard_topk": lambda e, v, where: shtopk.hard_topk(e, v, K, where=where, order="position"),
    "iterative_topk": lambda e, v, where: shtopk.iterative_topk(e, v, K, where=where),
    "nccs": lambda e, v, where: shtopk.nccs(e, jnp.flip(e, -1)),
}


def step_of(call, where):
    """Values and gradients of a loss that looks at all of them."""

    def loss(e, v):
        out = call(e, v, where)
        floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(
            (jnp.sum(jnp.sin(jnp.where(jnp.isfinite(x), x, 0))) for x in floats), start=jnp.zeros(())
        ), out

    return jax.grad(loss, (0, 1), has_aux=True)


@cache
def whole_step(name):
    return jax.jit(lambda where: step_of(CALLS[name], where)(E, V))


def whole(name, masked=False):
    """The step on the whole arrays. Without a mask, every row takes part: one program serves both."""
    return whole_step(name)(WHERE if masked else np.ones_like(WHERE))


MASKED = [name for name in CALLS if name not in ("log_prob", "nccs")]  # which take no mask


@pytest.mark.parametrize(
    ("name", "masked"),
    [(name, masked) for name in CALLS for masked in (False, True) if not masked or name in MASKED],
)
def test_a_batch_split_by_type_is_the_batch(name, masked):
    over = explicit(b=4, f=2)
    where = put(WHERE, over, "b") if masked else None
    laid_out = put(E, over, "b"), put(V, over, "b")
    with jax.set_mesh(over):
        gradients, got = jax.jit(step_of(CALLS[name], where))(*laid_out)
    for x, y in zip(jax.tree.leaves((gradients, got)), jax.tree.leaves(whole(name, masked)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)
    assert all(x.sharding.spec[0] == "b" for x in (*gradients, *jax.tree.leaves(got)) if x.ndim)


def test_batch_and_features_may_both_be_split_by_type():
    over = explicit(b=4, f=2)
    step = jax.jit(step_of(CALLS["topk"], None))
    with jax.set_mesh(over):
        got = step(put(E, over, "b", None, "f"), put(V, over, "b"))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(whole("topk")), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)
    assert got[1].embeddings.sharding == NamedSharding(over, P("b", None, "f"))


@pytest.mark.parametrize(
    "split", [("f", None, None), (None, None, "f"), (None, "b", "f")], ids=["first", "last", "last two"]
)
def test_any_of_several_feature_axes_may_be_split_by_type(split):
    over = explicit(b=4, f=2)
    e = E[:, :, None, :, None] * np.arange(1.0, 5.0).reshape(2, 1, 2)
    pooled = e[:, :K]

    def calls(e, pooled):
        selection = shtopk.select(V, K)
        return selection.pool(e), selection.unpool(pooled), selection.unpool(pooled, sum_axis=0)

    with jax.set_mesh(over):
        got = jax.jit(calls)(put(e, over, None, None, *split), put(pooled, over, None, None, *split))
    for x, y in zip(got, jax.jit(calls)(e, pooled), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)
        assert tuple(x.sharding.spec[-3:]) == split


def test_nccs_of_features_split_by_type():
    over = explicit(b=4, f=2)
    with jax.set_mesh(over):
        got = jax.jit(shtopk.nccs)(put(E, over, "b", None, "f"), put(V[..., None] * E, over, "b", None, "f"))
    np.testing.assert_allclose(got, shtopk.nccs(E, V[..., None] * E), rtol=1e-9)


def every_kind(e, v, where):
    selection = shtopk.select(v, K, where=where)
    read = selection.pool(e), selection.log_prob(jnp.broadcast_to(jnp.arange(K), (B, K)))
    names = "topk", "topk, hard values", "topk_mask", "topk_mask, traced k", "iterative_topk"
    return *read, *(CALLS[name](e, v, where) for name in names)


@cache
def whole_of_every_kind(shared):
    """The embeddings, the mask, and the step on the whole arrays; `shared`, one of each for all rows."""
    e, where = (E[:1], WHERE[0]) if shared else (E, WHERE)
    return e, where, jax.jit(step_of(every_kind, where))(e, V)


@pytest.mark.parametrize(
    ("shared", "split"),
    [(False, "scores"), (True, "scores"), (False, "embeddings")],
    ids=["embeddings and masks", "shared embeddings, one mask", "scores and masks"],
)
def test_arrays_that_are_not_split_go_with_a_split_batch(shared, split):
    over = explicit(b=4, f=2)
    e, where, want = whole_of_every_kind(shared)
    step = jax.jit(step_of(every_kind, where))
    laid_out = (
        (jnp.asarray(e), put(V, over, "b")) if split == "scores" else (put(e, over, "b"), jnp.asarray(V))
    )
    with jax.set_mesh(over):
        got = step(*laid_out)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


def test_unpool_sums_over_an_axis_that_is_split():
    over = explicit(b=8)
    e, v = rng.normal(size=(8, 2, K, D)), rng.normal(size=(8, 2, N))

    def of_each_axis(e, v, where):
        selection = shtopk.select(v, K)
        return [selection.unpool(e, sum_axis=axis) for axis in (0, 1)]

    step = jax.jit(step_of(of_each_axis, None))
    with jax.set_mesh(over):
        got = step(put(e, over, "b"), put(v, over, "b"))
    chex.assert_trees_all_close(jax.device_get(got), jax.device_get(step(e, v)), rtol=1e-9)


def test_a_batch_split_by_type_needs_no_jit():
    over = explicit(b=8)
    with jax.set_mesh(over):  # JAX 0.12 needs it here for any operation with a constant under `vmap`
        out = shtopk.topk(put(E, over, "b"), put(V, over, "b"), K)
    np.testing.assert_allclose(out.embeddings, shtopk.topk(E, V, K).embeddings, rtol=1e-9)
