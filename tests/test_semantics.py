"""The contract's semantics row by row: ties, NaN, infinities, masks, the smallest sizes, dtypes."""

from functools import partial
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk

BOOSTS = [shtopk.Scaled(5.0), shtopk.Power(), shtopk.Relative()]
EVERY_BOOST = pytest.mark.parametrize("boost", BOOSTS, ids=repr)
EITHER_SORT = pytest.mark.parametrize("reseed", [True, False])


@partial(jax.jit, static_argnames=("k", "reseed"))
def everything(scores, k, **options):
    """The slots of the rows of an identity matrix, the selection, its mask, and gradients, in one program.

    The gradients are those of a loss that weighs every row and slot differently, in embeddings and scores.
    """
    n = len(scores)

    def loss(e, v):
        out = shtopk.topk((jnp.eye(n), e), v, k, **options)
        eye, slots = out.embeddings
        slot_scores = jnp.where(jnp.isfinite(out.scores), out.scores, 0)
        weighed = jnp.sum(slots * jnp.arange(1.0, k + 1)[:, None])
        return weighed + jnp.sum(slot_scores), out._replace(embeddings=eye)

    slopes, out = jax.grad(loss, (0, 1), has_aux=True)(np.cos(np.arange(3.0 * n)).reshape(n, 3), scores)
    return out, shtopk.select(scores, k, **options), shtopk.topk_mask(scores, k, **options), slopes


@EVERY_BOOST
@EITHER_SORT
@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 2), (11, 3), (6, 6)])
def test_all_equal_scores_share_evenly(n, k, reseed, boost):
    for value in (0.0, -7.5):
        scores = np.full(n, value)
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


@partial(jax.jit, static_argnames=("k", "reseed"))
def weights_and_slopes(scores, row, k, traced_k, reseed):
    """The weight of one row and its gradient, for k static and traced."""

    def weight(v, k):
        return shtopk.topk_mask(v, k, reseed=reseed)[row]

    return [jax.value_and_grad(weight)(scores, kind) for kind in (k, traced_k)]


@EITHER_SORT
@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 2), (12, 2), (24, 8)])
def test_rows_that_are_sure_leave_the_others_in_order(n, k, reseed):
    """Up to k - 1 rows are sure of a slot; the best of the others takes most of another, and has a gradient."""
    for first in (np.inf, np.nan, 1e9):
        sure = k - 1 if k == 2 or first != 1e9 else 3 * k // 4 - 1  # more finite outliers would set the unit
        scores = np.random.default_rng(n).normal(size=n)
        best = sure + np.argmax(scores[sure:])
        scores[:sure] = first
        for value, slope in weights_and_slopes(scores, best, k, k, reseed):
            assert 0.9 < value < 1, first
            assert slope[best] > 0, first


@EVERY_BOOST
@EITHER_SORT
def test_minus_infinity_loses_and_does_no_harm(reseed, boost):
    scores = jnp.array([1.0, -jnp.inf, 0.5, -jnp.inf, -jnp.inf, 0.25, -jnp.inf, -jnp.inf])
    _, _, mask, slopes = everything(scores, 2, boost=boost, reseed=reseed)
    chex.assert_tree_all_finite((mask, slopes))
    np.testing.assert_array_equal(np.asarray(mask)[np.isinf(scores)], 0)
    np.testing.assert_allclose(np.sum(mask), 2)
    np.testing.assert_array_equal(np.asarray(slopes[1])[np.isinf(scores)], 0)
    everyone, *_ = everything(np.full(8, -np.inf), 2, boost=boost, reseed=reseed)
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
    hard = shtopk.hard_topk(np.eye(8), scores, 1)
    assert np.argmax(hard.embeddings) == 2
    assert np.isnan(hard.scores[0])


