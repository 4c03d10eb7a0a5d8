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
FIRST = tuple(CHECKED)[:1]
close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)


def same(got, want, check=None):
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12, custom_message=check)


def draw(n, batch=2, d=3, seed=0):
    rng = np.random.default_rng([seed, n])
    return rng.normal(size=(batch, n, d)), rng.normal(size=(batch, n))


def loss_of(out):
    """A loss in which every slot counts, surplus slots too, each for something else."""
    total = 0.0
    for x in jax.tree.leaves(out):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        x = jnp.where(jnp.isfinite(x), x, 0)
        total += jnp.sum(jnp.sin(x) * np.cos(np.arange(x.size, dtype=x.dtype)).reshape(x.shape))
    return total


def step(f, *arguments, argnums=(0, 1)):
    """The gradients of `loss_of(f(*arguments))`, and what `f` returns."""

    def loss(*arguments):
        out = f(*arguments)
        return loss_of(out), out

    return jax.grad(loss, argnums, has_aux=True)(*arguments)


def compare(call, embeddings, scores, where=None, *, checks=FIRST, out_specs=REPLICATED):
    """`call(embeddings, scores, where, axis_name)` whole, and split under each of `checks`: values and gradients."""
    return compared(program(call, checks, out_specs), embeddings, scores, where)


def program(call, checks=FIRST, out_specs=REPLICATED):
    """One compiled function of embeddings, scores and `where`, for `compared`."""
    whole = {"whole": lambda *x: call(*x, None)}
    split = {check: mapped(lambda *x: call(*x, "x"), SPLIT, out_specs, check) for check in checks}
    return jax.jit(lambda *x: {name: step(f, *x) for name, f in (whole | split).items()})


def compared(run, embeddings, scores, where=None):
    outs = run(embeddings, scores, np.ones(scores.shape, bool) if where is None else where)
    want = outs.pop("whole")
    for check, out in outs.items():
        same(out, want, check)
    return next(iter(outs.values()))


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
    """At least two matches are played in the first round, so that a second sort matters.

    Of 64 rows each device has 8, and sends 7 where these are all the candidates.
    """
    n, k = (64, 2) if "candidates" in OPTIONS[name] else (16, 4)
    compare(
        lambda e, v, w, axis: shtopk.topk(e, v, k, axis_name=axis, **OPTIONS[name]), *draw(n), checks=CHECKED
    )


@pytest.mark.parametrize(("n", "k"), [(8, 8), (8, 1), (24, 23), (128, 8), (768, 400)])
def test_any_size(n, k):
    compare(lambda e, v, w, axis: shtopk.topk(e, v, k, axis_name=axis), *draw(n, batch=1))


