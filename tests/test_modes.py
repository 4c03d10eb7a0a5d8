"""The settings that a user debugs or exports under: `disable_jit`, `debug_nans`, symbolic shapes, 8 bits."""

from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, K, N
from calls import E as EMBEDDINGS
from calls import V as SCORES
from jax import export

import shtopk


def plain(high, low, where):
    return jax.nn.sigmoid(high - low)


def loss(boost, reseed, embeddings, scores):
    return jnp.sum(jnp.sin(shtopk.topk(embeddings, scores, K, boost=boost, reseed=reseed).embeddings))


@pytest.mark.parametrize("name", CALLS)
def test_nothing_needs_jit(name):
    call = CALLS[name]
    with jax.disable_jit():
        got = call.function(*call.arguments)
    chex.assert_trees_all_close(got, call.function(*call.arguments), rtol=1e-9)


@pytest.mark.parametrize("boost", [plain, shtopk.Scaled(2.0), shtopk.Power(), shtopk.Relative()])
def test_gradients_need_no_jit(boost):
    gradient = jax.grad(lambda *x: loss(boost, False, *x), (0, 1))
    want = jax.jit(gradient)(EMBEDDINGS, SCORES)
    with jax.disable_jit():
        got = gradient(EMBEDDINGS, SCORES)
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reseed", [False, True])
def test_a_plain_boost_makes_no_nan_on_the_way(reseed):
    with jax.debug_nans(True):
        jax.grad(lambda *x: loss(plain, reseed, *x), (0, 1))(EMBEDDINGS, SCORES)
        shtopk.topk_mask(SCORES, K, boost=plain, reseed=reseed, where=SCORES > 0.5)
        shtopk.topk_mask(SCORES, jnp.int32(K), boost=plain, reseed=reseed)


EIGHT_BITS = [(jnp.float8_e4m3fn, -448.0), (jnp.float8_e4m3b11fnuz, -30.0), (jnp.float8_e5m2, -np.inf)]


@pytest.mark.parametrize(("dtype", "lowest"), EIGHT_BITS)
def test_a_surplus_slot_of_8_bits_has_the_lowest_score(dtype, lowest):
    """Not NaN, which the cast of -inf gives where a dtype has no infinity."""
    scores, where = jnp.arange(float(N)).astype(dtype), jnp.arange(N) < 2
    calls = shtopk.topk, shtopk.hard_topk, shtopk.iterative_topk
    for out in [call(EMBEDDINGS.astype(dtype), scores, 3, where=where) for call in calls]:
        assert float(out.scores[2]) == lowest
        np.testing.assert_array_equal(out.embeddings[2].astype(jnp.float32), 0)
        chex.assert_tree_all_finite(out.embeddings.astype(jnp.float32))


@pytest.mark.parametrize(("dtype", "lowest"), EIGHT_BITS)
def test_drawn_slots_and_logs_of_8_bits_are_never_nan(dtype, lowest):
    @jax.jit
    def run(scores, k):
        options = {"boost": shtopk.Scaled(2.0), "where": jnp.arange(4) < 2}
        drawn = shtopk.topk(scores, scores, 3, draw=1.0, key=jax.random.key(0), **options)[:2]
        return drawn, [shtopk.topk_mask(scores, k, log=True, **options) for k in (3, k)]

    drawn, logs = jax.tree.map(lambda x: x.astype(jnp.float32), run(jnp.arange(4.0).astype(dtype), 3))
    np.testing.assert_array_equal(drawn, [[1, 0, 0], [1, 0, lowest]])
    np.testing.assert_array_equal(logs, [[0, 0, lowest, lowest]] * 2)


def test_nan_ranks_first_in_8_bits_whatever_its_bits():
    scores = jnp.array([1.0, jnp.nan, 2.0]).astype(jnp.float8_e4m3fnuz)
    assert shtopk.hard_topk(jnp.arange(3), scores, 2).indices.tolist() == [1, 2]