@EITHER_SORT
def test_a_masked_call_is_the_call_on_the_rows_that_take_part(reseed):
    rng = np.random.default_rng(0)
    scores, embeddings = rng.normal(size=(2, 16)), rng.normal(size=(2, 16, 3))
    where = np.arange(16) % np.array([[5], [2]]) != 0
    embeddings[~where] = np.nan
    scores[~where] = np.nan

    @jax.jit
    def run(e, v, where=None):
        def loss(e, v):
            out = shtopk.topk(e, v, 4, where=where, reseed=reseed)
            return jnp.sum(out.embeddings**2), out

        mask = shtopk.topk_mask(v, 4, where=where, reseed=reseed)
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

    def loss(v, where):
        out = shtopk.topk(v, v, 3, boost=shtopk.Scaled(20.0), reseed=reseed, where=where)
        return jnp.sum(jnp.sin(jnp.where(out.scores > -1e9, out.scores, 0)))

    got, want = jax.jit(lambda v: [jax.grad(loss)(v, where)[:2] for where in (None, v > -1e9)])(scores)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@EITHER_SORT
@pytest.mark.parametrize("order", ["score", "position"])
@pytest.mark.parametrize("valid", [0, 1, 3])
def test_fewer_valid_rows_than_k_leave_surplus_slots(valid, order, reseed):
    n, k = 12, 5
    where = np.arange(n) % 4 == 1
    where = where & (np.cumsum(where) <= valid)
    scores = np.where(where, np.linspace(0, 1, n), np.nan)
    embeddings = np.where(where[:, None], np.arange(2.0 * n).reshape(n, 2), np.nan)
    options = {"where": where, "order": order}
    rows = np.arange(2.0 * n).reshape(n, 2)[where]
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
    full = shtopk.topk_mask(scores, 2, where=np.broadcast_to(where, scores.shape))
    for shape in (where, where[None], where[None, None]):
        np.testing.assert_array_equal(shtopk.topk_mask(scores, 2, where=shape), full)
    np.testing.assert_array_equal(shtopk.topk_mask(scores, 2, where=True), shtopk.topk_mask(scores, 2))


@EVERY_BOOST
@EITHER_SORT
@pytest.mark.parametrize("n", [1, 6])
def test_k_equal_to_n_keeps_everyone_in_order(n, reseed, boost):
    scores = np.random.default_rng(n).permutation(n) / 2.0
    out, _, mask, _ = everything(scores, n, boost=boost, reseed=reseed)
    np.testing.assert_array_equal(out.scores, np.sort(scores)[::-1])
    np.testing.assert_array_equal(out.embeddings, np.eye(n)[np.argsort(-scores)])
    np.testing.assert_array_equal(mask, 1)


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
    """The slots of each function, the mask, and the gradient of the soft slots."""

    def loss(e, v):
        soft = shtopk.topk(e, v, 3)
        return jnp.sum(soft.embeddings.astype("float32")), soft

    gradient, soft = jax.grad(loss, (0, 1), has_aux=True)(e, v)
    through = shtopk.topk(e, v, 3, straight_through=True)
    slots = soft, through, shtopk.hard_topk(e, v, 3), shtopk.iterative_topk(e, v, 3)
    return slots, shtopk.topk_mask(v, 3), gradient


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
    scores = jnp.asarray(rng.normal(size=(2, 12)), scores_dtype)
    embeddings = jnp.asarray(rng.normal(size=(2, 12, 5)), dtype)
    slots, mask, gradient = three_of_each(embeddings, scores)
    wide, *_ = three_of_each(np.asarray(embeddings, "float64"), np.asarray(scores, "float64"))
    bound = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 1e-5, "float64": 1e-5}

    for out, want in zip(slots, wide, strict=True):
        assert (out.embeddings.dtype, out.scores.dtype) == (dtype, scores_dtype)
        got = np.asarray(out.embeddings, "float64")
        np.testing.assert_allclose(got, want.embeddings, atol=4 * bound[dtype], rtol=bound[dtype])
        got = np.asarray(out.scores, "float64")
        np.testing.assert_allclose(got, want.scores, atol=4 * bound[scores_dtype], rtol=bound[scores_dtype])
    assert [x.dtype for x in (mask, *gradient)] == [scores_dtype, dtype, scores_dtype]


