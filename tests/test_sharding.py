"""n split over devices: what comes out, forward and backward, is the unsharded operator's to rounding."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from meshes import CHECKED, DEVICES, P, mapped, mesh

import shtopk

SPLIT, REPLICATED = P(None, "x"), P()
EITHER = pytest.mark.parametrize("check", CHECKED)
close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)


def same(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def draw(n, batch=2, d=3, seed=0):
    rng = np.random.default_rng([seed, n])
    return jnp.asarray(rng.normal(size=(batch, n, d))), jnp.asarray(rng.normal(size=(batch, n)))


def loss_of(out):
    """A loss in which every slot counts, surplus slots too, each for something else."""
    total = 0.0
    for x in jax.tree.leaves(out):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        x = jnp.where(jnp.isfinite(x), x, 0)
        total += jnp.sum(jnp.sin(x) * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))
    return total


def compare(call, embeddings, scores, where=None, *, checks=(None,), out_specs=REPLICATED):
    """`call(embeddings, scores, where, axis_name)` whole, and split under each of `checks`: values and gradients."""
    return compared(program(call, checks, out_specs), embeddings, scores, where)


def program(call, checks=(None,), out_specs=REPLICATED):
    """One compiled function of embeddings, scores and `where`, for `compared`."""

    def both(f, e, v, w):
        def loss(e, v):
            out = f(e, v, w)
            return loss_of(out), out

        return jax.grad(loss, (0, 1), has_aux=True)(e, v)

    whole = lambda *x: call(*x, None)  # noqa: E731
    split = [mapped(lambda *x: call(*x, "x"), SPLIT, out_specs, check) for check in checks]
    return jax.jit(lambda *x: [both(f, *x) for f in (whole, *split)])


def compared(run, embeddings, scores, where=None):
    want, *outs = run(embeddings, scores, jnp.ones(scores.shape, bool) if where is None else where)
    for out in outs:
        same(out, want)
    return outs[0]


# So soft that a survivor may have a lower score than one of a worse seed.
SORTED_AGAIN = {"boost": shtopk.Scaled(0.1), "reseed": True}

OPTIONS = {
    "plain": {},
    "sorted again": SORTED_AGAIN,
    "candidates, fewer than a share": {"candidates": 7},
    "straight through, by position": {"straight_through": True, "order": "position"},
    "drawn, by position": {"candidates": 9, "draw": 0.7, "key": jax.random.key(0), "order": "position"},
    "all": {"candidates": 7, "straight_through": True, "order": "position", **SORTED_AGAIN},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_split_is_whole(name):
    """Of 64 rows each device has 8, and sends 7 where these are all the candidates: two rounds."""
    n = 64 if "candidates" in OPTIONS[name] else 16
    compare(
        lambda e, v, w, axis: shtopk.topk(e, v, 2, axis_name=axis, **OPTIONS[name]), *draw(n), checks=CHECKED
    )


@pytest.mark.parametrize(("n", "k"), [(8, 8), (16, 1), (24, 23), (128, 2), (768, 48)])
def test_any_size(n, k):
    compare(lambda e, v, w, axis: shtopk.topk(e, v, k, axis_name=axis), *draw(n, batch=1))


def only(*devices, n=64):
    """True for the rows of these devices."""
    return jnp.isin(jnp.arange(n) // (n // DEVICES), jnp.array(devices))


CONTENTS = {
    "winners on one device": lambda v: (jnp.where(only(5), v + 100, v), None),
    "each device better than the next": lambda v: (v - 10 * (jnp.arange(64.0)[None] // 8), None),
    "all tied": lambda v: (jnp.zeros_like(v), None),
    "masked shards": lambda v: (v, jnp.broadcast_to(~only(0, 3, 7), v.shape)),
    "all but one masked": lambda v: (v, jnp.broadcast_to(only(2), v.shape)),
    "fewer than k left": lambda v: (v, jnp.broadcast_to(jnp.arange(64) % 16 == 5, v.shape)),
    "none left": lambda v: (v, jnp.zeros(v.shape, bool)),
}


@cache
def uneven(options):
    call = lambda e, v, w, axis: shtopk.topk(e, v, 6, where=w, axis_name=axis, **OPTIONS[options])  # noqa: E731
    return program(call)


@pytest.mark.parametrize(
    ("contents", "options"),
    [
        *((name, "plain") for name in CONTENTS),
        *((name, "all") for name in ("all tied", "masked shards", "fewer than k left")),
    ],
)
def test_uneven_contents(contents, options):
    embeddings, scores = draw(64, batch=1)
    scores, where = CONTENTS[contents](scores)
    gradients, out = compared(uneven(options), embeddings, scores, where)
    assert contents == "none left" or any(np.any(x != 0) for x in gradients)
    assert not any(np.any(np.isnan(x)) for x in jax.tree.leaves((gradients, out)))


def test_a_pytree_without_and_with_leading_axes():
    embeddings, scores = draw(16)
    payload = {"tokens": embeddings.reshape(2, 16, 3, 1), "mass": (scores, jnp.zeros((2, 16, 0)))}
    call = lambda e, v, axis: shtopk.topk(e, v, 5, axis_name=axis)  # noqa: E731
    row = jax.tree.map(lambda x: x[0], (payload, scores))
    for (e, v), spec in (((payload, scores), SPLIT), (row, P("x"))):
        run = mapped(lambda e, v: call(e, v, "x"), spec, P())
        same(*jax.jit(lambda e=e, v=v, run=run: (run(e, v), call(e, v, None)))())


def test_half_precision_is_summed_in_float32():
    """One rounding, of the sum, whatever the number of devices; scores travel as they are."""
    embeddings, scores = draw(64)
    half = embeddings.astype(jnp.bfloat16), scores.astype(jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in half]
    run = mapped(lambda e, v: shtopk.topk(e, v, 4, axis_name="x"), SPLIT, P())
    got, want = run(*half), run(*wide)
    for x, y in zip(got[:2], want[:2], strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(jnp.float32), y, rtol=2**-8)


def test_a_surplus_drawn_slot_of_8_bits_has_the_lowest_score():
    """The devices add up in float32, and float8_e4m3fn has no infinity for the result."""
    scores, where = jnp.arange(16.0).astype(jnp.float8_e4m3fn), jnp.arange(16) < 2

    def draw(rows, where):
        key = jax.random.key(0)
        return shtopk.topk(rows, rows, 3, where=where, draw=1.0, key=key, axis_name="x").scores

    out = mapped(draw, P("x"), P())(scores, where).astype(jnp.float32)
    np.testing.assert_array_equal(jnp.sort(out), [-448, 0, 1])


# Selection and mask


@pytest.mark.parametrize("candidates", [None, 6])
def test_a_selection_is_the_whole_one_with_each_devices_share(candidates):
    embeddings, scores = draw(16)
    pooled = jnp.sin(jnp.arange(2 * 4 * 3.0)).reshape(2, 4, 3)
    whole = shtopk.select(scores, 4, candidates=candidates)

    def split(e, v, pooled):
        s = shtopk.select(v, 4, candidates=candidates, axis_name="x")
        assert s.n == 16
        equal = s.indices, s.weights, s.champions
        return (
            s.pool(e),
            s.scores,
            s.unpool(pooled),
            s.unpool(pooled, sum_axis=0),
            s.mask(),
            s.matrix(),
            jax.tree.map(lambda x: x[None], equal),
        )

    run = mapped(split, (SPLIT, SPLIT, P()), (P(), P(), SPLIT, P("x"), SPLIT, P(None, None, "x"), P("x")))
    *got, equal = jax.jit(lambda: run(embeddings, scores, pooled))()
    rows = whole.unpool(pooled)
    same(got, [whole.pool(embeddings), whole.scores, rows, rows.sum(0), whole.mask(), whole.matrix()])
    for got, want in zip(equal, (whole.indices, whole.weights, whole.champions), strict=True):
        close(got, np.broadcast_to(want, (DEVICES, *want.shape)))


def test_a_selection_outside_is_that_of_the_whole_arrays():
    embeddings, scores = draw(40)
    run = mapped(lambda v: shtopk.select(v, 4, axis_name="x"), SPLIT, P(), "unchecked")
    selection = run(scores)
    with pytest.raises(ValueError, match="axis_name='x' is not bound"):
        selection.pool(embeddings)
    same(replace(selection, axis_name=None).pool(embeddings), shtopk.select(scores, 4).pool(embeddings))


@EITHER
def test_pool_may_leave_each_device_its_slots(check):
    def call(e, v, w, axis):
        return shtopk.select(v, 16, axis_name=axis).pool(e, scatter=axis is not None)

    embeddings, scores = draw(64)
    run = mapped(lambda e, v: call(e, v, None, "x"), SPLIT, SPLIT, check)
    grad = lambda f: jax.grad(lambda e, v: loss_of(f(e, v)), (0, 1))(embeddings, scores)  # noqa: E731
    whole = lambda e, v: call(e, v, None, None)  # noqa: E731
    same(*jax.jit(lambda: [(f(embeddings, scores), grad(f)) for f in (run, whole)])())


def test_a_distribution_is_that_of_the_whole_arrays():
    _, scores = draw(16)
    key = jax.random.key(0)

    def call(v, axis):
        selection = shtopk.select(v, 4, boost=shtopk.Scaled(1.0), axis_name=axis)
        sample = selection.sample(key)
        return sample, selection.log_prob(sample), selection.entropy()

    def split(v):
        out, gradient = call(v, "x"), jax.grad(lambda v: loss_of(call(v, "x")) / DEVICES)(v)
        return jax.tree.map(lambda x: x[None], out), gradient

    # JAX cannot infer that members from an all-gather are equal on all devices.
    run = mapped(split, SPLIT, (P("x"), SPLIT), "unchecked")

    def whole(v):
        return call(v, None), jax.grad(lambda v: loss_of(call(v, None)))(v)

    (got, gradient), (want, slope) = jax.jit(lambda: (run(scores), whole(scores)))()
    for x, y in zip(got, want, strict=True):
        close(x, np.broadcast_to(y, (DEVICES, *y.shape)))
    close(gradient, slope)


def test_the_noise_of_a_device_is_not_that_of_a_folded_key():
    """A caller may fold small numbers into the key, as docs/training.md does, and draw by the new keys."""
    zeros, key = jnp.zeros((1, 64)), jax.random.key(0)

    def noise(scores, key, axis):
        return shtopk.anneal(scores, 0.0, key, axis_name=axis, noise=1.0).scores

    split = mapped(lambda v: noise(v, key, "x"), P(None, "x"), P(None, "x"), "unchecked")(zeros)
    parts = np.split(np.asarray(split), 8, axis=1)
    folded = [noise(zeros[:, :8], jax.random.fold_in(key, i), None) for i in range(16)]
    closest = min(np.abs(part - other).max() for part in parts for other in folded)
    assert closest > 0.1


def test_a_batch_on_another_axis_is_drawn_by_its_own_key():
    (embeddings, scores), key = draw(16, batch=8), jax.random.key(0)

    def drawn(e, v, part, axis):
        own = jax.random.fold_in(key, part)
        return shtopk.topk(e, v, 4, boost=shtopk.Scaled(0.1), draw=1.0, key=own, axis_name=axis).embeddings

    def split(e, v):
        return drawn(e, v, lax.axis_index("b"), "x")

    got = mapped(split, P("b", "x"), P("b"), over=mesh("b", "x"))(embeddings, scores)
    parts = (embeddings.reshape(4, 2, 16, -1), scores.reshape(4, 2, 16), jnp.arange(4))
    want = jax.jit(jax.vmap(lambda e, v, part: drawn(e, v, part, None)))(*parts)
    close(got, want.reshape(got.shape))


@pytest.mark.parametrize("spec", [SPLIT, P("x")], ids=["n", "batch"])
@EITHER
def test_anneal_measures_by_all_devices(spec, check):
    scores = draw(16, batch=8)[1]
    where = jnp.arange(8)[:, None] + jnp.arange(16)[None] != 9

    def call(v, w, axis):
        return shtopk.anneal(v, 0.3, where=w, axis_name=axis).scores

    run = mapped(lambda v, w: call(v, w, "x"), spec, spec, check)
    close(run(scores, where), call(scores, where, None))
    noisy = mapped(
        lambda v, w: shtopk.anneal(v, 0.3, jax.random.key(0), axis_name="x").scores, spec, spec, check
    )
    noise = np.asarray(noisy(scores, where) - call(scores, jnp.ones_like(where), None))
    assert np.unique(noise.round(9)).size == noise.size  # each device's own


K = {"static": 5, "traced": jnp.int32(5), "real": 4.25, "traced, real": jnp.asarray(4.25)}


@pytest.mark.parametrize(
    ("n", "options"),
    [(16, SORTED_AGAIN), (64, {"candidates": 7, "log": True})],
    ids=["sorted again", "log of candidates, fewer than a share"],
)
@pytest.mark.parametrize("k", K.values(), ids=K)
def test_mask(k, n, options):
    embeddings, scores = draw(n)
    where = jnp.broadcast_to(jnp.arange(n) % 7 != 2, scores.shape)
    call = lambda e, v, w, axis: shtopk.topk_mask(v, k, where=w, axis_name=axis, **options)  # noqa: E731
    compare(call, embeddings, scores, where, checks=CHECKED, out_specs=SPLIT)


# Where the gradient is taken


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@EITHER
def test_gradient_taken_inside(check, kind):
    """A loss that is the same on every device, and one of which each device has its own part."""
    embeddings, scores = draw(24)

    def loss(e, v, axis):
        out = shtopk.topk(e, v, 8, axis_name=axis).embeddings
        weight = jnp.cos(jnp.arange(8.0))
        if kind == "sharded" and axis is not None:  # device i has slot i
            slot = lax.axis_index(axis)
            return jnp.sum(jnp.sin(out[:, slot])) * weight[slot]
        value = jnp.sum(jnp.sin(out) * weight[:, None].reshape(1, 8, 1))
        # Unchecked, a gradient is that of the sum of all devices' losses.
        return value / DEVICES if check == "unchecked" and axis is not None else value

    run = mapped(jax.grad(partial(loss, axis="x"), (0, 1)), SPLIT, SPLIT, check)
    whole = jax.grad(partial(loss, axis=None), (0, 1))
    same(*jax.jit(lambda: [f(embeddings, scores) for f in (run, whole)])())


def test_features_and_batch_split_as_well():
    embeddings, scores = draw(16, d=6)
    call = lambda e, v, axis: shtopk.topk(e, v, 4, axis_name=axis)  # noqa: E731
    inner = lambda e, v: call(e, v, "n")  # noqa: E731
    over = mesh("n", "other")
    outs: Any = P(None, None, "other"), P(), P()
    features = [
        mapped(inner, (P(None, "n", "other"), P(None, "n")), shtopk.TopK(*outs), check, over)
        for check in CHECKED
    ]
    batch = [mapped(inner, P("other", "n"), P("other"), check, over) for check in CHECKED]

    def both(f):
        def loss(e, v):
            out = f(e, v)
            return loss_of(out), out

        return jax.grad(loss, (0, 1), has_aux=True)(embeddings, scores)

    whole = lambda e, v: call(e, v, None)  # noqa: E731
    *split, whole = jax.jit(lambda: [both(f) for f in (*features, *batch, whole)])()
    for got in split:
        same(got, whole)


@EITHER
def test_two_mesh_axes_as_one(check):
    embeddings, scores = draw(40)
    axes = ("a", "b")
    run = mapped(
        lambda e, v: shtopk.topk(e, v, 4, candidates=6, axis_name=axes),
        P(None, axes),
        P(),
        check,
        mesh(*axes),
    )
    same(run(embeddings, scores), shtopk.topk(embeddings, scores, 4, candidates=6))


def test_whole_rows_inside_shard_map():
    """No axis_name: a batch split over devices, its numbers of slots and masks too."""
    embeddings, scores = draw(12, batch=8)
    where = jnp.arange(8)[:, None] + jnp.arange(12)[None] != 9
    ks = jnp.arange(1, 9)

    def call(e, v, w, ks):
        return shtopk.topk(e, v, 3, where=w), jax.vmap(shtopk.topk_mask)(v, ks)

    def both(f):
        def loss(v):
            out = f(embeddings, v, where, ks)
            return loss_of(out), out

        return jax.grad(loss, has_aux=True)(scores)

    split = [mapped(call, P("x"), P("x"), check) for check in CHECKED]
    *outs, want = jax.jit(lambda: [both(f) for f in (*split, call)])()
    for out in outs:
        same(out, want)


def test_a_mask_may_be_the_same_on_every_device():
    """A constant, which JAX types as varying over no mesh axis, beside scores that vary."""
    embeddings, scores = draw(12, batch=8)
    where = jnp.arange(12) != 9

    def call(e, v):
        soft = shtopk.topk(e, v, 3, where=where), shtopk.topk_mask(v, jnp.int32(3), where=where)
        return *soft, shtopk.hard_topk(e, v, 3, where=where), shtopk.iterative_topk(e, v, 3, where=where)

    split = [mapped(call, P("x"), P("x"), check) for check in CHECKED]
    *outs, want = jax.jit(lambda: [f(embeddings, scores) for f in (*split, call)])()
    for out in outs:
        same(out, want)


# Errors


def test_an_axis_that_is_not_bound():
    embeddings, scores = draw(8)
    for call in (partial(shtopk.topk, embeddings), shtopk.select, shtopk.topk_mask):
        with pytest.raises(ValueError, match=r"axis_name='x' is not bound.*jax\.shard_map"):
            call(scores, 2, axis_name="x")
        with pytest.raises(TypeError, match=r"axis_name must be the name.*\['x'\]"):
            call(scores, 2, axis_name=["x"])


def test_bounds_are_those_of_all_devices():
    def refused(match, f):
        with pytest.raises(ValueError, match=match):
            mapped(f, SPLIT, P())(*draw(40))

    refused("k=41; pass 1 to 40", lambda e, v: shtopk.topk(e, v, 41, axis_name="x"))
    refused("k=41; pass 1 to 40", lambda e, v: shtopk.topk_mask(v, 41, axis_name="x"))
    refused(
        "candidates=41; pass 6 to 40", lambda e, v: shtopk.select(v, 6, candidates=41, axis_name="x").scores
    )
    refused("embeddings has shape", lambda e, v: shtopk.topk(e[:, 1:], v, 6, axis_name="x"))
    refused(
        "scatter=True splits k=6 slots over the 8 devices",
        lambda e, v: shtopk.select(v, 6, axis_name="x").pool(e, scatter=True),
    )


def test_scatter_needs_an_axis():
    embeddings, scores = draw(8)
    with pytest.raises(ValueError, match="scatter=True needs a selection with an axis_name, got None"):
        shtopk.select(scores, 2).pool(embeddings, scatter=True)
    with pytest.raises(TypeError, match="scatter must be True or False"):
        shtopk.select(scores, 2).pool(embeddings, scatter=1)  # pyright: ignore[reportArgumentType] (on purpose)
