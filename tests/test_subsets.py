"""A selection as a distribution over subsets, and slots drawn from it."""

from dataclasses import replace
from itertools import combinations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk

N, K = 7, 3
V = jnp.asarray(np.random.default_rng(0).normal(size=(2, N)))
E = jnp.asarray(np.random.default_rng(1).normal(size=(2, N, 4)))
SUBSETS = np.array(list(combinations(range(N), K)))
CASES = {
    "as it comes": {},
    "reseed": {"reseed": True},
    "where": {"where": jnp.arange(N) % 3 != 1},
    "candidates": {"candidates": 5},
}
FOR_EVERY_CASE = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


@jax.jit
def log_prob(selection, indices):
    return selection.log_prob(indices)


def probabilities(selection):
    """The probability of every subset, `(subsets, ...)`."""
    return np.exp(jax.vmap(log_prob, (None, 0))(selection, SUBSETS))


@FOR_EVERY_CASE
def test_probabilities_of_all_subsets_by_enumeration(options):
    selection = shtopk.select(V, K, boost=shtopk.Scaled(1.0), **options)
    p = probabilities(selection)
    np.testing.assert_allclose(p.sum(0), 1, rtol=1e-12)
    member = (SUBSETS[:, :, None] == np.arange(N)).any(1)
    np.testing.assert_allclose(p.T @ member, selection.mask(), rtol=1e-12, atol=1e-15)
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), 0)
    np.testing.assert_allclose(selection.entropy(), entropy, rtol=1e-12)


@FOR_EVERY_CASE
def test_samples_have_the_marginals_of_the_mask(options):
    """And subsets have theirs: the slots are independent of each other, and so are the rows of a batch."""
    selection = shtopk.select(V, K, boost=shtopk.Scaled(1.0), **options)
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.asarray(jax.jit(jax.vmap(selection.sample))(keys))
    assert draws.shape == (4000, 2, K)
    assert draws.dtype == np.int32
    hits = (draws[..., None] == np.arange(N)).sum(2)
    assert hits.max() == 1  # distinct
    mask, subsets = np.asarray(selection.mask()), probabilities(selection)
    drawn = np.all(np.sort(draws) == SUBSETS[:, None, None], axis=-1)  # (subsets, draws, batch)
    both = np.einsum("ti,tj->ij", hits[:, 0], hits[:, 1]) / 4000
    for found, p in ((hits.mean(0), mask), (drawn.mean(1), subsets), (both, np.outer(*mask))):
        assert np.all(np.abs(found - p) <= 4.5 * np.sqrt(p * np.maximum(1 - p, 0) / 4000) + 1e-12)


def test_the_order_of_the_indices_does_not_matter():
    selection = shtopk.select(V, K)
    indices = selection.sample(jax.random.key(1))
    logs = log_prob(selection, indices)
    np.testing.assert_allclose(logs, log_prob(selection, indices[:, ::-1]), rtol=1e-12)
    chex.assert_tree_all_finite(logs)


