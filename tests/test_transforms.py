"""Every public function through every transformation: the same values, and derivatives that agree."""

from functools import cache
from itertools import product

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calls import CALLS, DIFFERENTIABLE
from jax import export, lax
from jax.core import eval_jaxpr
from jax.experimental import checkify

import shtopk

EVERY_CALL = pytest.mark.parametrize("name", CALLS)
EVERY_DERIVATIVE = pytest.mark.parametrize("name", DIFFERENTIABLE)


def same(got, want, words=""):
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want, custom_message=words)
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-11, custom_message=words)


def test_every_public_name_is_in_the_table():
    types = {"Selection", "Boost"}  # the first by its methods, the second by the boosts themselves
    public = {name for name in vars(shtopk) if not name.startswith("_")} - types
    fields = shtopk.Selection.__dataclass_fields__
    methods = {
        f"Selection.{name}" for name in vars(shtopk.Selection) if name[0] != "_" and name not in fields
    }
    assert {name.split(":")[0] for name in CALLS} == public | methods


# Values


@cache
def value(name):
    return CALLS[name].function(*CALLS[name].arguments)


def scanned(f, *x):
    return jax.tree.map(lambda out: out[1], lax.scan(lambda x, _: (x, f(*x)), x, length=2)[1])


def looped(f, *x):
    start = jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(f, *x))
    return lax.while_loop(lambda carry: carry[0] < 2, lambda carry: (carry[0] + 1, f(*x)), (0, start))[1]


def traced(f, *x):
    """By way of the jaxpr, as tools that read one do."""
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*x)
    out = eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(x))
    return jax.tree.unflatten(jax.tree.structure(shape), out)


# All of them inside `jit`, where the jaxpr is the call itself.
SAME_VALUES = {
    "checkpoint": jax.checkpoint,
    "scan": lambda f: lambda *x: scanned(f, *x),
    "while_loop": lambda f: lambda *x: looped(f, *x),
    "make_jaxpr": lambda f: lambda *x: traced(f, *x),
}


@EVERY_CALL
def test_a_transformed_call_is_the_call(name):
    f, arguments = CALLS[name].function, CALLS[name].arguments
    outs = jax.jit(lambda *x: {word: transform(f)(*x) for word, transform in SAME_VALUES.items()})(*arguments)
    for word, out in outs.items():
        same(out, value(name), word)


@EVERY_CALL
def test_eval_shape_says_what_comes(name):
    call = CALLS[name]
    shapes = jax.eval_shape(call.function, *call.arguments)
    jax.tree.map(
        lambda s, x: np.testing.assert_equal((s.shape, s.dtype), (x.shape, x.dtype)), shapes, value(name)
    )


# checkify itself fails on a scatter under vmap (seen in JAX 0.10.2), as in the members of a split call.
@pytest.mark.parametrize("name", [name for name in CALLS if not name.endswith("split over an axis")])
def test_checkify_finds_no_nan_and_no_index_out_of_bounds(name):
    call = CALLS[name]
    same(checked(call.function, *call.arguments), value(name))


def checked(function, *arguments):
    with jax.numpy_dtype_promotion("standard"):  # checkify's own arithmetic asks for it in older JAX
        error, out = jax.jit(checkify.checkify(function, errors=checkify.all_checks))(*arguments)
    assert error.get() is None
    return out


@pytest.mark.parametrize("k", [3, 2.5])
def test_checkify_can_check_a_batched_mask(k):
    scores = np.cos(np.arange(14.0)).reshape(2, 7)
    same(checked(lambda scores: shtopk.topk_mask(scores, k), scores), shtopk.topk_mask(scores, k))


def test_checkify_can_check_a_batched_gradient():
    scores, embeddings = np.cos(np.arange(14.0)).reshape(2, 7), np.sin(np.arange(28.0)).reshape(2, 7, 2)
    gradient = jax.grad(lambda scores: (shtopk.topk(embeddings, scores, 3).embeddings ** 2).sum())
    same(checked(gradient, scores), jax.jit(gradient)(scores))


@EVERY_CALL
def test_an_exported_call_is_the_call(name):
    call = CALLS[name]

    @jax.jit
    def on_leaves(*leaves):  # results as a list: custom pytrees are not serialised
        arguments = jax.tree.unflatten(jax.tree.structure(call.arguments), leaves)
        return jax.tree.leaves(call.function(*arguments))

    leaves = jax.tree.leaves(call.arguments)
    blob = export.export(on_leaves, platforms=["cpu", "cuda", "tpu"])(*leaves).serialize()
    same(export.deserialize(blob).call(*leaves), jax.tree.leaves(value(name)))