def only(*devices, n=64):
    """True for the rows of these devices."""
    return np.isin(np.arange(n) // (n // DEVICES), devices)


CONTENTS = {
    "winners on one device": lambda v: (np.where(only(5), v + 100, v), None),
    "each device better than the next": lambda v: (v - 10 * (np.arange(64.0) // 8), None),
    "all tied": lambda v: (np.zeros_like(v), None),
    "masked shards": lambda v: (v, np.broadcast_to(~only(0, 3, 7), v.shape)),
    "all but one masked": lambda v: (v, np.broadcast_to(only(2), v.shape)),
    "fewer than k left": lambda v: (v, np.broadcast_to(np.arange(64) % 16 == 5, v.shape)),
    "none left": lambda v: (v, np.zeros(v.shape, bool)),
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
    payload = {"tokens": embeddings.reshape(2, 16, 3, 1), "mass": (scores, np.zeros((2, 16, 0)))}
    call = lambda e, v, axis: shtopk.topk(e, v, 5, axis_name=axis)  # noqa: E731
    row = jax.tree.map(lambda x: x[0], (payload, scores))
    for (e, v), spec in (((payload, scores), SPLIT), (row, P("x"))):
        run = mapped(lambda e, v: call(e, v, "x"), spec, P())
        same(*jax.jit(lambda e=e, v=v, run=run: (run(e, v), call(e, v, None)))())


def test_half_precision_is_summed_in_float32():
    """One rounding, of the sum, whatever the number of devices; scores travel as they are."""
    embeddings, scores = draw(64)
    half = embeddings.astype(jnp.bfloat16), scores.astype(jnp.bfloat16)
    wide = [x.astype(np.float32) for x in half]
    run = mapped(lambda e, v: shtopk.topk(e, v, 16, boost=shtopk.Scaled(0.0), axis_name="x"), SPLIT, P())
    got, want = run(*half), run(*wide)
    for x, y in zip(got[:2], want[:2], strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(x), y, rtol=2**-8)


def test_a_surplus_drawn_slot_of_8_bits_has_the_lowest_score():
    """The devices add up in float32, and float8_e4m3fn has no infinity for the result."""
    scores, where = np.arange(8.0).astype(jnp.float8_e4m3fn), np.arange(8) < 2

    def draw(rows, where):
        key = jax.random.key(0)
        return shtopk.topk(rows, rows, 3, where=where, draw=1.0, key=key, axis_name="x").scores

    out = mapped(draw, P("x"), P())(scores, where)
    np.testing.assert_array_equal(np.sort(np.float32(out)), [-448, 0, 1])


# Selection and mask


@pytest.mark.parametrize("candidates", [None, 6])
def test_a_selection_is_the_whole_one_with_each_devices_share(candidates):
    embeddings, scores = draw(16)
    pooled = np.sin(np.arange(2 * 4 * 3.0)).reshape(2, 4, 3)

    def whole(e, v, pooled):
        s = shtopk.select(v, 4, candidates=candidates)
        rows, equal = s.unpool(pooled), (s.indices, s.weights, s.champions)
        return s.pool(e), s.scores, rows, rows.sum(0), s.mask(), s.matrix(), equal

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
    (*got, each), (*want, equal) = jax.jit(lambda *x: (run(*x), whole(*x)))(embeddings, scores, pooled)
    same(got, want)
    for x, y in zip(each, equal, strict=True):
        close(x, np.broadcast_to(y, (DEVICES, *y.shape)))


def test_a_selection_outside_is_that_of_the_whole_arrays():
    embeddings, scores = draw(24)
    run = mapped(lambda v: shtopk.select(v, 16, axis_name="x"), SPLIT, P(), "unchecked")
    selection = run(scores)
    with pytest.raises(ValueError, match="axis_name='x' is not bound"):
        selection.pool(embeddings)
    same(replace(selection, axis_name=None).pool(embeddings), shtopk.select(scores, 16).pool(embeddings))


def test_pool_may_leave_each_device_its_slots():
    def call(e, v, w, axis):
        return shtopk.select(v, 16, axis_name=axis).pool(e, scatter=axis is not None)

    compare(call, *draw(32), checks=CHECKED, out_specs=SPLIT)


def test_a_distribution_is_that_of_the_whole_arrays():
    _, scores = draw(16)
    key = jax.random.key(0)

    def call(v, axis):
        selection = shtopk.select(v, 4, boost=shtopk.Scaled(1.0), axis_name=axis)
        sample = selection.sample(key)
        return sample, selection.log_prob(sample), selection.entropy()

    def split(v):
        gradient, out = step(lambda v: call(v, "x"), v, argnums=0)
        return gradient / DEVICES, jax.tree.map(lambda x: x[None], out)

    # JAX cannot infer that members from an all-gather are equal on all devices.
    run = mapped(split, SPLIT, (SPLIT, P("x")), "unchecked")

    def whole(v):
        return step(lambda v: call(v, None), v, argnums=0)

    (gradient, got), (slope, want) = jax.jit(lambda: (run(scores), whole(scores)))()
    for x, y in zip(got, want, strict=True):
        close(x, np.broadcast_to(y, (DEVICES, *y.shape)))
    close(gradient, slope)


def test_the_noise_of_a_device_is_not_that_of_a_folded_key():
    """A caller may fold small numbers into the key, as docs/training.md does, and draw by the new keys."""
    zeros, key = np.zeros((1, 64)), jax.random.key(0)

    def noise(scores, key, axis):
        return shtopk.anneal(scores, 0.0, key, axis_name=axis, noise=1.0).scores

    split = mapped(lambda v: noise(v, key, "x"), P(None, "x"), P(None, "x"), "unchecked")(zeros)
    parts = np.split(np.asarray(split), 8, axis=1)
    own = jax.vmap(lambda i: noise(zeros[:, :8], jax.random.fold_in(key, i), None))
    folded = np.asarray(jax.jit(own)(np.arange(16)))
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
    parts = (embeddings.reshape(4, 2, 16, -1), scores.reshape(4, 2, 16), np.arange(4))
    want = jax.jit(jax.vmap(lambda e, v, part: drawn(e, v, part, None)))(*parts)
    close(got, want.reshape(got.shape))


@pytest.mark.parametrize("spec", [SPLIT, P("x")], ids=["n", "batch"])
@EITHER
def test_anneal_measures_by_all_devices(spec, check):
    scores = draw(16, batch=8)[1]
    where = np.arange(8)[:, None] + np.arange(16) != 9

    def call(v, w, axis):
        return shtopk.anneal(v, 0.3, where=w, axis_name=axis).scores

    def split(v, w):
        return call(v, w, "x"), shtopk.anneal(v, 0.3, jax.random.key(0), axis_name="x").scores

    plain, noisy = mapped(split, spec, spec, check)(scores, where)
    close(plain, call(scores, where, None))
    noise = np.asarray(noisy) - call(scores, np.ones_like(where), None)
    assert np.unique(noise.round(9)).size == noise.size  # each device's own


K = {"static": 2, "traced": jnp.int32(2), "real": 2.25, "traced, real": jnp.asarray(2.25)}


@pytest.mark.parametrize(
    ("n", "options"),
    [(8, SORTED_AGAIN), (64, {"candidates": 4, "log": True})],
    ids=["sorted again", "log of candidates, fewer than a share"],
)
@pytest.mark.parametrize("k", K.values(), ids=K)
def test_mask(k, n, options):
    embeddings, scores = draw(n)
    where = np.broadcast_to(np.arange(n) % 7 != 2, scores.shape)
    call = lambda e, v, w, axis: shtopk.topk_mask(v, k, where=w, axis_name=axis, **options)  # noqa: E731
    compare(call, embeddings, scores, where, checks=CHECKED, out_specs=SPLIT)


# Where the gradient is taken


WEIGHT = np.cos(np.arange(8.0))  # of each slot in the loss


def weighted(e, v, axis=None):
    return jnp.sum(jnp.sin(shtopk.topk(e, v, 8, axis_name=axis).embeddings) * WEIGHT[None, :, None])


@cache
def weighted_gradients():
    return jax.jit(jax.grad(weighted, (0, 1)))(*draw(16))


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@EITHER
def test_gradient_taken_inside(check, kind):
    """A loss that is the same on every device, and one of which each device has its own part."""

    def loss(e, v):
        if kind == "sharded":  # device i has slot i
            slot = lax.axis_index("x")
            out = shtopk.topk(e, v, 8, axis_name="x").embeddings
            return jnp.sum(jnp.sin(out[:, slot])) * jnp.asarray(WEIGHT)[slot]
        # Unchecked, a gradient is that of the sum of all devices' losses.
        return weighted(e, v, "x") / (DEVICES if check == "unchecked" else 1)

    same(mapped(jax.grad(loss, (0, 1)), SPLIT, SPLIT, check)(*draw(16)), weighted_gradients())


def test_features_and_batch_split_as_well():
    embeddings, scores = draw(16, d=6)
    call = lambda e, v, axis: shtopk.topk(e, v, 8, axis_name=axis)  # noqa: E731
    inner = lambda e, v: call(e, v, "n")  # noqa: E731
    over = mesh("n", "other")
    outs: Any = P(None, None, "other"), P(), P()
    features = [
        mapped(inner, (P(None, "n", "other"), P(None, "n")), shtopk.TopK(*outs), check, over)
        for check in CHECKED
    ]
    batch = [mapped(inner, P("other", "n"), P("other"), check, over) for check in CHECKED]

    whole = lambda e, v: call(e, v, None)  # noqa: E731
    *split, whole = jax.jit(lambda: [step(f, embeddings, scores) for f in (*features, *batch, whole)])()
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
    embeddings, scores = draw(8, batch=8)
    where = np.arange(8)[:, None] + np.arange(8) != 9
    ks = np.arange(1, 9)

    def call(e, v, w, ks):
        return shtopk.topk(e, v, 3, where=w), jax.vmap(shtopk.topk_mask)(v, ks)

    split = [mapped(call, P("x"), P("x"), check) for check in CHECKED]
    arguments = embeddings, scores, where, ks
    *outs, want = jax.jit(lambda: [step(f, *arguments, argnums=1) for f in (*split, call)])()
    for out in outs:
        same(out, want)


def test_a_mask_may_be_the_same_on_every_device():
    """A constant, which JAX types as varying over no mesh axis, beside scores that vary."""
    embeddings, scores = draw(8, batch=8)
    where = np.arange(8) != 5

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