@pytest.mark.parametrize(("n", "dtype"), [(128, jnp.int8), (300, jnp.uint8), (300, jnp.uint32)])
def test_indices_may_be_integers_too_narrow_for_n(n, dtype):
    selection = shtopk.select(jnp.arange(float(n)), n // 2, boost=shtopk.Scaled(0.0))
    indices = jnp.min(selection.indices, axis=-1)  # one of each slot
    want = selection.log_prob(indices)
    assert want > -jnp.inf
    np.testing.assert_array_equal(selection.log_prob(indices.astype(dtype)), want)


def test_subsets_that_cannot_be_drawn_have_probability_zero():
    where = jnp.array([True] * 6 + [False])
    selection = shtopk.select(V[0], 2, where=where, boost=shtopk.Scaled(1.0))
    a, b, *_ = selection.indices[0].tolist()
    c = selection.indices[1, 0].item()
    for indices in ([a, b], [a, a], [6, c], [a, N], [-1, c], [N + 1, c], [N, N]):
        assert log_prob(selection, np.array(indices)) == -jnp.inf, indices
    assert log_prob(selection, np.array([a, c])) > -jnp.inf


def test_a_subset_that_cannot_be_drawn_has_gradient_0():
    """A row outside `where`, and one of weight 0."""
    cases = [
        (jnp.array([0.0, 3.0, 1.0, 2.0]), jnp.array([True, True, True, False]), jnp.array([3, 2])),
        (jnp.array([0.0, 900.0, 1.0, 2.0]), None, jnp.array([0, 3])),
    ]
    for scores, where, indices in cases:

        def of_scores(v, where=where, indices=indices):
            return shtopk.select(v, 2, boost=shtopk.Scaled(1.0), where=where).log_prob(indices)

        value, gradient = jax.jit(jax.value_and_grad(of_scores))(scores)
        assert value == -jnp.inf
        np.testing.assert_array_equal(gradient, jnp.zeros(4))


def test_a_surplus_slot_draws_nothing():
    where = jnp.arange(N) == 4
    selection = shtopk.select(V[0], K, where=where)
    assert selection.sample(jax.random.key(0)).tolist() == [4, N, N]
    assert selection.champions.tolist() == [4, N, N]
    assert log_prob(selection, np.array([N, 4, N])) == 0
    assert log_prob(selection, np.array([4, 4, N])) == -jnp.inf
    assert str(selection.entropy()) == "0.0"  # not -0.0


def test_log_prob_broadcasts_over_many_subsets():
    selection = shtopk.select(V, K)
    draws = jnp.stack([selection.sample(jax.random.key(i)) for i in range(3)])
    many = selection.log_prob(draws)
    assert many.shape == (3, 2)
    np.testing.assert_allclose(many[1], selection.log_prob(draws[1]), rtol=1e-12)
    one = shtopk.select(V[0], K)
    np.testing.assert_allclose(one.log_prob(draws[:, 0]), many[:, 0], rtol=1e-12)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 300.0])
def test_gradients_of_log_prob_and_entropy_are_finite(sharpness, x32):
    scores = V.astype(jnp.float32)
    draws = shtopk.select(scores, K, boost=shtopk.Scaled(sharpness)).sample(jax.random.key(0))

    def both(v):
        selection = shtopk.select(v, K, boost=shtopk.Scaled(sharpness))
        return jnp.sum(selection.log_prob(draws)) + jnp.sum(selection.entropy())

    chex.assert_tree_all_finite(jax.jit(jax.grad(both))(scores))


def test_the_gradient_of_log_prob_of_all_subsets_is_finite(x32):
    def total(v):
        return jnp.sum(shtopk.select(v, K).log_prob(jnp.asarray(SUBSETS[:, None])))

    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(V.astype(jnp.float32)))


@pytest.mark.parametrize("of", ["entropy", "log_prob"])
def test_half_precision_weights_have_the_gradient_of_float32(of):
    selection = shtopk.select(V.astype(jnp.float32), K, boost=shtopk.Scaled(1.0))
    weights, arguments = selection.weights.astype(jnp.float16), [selection.champions] * (of == "log_prob")

    @jax.jit
    @jax.grad
    def gradient(weights):
        return getattr(replace(selection, weights=weights), of)(*arguments).sum()

    got, want = gradient(weights), gradient(weights.astype(jnp.float32))
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-9, atol=2**-9)


def test_the_score_function_has_mean_zero():
    """sum_S p(S) d log p(S) = d sum_S p(S) = 0."""

    def total(v):
        selection = shtopk.select(v, K, boost=shtopk.Scaled(1.0))
        logs = jax.vmap(selection.log_prob)(jnp.asarray(SUBSETS))
        p = jax.lax.stop_gradient(jnp.exp(logs))
        return jnp.sum(jnp.where(p > 0, p * logs, 0))

    np.testing.assert_allclose(jax.jit(jax.grad(total))(V), 0, atol=1e-12)


# Drawn slots


