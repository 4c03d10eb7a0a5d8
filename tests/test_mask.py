"""topk_mask: a real k, the logarithm, candidates, the hard mask."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk


def scores_of(n, rows=2, seed=0):
    return jnp.asarray(np.random.default_rng([seed, n]).normal(size=(rows, n)))


@pytest.mark.parametrize("traced", [False, True])
def test_a_real_k_mixes_its_two_neighbours(traced):
    scores = scores_of(7)
    lower, upper = shtopk.topk_mask(scores, 3), shtopk.topk_mask(scores, 4)
    for k in (3.0, 3.25, 3.75, 4.0):
        mask = shtopk.topk_mask(scores, jnp.asarray(k) if traced else k)
        np.testing.assert_allclose(mask, (4 - k) * lower + (k - 3) * upper, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(mask.sum(-1), k)


@pytest.mark.parametrize("k", [2, 7])
def test_a_whole_real_k_has_the_nan_of_its_own_mask(k):
    """Not that of its neighbour, whose share of the mask is 0."""
    scores = jnp.array([jnp.nan, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    mask = shtopk.topk_mask(scores, k)
    assert np.sum(~np.isnan(mask)) > 0
    np.testing.assert_allclose(shtopk.topk_mask(scores, jnp.asarray(float(k))), mask, rtol=1e-9)


def test_k_may_be_an_array_of_any_kind():
    scores = scores_of(4)
    mixed, whole = shtopk.topk_mask(scores, 2.5), shtopk.topk_mask(scores, 2)
    for k in (np.array(2.5), np.float32(2.5), jnp.asarray(2.5)):
        np.testing.assert_allclose(shtopk.topk_mask(scores, k), mixed, rtol=1e-12)
    for k in (np.array(2), np.int32(2), jnp.asarray(2)):
        np.testing.assert_allclose(shtopk.topk_mask(scores, k), whole, rtol=1e-12)


def by_cumulative_gap(high, low, where):
    """A boost that depends on the order of the matches."""
    gap = jnp.where(where, high - low, 0)
    return jax.nn.sigmoid(gap / (0.1 + jnp.cumsum(gap)))


@pytest.mark.parametrize("boost", [by_cumulative_gap, shtopk.Relative()], ids=["a function", "Relative"])
@pytest.mark.parametrize("reseed", [False, True])
def test_a_traced_k_gives_what_a_static_k_gives(reseed, boost):
    """In every round a boost gets its sides best seed first, wherever the program has put them."""
    scores, where = scores_of(8, rows=1)[0], np.arange(8) != 5

    @jax.value_and_grad
    def loss(scores, k):
        return jnp.sum(shtopk.topk_mask(scores, k, boost=boost, reseed=reseed, where=where) ** 3)

    ks, traced = (1, 2, 5), jax.jit(loss)  # three rounds, two and one, and 7 rows to play them
    static = jax.jit(lambda scores: [loss(scores, k) for k in ks])(scores)
    for k, want in zip(ks, static, strict=True):
        chex.assert_trees_all_close(traced(scores, jnp.int32(k)), want, rtol=1e-9, atol=1e-12)


def test_the_derivative_in_a_real_k_sums_to_1():
    scores = np.asarray(scores_of(7, rows=1)[0])
    jacobian = jax.jit(jax.jacobian(shtopk.topk_mask, argnums=1))
    for k, low in [(1.0, 1), (3.5, 3), (4.0, 4), (7.0, 6)]:  # at k = n from below
        slope = np.asarray(jacobian(scores, jnp.asarray(k)))
        lower, upper = (
            reference.mask(scores, i, reference.relative(6.0, 0.75), reseed=False) for i in (low, low + 1)
        )
        np.testing.assert_allclose(slope, upper - lower, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(slope.sum(), 1)


def test_the_derivative_in_a_real_k_is_of_the_rows_in_where():
    scores, where = scores_of(6, rows=1)[0], np.arange(6) % 3 != 0
    mass = jax.grad(lambda k: shtopk.topk_mask(scores, k, where=where).sum())
    slopes = jax.jit(jax.vmap(mass))(jnp.array([1.0, 2.5, 4.0, 4.5, 6.0]))  # 4 rows: at k = 4 from below
    np.testing.assert_allclose(slopes, [1, 1, 1, 0, 0], atol=1e-12)


def test_a_real_k_for_each_row_under_vmap():
    scores, ks, where = scores_of(6, rows=3), jnp.array([1.0, 2.5, 6.0]), np.arange(6) < 5
    masks = jax.vmap(lambda v, k: shtopk.topk_mask(v, k, where=where))(scores, ks)
    np.testing.assert_allclose(masks.sum(-1), [1.0, 2.5, 5.0])


def test_a_real_k_of_one_candidate():
    assert shtopk.topk_mask(jnp.ones(1), jnp.asarray(1.0)).tolist() == [1.0]


def test_a_real_k_out_of_range_is_never_silent():
    mask = partial(shtopk.topk_mask, np.arange(3.0))
    mask_and_slope = jax.jit(lambda k: (mask(k), jax.jacobian(mask)(k)))
    for k in (0.5, 3.5, np.nan, np.inf):
        assert np.all(np.isnan(mask_and_slope(k))), k


def test_gradient_descent_finds_how_many():
    """The k whose mask weighs 3 good rows and no bad one, from a k that is too large."""
    scores, value = jnp.arange(8.0), np.where(np.arange(8) < 5, -1.0, 1.0)
    loss = jax.jit(
        jax.value_and_grad(lambda k: -value @ shtopk.topk_mask(scores, k, boost=shtopk.Scaled(9.0)))
    )
    k = jnp.asarray(6.5)
    for _ in range(60):
        k = jnp.clip(k - 0.1 * loss(k)[1], 1, 8)
    assert abs(float(k) - 3) < 0.1


def test_candidates_of_the_mask_are_those_of_the_selection():
    scores, options = scores_of(12), {"candidates": 5, "where": np.arange(12) % 5 != 1}
    lower, upper = jax.jit(lambda v: [shtopk.select(v, k, **options).mask() for k in (2, 3)])(scores)
    for k in (2, 2.5, jnp.int32(2), jnp.asarray(2.5)):
        mask, part = shtopk.topk_mask(scores, k, **options), float(k) - 2
        want = (1 - part) * lower + part * upper
        np.testing.assert_allclose(mask, want, rtol=1e-9, atol=1e-15, err_msg=repr(k))
        assert np.all((np.asarray(mask) > 0).sum(-1) <= 5), repr(k)


def test_a_traced_k_above_the_candidates_is_never_silent():
    mask = partial(shtopk.topk_mask, k=jnp.int32(4), candidates=3)
    values, jacobian = jax.jit(lambda v: (mask(v), jax.jacobian(mask)(v)))(np.arange(5.0))
    assert np.all(np.isnan(values))
    assert np.all(np.isnan(jacobian[-3:, -3:]))  # of the candidates


@pytest.mark.parametrize("k", [3, jnp.int32(3)], ids=repr)
def test_an_infinite_sharpness_gives_the_hard_mask(k, x32):
    where = np.arange(12) % 3 != 0

    @jax.jit
    def masks(scores):
        hard = partial(shtopk.topk_mask, scores, k, boost=shtopk.Scaled(jnp.inf), where=where)
        soft = shtopk.topk_mask(scores, k, where=where)
        return hard(), hard(log=True), soft + jax.lax.stop_gradient(hard() - soft)

    for scale in (1e-6, 1.0, 1e6):
        scores = np.float32(scale) * np.asarray(scores_of(12, rows=16), np.float32)
        hard, log, straight_through = masks(scores)
        best = np.argsort(np.argsort(np.where(where, -scores, np.inf))) < 3
        np.testing.assert_array_equal(hard, best, f"{scale}")
        np.testing.assert_array_equal(log, np.where(best, 0, -np.inf), f"{scale}")
        np.testing.assert_array_equal(straight_through, best, f"{scale}")


@pytest.mark.parametrize("boost", [shtopk.Scaled(jnp.inf), shtopk.Relative(jnp.inf)], ids=repr)
def test_a_hard_mask_is_constant_in_scores_that_tie(boost, x32):
    def loss(scores):
        mask = shtopk.topk_mask(scores, 1, boost=boost)
        return jnp.sum(jnp.arange(4) * mask), mask

    gradient_and_mask = jax.jit(jax.grad(loss, has_aux=True))
    for scores in ([3.0, 1, 1, 0], [3.0, 3, 1, 0], [1e-20, 4e-20, 2e-20, 0.0]):
        gradient, mask = gradient_and_mask(np.asarray(scores, np.float32))
        np.testing.assert_array_equal(gradient, np.zeros(4), f"{scores}")
        best = np.equal(scores, max(scores))
        np.testing.assert_array_equal(mask, best / best.sum(), f"{scores}")


@pytest.mark.parametrize("k", [2, 1.5, jnp.int32(2)], ids=repr)
def test_the_log_of_a_small_weight_keeps_its_digits(k):
    """In float32, as near the end of a training: most logs are far below -17, that of a rounding of 1."""
    scores = np.asarray(scores_of(16, rows=200), np.float32)
    log = [
        np.asarray(shtopk.topk_mask(scores.astype(dtype), k, boost=shtopk.Scaled(17.0), log=True))
        for dtype in ("float32", "float64")
    ]
    large = log[1] > -60
    assert np.mean(log[1][large] < -17) > 0.3
    np.testing.assert_allclose(log[0][large], log[1][large], atol=1e-4)


def test_the_log_of_ones_own_small_weight_is_rounded():
    """A known limit: a boost returns the weight of the winner, so in float32 the rest is a multiple of 6e-8."""

    def own(high, low, where):
        return jax.nn.sigmoid(high - low)

    mask = jax.jit(partial(shtopk.topk_mask, k=1, boost=own, log=True))

    def log(gap):
        return float(mask(np.asarray([0, -gap], np.float32))[1])

    assert abs(log(10.0) + 10) < 1e-2
    assert 0.01 < abs(log(15.0) + 15) < 0.5
    assert log(20.0) == -np.inf


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("k", [2, 2.5, jnp.int32(2)], ids=repr)
def test_the_log_is_the_log_of_the_mask(dtype, k):
    scores = scores_of(8, rows=4).astype(dtype)
    options = {"boost": shtopk.Scaled(30.0), "where": np.arange(8) % 7 != 0}
    mask, log = jax.jit(
        lambda v, k: (shtopk.topk_mask(v, k, **options), shtopk.topk_mask(v, k, log=True, **options)),
        static_argnums=() if isinstance(k, jax.Array) else 1,
    )(scores, k)
    assert log.dtype == dtype
    mask, log = np.asarray(mask, np.float64), np.asarray(log, np.float64)
    large = mask > 1e-6
    error = np.abs(log[large] - np.log(mask[large]))
    assert np.all(error <= 2 * float(jnp.finfo(dtype).eps) * (np.abs(log[large]) + 1))
    assert np.all(log[:, ::7] == -np.inf)
    assert not np.any(np.isnan(log))
    assert np.all(log <= 0)


def test_attention_by_the_log_mask_has_finite_gradients(x32):
    scores, logits = (np.asarray(scores_of(32, rows=8, seed=seed), np.float32) for seed in (0, 1))
    values, where = np.sin(np.arange(32, dtype=np.float32)), np.arange(32) < 25

    @jax.jit
    def run(v, sharpness):
        mask = partial(shtopk.topk_mask, boost=shtopk.Scaled(sharpness), where=where)

        @jax.value_and_grad
        def loss(v, k):
            return jnp.sum(jax.nn.softmax(logits + mask(v, k, log=True)) @ values)

        return loss(v, 2), loss(v, jnp.int32(2))[1], mask(v, 2)

    for sharpness in (0.1, 10.0, 1e4):
        (value, gradient), traced, mask = run(scores, sharpness)
        chex.assert_tree_all_finite((gradient, traced))
        assert np.all(gradient[:, 25:] == 0), sharpness
        # What the mask hides has no weight; the rest is weighed by it.
        weighed = np.asarray(mask) * np.exp(logits)
        want = np.sum((weighed / weighed.sum(-1, keepdims=True)) @ values)
        np.testing.assert_allclose(value, want, rtol=1e-5, err_msg=f"{sharpness}")


@pytest.mark.parametrize(
    ("k", "own", "finite"),
    [(2, False, True), (jnp.int32(2), False, True), (jnp.float32(2), False, False), (2, True, False)],
    ids=["static k", "traced k", "real k", "own boost"],
)
def test_the_log_by_hand_is_differentiable_for_an_integer_k(k, own, finite, x32):
    scores, sharp = jnp.arange(12.0), shtopk.Scaled(1e4)  # some rows have weight 0
    boost = (lambda high, low, where: jnp.where(where, sharp(high, low, where), 0.5)) if own else sharp

    def loss(v):
        return jax.nn.softmax(jnp.log(shtopk.topk_mask(v, k, boost=boost)))[0]

    assert bool(jnp.all(jnp.isfinite(jax.jit(jax.grad(loss))(scores)))) == finite


def test_a_huge_cotangent_on_the_log_of_a_tiny_weight_is_finite(x32):
    @jax.jit
    def pulled(scores, sharpness):
        log = partial(shtopk.topk_mask, k=1, boost=shtopk.Scaled(sharpness), log=True)
        return jax.vjp(log, scores)[1](jnp.full(16, 1e6))

    for sharpness in (1.0, 3.0, 5.0, 6.0, 8.0):
        chex.assert_tree_all_finite(pulled(jnp.arange(16.0), sharpness))