def test_half_precision_computes_in_float32():
    # Each of 512 rows counts 1 / 512: a running sum in bfloat16 would stop growing early.
    scores = jnp.zeros(512, "bfloat16")
    out = shtopk.topk(jnp.ones((512, 1), "bfloat16"), scores, 1)
    assert out.embeddings.astype("float32").tolist() == [[1.0]]


def test_in_32_bits_and_standard_promotion(x32):
    rng = np.random.default_rng(0)
    embeddings, scores = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5))
    out = shtopk.topk(embeddings, scores, 2)
    assert out.embeddings.dtype == out.scores.dtype == jnp.float32
    assert shtopk.iterative_topk(embeddings, scores, 2).embeddings.dtype == jnp.float32
    np.testing.assert_allclose(shtopk.topk_mask(scores, jnp.int32(2)), shtopk.topk_mask(scores, 2), rtol=1e-5)
    slope = jax.jit(jax.grad(lambda v: jnp.sum(shtopk.topk(embeddings, v, 2).embeddings)))(
        jnp.asarray(scores)
    )
    assert slope.dtype == jnp.float32
    chex.assert_tree_all_finite(slope)


# Types that come in by the side door


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_number_may_be_of_any_type(dtype):
    scores, embeddings = jnp.arange(4.0).astype(dtype), jnp.ones((4, 2), dtype)
    want = shtopk.topk_mask(scores, 2, boost=shtopk.Relative(2.0, 0.5))
    for kind in (np.float32, np.float64, jnp.float32, jnp.bfloat16, np.asarray, jnp.asarray):
        boost = shtopk.Relative(kind(2.0), kind(0.5))
        np.testing.assert_array_equal(shtopk.topk_mask(scores, 2, boost=boost), want)
    want = shtopk.iterative_topk(embeddings, scores, 2, alpha=2.0).scores
    for alpha in (2, np.int32(2), jnp.bfloat16(2), np.float64(2)):
        np.testing.assert_array_equal(shtopk.iterative_topk(embeddings, scores, 2, alpha=alpha).scores, want)


def test_weak_types_are_taken_for_what_they_are():
    weak = jnp.broadcast_to(1.0, (6,))
    assert weak.weak_type
    scores = weak * jnp.arange(6.0, dtype="float32")
    for out in (
        shtopk.topk(jnp.broadcast_to(1.0, (6, 2)), weak, 2),
        shtopk.hard_topk(scores, weak, 2),
        shtopk.iterative_topk(weak, scores, 2),
    ):
        assert out.embeddings.shape[:1] == out.scores.shape == (2,)
        chex.assert_tree_all_finite(out)
    np.testing.assert_array_equal(shtopk.topk_mask(weak, 2), shtopk.topk_mask(np.ones(6), 2))
    slope = jax.jit(jax.grad(lambda c: shtopk.topk_mask(scores, 2, boost=shtopk.Scaled(c))[0]))(1.0)
    assert slope.dtype == "float64"


def test_nccs_in_mixed_types_is_float32_at_least():
    rng = np.random.default_rng(0)
    dtypes = ["float16", "bfloat16", "float32", "float64"]
    ys, zs = ([jnp.asarray(x, dtype) for dtype in dtypes] for x in rng.normal(size=(2, 3, 4)))
    pairs = list(product(ys, zs))
    found = jax.jit(lambda pairs: [shtopk.nccs(*x) for x in pairs])(pairs)
    for (y, z), got in zip(pairs, found, strict=True):
        assert got.dtype == ("float64" if "float64" in (y.dtype, z.dtype) else "float32")
        want = reference.nccs(np.asarray(y, np.float64), np.asarray(z, np.float64))
        np.testing.assert_allclose(got, want, atol=8 * float(jnp.finfo(got.dtype).eps))
