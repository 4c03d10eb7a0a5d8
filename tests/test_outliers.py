"""Scores that one row, padding or an offset could spoil, in float32 as a user has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk

SIZES = pytest.mark.parametrize(("n", "k"), [(2048, 64), (300, 7), (1024, 4)])


def scores_of(n, rows=64):
    return jnp.asarray(np.random.default_rng(n).normal(size=(rows, n)), jnp.float32)


def mass(scores, k, **options):
    """The mask's mean mass on the true top k, over k."""
    best = jax.lax.top_k(scores, k)[1]
    mask = shtopk.topk_mask(scores, k, **options)
    return float(jnp.mean(jnp.sum(jnp.take_along_axis(mask, best, -1), -1))) / k


@SIZES
@pytest.mark.parametrize("outlier", [-1e9, -1e6, 1e5, 1e9])
def test_one_outlier_does_not_spoil_its_row(n, k, outlier):
    scores = scores_of(n)
    assert abs(mass(scores.at[:, 0].set(outlier), k) - mass(scores, k)) < 0.02


@SIZES
def test_an_offset_costs_no_more_than_its_rounding(n, k):
    scores = scores_of(n)
    assert abs(mass(scores + jnp.float32(1e5), k) - mass(scores, k)) < 0.015
    assert abs(mass(scores + jnp.float32(1e3), k) - mass(scores, k)) < 0.002


@SIZES
@pytest.mark.parametrize("padding", [-1e9, float(np.finfo(np.float32).min), -np.inf])
def test_padding_by_scores_is_padding_by_where(n, k, padding):
    scores, where = scores_of(n, rows=8), jnp.broadcast_to(jnp.arange(n) < n // 2, (8, n))
    padded = shtopk.topk_mask(jnp.where(where, scores, jnp.float32(padding)), k)
    np.testing.assert_allclose(padded, shtopk.topk_mask(scores, k, where=where), atol=1e-3)


def test_more_than_half_a_row_may_be_finite_padding():
    scores, where = scores_of(300, rows=8), jnp.broadcast_to(jnp.arange(300) < 120, (8, 300))
    padded = shtopk.topk_mask(jnp.where(where, scores, jnp.float32(-1e4)), 7)
    np.testing.assert_allclose(padded, shtopk.topk_mask(scores, 7, where=where), atol=1e-3)


def test_a_winner_over_minus_infinity_keeps_its_derivative():
    scores = jnp.array([2.0, 1.0, 0.0, -jnp.inf])

    def first(v, where=None):
        return shtopk.topk_mask(v, 1, boost=shtopk.Scaled(1.0), where=where)[0]

    got, want = jax.grad(first)(scores), jax.grad(first)(scores, scores > -jnp.inf)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert abs(got[0] - 0.171) < 1e-3
