"""The parts: seeding, a match, the schedule of rounds, and pooling as a bilinear operation."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk
from shtopk import _pooling, _reorder, _rounds
from shtopk._seeding import seed_order


def test_seeds_by_hand():
    nan, inf = jnp.nan, jnp.inf
    scores = jnp.array([0.0, -inf, nan, 2.0, inf, -0.0, -nan, 2.0, -1.0])
    assert seed_order(scores)[0].tolist() == [2, 6, 4, 3, 7, 0, 5, 8, 1]
    assert seed_order(scores, best=4)[0].tolist() == [2, 6, 4, 3]
    live = jnp.array([True, True, False, True, False, True, True, True, True])
    order, ranked = seed_order(scores, live)
    assert order.tolist() == [6, 3, 7, 0, 5, 8, 1, 2, 4]
    np.testing.assert_array_equal(ranked, [nan, 2, 2, 0, 0, -1, -inf, 0, 0])  # the rows that are not live: 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_seeds_are_a_stable_descending_sort(dtype):
    scores = jnp.asarray(np.random.default_rng(0).normal(size=500).round(1), dtype)
    wide = np.asarray(scores, np.float64)
    expected = np.argsort(-wide, kind="stable")
    for best in (None, 40):
        order, ranked = seed_order(scores, best=best)
        np.testing.assert_array_equal(order, expected[:best])
        np.testing.assert_array_equal(ranked, wide[expected[:best]])


@pytest.mark.parametrize(
    ("n", "k", "rounds"), [(1, 1, 0), (8, 8, 0), (8, 7, 1), (8, 2, 2), (9, 2, 3), (16384, 2, 13), (3, 1, 2)]
)
def test_round_count(n, k, rounds):
    assert _rounds.round_count(n, k) == rounds == int(np.ceil(np.log2(n / k)))


def test_a_match_a_bye_and_an_infinity_by_hand():
    high, low = jnp.array([3.0, 4.0, jnp.inf, 1.0]), jnp.array([9.0, 0.0, 1.0, -jnp.inf])
    played = jnp.array([False, True, True, True])
    share, score = _rounds.match(high, low, played, None, lambda high, low, where: jnp.full_like(high, 0.75))
    assert share.tolist() == [0.0, 0.25, 0.0, 0.0]
    assert score.tolist() == [3.0, 3.0, jnp.inf, 1.0]


def test_places_for_a_traced_k_by_hand():
    """Eleven seeds in blocks of three: 0 1 2, 5 4 3, 6 7 8 and (11) 10 9, in the order of the Gray codes 0, 1, 3, 2."""
    places, seeds, rounds = _rounds._by_slot(11, 3, 32)
    assert rounds == 2
    blocks = seeds.reshape(4, 8)  # block 0 plays block 3, block 1 plays block 2; then block 0 plays block 1
    assert blocks[:, :3].tolist() == [[0, 1, 2], [5, 4, 3], [11, 10, 9], [6, 7, 8]]
    assert np.all(blocks[:, 3:] == 11)
    assert seeds[places].tolist() == list(range(11))


def test_a_boost_sees_finite_scores_only():
    seen = []

    def boost(high, low, where):
        jax.debug.callback(lambda *x: seen.append(x), high, low, where)
        return jnp.full_like(high, 0.5)

    scores = jnp.array([jnp.inf, 5.0, 4.0, 3.0, 2.0, jnp.nan, -jnp.inf])
    shtopk.topk_mask(scores, 2, boost=boost, where=scores != 4).block_until_ready()
    jax.effects_barrier()
    assert seen
    chex.assert_tree_all_finite(seen)


@pytest.mark.parametrize("reseed", [True, False])
def test_where_the_loop_begins_changes_nothing(reseed, monkeypatch):
    """Neither values nor gradients: if all entries are live, if some have byes, and if a slot stays empty.

    Nor does the barrier that follows the products of the weights in a large slot.
    """
    rng = np.random.default_rng(0)
    scores, by_seed, by_slot = np.sort(rng.normal(size=48))[::-1], rng.normal(size=48), rng.normal(size=3)

    def gradients(opening, many):
        def loss(v, count):
            slots, weights, seeds = out = _rounds.play(v, count, count, 3, shtopk.Relative(), reseed)
            slots = jnp.where(slots > -jnp.inf, slots, 0)
            return by_slot @ slots + jnp.asarray(by_seed)[seeds] @ weights, out

        monkeypatch.setattr(_rounds, "OPENING", opening)
        monkeypatch.setattr(_rounds, "MANY", many)
        gradient = jax.jit(jax.grad(loss, has_aux=True))
        return [gradient(np.where(np.arange(48) < count, scores, 0), count) for count in (48, 29, 2)]

    written_out = gradients(20, many=16)  # there are four rounds, and 16 members in each slot
    for opening in (0, 1):
        chex.assert_trees_all_close(gradients(opening, many=15), written_out, rtol=1e-9, atol=1e-12)
    for count, (_, (slots, weights, seeds)) in zip((48, 29, 2), written_out, strict=True):
        boost = reference.relative(6.0, 0.75)
        eye, want = reference.algorithm2(np.eye(48)[:count], scores[:count], 3, boost, reseed)
        np.testing.assert_allclose(slots, [*want, *[-np.inf] * (3 - len(want))], rtol=1e-12)
        np.testing.assert_allclose(weights, eye.sum(0)[seeds], rtol=1e-9, atol=1e-12)
        assert sorted(seeds.tolist()) == list(range(48))


def test_the_fori_loop_of_rounds_never_reads_the_embeddings():
    def loop_shapes(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("while", "scan"):
                yield [v.aval.shape for v in eqn.outvars]
            for param in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(param, "jaxpr", param)
                if hasattr(inner, "eqns"):
                    yield from loop_shapes(inner)

    d = 77
    jaxpr = jax.make_jaxpr(lambda e, v: shtopk.topk(e, v, 1))(jnp.ones((8192, d)), jnp.ones(8192))
    loops = list(loop_shapes(jaxpr.jaxpr))
    assert len(loops) == 2  # up through the scores, down through the weights
    assert not any(d in shape for shapes in loops for shape in shapes)


@pytest.mark.parametrize(("k", "members", "d"), [(3, 16, 5), (40, 16, 300), (3, 64, 40), (40, 12, 0)])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_pool_spread_and_dots_for_each_platform(k, members, d, platform):
    # The functions that are lowered for CPU, TPU and the rest, all run here, against the dense table.
    rows = 700
    rng = np.random.default_rng(0)
    indices = rng.permutation(rows)[: k * members].reshape(k, members).astype(np.int32)
    weights = rng.uniform(size=(k, members))
    weights[0, 0] = 0
    payload, slots = rng.normal(size=(rows, d)), rng.normal(size=(k, d))
    table, places = np.zeros((k, rows)), np.full(rows, k * members, np.int32)
    table[np.arange(k)[:, None], indices] = weights
    places[indices.ravel()] = np.arange(k * members)
    indices, places, weights = (jnp.asarray(x) for x in (indices, places, weights))
    cpu, members = platform == "cpu", (indices, places)
    wait = _pooling._materialize if cpu else _pooling._fence
    add_up = _pooling._sum_cpu if cpu else _pooling._sum_terms
    dots = _pooling._dots_cpu if cpu else _pooling._dots_rows
    at_once = _pooling._TERMS_ON_TPU if platform == "tpu" else _pooling._TERMS
    pool = partial(_pooling._pool_rows, dtype=payload.dtype, materialize=wait, add_up=add_up, at_once=at_once)
    spread = partial(_pooling._spread_rows, dtype=slots.dtype, materialize=wait)
    dots = partial(dots, dtype=slots.dtype)
    pooled, by_row, products = jax.jit(
        lambda e, g: (
            (pool(*members, weights, e), table @ e),
            (spread(*members, weights, g), table.T @ g),
            (dots(*members, e, g), jnp.einsum("smd,sd->sm", e[indices], g)),
        )
    )(payload, slots)
    np.testing.assert_allclose(*pooled, rtol=1e-9)
    for got, want in (by_row, products):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("members", [5, 64])
def test_a_weight_of_zero_takes_no_part(members):
    places = np.arange(6 * members, dtype=np.int32)
    indices, weights, payload = places.reshape(6, members), np.ones((6, members)), np.ones((6 * members, 2))
    weights[:, 1], payload[indices[:, 1]] = 0, np.nan
    pooled = _pooling.pool(*jax.tree.map(jnp.asarray, ((indices, places), weights, payload)))
    np.testing.assert_array_equal(pooled, np.full((6, 2), members - 1.0))


@pytest.mark.parametrize("shared", [None, 2, 3])
def test_batches_too_large_for_one_index_go_row_by_row(shared, monkeypatch):
    scores = np.cos(np.arange(3 * 2 * 9.0)).reshape(3, 2, 9)
    selection = shtopk.select(scores, 2)
    payload, slots = jnp.cos(np.arange(3 * 2 * 9 * 4.0)).reshape(3, 2, 9, 4), jnp.ones((3, 2, 2, 4))
    operands = [selection.indices, selection.places, selection.weights, payload]
    if shared is not None:
        operands[shared] = operands[shared][:1]

    def results():
        indices, places, weights, payload = operands
        members = indices, places
        outs = _pooling.pool(members, weights, payload), _pooling.dots(members, payload, slots)
        return outs if shared else (*outs, shtopk.topk_mask(scores, 2, reseed=True))

    together = results()
    monkeypatch.setattr(_reorder, "_MOST_ENTRIES", 0)
    jax.clear_caches()
    for one, other in zip(together, results(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
