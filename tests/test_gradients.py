"""Gradients four ways: a closed form, finite differences of the oracle, VJP against JVP, and second order."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.flatten_util import ravel_pytree

import shtopk

BOOSTS = {
    "scaled": (shtopk.Scaled(1.5), lambda units: reference.scaled(1.5)),
    "power": (shtopk.Power(3.0), lambda units: reference.power(3.0)),
    "relative": (shtopk.Relative(2.0), lambda units: reference.relative(2.0, 0.75, units)),
}


def spaced(n, d=3, seed=0):
    """Embeddings, and scores far enough apart for a finite difference to change no rank."""
    rng = np.random.default_rng([seed, n])
    return rng.normal(size=(n, d)), rng.permutation(n) / 3 + rng.uniform(0, 0.1, n)


def with_a_derivative(*arguments, **options):
    """What of `topk` has a derivative: embeddings and scores."""
    out = shtopk.topk(*arguments, **options)
    return out.embeddings, out.scores


def test_two_for_one_in_closed_form():
    # E' = w E_0 + (1 - w) E_1 with w = sigmoid(C (v_0 - v_1)), so dE'/dv_0 = C w (1 - w) (E_0 - E_1).
    embeddings, scores, sharpness = jnp.array([[1.0, 2.0], [4.0, -1.0]]), jnp.array([0.7, 0.2]), 3.0
    w = reference.sigmoid(sharpness * 0.5)
    slope = sharpness * w * (1 - w)
    of_rows, of_slots = jax.jit(jax.jacrev(with_a_derivative, (0, 1)), static_argnums=2)(
        embeddings, scores, 1, boost=shtopk.Scaled(sharpness)
    )
    d_embeddings, d_scores = of_rows
    np.testing.assert_allclose(d_scores[0], slope * np.array([[-3.0, 3.0], [3.0, -3.0]]))
    np.testing.assert_allclose(d_embeddings[0, 0, :, 0], [w, 1 - w])
    # v' = w v_0 + (1 - w) v_1, so dv'/dv_0 = w + C w (1 - w) (v_0 - v_1).
    np.testing.assert_allclose(of_slots[1][0], [w + slope * 0.5, 1 - w - slope * 0.5])


# The last has no match to play, with any boost.
CASES = [*product([(8, 2), (11, 3), (5, 1)], BOOSTS, [True, False]), ((6, 6), "relative", True)]


@pytest.mark.parametrize(("size", "boost", "reseed"), CASES)
def test_against_finite_differences_of_the_oracle(size, boost, reseed):
    (n, k), (ours, theirs) = size, BOOSTS[boost]
    embeddings, scores = spaced(n)
    weights = np.random.default_rng(1).normal(size=(k, 3))
    units = []

    def loss(e, v):
        pooled, slots = reference.algorithm2(e, v, k, theirs(units), reseed)
        return np.sum(weights * pooled) + np.sum(slots**2)

    loss(embeddings, scores)
    units = units[: int(np.ceil(np.log2(n / k)))]

    def our_loss(e, v):
        out = shtopk.topk(e, v, k, boost=ours, reseed=reseed)
        return jnp.sum(weights * out.embeddings) + jnp.sum(out.scores**2)

    d_embeddings, d_scores = jax.jit(jax.grad(our_loss, (0, 1)))(embeddings, scores)
    want = reference.numeric_gradient(lambda e: loss(e, scores), embeddings)
    np.testing.assert_allclose(d_embeddings, want, rtol=1e-5, atol=1e-8)
    want = reference.numeric_gradient(lambda v: loss(embeddings, v), scores)
    np.testing.assert_allclose(d_scores, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 4), (33, 1), (40, 7), (100, 99)])
def test_vjp_and_jvp_are_transposes(n, k, reseed):
    embeddings, scores = spaced(n)
    rng = np.random.default_rng(2)

    def run(e, v, sharpness):
        options = {"boost": shtopk.Relative(sharpness), "reseed": reseed}
        return with_a_derivative(e, v, k, **options), shtopk.topk_mask(v, k, **options)

    arguments = jax.tree.map(jnp.asarray, (embeddings, scores, 3.0))
    tangents, cotangents = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape)), (arguments, jax.eval_shape(run, *arguments))
    )
    pushed, pulled = jax.jit(lambda x, t, c: (jax.jvp(run, x, t)[1], jax.vjp(run, *x)[1](c)))(
        arguments, tangents, cotangents
    )

    def inner(a, b):
        return sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    np.testing.assert_allclose(inner(pushed, cotangents), inner(tangents, pulled), rtol=1e-9)


@pytest.mark.parametrize("reseed", [True, False])
def test_second_order_in_both_modes(reseed):
    """A gradient is compared with differences of the value, and the Hessians with differences of that gradient."""
    x, unravel = ravel_pytree((*spaced(6, d=2), 1.5))
    x, steps = np.asarray(x), 1e-5 * np.eye(x.size)
    by_row, by_slot = np.random.default_rng(3).normal(size=(2, 2, 2))

    def loss(x):
        e, v, sharpness = unravel(x)
        rows, slots = with_a_derivative(e, v, 2, boost=shtopk.Scaled(sharpness), reseed=reseed)
        return jnp.sum(by_row * jnp.sin(rows)) + jnp.sum(by_slot[0] * jnp.sin(slots))

    @jax.jit
    def derivatives(x, near):
        modes = product([jax.jacfwd, jax.jacrev], repeat=2)
        hessians = [outer(inner(loss))(x) for outer, inner in modes]
        return hessians, jax.vmap(jax.vmap(jax.value_and_grad(loss)))(near)

    hessians, near = derivatives(x, np.stack([x + steps, x + 0 * steps, x - steps]))
    (up, _, down), (slope_up, slope, slope_down) = map(np.asarray, near)
    np.testing.assert_allclose(slope[0], (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
    for hessian in hessians:
        np.testing.assert_allclose(hessian, (slope_up - slope_down) / 2e-5, rtol=1e-5, atol=1e-8)


def test_the_permutation_has_no_derivative():
    # With an even mix whatever the scores, only the sort depends on them, and it passes nothing on.
    embeddings, scores = map(jnp.asarray, spaced(16))
    gradient = jax.grad(
        lambda v: jnp.sum(shtopk.topk(embeddings, v, 4, boost=shtopk.Scaled(0.0)).embeddings ** 2)
    )
    np.testing.assert_array_equal(jax.jit(gradient)(scores), 0)


# What a gradient is not


@pytest.mark.parametrize(
    ("n", "k", "sharpness", "seeds", "cosine", "wrong"),
    [(300, 7, 6.0, 4, (0.95, 1.0), (0.1, 0.25)), (8, 2, 1.0, 40, (0.5, 0.7), (0.2, 0.33))],
)
def test_how_near_the_gradient_of_relative_is_to_the_slope(n, k, sharpness, seeds, cosine, wrong):
    """Its unit is held constant. Central differences of the mask, over scores of which none cross."""
    step = 1e-7
    mask = jax.jit(lambda v: shtopk.topk_mask(v, k, boost=shtopk.Relative(sharpness)))
    jacobian = jax.jit(jax.jacrev(mask))
    cosines, wrongs = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        v, weights = rng.normal(size=n), rng.normal(size=n)
        moves = step * np.eye(n)
        slope = (mask(v + moves) - mask(v - moves)) @ weights / (2 * step)
        gradient = weights @ np.asarray(jacobian(v))
        cosines.append(gradient @ slope / np.linalg.norm(gradient) / np.linalg.norm(slope))
        steep = np.abs(slope) > 1e-3 * np.abs(slope).max()
        wrongs.append(np.mean(np.sign(gradient) != np.sign(slope), where=steep))
    assert cosine[0] < np.mean(cosines) < cosine[1]
    assert wrong[0] < np.mean(wrongs) < wrong[1]


def test_a_mask_jumps_where_neighbours_cross():
    """Each pair of neighbours brought together, then put in this order and in that."""
    n, k = 300, 7
    scores = np.sort(np.random.default_rng(0).normal(size=n))
    pair = np.eye(n)[1:] + np.eye(n)[:-1]
    met = np.where(pair == 1, (scores[1:, None] + scores[:-1, None]) / 2, scores)
    step = 1e-9 * (np.eye(n)[1:] - np.eye(n)[:-1])
    before, after = shtopk.topk_mask(met - step, k), shtopk.topk_mask(met + step, k)
    assert np.abs(before - after).max() > 1e-2


def test_a_mask_jumps_where_a_round_comes_to_span_clusters():
    """A known limit: the second gap comes to exceed 100 times the first, which is then the unit."""
    before, after = (
        shtopk.topk_mask(jnp.array([0.0, second, -0.06, -1.0]), 2) for second in (-0.0099, -0.01)
    )
    np.testing.assert_allclose(before, [1, 1, 0, 0], atol=1e-2)
    np.testing.assert_allclose(after, [1, 0.74, 0.26, 0], atol=1e-2)


def test_a_tie_is_even_only_where_the_two_play():
    tie = jnp.array([5.0, 5.0, 1.0, 0.0])
    np.testing.assert_allclose(shtopk.topk_mask(tie, 1), [0.999, 0, 0, 0.001], atol=1e-3)
    np.testing.assert_allclose(
        shtopk.topk_mask(tie, 1, boost=shtopk.Scaled(2.0)), [0.501, 0.499, 0, 0], atol=1e-3
    )
    np.testing.assert_allclose(shtopk.topk_mask(jnp.array([5.0, 5.0]), 1), 0.5)
    np.testing.assert_allclose(shtopk.topk_mask(jnp.full(4, 5.0), 1), 0.25)