def stack(*trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def choices(batched, here, there):
    return [y if b else x for b, x, y in zip(batched, here, there, strict=True)]


@EVERY_CALL
def test_vmap_with_each_argument_batched_or_not(name):
    call = CALLS[name]
    patterns = [batched for batched in product([True, False], repeat=len(call.arguments)) if any(batched)]

    def mapped(here, both):
        axes = [choices(batched, [None] * len(here), [0] * len(here)) for batched in patterns]
        return [
            jax.vmap(call.function, a)(*choices(b, here, both)) for a, b in zip(axes, patterns, strict=True)
        ]

    f, there = call.function, call.others()
    outs = jax.jit(mapped)(call.arguments, stack(call.arguments, there))
    for batched, out in zip(patterns, outs, strict=True):
        same(out, stack(value(name), f(*choices(batched, call.arguments, there))), str(batched))


@EVERY_CALL
def test_vmap_of_a_vmap(name):
    """The first argument along two axes, the others along one of them."""
    call = CALLS[name]
    (x, *rest), (y, *other) = call.arguments, call.others()
    f = call.function
    mapped = jax.vmap(jax.vmap(call.function, (0, *(None for _ in rest))))
    got = jax.jit(mapped)(stack(stack(x, y), stack(y, x)), *stack(rest, other))
    same(got, stack(stack(f(x, *rest), f(y, *rest)), stack(f(y, *other), f(x, *other))))


# Derivatives

JACOBIANS = {"jacfwd": jax.jacfwd, "jacrev": jax.jacrev}
FORWARD = {
    "jvp": lambda f, x, t: jax.jvp(f, (x,), (t,))[1],
    "linearize": lambda f, x, t: jax.linearize(f, x)[1](t),
}
REVERSE = {
    "vjp": lambda f, x, w: jax.vjp(f, x)[1](w)[0],
    # `grad` by way of three others: alone it is the `vjp` of 1.
    "checkpoint": lambda f, x, w: jax.grad(lambda x: w @ jax.checkpoint(f)(x))(x),
    "scan": lambda f, x, w: jax.grad(lambda x: w @ scanned(f, x))(x),
    "vmap": lambda f, x, w: jax.grad(lambda x: jnp.sum(jax.vmap(f)(jnp.stack([x, x])) @ w) / 2)(x),
}


def directions(name):
    """The call as a vector function, where, a tangent and a cotangent."""
    f, x = CALLS[name].flat()
    rng = np.random.default_rng(0)
    return (
        f,
        x,
        jnp.asarray(rng.normal(size=x.shape)),
        jnp.asarray(rng.normal(size=jax.eval_shape(f, x).shape)),
    )


@cache
def derivatives(name):
    """What each mode gives: the whole Jacobian `(q, p)`, or its product with a tangent or a cotangent."""
    f, *where = directions(name)

    def by_every_mode(x, t, w):
        whole = {word: mode(f)(x) for word, mode in JACOBIANS.items()}
        forward = {word: mode(f, x, t) for word, mode in FORWARD.items()}
        return whole | forward | {word: mode(f, x, w) for word, mode in REVERSE.items()}

    return jax.jit(by_every_mode)(*where)


@EVERY_DERIVATIVE
def test_every_mode_has_the_same_derivative(name):
    _, _, tangent, cotangent = directions(name)
    outs = derivatives(name)
    jacobian = np.asarray(outs["jacfwd"])
    for words, want in (
        (JACOBIANS, jacobian),
        (FORWARD, jacobian @ tangent),
        (REVERSE, cotangent @ jacobian),
    ):
        for word in words:
            same(outs[word], want, word)


@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if CALLS[name].exact])
def test_the_derivative_is_the_slope(name):
    f, x, _, _ = directions(name)
    x, step = np.asarray(x)[None], 1e-6 * np.eye(x.size)
    up, down = np.asarray(jax.jit(jax.vmap(f))(np.concatenate([x + step, x - step]))).reshape(2, x.size, -1)
    jacobian = derivatives(name)["jacrev"]
    np.testing.assert_allclose(jacobian, (up - down).T / 2e-6, rtol=1e-6, atol=1e-7)
    assert np.abs(jacobian).max() > 1e-2


@EVERY_DERIVATIVE
def test_the_four_hessians_agree(name):
    f, x, _, cotangent = directions(name)

    def hessians(x, w):
        modes = product([jax.jacfwd, jax.jacrev], repeat=2)
        return [outer(inner(lambda x: jnp.sum(w * jnp.sin(f(x)))))(x) for outer, inner in modes]

    first, *others = jax.jit(hessians)(x, cotangent)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(first, first.T, rtol=1e-8, atol=1e-10)


@EVERY_DERIVATIVE
def test_debug_nans_finds_none(name):
    """Not compiled as a whole, so that what is kept for the backward pass is looked at as well."""
    f, x, _, cotangent = directions(name)
    with jax.debug_nans(True):
        jax.grad(lambda x: cotangent @ f(x))(x)