EXPORTED = {
    "topk": lambda e, v: shtopk.topk(e, v, 3),
    "gradient": lambda e, v: jax.grad(lambda *x: loss(shtopk.Relative(), False, *x), (0, 1))(e, v),
    "options": lambda e, v: shtopk.topk(
        e, v, 2, reseed=True, candidates=5, straight_through=True, where=v > 0, order="position"
    ),
    "traced k": lambda e, v: shtopk.topk_mask(v, jnp.int32(3)),
    "matrix": lambda e, v: shtopk.select(v, 3).matrix(),
    "hard_topk": lambda e, v: shtopk.hard_topk(e, v, 3),
    "iterative_topk": lambda e, v: shtopk.iterative_topk(e, v, 3),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_one_export_serves_every_batch_size(name):
    scope = export.SymbolicScope()
    embeddings, scores = (
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32)
        for shape in ("b,6,d", "b,6")
    )
    f = jax.jit(lambda e, v: jax.tree.leaves(EXPORTED[name](e, v)))
    exported = export.deserialize(export.export(f)(embeddings, scores).serialize())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 4)).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    wanted = f(*x)
    for batch in (1, 3):
        for got, want in zip(exported.call(*(y[:batch] for y in x)), wanted, strict=True):
            # A row of a batch does not depend on the others, nor does its gradient.
            np.testing.assert_allclose(got, want[:batch], rtol=1e-5, atol=1e-6)


def test_an_export_sums_over_rows_that_any_batch_shares():
    def loss(row, scores):
        selection = shtopk.select(scores, 3)
        return jnp.sum(jnp.sin(selection.unpool(selection.pool(row), sum_axis=0)))

    step, rng = jax.jit(jax.grad(loss, (0, 1))), np.random.default_rng(0)
    row, batch = np.float32(rng.normal(size=(1, 5, 4))), export.symbolic_shape("b,5")
    exported = export.export(step)(row, jax.ShapeDtypeStruct(batch, jnp.float32))
    for size in (1, 3):
        scores = np.float32(rng.normal(size=(size, 5)))
        chex.assert_trees_all_close(exported.call(row, scores), step(row, scores), rtol=1e-5)


def test_a_symbolic_n_is_refused_by_name():
    scores = jax.ShapeDtypeStruct(export.symbolic_shape("b,n"), jnp.float32)
    with pytest.raises(ValueError, match="n must be a number when tracing"):
        export.export(jax.jit(lambda v: shtopk.topk_mask(v, 3)))(scores)


def test_a_nan_of_weight_0_reaches_no_slot_and_no_gradient():
    """With a boost of one's own the gradient is NaN, unless `where` or `candidates` leaves the row out."""
    scores, embeddings = np.array([4.0, 3.0, 2.0, 1.0, 0.0]), np.array([[1.0]] * 4 + [[np.nan]])
    hard = shtopk.Scaled(1e6)
    boosts = hard, shtopk.Relative(1e6), shtopk.Power(1e4)
    left_out = {"boost": hard, "where": scores > 0}, {"where": scores > 0}, {"candidates": 4}

    def soft(v, **options):
        return shtopk.topk(embeddings, v, 2, **options).embeddings

    def gradient(v, **options):
        return jax.grad(lambda v: jnp.sum(soft(v, **options)))(v)

    def own(high, low, where):
        return jax.nn.sigmoid(1e6 * (high - low))

    @jax.jit
    def results(v):
        forward = jax.jvp(lambda v: soft(v, boost=hard), (v,), (v,))
        zeros = {
            f"{boost}, reseed={reseed}": gradient(v, boost=boost, reseed=reseed)
            for boost, reseed in product(boosts, (False, True))
        }
        return forward, zeros, [gradient(v, **options) for options in left_out], gradient(v, boost=own)

    (slots, tangents), zeros, finite, nan = results(scores)
    np.testing.assert_array_equal(slots, 1)
    np.testing.assert_array_equal(tangents, 0)
    for name, slope in zeros.items():
        np.testing.assert_array_equal(slope, 0, name)
    chex.assert_tree_all_finite(finite)
    assert np.any(np.isnan(nan))
