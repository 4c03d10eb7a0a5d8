"""Scores that one row, padding or an offset could spoil, in float32 as a user has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wild

import shtopk

SIZES = pytest.mark.parametrize(("n", "k"), [(2048, 64), (300, 7), (16384, 4)])


def scores_of(n, rows=64):
    """As many rows in most tests, so that a mask is compiled once for each size."""
    return np.random.default_rng(n).normal(size=(rows, n)).astype(np.float32)


def first(scores, count, value):
    """`scores` with `value` in the first `count` columns."""
    return np.where(np.arange(scores.shape[1]) < count, np.asarray(value, scores.dtype), scores)


def mass(scores, k):
    """The mask's mean mass on the true top k, over k."""
    best = jax.lax.top_k(scores, k)[1]
    mask = np.asarray(shtopk.topk_mask(scores, k), np.float64)
    return np.take_along_axis(mask, np.asarray(best), -1).sum(-1).mean() / k


@SIZES
def test_outliers_and_offsets_cost_less_than_a_hundredth(n, k):
    """Rows enough that the standard error of the mean is below 0.003."""
    scores = scores_of(n, rows=2048 if n == 300 else 512 if n == 16384 else 64)
    clean = mass(scores, k)
    for outlier in (-1e9, -1e6, 1e5, 1e9):
        assert abs(mass(first(scores, 1, outlier), k) - clean) < 0.01, outlier
    for offset in (1e5, -1e5):  # in spreads: a float32 there is known to 1/128
        assert abs(mass(scores + np.float32(offset), k) - clean) < 0.01, offset
    assert abs(mass(scores + np.float32(1e3), k) - clean) < 0.0005


def test_an_offset_that_is_exact_changes_nothing_by_scaled():
    scores = np.float32(np.random.default_rng(0).permutation(16) / 64)
    moved = scores + np.float32(1e5)
    mask, moved = (shtopk.topk_mask(v, 3, boost=shtopk.Scaled(20.0)) for v in (scores, moved))
    np.testing.assert_array_equal(mask, moved)


@SIZES
def test_many_outliers_leave_the_rest_in_order(n, k):
    """k far above take the slots; as many far below lose at once."""
    scores = scores_of(n)
    assert mass(first(scores, k, scores + np.float32(1e6)), k) > 0.95
    below = first(scores, n // 4, -1e6)
    assert abs(mass(below, k) - mass(scores[:, n // 4 :], k)) < 0.02


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_as_good_as_its_own_rounding(dtype):
    """As float64 on the same rounded scores; of rows that tie, either may be taken."""
    scores, k = first(scores_of(300, rows=256), 1, -6e4).astype(dtype), 7
    wide = scores.astype(np.float64)
    chosen = wide >= np.sort(wide, axis=-1)[:, -k, None]
    masks = [np.asarray(shtopk.topk_mask(x, k), np.float64) for x in (scores, wide)]
    found = [mask[chosen].sum() / (len(scores) * k) for mask in masks]
    assert abs(found[0] - found[1]) < 0.002


@SIZES
def test_padding_by_scores_is_padding_by_where(n, k):
    masks_agree(n, k, n // 2, [-1e9, float(np.finfo(np.float32).min), -np.inf])


def masks_agree(n, k, live, paddings):
    """Of rows padded from column `live` on, and of `where`."""
    scores, where = scores_of(n), np.arange(n) < live
    want = shtopk.topk_mask(scores, k, where=where)
    for padding in paddings:
        mask = shtopk.topk_mask(np.where(where, scores, np.float32(padding)), k)
        np.testing.assert_allclose(mask, want, atol=1e-3, err_msg=f"{padding}")


@pytest.mark.parametrize(("n", "k", "live"), [(8, 3, 4), (40, 12, 20), (100, 20, 25)])
def test_minus_infinity_is_padding_at_any_share_of_the_row(n, k, live):
    scores, where = scores_of(n, rows=4), np.arange(n) < live
    calls = {"once": (k, {}), "resorted": (k, {"reseed": True}), "traced k": (jnp.int32(k), {})}

    @jax.jit
    def masks_and_gradients(scores, where):
        def loss(scores, k, options):
            mask = shtopk.topk_mask(scores, k, where=where, **options)[:, :live]
            return jnp.sum(np.sin(np.arange(mask.size)).astype(mask.dtype) * mask.ravel()), mask

        return {name: jax.grad(loss, has_aux=True)(scores, *call) for name, call in calls.items()}

    padded = masks_and_gradients(np.where(where, scores, np.float32(-np.inf)), None)
    for x, y in zip(*map(jax.tree.leaves, (padded, masks_and_gradients(scores, where))), strict=True):
        np.testing.assert_allclose(x[:, :live], y[:, :live], rtol=1e-5, atol=1e-6)


def test_finite_padding_among_matches_of_rows_is_a_known_limit():
    """A round of 20 matches, 15 against padding: its unit is not that of the five others."""
    scores, where = scores_of(100, rows=8), np.arange(100) < 25
    padded = shtopk.topk_mask(np.where(where, scores, np.float32(-1e9)), 20)
    error = np.subtract(padded, shtopk.topk_mask(scores, 20, where=where))
    assert 0.1 < np.max(np.abs(error)) < 0.5


@pytest.mark.parametrize("reseed", [False, True])
@pytest.mark.parametrize(
    "scores",
    [
        [0.7, 0.3, *[-1e9] * 6],
        [0.7, 0.3, *[-1e4] * 6],
        [0.7, 0.3, *[float(np.finfo(np.float32).min)] * 6],
        [0.7, 0.3, *[-np.inf] * 6],
        [1e6, 0.7, 0.3, *[-1e9] * 5],
        [-1e5 - 0.25, -1e5 - 0.5, *[-1e9] * 6],
        [3e38, *[-3e38] * 7],
    ],
)
def test_rows_keep_their_scores_beside_padding(scores, reseed):
    scores = np.float32(scores)
    slots = shtopk.topk(np.eye(8), scores, 4, reseed=reseed).scores
    np.testing.assert_array_equal(slots, shtopk.hard_topk(np.eye(8), scores, 4).scores)


def test_more_than_half_a_row_may_be_finite_padding():
    masks_agree(300, 7, 120, [-1e4])


def test_a_winner_over_minus_infinity_keeps_its_derivative():
    scores = np.array([2.0, 1.0, 0.0, -np.inf])

    def best(v, where=None):
        return shtopk.topk_mask(v, 1, boost=shtopk.Scaled(1.0), where=where)[0]

    gradient = jax.jit(jax.grad(best))
    got, want = gradient(scores), gradient(scores, scores > -np.inf)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert abs(got[0] - 0.171) < 1e-3


def test_ties_among_clusters_keep_the_best_cluster_in_order():
    """Rounded to float16, 16 of the 30 rows of the upper cluster tie, but not with its best row."""
    assert mass_of_row("bimodal", 848408, jnp.float16) > 0.99


def test_ties_with_the_best_row_may_reorder_its_cluster():
    """A known limit: rounded to float16, the ten best rows tie, and the unit is the distance between the clusters."""
    assert 0.5 < mass_of_row("trimodal", 2898, jnp.float16) < 0.6
    assert mass_of_row("trimodal", 2898, jnp.float32) > 0.95


def mass_of_row(kind, seed, dtype):
    """The mask's mass on the best rows, of which there are more than k if they tie, over k = 7."""
    scores = wild.scores(kind, seed, 1, 300)[0].astype(dtype)
    best = scores >= np.sort(scores)[-7]
    return np.asarray(shtopk.topk_mask(scores, 7), np.float32)[best].sum() / 7
