"""The contract's semantics row by row: ties, NaN, infinities, masks, the smallest sizes, dtypes."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk

BOOSTS = [shtopk.Scaled(5.0), shtopk.Power(), shtopk.Relative()]
EVERY_BOOST = pytest.mark.parametrize("boost", BOOSTS, ids=repr)
EITHER_SORT = pytest.mark.parametrize("reseed", [True, False])


def gradients(scores, k, **options):
    """Of a loss that weighs every row and slot differently, in embeddings and scores."""
    n = scores.shape[-1]
    embeddings = jnp.cos(jnp.arange(3.0 * n)).reshape(n, 3)

    def loss(e, v):
        out = shtopk.topk(e, v, k, **options)
        return jnp.sum(out.embeddings * jnp.arange(1.0, k + 1)[:, None]) + jnp.sum(
            jnp.where(jnp.isfinite(out.scores), out.scores, 0)
        )

    return jax.grad(loss, (0, 1))(embeddings.astype(scores.dtype), scores)


@partial(jax.jit, static_argnames=("k", "reseed"))
def everything(scores, k, **options):
    """The slots of the rows of an identity matrix, the selection, its mask, and `gradients`, in one program."""
    selection = shtopk.select(scores, k, **options)
    out = shtopk.topk(jnp.eye(len(scores)), scores, k, **options)
    return out, selection, shtopk.topk_mask(scores, k, **options), gradients(scores, k, **options)


@EVERY_BOOST
@EITHER_SORT
@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 2), (11, 3), (11, 11)])
def test_all_equal_scores_share_evenly(n, k, reseed, boost):
    for value in (0.0, -7.5):
        scores = jnp.full(n, value)
        _, selection, mask, slopes = everything(scores, k, boost=boost, reseed=reseed)
        np.testing.assert_allclose(np.sum(selection.weights, -1), 1)
        rounds = int(np.ceil(np.log2(n / k)))
        powers = 0.5 ** np.arange(rounds + 1)
        assert np.all(np.isin(np.asarray(mask), powers))
        np.testing.assert_allclose(selection.scores, value)
        chex.assert_tree_all_finite(slopes)


def test_ties_go_to_the_lower_index():
    scores = jnp.array([1.0, 2.0, 2.0, 1.0, 2.0, -0.0, 0.0, -0.0])
    assert shtopk.select(scores, 8).indices[:, 0].tolist() == [1, 2, 4, 0, 3, 5, 6, 7]
    assert shtopk.select(scores, 8, candidates=8).indices[:, 0].tolist() == [1, 2, 4, 0, 3, 5, 6, 7]
    assert shtopk.select(scores, 6, candidates=7).champions[:5].tolist() == [1, 2, 4, 0, 3]


@EVERY_BOOST
@EITHER_SORT
def test_plus_infinity_ranks_first_and_equal_infinities_tie(reseed, boost):
    inf = jnp.inf
    scores = jnp.array([0.0, inf, 1.0, -inf, inf, 2.0, inf, -inf])
    out, *_, slopes = everything(scores, 2, boost=boost, reseed=reseed)
    # Six of eight are left for two slots: inf, inf, inf, 2, 1, 0 and two -inf. Slot 0 gets one inf, slot 1 two.
    np.testing.assert_allclose(out.embeddings, [np.eye(8)[1], [0, 0, 0, 0, 0.5, 0, 0.5, 0]])
    assert out.scores.tolist() == [inf, inf]
    chex.assert_tree_all_finite(slopes)


@EITHER_SORT
@pytest.mark.parametrize("first", [jnp.inf, jnp.nan, 1e9])
@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 2), (12, 2), (24, 8)])
def test_rows_that_are_sure_leave_the_others_in_order(n, k, first, reseed):
    """Up to k - 1 rows are sure of a slot; the best of the others takes most of another, and has a gradient."""
    sure = k - 1 if k == 2 or first != 1e9 else 3 * k // 4 - 1  # more finite outliers would set the unit
    scores = np.random.default_rng(n).normal(size=n)
    best = sure + np.argmax(scores[sure:])

    def weight(v, k):
        return shtopk.topk_mask(v.at[:sure].set(first), k, reseed=reseed)[best]

    scores = jnp.asarray(scores)
    for kind in (k, jnp.asarray(k)):
        value, slope = jax.value_and_grad(weight)(scores, kind)
        assert 0.9 < value < 1
        assert slope[best] > 0


@EVERY_BOOST
@EITHER_SORT
def test_minus_infinity_loses_and_does_no_harm(reseed, boost):
    scores = jnp.array([1.0, -jnp.inf, 0.5, -jnp.inf, -jnp.inf, 0.25, -jnp.inf, -jnp.inf])
    _, _, mask, slopes = everything(scores, 2, boost=boost, reseed=reseed)
    chex.assert_tree_all_finite((mask, slopes))
    np.testing.assert_array_equal(np.asarray(mask)[np.isinf(scores)], 0)
    np.testing.assert_allclose(np.sum(mask), 2)
    np.testing.assert_array_equal(np.asarray(slopes[1])[np.isinf(scores)], 0)
    everyone, *_ = everything(jnp.full(8, -jnp.inf), 2, boost=boost, reseed=reseed)
    np.testing.assert_allclose(np.sum(everyone.embeddings, -1), 1)
    assert everyone.scores.tolist() == [-jnp.inf, -jnp.inf]


@EVERY_BOOST
@EITHER_SORT
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_ranks_first_and_is_never_dropped(sign, reseed, boost):
    scores = jnp.array([0.0, 3.0, sign * jnp.nan, 1.0, 2.0, -1.0, -2.0, -3.0])
    out, _, mask, _ = jax.tree.map(np.asarray, everything(scores, 2, boost=boost, reseed=reseed))
    assert np.isnan(out.embeddings[0, 2])
    assert np.isnan(out.scores[0])
    chex.assert_tree_all_finite((out.embeddings[1], out.scores[1]))
    assert np.isnan(mask[2])
    assert shtopk.hard_topk(jnp.eye(8), scores, 1).embeddings.argmax() == 2
    assert np.isnan(shtopk.hard_topk(jnp.eye(8), scores, 1).scores[0])


@EITHER_SORT
def test_a_masked_call_is_the_call_on_the_rows_that_take_part(reseed):
    rng = np.random.default_rng(0)
    scores, embeddings = rng.normal(size=(2, 40)), rng.normal(size=(2, 40, 3))
    where = rng.uniform(size=(2, 40)) < np.array([[0.8], [0.3]])
    embeddings[~where] = np.nan
    scores[~where] = np.nan

    @jax.jit
    def run(e, v, where=None):
        def loss(e, v):
            out = shtopk.topk(e, v, 5, where=where, reseed=reseed)
            return jnp.sum(out.embeddings**2), out

        mask = shtopk.topk_mask(v, 5, where=where, reseed=reseed)
        gradient, out = jax.grad(loss, (0, 1), has_aux=True)(e, v)
        return (mask, *gradient), out[:2]

    by_row, slots = jax.tree.map(np.asarray, run(embeddings, scores, where))
    chex.assert_tree_all_finite(by_row)
    for b in range(2):
        want_by_row, want_slots = run(embeddings[b][where[b]], scores[b][where[b]])
        for got, want, atol in zip(slots, want_slots, (1e-12, 0), strict=True):
            np.testing.assert_allclose(got[b], want, rtol=1e-9, atol=atol)
        for got, want in zip(by_row, want_by_row, strict=True):
            np.testing.assert_allclose(got[b][where[b]], want, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(got[b][~where[b]], 0)


@EITHER_SORT
def test_slot_scores_have_the_gradient_of_where_beside_padding(reseed):
    scores = jnp.array([0.3, -0.2, *[jnp.finfo("float32").min] * 4], jnp.float32)

    def slope(where):
        def loss(v):
            out = shtopk.topk(v, v, 3, boost=shtopk.Scaled(20.0), reseed=reseed, where=where)
            return jnp.sum(jnp.sin(jnp.where(out.scores > -1e9, out.scores, 0)))

        return jax.grad(loss)(scores)[:2]

    np.testing.assert_allclose(slope(None), slope(scores > -1e9), rtol=1e-6)


@EITHER_SORT
@pytest.mark.parametrize("order", ["score", "position"])
@pytest.mark.parametrize("valid", [0, 1, 3])
def test_fewer_valid_rows_than_k_leave_surplus_slots(valid, order, reseed):
    n, k = 12, 5
    where = jnp.arange(n) % 4 == 1
    where = where & (jnp.cumsum(where) <= valid)
    scores = jnp.where(where, jnp.linspace(0, 1, n), jnp.nan)
    embeddings = jnp.where(where[:, None], jnp.arange(2.0 * n).reshape(n, 2), jnp.nan)
    options = {"where": where, "order": order}
    rows = np.arange(2.0 * n).reshape(n, 2)[np.asarray(where)]
    rows = rows if order == "position" else rows[::-1]
    for out in (
        shtopk.topk(embeddings, scores, k, reseed=reseed, **options),
        shtopk.hard_topk(embeddings, scores, k, **options),
        shtopk.topk(embeddings, scores, k, straight_through=True, **options),
        shtopk.topk(embeddings, scores, k, candidates=7, **options),
    ):
        np.testing.assert_array_equal(out.embeddings[:valid], rows)
        np.testing.assert_array_equal(out.embeddings[valid:], 0)
        np.testing.assert_array_equal(out.scores[valid:], -jnp.inf)
        chex.assert_tree_all_finite(out.scores[:valid])
    mask = shtopk.topk_mask(scores, k, where=where, reseed=reseed)
    np.testing.assert_array_equal(mask, where.astype(mask.dtype))


def test_a_live_minus_infinity_comes_before_a_row_left_out():
    scores = jnp.array([-jnp.inf, 1.0, -jnp.inf])
    where = jnp.array([False, True, True])
    assert shtopk.hard_topk(jnp.eye(3), scores, 2, where=where).embeddings.tolist() == [[0, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(shtopk.topk_mask(scores, 2, where=where), [0, 1, 1])


def test_where_broadcasts():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)))
    where = np.arange(8) < 6
    full = shtopk.topk_mask(scores, 2, where=jnp.broadcast_to(where, scores.shape))
    for shape in (where, where[None], where[None, None]):
        np.testing.assert_array_equal(shtopk.topk_mask(scores, 2, where=shape), full)
    np.testing.assert_array_equal(shtopk.topk_mask(scores, 2, where=True), shtopk.topk_mask(scores, 2))


@EVERY_BOOST
@EITHER_SORT
@pytest.mark.parametrize("n", [1, 6])
def test_k_equal_to_n_keeps_everyone_in_order(n, reseed, boost):
    scores = jnp.asarray(np.random.default_rng(n).permutation(n) / 2.0)
    out = shtopk.topk(scores[:, None], scores, n, boost=boost, reseed=reseed)
    np.testing.assert_array_equal(out.scores, np.sort(scores)[::-1])
    np.testing.assert_array_equal(out.embeddings[:, 0], out.scores)
    np.testing.assert_array_equal(shtopk.topk_mask(scores, n, boost=boost, reseed=reseed), 1)


@EVERY_BOOST
@EITHER_SORT
def test_one_slot_pools_everyone(reseed, boost):
    scores, options = jnp.asarray(np.random.default_rng(5).normal(size=5)), {"boost": boost, "reseed": reseed}
    mask, out = jax.jit(
        lambda v: (shtopk.topk_mask(v, 1, **options), shtopk.topk(jnp.eye(5), v, 1, **options))
    )(scores)
    np.testing.assert_allclose(mask.sum(), 1)
    np.testing.assert_allclose(out.embeddings[0], mask)


@jax.jit
def three_of_each(e, v):
    return (
        shtopk.topk(e, v, 3),
        shtopk.topk(e, v, 3, straight_through=True),
        shtopk.hard_topk(e, v, 3),
        shtopk.iterative_topk(e, v, 3),
    )


@pytest.mark.parametrize(
    ("dtype", "scores_dtype"),
    [
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "float16"),
        ("float32", "bfloat16"),
        ("float32", "float64"),
        ("float64", "float32"),
    ],
)
def test_each_result_has_its_own_dtype(dtype, scores_dtype):
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(2, 24)), scores_dtype)
    embeddings = jnp.asarray(rng.normal(size=(2, 24, 5)), dtype)
    wide = (embeddings.astype("float64"), scores.astype("float64"))
    bound = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-5, "float64": 1e-5}

    for out, want in zip(three_of_each(embeddings, scores), three_of_each(*wide), strict=True):
        assert (out.embeddings.dtype, out.scores.dtype) == (dtype, scores_dtype)
        got = out.embeddings.astype("float64")
        np.testing.assert_allclose(got, want.embeddings, atol=4 * bound[dtype], rtol=bound[dtype])
        got = out.scores.astype("float64")
        np.testing.assert_allclose(got, want.scores, atol=4 * bound[scores_dtype], rtol=bound[scores_dtype])
    assert shtopk.topk_mask(scores, 3).dtype == scores_dtype
    gradient = jax.grad(lambda e, v: jnp.sum(shtopk.topk(e, v, 3).embeddings.astype("float32")), (0, 1))
    d_embeddings, d_scores = jax.jit(gradient)(embeddings, scores)
    assert (d_embeddings.dtype, d_scores.dtype) == (dtype, scores_dtype)


def test_half_precision_computes_in_float32():
    # Each of 512 rows counts 1 / 512: a running sum in bfloat16 would stop growing early.
    scores = jnp.zeros(512, "bfloat16")
    out = shtopk.topk(jnp.ones((512, 1), "bfloat16"), scores, 1)
    assert out.embeddings.astype("float32").tolist() == [[1.0]]


def test_in_32_bits_and_standard_promotion(x32):
    rng = np.random.default_rng(0)
    embeddings, scores = rng.normal(size=(2, 11, 4)), rng.normal(size=(2, 11))
    out = shtopk.topk(embeddings, scores, 4)
    assert out.embeddings.dtype == out.scores.dtype == jnp.float32
    assert shtopk.iterative_topk(embeddings, scores, 4).embeddings.dtype == jnp.float32
    np.testing.assert_allclose(shtopk.topk_mask(scores, jnp.int32(4)), shtopk.topk_mask(scores, 4), rtol=1e-5)
    gradient = jax.grad(lambda v: jnp.sum(shtopk.topk(embeddings, v, 4).embeddings))(jnp.asarray(scores))
    assert gradient.dtype == jnp.float32
    chex.assert_tree_all_finite(gradient)
