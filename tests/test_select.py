"""select, Selection and topk_mask."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk

SIZES = [(1, 1), (6, 2), (16, 16), (37, 5), (64, 8)]


def scores_of(n, rows=2, seed=0):
    return jnp.asarray(np.random.default_rng([seed, n]).normal(size=(rows, n)))


def test_a_bracket_by_hand():
    # Without a second sort the bracket is a snake draft: seed p is in slot p % k, or mirrored.
    scores = jnp.array([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    selection = shtopk.select(scores, 2, boost=shtopk.Scaled(0.0), reseed=False)
    assert selection.indices.tolist() == [[0, 3, 4, 7], [1, 2, 5, 6]]
    np.testing.assert_array_equal(selection.weights, np.full((2, 4), 0.25))
    assert selection.champions.tolist() == [0, 1]
    assert selection.n == 8


def test_a_selection_equals_itself_alone():
    selection = shtopk.select(scores_of(8), 2)
    assert selection == selection
    assert selection != shtopk.select(scores_of(8), 2)
    assert len({selection, selection}) == 1


def test_a_second_sort_changes_the_bracket_by_hand():
    # 6 and 0 come out of an even match at 3, 5 and 4 at 4.5: sorted again, 5 and 4 are on top.
    scores = jnp.array([6.0, 5.0, 4.0, 0.0])
    once = shtopk.select(scores, 1, boost=shtopk.Scaled(0.0), reseed=False)
    again = shtopk.select(scores, 1, boost=shtopk.Scaled(0.0), reseed=True)
    assert once.indices.tolist() == [[0, 1, 2, 3]]
    assert again.indices.tolist() == [[1, 0, 3, 2]]
    np.testing.assert_allclose(again.scores, [0.5 * 4.5 + 0.5 * 3])


@pytest.mark.parametrize(("reseed", "champion"), [(False, 0), (True, 1)])
def test_the_champion_of_even_weights_by_hand(reseed, champion):
    """All weights are 1/4. 3 meets -100, and 2.9 meets 0; sorted again, 1.45 is ahead of -48.5."""
    scores = jnp.array([3.0, 2.9, 0.0, -100.0])
    selection = shtopk.select(scores, 1, boost=shtopk.Scaled(0.0), reseed=reseed)
    assert selection.champions.tolist() == [champion]


def test_a_bye_repeats_a_member_of_its_slot():
    selection = shtopk.select(jnp.array([3.0, 2.0, 1.0]), 2, boost=shtopk.Scaled(0.0))
    assert selection.indices.tolist() == [[0, 0], [1, 2]]
    assert selection.weights.tolist() == [[1.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_every_candidate_is_in_one_slot(n, k, reseed):
    selection = shtopk.select(scores_of(n), k, reseed=reseed)
    rounds = int(np.ceil(np.log2(n / k)))
    assert selection.indices.shape == selection.weights.shape == (2, k, 2**rounds)
    for indices in np.asarray(selection.indices):
        slots = [set(row) for row in indices.tolist()]
        assert sorted(i for slot in slots for i in slot) == list(range(n))
    np.testing.assert_allclose(np.sum(selection.weights, -1), 1, rtol=1e-14)


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_mask_matrix_pool_and_unpool_agree(n, k, reseed):
    scores = scores_of(n)
    selection = shtopk.select(scores, k, reseed=reseed)
    matrix = np.asarray(selection.matrix())
    assert matrix.shape == (2, k, n)
    want = [reference.mask(v, k, reference.relative(6.0, 0.75), reseed) for v in np.asarray(scores)]
    np.testing.assert_allclose(selection.mask(), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(selection.mask(), matrix.sum(-2), rtol=1e-12)
    rng = np.random.default_rng(1)
    embeddings, pooled = rng.normal(size=(2, n, 3)), rng.normal(size=(2, k, 3))
    np.testing.assert_allclose(selection.pool(embeddings), matrix @ embeddings, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        selection.unpool(pooled), np.swapaxes(matrix, -1, -2) @ pooled, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_array_equal(selection.champions, matrix.argmax(-1))


@pytest.mark.parametrize("axis", [0, 1])
def test_unpool_sums_over_a_leading_axis(axis):
    rng = np.random.default_rng(0)
    selection, pooled = shtopk.select(rng.normal(size=(3, 2, 13)), 4), rng.normal(size=(3, 2, 4, 2, 3))

    def summed(weights, pooled):
        return replace(selection, weights=weights).unpool({"a": pooled}, sum_axis=axis)["a"]

    def plain(weights, pooled):
        return replace(selection, weights=weights).unpool(pooled).sum(axis)

    @partial(jax.jit, static_argnums=0)
    def gradients_and_values(function, weights, pooled):
        gradient = jax.grad(lambda *both: jnp.sum(jnp.sin(function(*both))), (0, 1))
        second = jax.jvp(gradient, (weights, pooled), (pooled[..., 0, :1] * weights, 2 * pooled))
        by_row = jax.vmap(gradient, in_axes=(None, 0))(weights, jnp.stack([pooled, -pooled]))
        values = {"all rows": function(weights, pooled), "one row": function(weights, pooled[:, :1])}
        return values, {"second order": second, "by row": by_row}

    values, gradients = gradients_and_values(summed, selection.weights, pooled)
    want_values, want_gradients = gradients_and_values(plain, selection.weights, pooled)
    chex.assert_trees_all_close(values, want_values, rtol=1e-9)
    chex.assert_trees_all_close(gradients, want_gradients, rtol=1e-9, atol=1e-12)


def test_rows_in_half_precision_are_summed_in_float32():
    """512 ones, and the gradient of a row that 512 rows of scores share: 256 + 1 is 256 in bfloat16."""
    selection = shtopk.select(jnp.zeros((512, 1), jnp.float32), 1)
    ones = jnp.ones((512, 1, 1), jnp.bfloat16)
    assert selection.unpool(ones, sum_axis=0).tolist() == [[512]]
    gradient = jax.jit(jax.grad(lambda row: jnp.sum(selection.pool(row).astype(jnp.float32))))(ones[:1])
    assert gradient.tolist() == [[[512]]]


def test_pool_is_what_topk_returns():
    scores = scores_of(20)
    embeddings = np.random.default_rng(2).normal(size=(2, 20, 4))
    selection = shtopk.select(scores, 6)
    out = shtopk.topk(embeddings, scores, 6)
    np.testing.assert_allclose(selection.pool(embeddings), out.embeddings, rtol=1e-12)
    np.testing.assert_array_equal(selection.scores, out.scores)


def test_a_selection_of_numpy_arrays_is_one():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=6))
    selection = shtopk.select(scores, 2)
    fetched = jax.device_get(selection)
    np.testing.assert_array_equal(fetched.mask(), selection.mask())
    np.testing.assert_array_equal(fetched.matrix(), selection.matrix())
    np.testing.assert_array_equal(fetched.pool(scores), selection.pool(scores))


def test_selection_is_a_pytree_and_maps_over_batches():
    scores = scores_of(11)
    selection = jax.jit(jax.vmap(lambda v: shtopk.select(v, 3)))(scores)
    leaves, treedef = jax.tree.flatten(selection)
    again = jax.tree.unflatten(treedef, leaves)
    assert again.n == 11
    np.testing.assert_array_equal(again.mask(), shtopk.select(scores, 3).mask())


def test_candidates_left_out_have_mask_exactly_zero():
    scores = scores_of(40)
    mask = np.asarray(shtopk.select(scores, 4, candidates=16).mask())
    assert np.all((mask > 0).sum(-1) <= 16)
    np.testing.assert_allclose(mask.sum(-1), 4)
    assert shtopk.select(scores, 4, candidates=16).indices.shape == (2, 4, 4)


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize(("n", "ks"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 3, 4, 5, 6, 7]), (12, [1, 3, 5, 9])])
def test_the_mask_of_a_traced_k_is_the_references(n, ks, reseed):
    scores, where = np.asarray(scores_of(n, rows=1)[0]), np.arange(n) % 5 != 3
    mask = jax.jit(lambda v, k: shtopk.topk_mask(v, k, reseed=reseed))
    masked = jax.jit(lambda v, k: shtopk.topk_mask(v, k, reseed=reseed, where=where))

    def want(v, k):
        return reference.mask(v, k, reference.relative(6.0, 0.75), reseed) if k < len(v) else np.ones(len(v))

    for k in ks:
        np.testing.assert_allclose(mask(scores, k), want(scores, k), rtol=1e-9, atol=1e-15)
        got = np.asarray(masked(scores, k))
        np.testing.assert_allclose(got[where], want(scores[where], k), rtol=1e-9, atol=1e-15)
        assert np.all(got[~where] == 0)


def test_a_different_k_for_each_row_under_vmap():
    scores = scores_of(10, rows=4)
    ks = np.array([1, 3, 9, 10])
    masks = jax.vmap(shtopk.topk_mask)(scores, ks)
    np.testing.assert_allclose(np.sum(masks, -1), ks)
    for mask, v, k in zip(masks, np.asarray(scores), ks, strict=True):
        want = reference.mask(v, k, reference.relative(6.0, 0.75), reseed=False)
        np.testing.assert_allclose(mask, want, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("k", [0, -1, 6, 2**32 + 2])
def test_a_traced_k_out_of_range_is_never_silent(k):
    assert np.all(np.isnan(shtopk.topk_mask(jnp.arange(5.0), jnp.int64(k))))


def test_a_traced_k_may_have_a_dtype_that_ends_below_n():
    np.testing.assert_allclose(shtopk.topk_mask(scores_of(130), jnp.int8(3)).sum(-1), 3)
