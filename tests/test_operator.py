"""topk and hard_topk against the paper's listing, and their options one by one."""

from functools import partial
from itertools import product
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk

SIZES = [
    (1, 1),
    (2, 1),
    (5, 1),
    (5, 4),
    (7, 7),
    (9, 2),
    (16, 2),
    (64, 63),
    (100, 17),
    (60, 7),
    (1024, 513),
]
BOOSTS = {
    "scaled": (shtopk.Scaled(3.0), reference.scaled(3.0)),
    "power": (shtopk.Power(20.0), reference.power(20.0)),
    "relative": (shtopk.Relative(2.0, 0.6), reference.relative(2.0, 0.6)),
    "default": (shtopk.Relative(), reference.relative(6.0, 0.75)),
}


def batch(n, d=3, rows=3, seed=0):
    """Uniform, normal and heavy-tailed scores, one row of each."""
    rng = np.random.default_rng([seed, n])
    scores = np.stack([rng.uniform(size=n), rng.normal(size=n), np.cbrt(rng.standard_cauchy(n))])
    return rng.uniform(-1, 1, (rows, n, d)), scores[:rows]


def expected(embeddings, scores, k, boost, reseed=True):
    each = [reference.algorithm2(e, v, k, boost, reseed) for e, v in zip(embeddings, scores, strict=True)]
    return np.stack([e for e, _ in each]), np.stack([v for _, v in each])