def test_draw_0_is_the_mixture_and_draw_1_a_row():
    key = jax.random.key(0)
    plain = shtopk.topk(E, V, K)
    mixture, row = (shtopk.topk(E, V, K, draw=t, key=key) for t in (0.0, 1.0))  # one program: t is traced
    np.testing.assert_allclose(mixture.embeddings, plain.embeddings, rtol=1e-12)
    np.testing.assert_allclose(mixture.scores, plain.scores, rtol=1e-12)
    np.testing.assert_array_equal(row.indices, shtopk.select(V, K).sample(key))
    np.testing.assert_array_equal(row.embeddings, jnp.take_along_axis(E, row.indices[..., None], 1))
    np.testing.assert_array_equal(row.scores, jnp.take_along_axis(V, row.indices, 1))
    part = shtopk.topk(E, V, K, draw=jnp.asarray(0.3), key=key)
    np.testing.assert_allclose(part.embeddings, 0.7 * plain.embeddings + 0.3 * row.embeddings, rtol=1e-12)
    np.testing.assert_allclose(part.scores, 0.7 * plain.scores + 0.3 * row.scores, rtol=1e-12)


def test_the_mean_of_drawn_slots_is_the_mixture():
    boost, keys = shtopk.Scaled(1.0), jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(
        jax.vmap(lambda key: shtopk.topk(E, V, K, boost=boost, draw=1.0, key=key).embeddings)(keys)
    )
    want = shtopk.topk(E, V, K, boost=boost).embeddings
    error = drawn.std(0) / np.sqrt(4000)
    assert np.all(np.abs(drawn.mean(0) - want) <= 4.5 * error + 1e-12)


def test_gradients_of_drawn_slots():
    """Weights: as the mixture. Payload: where the values came from."""
    key, boost, t = jax.random.key(0), shtopk.Scaled(1.0), 0.6
    cotangent = np.cos(np.arange(2.0 * K * 4)).reshape(2, K, 4)

    def loss(e, v, **options):
        out = shtopk.topk(e, v, K, boost=boost, **options)
        return jnp.sum(cotangent * out.embeddings), out.indices

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (d_payload, d_scores), drawn = gradient(E, V, draw=t, key=key)
    (mixed, want), _ = gradient(E, V)
    np.testing.assert_allclose(d_scores, want, rtol=1e-9, atol=1e-12)
    row = np.zeros(E.shape)
    np.put_along_axis(row, np.asarray(drawn)[..., None], cotangent, 1)
    np.testing.assert_allclose(d_payload, (1 - t) * mixed + t * row, rtol=1e-9, atol=1e-12)


def test_the_fraction_drawn_has_gradient_0():
    def loss(t):
        return shtopk.topk(E, V, K, draw=t, key=jax.random.key(0)).embeddings.sum()

    assert jax.jit(jax.grad(loss))(0.5) == 0


@pytest.mark.parametrize("boost", [shtopk.Relative(), shtopk.Scaled(1.0)])
def test_drawn_scores_beside_minus_infinity_have_a_gradient(boost):
    scores = jnp.array([0.0, 3.0, 1.0, -jnp.inf, -jnp.inf, 2.0])

    def loss(v, where=None):
        options = {"boost": boost, "draw": 0.5, "key": jax.random.key(0), "where": where}
        return shtopk.topk(jnp.eye(6), v, 2, **options).scores.sum()

    gradient = jax.jit(jax.grad(loss))
    got, want = gradient(scores), jax.jit(jax.jacfwd(loss))(scores)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(got, gradient(scores, scores > -jnp.inf), rtol=1e-9)


def test_drawn_slots_in_order_of_position():
    key = jax.random.key(0)
    by_score, by_position = (
        shtopk.topk(E, V, K, boost=shtopk.Scaled(0.3), draw=0.4, key=key, order=order)
        for order in ("score", "position")
    )
    rank = jnp.argsort(by_score.indices, axis=-1)
    np.testing.assert_array_equal(by_position.indices, jnp.sort(by_score.indices, axis=-1))
    want = jnp.take_along_axis(by_score.embeddings, rank[..., None], 1)
    np.testing.assert_allclose(by_position.embeddings, want, rtol=1e-12)


