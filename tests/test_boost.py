"""The boosts: their formulas, their extremes, and their numbers as things to trace and learn."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk

LIVE = jnp.ones(4, bool)
HIGH, LOW = jnp.array([9.0, 6.0, 4.5, 3.0]), jnp.array([-1.0, 1.0, 1.5, 2.0])  # gaps 10, 5, 3, 1

by_hand = jax.jit(lambda boost, *sides: boost(*sides))


def test_scaled_by_hand():
    np.testing.assert_allclose(
        by_hand(shtopk.Scaled(0.5), HIGH, LOW, LIVE), reference.sigmoid(np.array([5, 2.5, 1.5, 0.5]))
    )


def test_power_by_hand():
    w = by_hand(shtopk.Power(2.0), jnp.array([2.0, 1.0]), jnp.array([1.0, 1.0]), LIVE[:2])
    np.testing.assert_allclose(w, reference.sigmoid(np.array([4.0 - 2.0, 0.0])))


@pytest.mark.parametrize(
    ("quantile", "unit"),
    # At 0.75 the position is 0.75 * 3 = 2.25, between the third gap and the fourth.
    [(0.0, 10), (1.0, 1), (1 / 3, 5), (0.5, 4), (0.75, 0.75 * 3 + 0.25 * 1), (-1.0, 10), (2.0, 1)],
)
def test_relative_measures_by_an_interpolated_quantile_of_gaps(quantile, unit):
    w = by_hand(shtopk.Relative(1.5, quantile), HIGH, LOW, LIVE)
    np.testing.assert_allclose(w, reference.sigmoid(1.5 * np.array([10, 5, 3, 1]) / unit))


@pytest.mark.parametrize("base", [2.0, 20.0])
def test_power_decides_outright_at_any_size_of_the_scores(base, x32):
    high = jnp.array([1e3, 1e9, 1e20, 3e38])
    np.testing.assert_array_equal(by_hand(shtopk.Power(base), high, jnp.zeros(4), LIVE), 1)
    np.testing.assert_array_equal(by_hand(shtopk.Power(base), high, high, LIVE), 0.5)


def test_relative_counts_live_matches_only():
    where = jnp.array([False, False, True, True])
    w = by_hand(shtopk.Relative(1.0, 0.0), HIGH, LOW, where)
    np.testing.assert_allclose(w[2:], reference.sigmoid(np.array([3, 1]) / 3))
    w = by_hand(shtopk.Relative(1.0, 1.0), HIGH, LOW, jnp.array([True, True, False, False]))
    np.testing.assert_allclose(w[:2], reference.sigmoid(np.array([10, 5]) / 5))


def test_relative_decides_outright_where_its_unit_is_zero():
    high, low = jnp.array([3.0, 2.0, 1.0]), jnp.array([0.0, 2.0, 1.0])
    np.testing.assert_array_equal(by_hand(shtopk.Relative(6.0, 1.0), high, low, LIVE[:3]), [1.0, 0.5, 0.5])


@pytest.mark.parametrize(("outlier", "unit"), [(1e6, 1), (9e3, (9e3 + 1) / 2)])
def test_relative_never_interpolates_to_the_gap_of_an_outlier(outlier, unit):
    w = by_hand(shtopk.Relative(1.0, 0.5), jnp.array([outlier, 1.0]), jnp.zeros(2), LIVE[:2])
    np.testing.assert_allclose(w, reference.sigmoid(np.array([outlier, 1]) / unit), rtol=1e-12)


def test_relative_measures_by_its_better_sides_across_clusters():
    high = jnp.array([5, 4, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4])
    low = jnp.array([*[-1e4] * 6, 3.0, 3.3])
    w = by_hand(shtopk.Relative(), high, low, np.ones(8, bool))
    np.testing.assert_allclose(w[-1], reference.sigmoid(6 * (3.4 - 3.3) / (4 - 3.7)))


@pytest.mark.parametrize(
    ("quantile", "exponents"),
    # The gaps are 5 eps and 4 eps. With 4 eps as unit, the second match is a tie. With 5 eps, neither is.
    [(1.0, [5 / 4, 0]), (0.0, [1, 4 / 5])],
)
def test_relative_ties_where_gap_and_unit_are_within_4_eps(quantile, exponents):
    high = 1 + np.finfo("float64").eps * np.array([5.0, 4.0])
    w = by_hand(shtopk.Relative(1.0, quantile), high, np.ones(2), LIVE[:2])
    np.testing.assert_allclose(w, reference.sigmoid(np.array(exponents)), rtol=1e-12)


def test_the_derivative_in_sharpness_is_0_across_an_overflow():
    scores = jnp.array([2e38, 0, 0, -2e38], jnp.float32)

    def mask(sharpness):
        return shtopk.topk_mask(scores, 2, boost=shtopk.Scaled(sharpness))

    slopes = jax.jit(lambda x: (jax.jvp(mask, (x,), (x,))[1], jax.jacrev(mask)(x)))(jnp.float32(1.0))
    np.testing.assert_array_equal(slopes, np.zeros((2, 4)))


BOOSTS = [shtopk.Scaled(5.0), shtopk.Power(), shtopk.Power(0.5), shtopk.Relative()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("boost", BOOSTS, ids=repr)
def test_no_finite_score_gives_nan_or_inf(boost, dtype):
    limits = jnp.finfo(dtype)
    values = [
        0,
        1,
        1e4,
        -1e4,
        1e30,
        -1e30,
        1e-30,
        float(limits.tiny),
        float(limits.max),
        float(limits.min),
        -1,
        40,
    ]
    with np.errstate(over="ignore"):
        values = np.asarray(values, dtype)
    high, low = np.meshgrid(*[np.where(np.isfinite(values), values, 0)] * 2)
    boost = jax.tree.map(lambda x: jnp.asarray(x, dtype), boost)

    def weight(boost, high, low):
        return boost(high[None], low[None], jnp.ones(1, bool))[0]

    grad = jax.jit(jax.vmap(jax.value_and_grad(weight, (0, 1, 2)), (None, 0, 0)))
    w, gradients = grad(boost, high.ravel(), low.ravel())
    assert np.all((w >= 0) & (w <= 1))
    for g in jax.tree.leaves(gradients):
        chex.assert_tree_all_finite(g)


@pytest.mark.parametrize("boost", BOOSTS, ids=repr)
def test_a_tie_is_shared_evenly(boost):
    for value in (0.0, -3.0, 7e3):
        tied = np.full(4, value)
        np.testing.assert_array_equal(by_hand(boost, tied, tied, LIVE), 0.5)


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_relative_is_free_of_scale_and_shift(scale, reseed):
    rng = np.random.default_rng(0)
    scores, embeddings = rng.normal(size=200), rng.normal(size=(200, 3))
    want = shtopk.topk(embeddings, scores, 7, reseed=reseed)
    got = shtopk.topk(embeddings, scale * scores + 3 * scale, 7, reseed=reseed)
    np.testing.assert_allclose(got.embeddings, want.embeddings, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (shtopk.Scaled, reference.scaled),
        (shtopk.Power, reference.power),
        (shtopk.Relative, lambda c, units: reference.relative(c, 0.75, units)),
    ],
)
def test_a_boosts_number_can_be_learned(ours, theirs, reseed):
    rng = np.random.default_rng(3)
    scores, embeddings = rng.normal(size=8), rng.normal(size=(8, 3))
    units = []

    def loss(number):
        boost = theirs(number, units) if ours is shtopk.Relative else theirs(number)
        return np.sum(np.sin(reference.algorithm2(embeddings, scores, 3, boost, reseed)[0]))

    loss(2.0)  # records Relative's units, which its derivative holds constant
    units = units[:2]
    want = reference.numeric_gradient(loss, np.array(2.0))
    ours_of = lambda c: shtopk.topk(embeddings, scores, 3, boost=ours(c), reseed=reseed).embeddings  # noqa: E731
    got = jax.jit(jax.grad(lambda c: jnp.sum(jnp.sin(ours_of(c)))))(2.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert abs(want) > 1e-3


def test_a_users_function_may_close_over_traced_values():
    rng = np.random.default_rng(4)
    scores, embeddings = rng.normal(size=6), rng.normal(size=(6, 3))

    def loss(sharpness):
        def boost(high, low, where):
            return jax.nn.sigmoid(sharpness * (high - low))

        return jnp.sum(shtopk.topk(embeddings, scores, 2, boost=boost).embeddings)

    def built_in(sharpness):
        return jnp.sum(shtopk.topk(embeddings, scores, 2, boost=shtopk.Scaled(sharpness)).embeddings)

    for transform in (lambda f: f, jax.jit, lambda f: jax.jit(jax.grad(f))):
        np.testing.assert_allclose(transform(loss)(2.0), transform(built_in)(2.0), rtol=1e-9)


def test_a_users_function_is_never_answered_from_a_stale_cache():
    scores = jnp.array([1.0, 0.0])
    state = {"weight": 0.75}

    def boost(high, low, where):
        return jnp.full_like(high, state["weight"])

    first = shtopk.topk_mask(scores, 1, boost=boost)
    state["weight"] = 0.5
    second = shtopk.topk_mask(scores, 1, boost=boost)
    assert first.tolist() == [0.75, 0.25]
    assert second.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("parent", [shtopk.Relative, shtopk.Scaled, shtopk.Power])
def test_a_subclass_that_overrides_the_call_is_called(parent):
    class Halves(parent):
        def __call__(self, high, low, where):
            return jnp.full(high.shape, 0.5)

    scores = jnp.array([1e6, 3.0, 2.0, 1.0])
    for k in (2, jnp.array(2)):
        np.testing.assert_array_equal(shtopk.topk_mask(scores, k, boost=Halves(1.0)), np.full(4, 0.5))


@pytest.mark.parametrize("boost", [shtopk.Relative(1.0, 0.5), shtopk.Scaled(1e3), shtopk.Power(2.0)])
def test_a_call_by_hand_in_half_precision_is_computed_in_float32(boost):
    high, low, live = jnp.array([0.8, 0.4]), jnp.array([0.0, 0.2]), jnp.array([True, True])
    got = boost(high.astype(jnp.float16), low.astype(jnp.float16), live)
    np.testing.assert_allclose(got, by_hand(boost, high, low, live), rtol=2e-3)


def test_no_two_boosts_share_a_tree_structure():
    # A cache keyed by tree structure would confuse them: their leaves are alike.
    structures = [jax.tree.structure(boost(1.0)) for boost in (shtopk.Scaled, shtopk.Power, shtopk.Relative)]
    assert len(set(structures)) == 3
    assert structures[0] != structures[1]
    doubled = jax.tree.map(lambda x: 2 * x, shtopk.Relative(3.0, 0.25))
    assert doubled == shtopk.Relative(6.0, 0.5)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(doubled)]
    assert paths == [".sharpness", ".quantile"]


def test_a_partial_is_a_pytree_and_is_traced():
    boost = jax.tree_util.Partial(lambda c, high, low, where: jax.nn.sigmoid(c * (high - low)), 2.0)
    scores = jnp.arange(9.0)
    np.testing.assert_allclose(
        shtopk.topk_mask(scores, 2, boost=boost), shtopk.topk_mask(scores, 2, boost=shtopk.Scaled(2.0))
    )


@pytest.mark.parametrize("k", [2, jnp.array(2)])
@pytest.mark.parametrize("weight", [1 + 1e-7, -1e-7])
def test_a_weight_beyond_0_or_1_by_rounding_is_0_or_1(weight, k):
    def boost(high, low, where):
        return jnp.full(high.shape, weight)

    @jax.jit
    def results(scores, keys):
        selection = shtopk.select(scores, 2, boost=boost)
        champions = selection.champions
        drawn = jax.vmap(selection.sample)(keys), selection.log_prob(champions)
        return shtopk.topk_mask(scores, k, boost=boost, log=True), champions, *drawn, selection.entropy()

    scores, best = np.array([3.0, 1.0, 2.0, 0.0]), weight > 0.5
    mask, champions, drawn, log_prob, entropy = results(scores, jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(mask, np.where((scores >= 2) == best, 0, -np.inf))
    assert entropy == log_prob == 0
    # Without the clip, always the row of negative weight, whose logarithm is NaN.
    np.testing.assert_array_equal(drawn, np.broadcast_to(champions, (4, 2)))


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.1, 3.0])
def test_survivors_that_tie_but_for_rounding_share_evenly(scale, reseed):
    scores = np.array([0, 0, 0, 5, 5, 5], np.float32) * np.float32(scale) + np.float32(0.3)
    mask = shtopk.topk_mask(scores, 1, boost=shtopk.Relative(4.0), reseed=reseed)
    # Two of the three best have byes; the third beats a 0 by a hair less than outright.
    np.testing.assert_allclose(mask, [0, 0, 0, 0.5, 0.25, 0.25], atol=0.02)
