"""What travels between devices, read from compiled HLO; and the same calls between two processes."""

import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import one_of_two
import pytest
from jax.sharding import NamedSharding
from meshes import CHECKED, DEVICES, P, mapped, mesh, put

import shtopk
from benchmarks.devices import collectives, report

N, K, D = 128, 32, 24
F32 = 4
SPLIT = P("x")


def draw(batch=(), d=D):
    rng = np.random.default_rng(0)
    e, v = rng.normal(size=(*batch, N, d)), rng.normal(size=(*batch, N))
    return e.astype(np.float32), v.astype(np.float32)


def step_of(call):
    """Values and gradients, and the gradients split as the arrays are."""

    def step(e, v):
        def loss(e, v):
            out = call(e, v)
            return jnp.sum(jnp.sin(out[0])) + jnp.sum(jnp.sin(out[1])), out

        return jax.grad(loss, (0, 1), has_aux=True)(e, v)

    return step


def arrays(f, *arguments):
    """`[(collective, bytes)]`, sorted, of the arrays that travel."""
    return sorted(collectives.arrays(jax.jit(f).lower(*arguments).compile()))


def split_call(check=None, k=K, **options):
    """Embeddings and scores of the slots."""
    return mapped(lambda e, v: shtopk.topk(e, v, k, axis_name="x", **options)[:2], SPLIT, P(), check)


@cache
def step_arrays(check, **options):
    """What travels in values and gradients."""
    return arrays(step_of(split_call(check, **options)), *draw())


def test_scores_are_gathered_once_and_the_slots_summed_once():
    got = arrays(split_call(), *draw())
    assert got == [("all-gather", F32 * N), ("all-reduce", F32 * K), ("all-reduce", F32 * K * D)]


def test_the_indices_travel_only_if_they_are_read():
    got = arrays(mapped(lambda e, v: shtopk.topk(e, v, K, axis_name="x"), SPLIT, P()), *draw())
    assert got == [("all-gather", F32 * N), *[("all-reduce", F32 * K)] * 2, ("all-reduce", F32 * K * D)]