def test_a_surplus_slot_stays_empty_when_drawn():
    where = jnp.arange(N) < 2
    for order in ("score", "position"):

        def loss(v, t, order=order):
            out = shtopk.topk(E, v, K, where=where, draw=t, key=jax.random.key(0), order=order)
            return jnp.sum(out.embeddings), out

        gradient = jax.jit(jax.grad(loss, has_aux=True))
        out = jax.tree.map(np.asarray, gradient(V, 1.0)[1])
        assert np.all(out.indices[:, 2] == N)
        assert np.all(out.embeddings[:, 2] == 0)
        assert np.all(out.scores[:, 2] == -jnp.inf)
        chex.assert_tree_all_finite(gradient(V, 0.5)[0])


def test_old_style_keys_are_keys():
    key = jax.random.PRNGKey(0)
    np.testing.assert_array_equal(
        shtopk.topk(E, V, K, draw=1.0, key=key).indices, shtopk.select(V, K).sample(key)
    )


# The rows behind the slots


def test_indices_of_every_way_to_choose():
    where = jnp.max(V, axis=-1, keepdims=True) > V
    order = np.argsort(-np.where(where, V, -np.inf), axis=-1)[:, :K]
    for out in (
        shtopk.topk(E, V, K, where=where),
        shtopk.hard_topk(E, V, K, where=where),
        shtopk.topk(E, V, K, where=where, straight_through=True),
        shtopk.iterative_topk(E, V, K, where=where),
    ):
        assert out.indices.dtype == jnp.int32
        np.testing.assert_array_equal(out.indices, order)
    few = jnp.arange(N) < 2
    for out in (
        shtopk.topk(E, V, K, where=few),
        shtopk.hard_topk(E, V, K, where=few, order="position"),
        shtopk.iterative_topk(E, V, K, where=few),
    ):
        assert np.all(out.indices[:, 2] == N)


def test_hard_topk_gathers_payloads_of_any_dtype():
    payload = {"id": jnp.arange(2 * N).reshape(2, N), "name": V > 0, "z": V.astype(complex)}
    out = shtopk.hard_topk(payload, V, K)
    jax.tree.map(
        lambda x, rows: np.testing.assert_array_equal(rows, jnp.take_along_axis(x, out.indices, 1)),
        payload,
        out.embeddings,
    )


# Shared payloads


@pytest.mark.parametrize(
    "choose", [shtopk.topk, shtopk.hard_topk, shtopk.iterative_topk], ids=lambda f: f.__name__
)
def test_a_leading_axis_of_size_1_is_shared(choose):
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(3, 2, 4))
    for shape, features in (((1, 1), (4,)), ((1, 2), ()), ((3, 1), (2, 3))):
        payload = rng.normal(size=(*shape, 4, *features))

        def loss(payload, scores):
            out = choose(payload, scores, K)
            return jnp.sum(jnp.sin(out.embeddings)), out

        def copied(payload, scores):
            return loss(jnp.broadcast_to(payload, (3, 2, *payload.shape[2:])), scores)

        def both(*arguments, losses=(loss, copied)):
            return [jax.grad(f, (0, 1), has_aux=True)(*arguments) for f in losses]

        got, want = jax.jit(both)(payload, scores)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def test_experts_share_their_tokens():
    tokens, scores = np.asarray(E[0]), np.stack([V[0], V[1], -V[0]])  # three experts
    selection = shtopk.select(scores, 2)
    np.testing.assert_allclose(
        selection.pool(tokens[None]), np.asarray(selection.matrix()) @ tokens, rtol=1e-12
    )


def test_a_batch_of_no_rows_adds_up_to_zeros():
    scores, shared = jnp.zeros((0, 8)), jnp.ones((1, 8, 2))
    rows = shtopk.select(scores, 2).unpool(jnp.ones((0, 2, 2)), sum_axis=0)
    np.testing.assert_array_equal(rows, np.zeros((8, 2)))
    gradient = jax.jit(jax.grad(lambda e: shtopk.topk(e, scores, 2).embeddings.sum()))(shared)
    np.testing.assert_array_equal(gradient, np.zeros((1, 8, 2)))
