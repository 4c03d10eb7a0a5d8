"""anneal."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk

V = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, size=(4, 9)))
KEY = jax.random.key(0)


def test_scores_are_standardised_over_the_batch():
    scores, boost = shtopk.anneal(V, 0.0)
    np.testing.assert_allclose(scores, (V - V.mean()) / V.std(), rtol=1e-12)
    np.testing.assert_allclose(boost.sharpness, 0.1)


def test_a_small_spread_far_from_0_is_measured():
    scores = 5000 + 0.25 * np.random.default_rng(0).normal(size=(8, 64))
    np.testing.assert_allclose(np.std(shtopk.anneal(scores.astype("float32"), 0.5).scores), 1, rtol=0.01)


@pytest.mark.parametrize("padding", [float(jnp.finfo(jnp.float32).min), -1e38])
def test_vmap_over_rows_of_huge_scores_is_a_loop(padding, x32):
    rows = jnp.array([[1e38, padding, 0.0, 0.0], [3.0, padding, 2.0, padding], [3.0, 1.0, 2.0, 0.0]])
    alone = [shtopk.anneal(row, 0.5).scores for row in rows]
    mapped = jax.vmap(lambda row: shtopk.anneal(row, 0.5).scores)(rows)
    np.testing.assert_allclose(mapped, jnp.stack(alone), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.std(mapped, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_sharpness_grows_geometrically_and_noise_fades(progress):
    quiet = shtopk.anneal(V, progress, sharpness=(0.5, 8.0))
    noisy = shtopk.anneal(V, progress, KEY, noise=0.2, sharpness=(0.5, 8.0))
    np.testing.assert_allclose(noisy.boost.sharpness, 0.5 * 16**progress)
    noise = 0.2 * (1 - progress) * jax.random.normal(KEY, V.shape)
    np.testing.assert_allclose(noisy.scores - quiet.scores, noise, atol=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_the_derivative_in_progress_is_whole_at_both_ends(progress):
    slope = jax.grad(lambda p: jnp.log(shtopk.anneal(V, p, sharpness=(0.5, 8.0)).boost.sharpness))(progress)
    np.testing.assert_allclose(slope, np.log(16))


def test_a_range_of_sharpness_whose_quotient_overflows():
    sharpness = shtopk.anneal(V.astype(jnp.float32), 0.5, sharpness=(1e-20, 1e20)).boost.sharpness
    np.testing.assert_allclose(sharpness, 1, rtol=1e-5)


def test_a_traced_progress_compiles_once_and_stays_in_range():
    step = jax.jit(chex.assert_max_traces(lambda progress: shtopk.anneal(V, progress, KEY), n=1))
    outs = [step(progress) for progress in (-0.5, 0.0, 1.0, 1.5)]
    jax.tree.map(np.testing.assert_array_equal, outs[0], outs[1])
    jax.tree.map(np.testing.assert_array_equal, outs[2], outs[3])


def test_mean_and_spread_are_constant_under_differentiation():
    gradient = jax.grad(lambda v: jnp.sum(jnp.sin(V) * shtopk.anneal(v, 0.5).scores))(V)
    np.testing.assert_allclose(gradient, jnp.sin(V) / V.std(), rtol=1e-12)


@pytest.mark.parametrize("padding", [1e9, -jnp.inf, jnp.nan])
def test_padding_moves_neither_mean_nor_spread(padding):
    where = jnp.arange(9)[None] < jnp.array([[9], [5], [1], [7]])
    padded = jnp.where(where, V, padding)
    scores, _ = shtopk.anneal(padded, 0.5, where=where)
    part = np.asarray(V)[np.asarray(where)]
    np.testing.assert_allclose(scores[where], (part - part.mean()) / part.std(), rtol=1e-12)


def test_an_outlier_keeps_the_others_soft():
    """A known limit: the spread is that of the batch. A unit for each row, under vmap, is free of other rows."""
    scores = jax.random.normal(KEY, (32, 64))

    def share_of_the_best(scores, prepare=shtopk.anneal):
        prepared, boost = prepare(scores, 1.0)
        mask = shtopk.topk_mask(prepared, 4, boost=boost)
        return jnp.mean(jnp.take_along_axis(mask, jax.lax.top_k(scores, 4)[1], axis=-1)[1:])

    def by_row(scores, progress):
        prepared, boosts = jax.vmap(lambda v: shtopk.anneal(v, progress))(scores)
        return prepared, jax.tree.map(lambda x: x[0], boosts)

    far = scores.at[0, 0].set(1e4)
    assert share_of_the_best(scores) > 0.95
    assert share_of_the_best(far) < 0.3
    assert share_of_the_best(far, by_row) > 0.95


def test_infinite_and_nan_scores_stay_and_count_for_nothing():
    scores = V.at[0, 0].set(-jnp.inf).at[1, 1].set(jnp.inf).at[2, 2].set(jnp.nan)
    got = shtopk.anneal(scores, 0.5).scores
    finite = np.isfinite(scores)
    np.testing.assert_allclose(got[finite], (V[finite] - V[finite].mean()) / V[finite].std(), rtol=1e-12)
    np.testing.assert_array_equal(got[~finite], scores[~finite])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e8, 1e37, 1e-40])
def test_equal_scores_stay_equal(value, x32):
    scores = jnp.full((2, 50), value, jnp.float32)
    got, gradient = jax.value_and_grad(lambda v: jnp.sum(shtopk.anneal(v, 0.5).scores[0, :3]))(scores)
    assert abs(got) <= 3e-6 * max(1, abs(value))
    np.testing.assert_array_equal(gradient[0, :4], [1, 1, 1, 0])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e37])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_any_scale_and_half_precision_are_fine(dtype, scale, x32):
    if dtype == jnp.float16:
        scale = min(max(scale, 1e-2), 1e3)
    scores = (V.astype(jnp.float32) * scale).astype(dtype)
    got = shtopk.anneal(scores, 0.5).scores
    assert got.dtype == dtype
    wide = np.asarray(scores, np.float64)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), (wide - wide.mean()) / wide.std(), atol=4 * float(jnp.finfo(dtype).eps)
    )


def test_an_empty_batch():
    assert shtopk.anneal(jnp.zeros((0, 8)), 0.5).scores.shape == (0, 8)


def test_one_row_without_a_batch():
    np.testing.assert_allclose(shtopk.anneal(V[0], 0.5).scores, (V[0] - V[0].mean()) / V[0].std(), rtol=1e-12)


def test_a_scorer_is_learned_through_one_call():
    """Rows whose first feature is large are good: a linear scorer finds it from the mean of k slots alone."""
    rows = jax.random.normal(jax.random.key(1), (32, 16, 4))
    want = jnp.mean(shtopk.hard_topk(rows, rows[..., 0], 2).embeddings, axis=1)

    def loss(w, progress, key):
        scores, boost = shtopk.anneal(rows @ w, progress, key)
        slots = shtopk.topk(rows, scores, 2, boost=boost, draw=progress, key=key)
        return jnp.mean((slots.embeddings.mean(1) - want) ** 2)

    @jax.jit
    def train(w, key):
        def step(w, i):
            gradient = jax.grad(loss)(w, i / 200, jax.random.fold_in(key, i))
            return w - 0.1 * gradient / (jnp.linalg.norm(gradient) + 1e-9), None

        return jax.lax.scan(step, w, jnp.arange(200))[0]

    w = train(jnp.array([0.0, 0.3, -0.2, 0.1]), KEY)
    chosen = shtopk.hard_topk(rows, rows @ w, 2).indices
    recall = jnp.mean(chosen[..., None] == shtopk.hard_topk(rows, rows[..., 0], 2).indices[..., None, :]) * 2
    assert recall > 0.9