@pytest.mark.parametrize("check", CHECKED)
def test_the_backward_pass_adds_one_reduce_scatter_of_the_scores(check):
    """Unchecked, JAX does not know that the slots' cotangents are equal everywhere, and sums them as well."""
    sums = 2 if check == "unchecked" else 1
    assert step_arrays(check) == [
        ("all-gather", F32 * N),
        *[("all-reduce", F32 * K)] * sums,
        *[("all-reduce", F32 * K * D)] * sums,
        ("reduce-scatter", F32 * N // DEVICES),
    ]


def test_straight_through_and_order_add_nothing():
    check = next(iter(CHECKED))
    assert step_arrays(check, straight_through=True, order="position") == step_arrays(check)


def test_the_bytes_sent_with_a_mask_and_in_half_precision():
    embeddings, scores = (x.astype(jnp.bfloat16) for x in draw())
    call = mapped(lambda e, v, w: shtopk.topk(e, v, K, where=w, axis_name="x"), SPLIT, P())
    got = arrays(call, embeddings, scores, scores > 0)
    # XLA's CPU backend turns bfloat16 collectives into float32 ones: there they are as they were.
    gathered = [size for kind, size in got if kind == "all-gather"]
    assert gathered[0] == N
    assert gathered[1] in (2 * N, F32 * N)
    assert ("all-reduce", F32 * K * D) in got


@pytest.mark.parametrize("m", [12, 24])
def test_with_candidates_each_device_sends_its_best_alone(m):
    k, sent = 8, DEVICES * min(m, N // DEVICES)
    got = arrays(split_call(k=k, candidates=m), *draw())
    indices = [("all-gather", F32 * sent)] if m < N // DEVICES else []
    assert got == [
        *indices, ("all-gather", F32 * sent), ("all-reduce", F32 * k), ("all-reduce", F32 * k * D)
    ]  # fmt: skip


def test_pool_with_scatter_sums_to_each_device_its_slots():
    def call(e, v):
        return shtopk.select(v, K, axis_name="x").pool(e, scatter=True)

    got = arrays(mapped(call, SPLIT, SPLIT), *draw())
    assert got == [("all-gather", F32 * N), ("reduce-scatter", F32 * K * D // DEVICES)]


@pytest.mark.skipif("checked" not in CHECKED, reason="the formula is that of the checked form")
def test_the_formula_counts_these_bytes():
    for options in ({}, {"k": 8, "candidates": 12}):
        found = step_arrays("checked", **options)
        sent = sum(collectives.sent(kind, size, DEVICES) for kind, size in found)
        assert sent == report.formula(DEVICES, N, **({"k": K, "d": D} | options))


# The same function under jit, its arrays laid out over devices by NamedSharding


def step_by(reseed):
    return step_of(lambda e, v: shtopk.topk(e, v, K, reseed=reseed))


@cache
def on_one_device(reseed):
    """The gradients and values, without a layout."""
    return jax.jit(step_by(reseed))(*draw((8,)))


LAYOUTS = {
    "batch": (("x",), "x", None),
    "features": (("x",), None, "x"),
    "batch and features": (("b", "f"), "b", "f"),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("reseed", [True, False])
def test_jit_over_batch_and_features_moves_no_payload(name, reseed):
    axes, batch, features = LAYOUTS[name]
    over = mesh(*axes)
    embeddings, scores = draw((8,))
    laid_out = put(embeddings, over, batch, None, features), put(scores, over, batch)
    step = step_by(reseed)
    compiled = jax.jit(step).lower(*laid_out).compile()
    got = sorted(collectives.arrays(compiled))
    # Features that are split give each weight's gradient in parts: one sum of n numbers a row.
    rows = 8 // (over.shape[batch] if batch else 1)
    expected = [("all-reduce", F32 * rows * N)] if features else []
    assert [x for x in got if x[1] > 8] == expected  # the loss itself is a scalar
    gradients, out = compiled(*laid_out)
    for x, y in zip(jax.tree.leaves((gradients, out)), jax.tree.leaves(on_one_device(reseed)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert gradients[0].sharding.is_equivalent_to(laid_out[0].sharding, 3)


@pytest.mark.parametrize("axes", [("x",), ("b", "x")], ids=["n", "n and batch"])
def test_jit_over_n_is_right_and_moves_the_payload(axes):
    """Why `axis_name` exists: XLA knows of no slot, and sends as many bytes as the payload has."""
    over, (embeddings, scores) = mesh(*axes), draw((4,))
    spec = ("b" if "b" in axes else None, "x")
    laid_out = put(embeddings, over, *spec), put(scores, over, *spec)
    call = lambda e, v: shtopk.topk(e, v, 8)  # noqa: E731
    compiled = jax.jit(call).lower(*laid_out).compile()
    for x, y in zip(compiled(*laid_out), call(embeddings, scores), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    on_each = embeddings.nbytes // (over.shape["b"] if "b" in axes else 1)
    assert sum(size for _, size in collectives.arrays(compiled)) >= on_each  # term by term


@pytest.mark.skipif("checked" not in CHECKED, reason="meshes of this kind are unfinished in this JAX")
@pytest.mark.parametrize("reseed", [True, False])
def test_meshes_with_explicit_axes(reseed):
    """Features may be split as they are; a batch, inside `auto_axes`; n is refused, by the sort."""
    over = jax.make_mesh((4, 2), ("b", "f"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    embeddings, scores = draw((8,))
    step = step_by(reseed)
    inside = jax.sharding.auto_axes(step, out_sharding=NamedSharding(over, P("b")))
    want = on_one_device(reseed)
    got = [
        jax.jit(step)(put(embeddings, over, None, None, "f"), put(scores, over)),
        jax.jit(inside)(put(embeddings, over, "b"), put(scores, over, "b")),
    ]
    for one in got:
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    assert [one[0][0].sharding.spec for one in got] == [P(None, None, "f"), P("b", None, None)]
    with pytest.raises(Exception, match="unsharded over the sorting dimension"):
        shtopk.topk(embeddings, put(scores, over, None, "b"), K)


# Two processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.usefixtures("little_effort_in_processes")
def test_two_processes_are_one(tmp_path):
    port, files = free_port(), [tmp_path / f"{i}.npz" for i in range(2)]
    command = [sys.executable, str(Path(__file__).parent / "one_of_two.py")]
    pair = [
        subprocess.Popen(
            [*command, str(i), str(port), str(file), *sys.path], stderr=subprocess.PIPE, text=True
        )
        for i, file in enumerate(files)
    ]
    for process in pair:
        _, words = process.communicate(timeout=300)
        assert process.returncode == 0, words
    first, second = (np.load(file) for file in files)
    whole = one_of_two.step_of(lambda e, v: shtopk.topk(e, v, 5))
    (d_embeddings, d_scores), out = whole(*one_of_two.draw())
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    for got in (first, second):
        close(got["embeddings"], out.embeddings)
        close(got["scores"], out.scores)
    for name, want in (("d_embeddings", d_embeddings), ("d_scores", d_scores)):
        close(np.concatenate([first[name], second[name]]), want)