def compare(n, k, boost, reseed, seed=0):
    ours, theirs = BOOSTS[boost]
    embeddings, scores = batch(n, seed=seed)
    out = shtopk.topk(embeddings, scores, k, boost=ours, reseed=reseed)
    want_embeddings, want_scores = expected(embeddings, scores, k, theirs, reseed)
    np.testing.assert_allclose(out.embeddings, want_embeddings, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(out.scores, want_scores, rtol=1e-9, atol=1e-9)


# One with slots of more members than are added up at once, and one with more rounds than are written out.
# test_rounds.py plays such rounds with a single sort.
@pytest.mark.parametrize(
    ("size", "reseed"), [*product(SIZES, [True, False]), ((33, 1), False), ((1025, 1), True)]
)
def test_is_algorithm_2(size, reseed):
    n, k = size
    compare(n, k, "default" if reseed else "scaled", reseed)


@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize("boost", BOOSTS)
@pytest.mark.parametrize(("n", "k"), [(9, 2), (65, 32)])
def test_every_boost_is_the_papers(n, k, boost, reseed):
    compare(n, k, boost, reseed, seed=1)


def three_quarters(high, low, where):
    return 0.75 + 0 * high


variants: Any = chex.variants  # which chex types as `object`


class TestByHand(chex.TestCase):
    """With and without `jit`, of NumPy's arrays and of JAX's."""

    @variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_a_tournament(self):
        # 4 plays 1 and 3 plays 2; each winner takes 3/4.
        scores = np.array([1.0, 4.0, 2.0, 3.0])
        out = self.variant(lambda e, v: shtopk.topk(e, v, 2, boost=three_quarters))(scores[:, None], scores)
        np.testing.assert_allclose(out.scores, [0.75 * 4 + 0.25 * 1, 0.75 * 3 + 0.25 * 2])
        np.testing.assert_allclose(out.embeddings[:, 0], out.scores)

    @variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_a_qualifying_round(self):
        # Six for two slots: four survive the first round, so 6 and 5 have byes; 4 plays 1, 3 plays 2.
        scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        out = self.variant(lambda e, v: shtopk.topk(e, v, 2, boost=three_quarters))(scores[:, None], scores)
        three_two, four_one = 0.75 * 3 + 0.25 * 2, 0.75 * 4 + 0.25 * 1
        np.testing.assert_allclose(out.scores, [0.75 * 6 + 0.25 * three_two, 0.75 * 5 + 0.25 * four_one])


def test_leading_axes_vmap_and_a_loop_agree():
    embeddings, scores = batch(14, rows=3)
    together = shtopk.topk(embeddings, scores, 6)
    mapped = jax.vmap(lambda e, v: shtopk.topk(e, v, 6))(embeddings, scores)
    alone = [shtopk.topk(e, v, 6) for e, v in zip(embeddings, scores, strict=True)]
    nested = shtopk.topk(embeddings[:, None], scores[:, None], 6)
    for got in (
        mapped,
        jax.tree.map(lambda *x: np.stack(x), *alone),
        jax.tree.map(lambda x: x[:, 0], nested),
    ):
        np.testing.assert_allclose(got.embeddings, together.embeddings, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(got.scores, together.scores, rtol=1e-12)


@pytest.mark.parametrize("axes", [(None, 0), (0, None)])
def test_vmap_with_one_argument_shared(axes):
    embeddings, scores = batch(12)
    shared = [x if axis == 0 else x[0] for x, axis in zip((embeddings, scores), axes, strict=True)]
    whole = [np.broadcast_to(x, full.shape) for x, full in zip(shared, (embeddings, scores), strict=True)]

    def run(e, v):
        return shtopk.topk(e, v, 4)

    def gradient_and_slots(f):
        def loss(e, v):
            slots = f(e, v).embeddings
            return jnp.sum(jnp.sin(slots)), slots

        return jax.grad(loss, (0, 1), has_aux=True)

    (got, slots), (want, want_slots) = jax.jit(
        lambda shared, whole: (
            gradient_and_slots(jax.vmap(run, axes))(*shared),
            gradient_and_slots(run)(*whole),
        )
    )(shared, whole)
    np.testing.assert_allclose(slots, want_slots, rtol=1e-12)
    for g, w, axis in zip(got, want, axes, strict=True):
        np.testing.assert_allclose(g, w if axis == 0 else w.sum(0), rtol=1e-9, atol=1e-12)


def test_payload_may_be_a_pytree_of_any_features():
    _, scores = batch(12)
    rng = np.random.default_rng(0)
    payload = {
        "tokens": rng.normal(size=(3, 12, 4, 5)),
        "mass": (rng.normal(size=(3, 12)), np.zeros((3, 12, 0))),
    }
    out = shtopk.topk(payload, scores, 3)
    matrix = shtopk.select(scores, 3).matrix()
    np.testing.assert_allclose(
        out.embeddings["tokens"], np.einsum("bkn,bnij->bkij", matrix, payload["tokens"]), rtol=1e-12
    )
    np.testing.assert_allclose(
        out.embeddings["mass"][0], np.einsum("bkn,bn->bk", matrix, payload["mass"][0]), rtol=1e-12
    )
    assert out.embeddings["mass"][1].shape == (3, 3, 0)


def test_half_precision_is_rounded_once():
    """Thousands of rows in one slot, each with its float32 weight."""
    n, rng = 4096, np.random.default_rng(0)
    rows, weights = jnp.asarray(rng.normal(size=(n, 8)), jnp.bfloat16), rng.uniform(size=(1, n)) * 2 / n
    every = jnp.asarray(np.arange(n), jnp.int32)
    slot = shtopk.Selection(every[None], jnp.asarray(weights, jnp.float32), jnp.zeros(1), every, n)
    got = slot.pool(rows)
    assert got.dtype == jnp.bfloat16
    wide = np.asarray(rows, np.float64)
    want = np.asarray(slot.weights, np.float64) @ wide
    summed = 1e-5 * (weights @ np.abs(wide))  # of roundings in float32
    assert np.all(np.abs(np.asarray(got, np.float64) - want) <= 2**-8 * np.abs(want) + summed)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_scores_of_a_dtype_that_jax_lacks_are_refused(dtype):
    with pytest.raises(TypeError, match="scores must"):
        shtopk.topk(jnp.eye(4), np.arange(4.0).astype(dtype), 2)


@pytest.mark.parametrize("reseed", [True, False])
def test_candidates_are_the_best_scores_alone(reseed):
    embeddings, scores = batch(24)
    best = np.sort(np.argsort(-scores, axis=-1)[:, :10], axis=-1)

    def loss(e, v):
        slots = shtopk.topk(e, v, 4, candidates=10, reseed=reseed).embeddings
        return jnp.sum(slots**2), slots

    (d_embeddings, d_scores), slots = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(embeddings, scores)
    narrow = shtopk.topk(
        np.take_along_axis(embeddings, best[..., None], 1),
        np.take_along_axis(scores, best, 1),
        4,
        reseed=reseed,
    )
    np.testing.assert_allclose(slots, narrow.embeddings, rtol=1e-12, atol=1e-12)
    outside = np.ones((3, 24), bool)
    np.put_along_axis(outside, best, False, 1)
    assert np.all(np.asarray(d_embeddings)[outside] == 0)
    assert np.all(np.asarray(d_scores)[outside] == 0)
    assert np.all(np.asarray(d_scores).any(-1))


@pytest.mark.parametrize("order", ["score", "position"])
def test_straight_through_is_hard_forward_and_soft_backward(order):
    def results(e, v, straight_through):
        def run(e, v):
            out = shtopk.topk(e, v, 5, straight_through=straight_through, order=order)
            return out[:2], out.indices

        slots, tangents, indices = jax.jvp(run, (e, v), (jnp.ones_like(e), jnp.sin(v)), has_aux=True)
        _, pullback, _ = jax.vjp(run, e, v, has_aux=True)
        return (*slots, indices), (tangents, pullback((jnp.cos(e[:, :5]), jnp.cos(v[:, :5]))))

    @jax.jit
    def both(e, v):
        return shtopk.hard_topk(e, v, 5, order=order), results(e, v, True), results(e, v, False)

    hard, (through, got), (_, want) = both(*batch(14))
    jax.tree.map(np.testing.assert_array_equal, through, tuple(hard))
    same = partial(np.testing.assert_allclose, rtol=1e-14)  # the two may round apart
    jax.tree.map(same, got, want)


@pytest.mark.parametrize("reseed", [False, True])
@pytest.mark.parametrize("order", ["score", "position"])
def test_a_hard_row_has_the_gradient_of_its_own_soft_slot(order, reseed):
    """The soft slots of these scores are in another order (sorted again), or have other champions."""
    options = {"boost": shtopk.Scaled(0.1), "reseed": reseed}

    @jax.jit
    def results(e, v):
        def rows(e):
            return shtopk.topk(e, v, 2, straight_through=True, order=order, **options).embeddings[:, 0]

        own = jax.jacobian(rows)(e)[:, :, 0]  # (rows, candidates)
        index = shtopk.hard_topk(e, v, 2, order=order).indices
        return own, index, shtopk.select(v, 2, **options).matrix()

    scores = np.array([-0.1, 2.9, 0.5, 0.4, 3.0, 0.3, 0.2, 0.1])
    own, index, matrix = map(np.asarray, results(np.eye(8), scores))
    slot = np.argmax(matrix[:, index] > 0, axis=0)
    np.testing.assert_allclose(own, matrix[slot], rtol=1e-12)


def test_order_by_position_follows_the_champions():
    embeddings, scores = batch(32)
    selection = shtopk.select(scores, 8)
    by_score = shtopk.topk(embeddings, scores, 8)
    by_position = shtopk.topk(embeddings, scores, 8, order="position")
    rank = np.argsort(selection.champions, axis=-1)
    by_score = jax.tree.map(np.asarray, by_score)
    np.testing.assert_array_equal(by_position.scores, np.take_along_axis(by_score.scores, rank, 1))
    np.testing.assert_allclose(
        by_position.embeddings, np.take_along_axis(by_score.embeddings, rank[..., None], 1), rtol=1e-12
    )


def test_hard_topk_by_hand():
    scores = jnp.array([0.5, 2.0, -1.0, 2.0, jnp.inf])
    embeddings = jnp.arange(5.0)[:, None]
    out = shtopk.hard_topk(embeddings, scores, 3)
    assert out.embeddings[:, 0].tolist() == [4, 1, 3]  # the tie goes to the lower index
    assert out.scores.tolist() == [jnp.inf, 2, 2]
    out = shtopk.hard_topk(embeddings, scores, 3, order="position")
    assert out.embeddings[:, 0].tolist() == [1, 3, 4]
    out = shtopk.hard_topk(embeddings, scores, 3, where=jnp.array([True, False, True, False, False]))
    assert out.embeddings[:, 0].tolist() == [0, 2, 0]
    assert out.scores.tolist() == [0.5, -1, -jnp.inf]
    out = shtopk.hard_topk(
        embeddings, scores, 3, where=jnp.array([False, False, True, True, False]), order="position"
    )
    assert out.embeddings[:, 0].tolist() == [2, 3, 0]


def test_hard_topk_sends_gradients_to_the_chosen_rows():
    embeddings, scores = batch(12, rows=1)
    gradient = jax.grad(lambda e, v: sum(jnp.sum(x) for x in shtopk.hard_topk(e, v, 3)[:2]), (0, 1))
    d_embeddings, d_scores = jax.jit(gradient)(embeddings, scores)
    chosen = np.zeros((1, 12))
    np.put_along_axis(chosen, np.argsort(-scores)[:, :3], 1, 1)
    np.testing.assert_array_equal(d_scores, chosen)
    np.testing.assert_array_equal(d_embeddings, np.repeat(chosen[..., None], 3, -1))


def test_sharper_is_closer_to_hard():
    embeddings, scores = batch(256, d=8)
    hard = shtopk.hard_topk(embeddings, scores, 16).embeddings
    quality = [
        np.mean(shtopk.nccs(hard, shtopk.topk(embeddings, scores, 16, boost=shtopk.Relative(c)).embeddings))
        for c in (0.5, 2.0, 8.0, 1e9)
    ]
    assert quality == sorted(quality)
    np.testing.assert_allclose(quality[-1], 1)
