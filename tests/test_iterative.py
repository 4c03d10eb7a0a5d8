"""Algorithm 1."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk


@pytest.mark.parametrize("normalizer", ["softmax", "paper"])
@pytest.mark.parametrize(
    ("n", "k", "alpha"), [(2, 1, 1.0), (16, 4, 1.0), (100, 7, 30.0), (128, 64, 1.0), (9, 9, 2.0)]
)
def test_is_algorithm_1(n, k, alpha, normalizer):
    if normalizer == "paper" and n == k:
        k -= 1  # see the next test
    rng = np.random.default_rng([n, k])
    embeddings, scores = rng.uniform(-1, 1, (2, n, 3)), rng.uniform(size=(2, n))
    out = shtopk.iterative_topk(embeddings, scores, k, alpha=alpha, normalizer=normalizer)
    for b in range(2):
        want_embeddings, want_scores = reference.algorithm1(embeddings[b], scores[b], k, alpha, normalizer)
        np.testing.assert_allclose(out.embeddings[b], want_embeddings, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(out.scores[b], want_scores, rtol=1e-9, atol=1e-9)


def test_the_last_slot_is_nan_if_the_printed_sum_is_empty():
    out = shtopk.iterative_topk(jnp.eye(2), jnp.array([1.0, 0.0]), 2, normalizer="paper")
    assert np.all(np.isfinite(out.embeddings[0]))
    assert np.all(np.isnan(out.embeddings[1]))


@pytest.mark.parametrize("normalizer", ["softmax", "paper"])
def test_infinite_scores_leave_the_gradient_of_the_others(normalizer):
    embeddings, scores = jnp.arange(12.0).reshape(6, 2), jnp.array([0.0, 2.0, 1.0, -jnp.inf, -jnp.inf, 1.5])

    def loss(v, where=None):
        out = shtopk.iterative_topk(embeddings, v, 2, normalizer=normalizer, where=where)
        return out.scores.sum() + jnp.cos(out.embeddings).sum()

    got, want = jax.grad(loss)(scores), jax.grad(loss)(scores, scores > -jnp.inf)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_lone_best_score_has_a_finite_gradient_as_printed(x32):
    """exp(-(6.7)^2) is 3e-20: the weight is 3e19, and its derivative in the gap 2 * 6.7 times that."""
    scores = jnp.array([6.7, 0.0, -1.0])

    def first(v, alpha):
        out = shtopk.iterative_topk(jnp.eye(3), v, 1, alpha=alpha, normalizer="paper")
        return out.embeddings[0, 0]

    weight, (slope, in_alpha) = jax.value_and_grad(first, (0, 1))(scores, jnp.float32(1.0))
    np.testing.assert_allclose(slope[0], 2 * 6.7 * weight, rtol=1e-4)
    np.testing.assert_allclose(in_alpha, 6.7**2 * weight, rtol=1e-4)


def test_a_slot_of_nan_leaves_the_gradient_of_the_others():
    scores = jnp.array([1.0, 0.0])

    def first(v):
        return shtopk.iterative_topk(jnp.eye(2), v, 2, normalizer="paper").embeddings[0, 1]

    np.testing.assert_array_equal(jax.grad(first)(scores), [0, 0])  # it is 1, the other term over itself


def test_an_infinite_alpha_is_the_hard_choice():
    def choose(v):
        return shtopk.iterative_topk(jnp.eye(3), v, 2, alpha=jnp.inf).embeddings

    tied, close = jnp.array([3.0, 3.0, 2.0]), jnp.array([1e-20, 3e-20, 2e-20])
    np.testing.assert_array_equal(choose(tied), [[0.5, 0.5, 0], [0, 1, 0]])
    np.testing.assert_array_equal(choose(close), [[0, 1, 0], [0, 0, 1]])
    for scores in (tied, close):
        np.testing.assert_array_equal(jax.jacobian(choose)(scores), np.zeros((2, 3, 3)))


@pytest.mark.parametrize("normalizer", ["softmax", "paper"])
def test_gradients_are_the_references(normalizer):
    rng = np.random.default_rng(0)
    embeddings, scores = rng.normal(size=(8, 2)), rng.normal(size=8)
    target = rng.normal(size=(3, 2))

    def ours(e, v, alpha):
        return jnp.sum(target * shtopk.iterative_topk(e, v, 3, alpha=alpha, normalizer=normalizer).embeddings)

    got = jax.grad(ours, (0, 1, 2))(jnp.asarray(embeddings), jnp.asarray(scores), 2.0)

    def theirs(e, v, alpha):
        return np.sum(target * reference.algorithm1(e, v, 3, alpha, normalizer)[0])

    arguments = [embeddings, scores, np.array(2.0)]
    for i in range(3):
        want = reference.numeric_gradient(
            lambda x, i=i: theirs(*[x if j == i else a for j, a in enumerate(arguments)]), arguments[i]
        )
        np.testing.assert_allclose(got[i], want, rtol=1e-6, atol=1e-8)


def test_a_masked_call_is_the_call_on_the_rows_that_take_part():
    rng = np.random.default_rng(1)
    embeddings, scores = rng.normal(size=(12, 2)), rng.normal(size=12)
    where = rng.uniform(size=12) < 0.6
    embeddings[~where] = np.nan
    out = shtopk.iterative_topk(embeddings, scores, 4, where=where)
    want = shtopk.iterative_topk(embeddings[where], scores[where], 4)
    np.testing.assert_allclose(out.embeddings, want.embeddings, rtol=1e-12)
    np.testing.assert_allclose(out.scores, want.scores, rtol=1e-12)


def test_surplus_slots_are_zero_rows_with_score_minus_inf():
    where = np.array([True, False, False])

    def loss(e, v):
        out = shtopk.iterative_topk(e, v, 3, where=where)
        return jnp.sum(out.embeddings) + out.scores[0], out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        jnp.array([[1.0], [jnp.nan], [3.0]]), jnp.array([0.5, jnp.nan, 9.0])
    )
    np.testing.assert_array_equal(out.embeddings, [[1.0], [0.0], [0.0]])
    np.testing.assert_array_equal(out.scores, [0.5, -np.inf, -np.inf])
    chex.assert_tree_all_finite(gradients)


def test_a_nan_in_a_row_that_takes_part_reaches_every_slot():
    embeddings, scores = jnp.ones((4, 1)).at[3].set(jnp.nan), jnp.array([3.0, 2.0, 1.0, -1e4])
    assert np.all(np.isnan(shtopk.iterative_topk(embeddings, scores, 2).embeddings))
    where = jnp.arange(4) < 3
    chex.assert_tree_all_finite(shtopk.iterative_topk(embeddings, scores, 2, where=where))


def test_infinities_decide_and_nan_is_seen():
    embeddings = jnp.eye(5)
    scores = jnp.array([1.0, jnp.inf, 0.5, jnp.inf, -jnp.inf])
    out = shtopk.iterative_topk(embeddings, scores, 5, alpha=jnp.log(2.0))
    np.testing.assert_allclose(out.embeddings[0], [0, 0.5, 0, 0.5, 0])
    np.testing.assert_allclose(out.embeddings[1], [0, 0, 0, 1, 0])
    np.testing.assert_allclose(out.embeddings[4], [0, 0, 0, 0, 1])
    assert out.scores[0] == jnp.inf
    out = shtopk.iterative_topk(embeddings, scores.at[2].set(jnp.nan), 2)
    assert np.all(np.isnan(out.embeddings[0, 2]))
    np.testing.assert_allclose(out.embeddings[1], [0, 0.5, 0, 0.5, 0])
