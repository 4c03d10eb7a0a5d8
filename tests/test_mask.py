"""topk_mask: a real k, the logarithm, candidates, the hard mask."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import shtopk


def scores_of(n, rows=2, seed=0):
    return jnp.asarray(np.random.default_rng([seed, n]).normal(size=(rows, n)))


@pytest.mark.parametrize("traced", [False, True])
def test_a_real_k_mixes_its_two_neighbours(traced):
    scores = scores_of(11)
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
    scores = scores_of(8)
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
    scores, where = scores_of(11, rows=1)[0], np.arange(11) % 5 != 0

    def loss(scores, k):
        return jnp.sum(shtopk.topk_mask(scores, k, boost=boost, reseed=reseed, where=where) ** 3)

    traced = jax.jit(jax.value_and_grad(loss))
    for k in (2, 3, 10):
        static = jax.jit(jax.value_and_grad(lambda scores, k=k: loss(scores, k)))
        chex.assert_trees_all_close(traced(scores, jnp.int32(k)), static(scores), rtol=1e-9, atol=1e-12)


def test_the_derivative_in_a_real_k_sums_to_1():
    scores = scores_of(11, rows=1)[0]
    for k, low in [(1.0, 1), (3.5, 3), (4.0, 4), (11.0, 10)]:  # at k = n from below
        slope = jax.jacobian(shtopk.topk_mask, argnums=1)(scores, jnp.asarray(k))
        want = shtopk.topk_mask(scores, low + 1) - shtopk.topk_mask(scores, low)
        np.testing.assert_allclose(slope, want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(slope.sum(), 1)


def test_the_derivative_in_a_real_k_is_of_the_rows_in_where():
    scores, where = scores_of(9, rows=1)[0], jnp.arange(9) % 3 != 0
    mass = jax.grad(lambda k: shtopk.topk_mask(scores, k, where=where).sum())
    slopes = jax.vmap(mass)(jnp.array([1.0, 4.5, 6.0, 6.5, 9.0]))  # 6 rows: at k = 6 from below
    np.testing.assert_allclose(slopes, [1, 1, 1, 0, 0], atol=1e-12)


def test_a_real_k_for_each_row_under_vmap():
    scores, ks = scores_of(10, rows=3), jnp.array([1.0, 4.5, 10.0])
    where = jnp.arange(10) < 9
    masks = jax.vmap(lambda v, k: shtopk.topk_mask(v, k, where=where))(scores, ks)
    np.testing.assert_allclose(masks.sum(-1), [1.0, 4.5, 9.0])


def test_a_real_k_of_one_candidate():
    assert shtopk.topk_mask(jnp.ones(1), jnp.asarray(1.0)).tolist() == [1.0]


@pytest.mark.parametrize("k", [0.5, 5.5, np.nan, np.inf])
def test_a_real_k_out_of_range_is_never_silent(k):
    mask = partial(shtopk.topk_mask, jnp.arange(5.0))
    assert np.all(np.isnan(mask(jnp.asarray(k))))
    assert np.all(np.isnan(jax.jacobian(mask)(jnp.asarray(k))))


def test_gradient_descent_finds_how_many():
    """The k whose mask weighs 3 good rows and no bad one, from a k that is too large."""
    scores, value = jnp.arange(8.0), jnp.where(jnp.arange(8) < 5, -1.0, 1.0)
    loss = jax.jit(
        jax.value_and_grad(lambda k: -value @ shtopk.topk_mask(scores, k, boost=shtopk.Scaled(9.0)))
    )
    k = jnp.asarray(6.5)
    for _ in range(60):
        k = jnp.clip(k - 0.1 * loss(k)[1], 1, 8)
    assert abs(float(k) - 3) < 0.1


@pytest.mark.parametrize("k", [2, 2.5, jnp.int32(2), jnp.asarray(2.5)], ids=repr)
def test_candidates_of_the_mask_are_those_of_the_selection(k):
    scores = scores_of(12)
    where = jnp.arange(12) % 5 != 1
    mask = shtopk.topk_mask(scores, k, candidates=5, where=where)
    lower, upper = (shtopk.select(scores, i, candidates=5, where=where).mask() for i in (2, 3))
    part = float(k) - 2
    np.testing.assert_allclose(mask, (1 - part) * lower + part * upper, rtol=1e-9, atol=1e-15)
    assert np.all((np.asarray(mask) > 0).sum(-1) <= 5)


def test_a_traced_k_above_the_candidates_is_never_silent():
    mask = partial(shtopk.topk_mask, k=jnp.int32(4), candidates=3)
    assert np.all(np.isnan(mask(jnp.arange(5.0))))
    assert np.all(np.isnan(jax.jacobian(mask)(jnp.arange(5.0))[-3:, -3:]))  # of the candidates


@pytest.mark.parametrize("k", [3, jnp.int32(3)], ids=repr)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_an_infinite_sharpness_gives_the_hard_mask(scale, k, x32):
    scores, boost = scale * scores_of(100).astype(jnp.float32), shtopk.Scaled(jnp.inf)
    where = jnp.arange(100) % 3 != 0
    hard = shtopk.topk_mask(scores, k, boost=boost, where=where)
    rank = jnp.argsort(jnp.argsort(jnp.where(where, -scores, jnp.inf)))
    np.testing.assert_array_equal(hard, rank < 3)
    log = shtopk.topk_mask(scores, k, boost=boost, where=where, log=True)
    np.testing.assert_array_equal(log, jnp.where(rank < 3, 0, -jnp.inf))
    soft = shtopk.topk_mask(scores, k, where=where)
    np.testing.assert_array_equal(soft + lax.stop_gradient(hard - soft), hard)


@pytest.mark.parametrize("boost", [shtopk.Scaled(jnp.inf), shtopk.Relative(jnp.inf)], ids=repr)
@pytest.mark.parametrize("scores", [[3.0, 1, 1, 0], [3.0, 3, 1, 0], [1e-20, 4e-20, 2e-20, 0.0]], ids=str)
def test_a_hard_mask_is_constant_in_scores_that_tie(scores, boost, x32):
    def loss(scores):
        mask = shtopk.topk_mask(scores, 1, boost=boost)
        return jnp.sum(jnp.arange(4) * mask), mask

    gradient, mask = jax.grad(loss, has_aux=True)(jnp.array(scores))
    np.testing.assert_array_equal(gradient, jnp.zeros(4))
    best = np.equal(scores, max(scores))
    np.testing.assert_array_equal(mask, best / best.sum())


@pytest.mark.parametrize("k", [8, 7.5, jnp.int32(8)], ids=repr)
def test_the_log_of_a_small_weight_keeps_its_digits(k):
    """In float32, as near the end of a training: most logs are far below -17, that of a rounding of 1."""
    scores = jax.random.normal(jax.random.key(0), (50, 64), jnp.float32)
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

    def log(gap):
        scores = jnp.array([0, -gap], jnp.float32)
        return float(shtopk.topk_mask(scores, 1, boost=own, log=True)[1])

    assert abs(log(10.0) + 10) < 1e-2
    assert 0.01 < abs(log(15.0) + 15) < 0.5
    assert log(20.0) == -np.inf


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("k", [3, 2.5, jnp.int32(3)], ids=repr)
def test_the_log_is_the_log_of_the_mask(dtype, k):
    scores = scores_of(12).astype(dtype)
    options = {"boost": shtopk.Scaled(30.0), "where": jnp.arange(12) % 7 != 0}
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


@pytest.mark.parametrize("sharpness", [0.1, 10.0, 1e4])
def test_attention_by_the_log_mask_has_finite_gradients(sharpness, x32):
    scores, logits = scores_of(128).astype(jnp.float32), scores_of(128, seed=1).astype(jnp.float32)
    values = jnp.sin(jnp.arange(128.0))
    where = jnp.arange(128) < 100

    def mask_of(v, k=8, log=False):
        return shtopk.topk_mask(v, k, boost=shtopk.Scaled(sharpness), where=where, log=log)

    def loss(v, k=8):
        return jnp.sum(jax.nn.softmax(logits + mask_of(v, k, log=True)) @ values)

    gradient = jax.grad(loss)(scores)
    chex.assert_tree_all_finite(gradient)
    assert np.all(gradient[:, 100:] == 0)
    chex.assert_tree_all_finite(jax.grad(loss)(scores, jnp.int32(8)))
    # What the mask hides has no weight; the rest is weighed by it.
    mask = mask_of(scores)
    weighed = mask * jnp.exp(logits)
    want = jnp.sum((weighed / weighed.sum(-1, keepdims=True)) @ values)
    np.testing.assert_allclose(loss(scores), want, rtol=1e-5)


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
    scores = jnp.arange(16.0)
    for sharpness in (1.0, 3.0, 5.0, 6.0, 8.0):
        pull = jax.vjp(
            lambda v, c=sharpness: shtopk.topk_mask(v, 1, boost=shtopk.Scaled(c), log=True), scores
        )[1]
        chex.assert_tree_all_finite(pull(jnp.full(16, 1e6))[0])
