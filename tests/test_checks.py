"""Each error a user can meet, by its message: the argument, the value, the remedy."""

import re
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk

E, V = jnp.ones((5, 2)), jnp.arange(5.0)
WITH_PAYLOAD = [shtopk.topk, shtopk.hard_topk, shtopk.iterative_topk]
EVERY = {
    "topk": lambda v, k, **o: shtopk.topk(E, v, k, **o),
    "hard_topk": lambda v, k, **o: shtopk.hard_topk(E, v, k, **o),
    "iterative_topk": lambda v, k, **o: shtopk.iterative_topk(E, v, k, **o),
    "select": shtopk.select,
    "topk_mask": shtopk.topk_mask,
}
FOR_EVERY = pytest.mark.parametrize("function", EVERY)


def refused(kind, *words):
    return pytest.raises(kind, match=".*".join(re.escape(word) for word in words))


@FOR_EVERY
def test_a_k_out_of_range_is_refused_by_name(function):
    call = EVERY[function]
    for k, shown in [(2.0, "2.0"), ("2", "'2'"), (None, "None"), (True, "True")]:
        if function == "topk_mask" and k == 2.0:
            continue  # may be real
        remedy = "pass an int" if k is None else "int(k)"
        remedy = "jax.vmap" if function == "topk_mask" and k is not True else remedy
        with refused(TypeError, "k must be an int", shown, remedy):
            call(V, k)
    for k in (0, -3, 6):
        with refused(ValueError, "1 <= k <= n", f"k={k}", "1 to 5"):
            call(V, k)
    assert jax.tree.leaves(call(V, np.int64(2)))


@pytest.mark.parametrize("function", [name for name in EVERY if name != "topk_mask"])
def test_a_traced_k(function):
    with refused(TypeError, "k must be a static int", "traced", "static_argnames='k'", "topk_mask"):
        jax.jit(EVERY[function])(V, 2)


def test_real_and_traced_k_for_topk_mask():
    for k in (jnp.array([2, 3]), jnp.array([2.0, 3.0]), np.array([2, 3])):
        with refused(TypeError, "scalar array", "(2,)", "jax.vmap"):
            shtopk.topk_mask(V, k)
    with refused(TypeError, "scalar array", "complex"):
        shtopk.topk_mask(V, jnp.array(2 + 0j))
    for k in (0.5, 5.5, float("nan")):
        with refused(ValueError, "1 <= k <= n", f"k={k}", "1 to 5"):
            shtopk.topk_mask(V, k)
    with refused(ValueError, "k <= candidates <= n", "candidates=2", "3 to 5"):
        shtopk.topk_mask(V, 2.5, candidates=2)


def test_draw_without_its_key_is_refused_by_name():
    key: Any = jax.random.key(0)
    with refused(ValueError, "draw and key go together", "key=None", "jax.random.key(0)"):
        shtopk.topk(E, V, 2, draw=0.5)
    with refused(ValueError, "draw and key go together", "draw=None"):
        shtopk.topk(E, V, 2, key=key)
    with refused(ValueError, "draw must be in [0, 1]", "1.5"):
        shtopk.topk(E, V, 2, draw=1.5, key=key)
    with refused(TypeError, "draw must be real", "complex"):
        shtopk.topk(E, V, 2, draw=1j, key=key)
    with refused(ValueError, "draw must be a scalar", "(2,)"):
        shtopk.topk(E, V, 2, draw=jnp.ones(2), key=key)
    with refused(ValueError, "draw and straight_through", "one of them"):
        shtopk.topk(E, V, 2, draw=1.0, key=key, straight_through=True)
    for wrong, got in ((0, "int"), (jax.random.split(key), "shape (2,)"), (jnp.zeros(2), "float64")):
        with refused(TypeError, "key must be a single key", got, "jax.random.key(seed)", "jax.vmap"):
            shtopk.topk(E, V, 2, draw=1.0, key=cast(Any, wrong))
    for name, wrong in (
        ("draw", {"draw": key, "key": 0.5}),
        ("boost.sharpness", {"boost": shtopk.Scaled(key)}),
    ):
        with refused(TypeError, f"{name} must be a number", "dtype key<fry>", "pass a number"):
            shtopk.topk(E, V, 2, **cast(Any, wrong))


def test_anneal_refuses_bad_arguments_by_name():
    with refused(ValueError, "progress must be in [0, 1]", "500", "step / steps"):
        shtopk.anneal(V, 500)
    for wrong in ((0.0, 100.0), (0.1, jnp.inf), (jnp.nan, 1.0)):
        with refused(ValueError, "sharpness must be positive and finite", repr(wrong)):
            shtopk.anneal(V, 0.5, sharpness=wrong)
    for wrong in (-1.0, np.nan, np.inf):
        with refused(ValueError, "noise must be 0 or more, and finite", str(wrong)):
            shtopk.anneal(V, 0.5, noise=wrong)
    with refused(TypeError, "progress must be real", "complex"):
        jax.jit(shtopk.anneal)(V, 0.5j)
    with refused(TypeError, "sharpness must be real", "complex"):
        shtopk.anneal(V, 0.5, sharpness=(1j, 100.0))
    with refused(TypeError, "sharpness must be a pair", "100.0"):
        shtopk.anneal(V, 0.5, sharpness=cast(Any, 100.0))
    with refused(TypeError, "key must be a single key", "int"):
        shtopk.anneal(V, 0.5, cast(Any, 0))
    with refused(TypeError, "scores must be floating point", "int64"):
        shtopk.anneal(V.astype(int), 0.5)


def test_indices_of_a_subset():
    selection = shtopk.select(V, 2)
    with refused(TypeError, "indices must be integers", "float64", "sample(key)"):
        selection.log_prob(V[:2])
    with refused(ValueError, "indices has shape (3,)", "(..., k) = (2,)"):
        selection.log_prob(jnp.array([0, 1, 2]))


@FOR_EVERY
def test_scores_of_a_wrong_kind_are_refused_by_name(function):
    call = EVERY[function]
    with refused(ValueError, "scores", "(..., n)", "()"):
        call(1.0, 1)
    for dtype in (int, complex, bool):
        remedy = "scores.real" if dtype is complex else "astype"
        with refused(TypeError, "scores must be floating point", np.dtype(dtype).name, remedy):
            call(V.astype(dtype), 1)
    with refused(TypeError, "scores must be an array", "list", "jnp.asarray"):
        call([1.0, 2.0], 1)
    with refused(ValueError, "n = 0"):
        call(jnp.zeros((0,)), 1)


@pytest.mark.parametrize("function", WITH_PAYLOAD)
def test_embeddings_that_do_not_fit_are_refused_by_name(function):
    for dtype in () if function is shtopk.hard_topk else (int, complex):
        remedy = ["embeddings.real", "embeddings.imag"] if dtype is complex else ["indices", "astype"]
        with refused(TypeError, "must be floating point", np.dtype(dtype).name, *remedy):
            function(E.astype(dtype), V, 2)
    if function is not shtopk.hard_topk:
        with refused(TypeError, "embeddings['ids'] must be", "cast with embeddings['ids'].astype"):
            function({"ids": E.astype(int)}, V, 2)
    with refused(ValueError, "embeddings has shape (5, 2)", "(5, 1)", "scores[..., 0]"):
        function(E, V[:, None], 1)
    with refused(ValueError, "embeddings has shape (2, 5)", "(5,)", "reshape"):
        function(E.T, V, 2)
    with refused(ValueError, "embeddings has shape (3, 5, 2)", "(5,)", "jax.vmap over embeddings"):
        function(jnp.ones((3, 5, 2)), V, 2)
    with refused(ValueError, "embeddings['a'][1] has shape ()", "(5,)", "list of numbers", "jnp.asarray"):
        function({"a": [E, 1.0]}, V, 2)
    with refused(ValueError, "embeddings has shape (5, 2)", "(3, 5)", "pass embeddings[None]"):
        function(E, jnp.ones((3, 5)), 2)
    with refused(ValueError, "embeddings has shape (5,)", "(5, 2)", "pass embeddings first"):
        function(V, E, 1)
    with refused(TypeError, "embeddings must be an array", "str"):
        function("tokens", V, 2)


def test_pool_and_unpool():
    selection = shtopk.select(V, 2)
    with refused(ValueError, "embeddings has shape (2, 5)", "(5,)"):
        selection.pool(E.T)
    with refused(ValueError, "pooled has shape (5, 2)", "(2,)", "(..., k)"):
        selection.unpool(E)
    with refused(ValueError, "sum_axis must name a leading axis of scores, which have none", "leave it out"):
        selection.unpool(E[:2], sum_axis=0)
    with refused(ValueError, "0 <= sum_axis < 1", "sum_axis=-1"):
        shtopk.select(V[None], 2).unpool(E[None, :2], sum_axis=-1)


@FOR_EVERY
def test_a_where_that_does_not_fit_is_refused_by_name(function):
    call = EVERY[function]
    with refused(TypeError, "where must be boolean", "float64", "!= 0"):
        call(V, 2, where=V)
    with refused(TypeError, "where must be an array", "list"):
        call(V, 2, where=[True] * 5)
    with refused(ValueError, "where has shape (4,)", "(5,)"):
        call(V, 2, where=jnp.ones(4, bool))
    with refused(ValueError, "where has shape (3, 5)", "(5,)", "one entry for each candidate"):
        call(V, 2, where=jnp.ones((3, 5), bool))


def test_where_and_shared_embeddings_without_the_axes_between():
    scores = jnp.ones((2, 3, 4, 5))
    with refused(ValueError, "where has shape (2, 5)", "(2, 3, 4, 5)", "pass where[:, None, None]"):
        shtopk.topk_mask(scores, 2, where=jnp.ones((2, 5), bool))
    with refused(ValueError, "has shape (2, 5, 2)", "(2, 3, 4, 5)", "pass embeddings[:, None, None]"):
        shtopk.topk(jnp.stack([E, E]), scores, 2)


def test_an_axis_by_its_number_is_refused():
    for axis in (0, -1):
        with refused(TypeError, "axis_name must be the name of a mesh axis", str(axis)):
            shtopk.topk_mask(V, 2, axis_name=axis)


@pytest.mark.parametrize("function", ["topk", "select"])
def test_candidates_out_of_range_are_refused_by_name(function):
    call = EVERY[function]
    for m in (1, 6):
        with refused(ValueError, "k <= candidates <= n", f"candidates={m}", "2 to 5"):
            call(V, 2, candidates=m)
    with refused(TypeError, "candidates must be an int", "3.0"):
        call(V, 2, candidates=3.0)
    with refused(TypeError, "candidates must be a static int", "static_argnames='candidates'"):
        jax.jit(lambda m: call(V, 2, candidates=m))(3)


def test_an_unknown_word_is_refused_by_name():
    for call in (shtopk.topk, shtopk.hard_topk):
        with refused(ValueError, "order must be one of 'score', 'position'", "'best'"):
            call(E, V, 2, order="best")
    with refused(ValueError, "normalizer must be one of 'softmax', 'paper'", "'sum'"):
        shtopk.iterative_topk(E, V, 2, normalizer="sum")
    with refused(ValueError, "normalizer must be one of 'softmax', 'paper'", "array"):
        shtopk.iterative_topk(E, V, 2, normalizer=np.ones(2))  # pyright: ignore[reportArgumentType] (on purpose)
    with refused(ValueError, "alpha must be a scalar", "(2,)"):
        shtopk.iterative_topk(E, V, 2, alpha=jnp.ones(2))
    for wrong in (-1.0, np.nan):
        with refused(ValueError, "alpha must be 0 (all rows weigh the same) or more", str(wrong)):
            shtopk.iterative_topk(E, V, 2, alpha=wrong)


@pytest.mark.parametrize("function", ["topk", "select", "topk_mask"])
def test_a_boost_that_cannot_work_is_refused_by_name(function):
    call = EVERY[function]
    with refused(TypeError, "boost must be callable", "6.0", "shtopk.Relative()"):
        call(V, 2, boost=6.0)
    with refused(
        TypeError, "boost must be callable", "got Annealed; pass one of its fields, scores or boost"
    ):
        call(V, 2, boost=shtopk.anneal(V, 0.5))
    with refused(TypeError, "boost must be callable", "Relative'>", "shtopk.Relative()"):
        call(V, 2, boost=shtopk.Relative)
    with refused(TypeError, "the result of boost must be an array", "list"):
        call(V, 2, boost=lambda high, low, where: [0.5] * 4)
    with refused(ValueError, "boost returned shape ()", "(4,)"):
        call(V, 2, boost=lambda high, low, where: 0.5)
    for wrong in (shtopk.Scaled(-1.0), shtopk.Relative(-1)):
        with refused(ValueError, "boost.sharpness must be 0 (an even mix) or more", "got -1"):
            call(V, 2, boost=wrong)
    with refused(ValueError, "boost.base must be above 0 and finite", "got inf"):
        call(V, 2, boost=shtopk.Power(np.inf))
    with refused(ValueError, "boost.base must be above 0", "got 0.0"):
        call(V, 2, boost=shtopk.Power(0.0))
    for wrong in (shtopk.Scaled, shtopk.Power, shtopk.Relative, lambda x: shtopk.Relative(6.0, x)):
        with refused(ValueError, "must be a scalar", "(3,)", "one number"):
            call(V, 2, boost=wrong(jnp.ones(3)))


def test_nccs_refuses_rows_that_do_not_fit():
    with refused(ValueError, "share one shape", "(5, 2)", "(2, 5)"):
        shtopk.nccs(E, E.T)
    with refused(ValueError, "(..., k, d)", "(5,)"):
        shtopk.nccs(V, V)
    for empty in (E[:0], E[:, :0]):
        with refused(ValueError, "reference has shape", "no rows or no features"):
            shtopk.nccs(empty, empty)
    with refused(TypeError, "approximation must be floating", "int64"):
        shtopk.nccs(E, E.astype(int))


@pytest.mark.parametrize("boost", [shtopk.Scaled(2.0), shtopk.Power(), shtopk.Relative()])
def test_boost_called_by_hand(boost):
    """Whole numbers, too, are refused: the boost's own number would be cut to one."""
    live = jnp.array([True, True])
    call: Any = boost
    with refused(TypeError, "high must be an array", "list", "jnp.asarray"):
        call([2.0, 1.0], V[:2], live)
    with refused(TypeError, "low must be floating point", "int", "astype"):
        call(V[:2], jnp.array([1, 0]), live)
    with refused(TypeError, "where must be an array", "NoneType", "jnp.asarray"):
        call(V[:2], V[2:4], None)


# What is handed over where an array is expected, how the error calls it, and the remedy.
NO_ARRAYS: list[tuple[Any, str, str]] = [
    ([1.0, 2.0], "list", "jnp.asarray"),
    ((1.0, 2.0), "tuple", "jnp.asarray"),
    (None, "NoneType", "jnp.asarray"),
    ("scores", "str", "jnp.asarray"),
    (np.array([None, 1.0]), "dtype object", "pass numbers"),
    (np.array(["a"]), "dtype <U1", "pass numbers"),
    (jax.random.key(0), "dtype key<fry>", "pass numbers"),
    (jax.ShapeDtypeStruct((5,), "float32"), "ShapeDtypeStruct", "jnp.asarray"),  # has a dtype, as tensors do
    (shtopk.anneal(V, 0.5), "Annealed", "pass one of its fields, scores or boost"),
]
AS_ARRAYS = pytest.mark.parametrize(
    ("value", "kind", "remedy"), NO_ARRAYS, ids=[kind for _, kind, _ in NO_ARRAYS]
)


@AS_ARRAYS
def test_what_is_no_array_is_refused_by_name(value, kind, remedy):
    nccs: Any = shtopk.nccs
    for call in EVERY.values():
        with refused(TypeError, "scores must be an array", kind, remedy):
            call(value, 1)
        if value is not None:
            with refused(TypeError, "where must be an array", kind, remedy):
                call(V, 1, where=value)
    with refused(TypeError, "reference must be an array", kind, remedy):
        nccs(value, E)
    with refused(TypeError, "approximation must be an array", kind, remedy):
        nccs(E, value)
    # A list, a tuple or None is a pytree, which a payload may be.
    if kind not in ("list", "tuple", "NoneType", "Annealed"):
        for call in WITH_PAYLOAD:
            with refused(TypeError, "embeddings must be an array", kind, remedy):
                call(value, V, 2)
        for method, name in (("pool", "embeddings"), ("unpool", "pooled")):
            with refused(TypeError, f"{name} must be an array", kind, remedy):
                getattr(shtopk.select(V, 2), method)(value)


@AS_ARRAYS
def test_what_is_no_number_is_refused_by_name(value, kind, remedy):
    remedy = "convert it with float" if kind == "str" else "pass a number"
    with refused(TypeError, "alpha must be a number", kind, remedy):
        shtopk.iterative_topk(E, V, 2, alpha=value)
    for boost, name in ((shtopk.Scaled, "sharpness"), (shtopk.Power, "base"), (shtopk.Relative, "sharpness")):
        with refused(TypeError, f"{name} must be a number", kind, remedy):
            shtopk.topk(E, V, 2, boost=boost(value))
    with refused(TypeError, "alpha must be real", "complex"):
        shtopk.iterative_topk(E, V, 2, alpha=1j)
    with refused(TypeError, "Scaled.sharpness must be real", "complex"):
        shtopk.topk_mask(V, 2, boost=shtopk.Scaled(1j))


@pytest.mark.parametrize("value", ["no", None, 1, jnp.array(True)], ids=repr)
def test_a_flag_that_is_no_bool_is_refused_by_name(value):
    for call in (EVERY["topk"], EVERY["select"], EVERY["topk_mask"]):
        with refused(TypeError, "reseed must be True or False", repr(value), "static_argnames='reseed'"):
            call(V, 2, reseed=value)
    with refused(TypeError, "straight_through must be True or False", repr(value)):
        shtopk.topk(E, V, 2, straight_through=value)


def test_what_turns_itself_into_an_array_is_one():
    class Parameter:
        def __init__(self, value):
            self.value = value

        def __jax_array__(self):
            return self.value

    e, v, c = Parameter(E), Parameter(V), Parameter(jnp.asarray(2.0))
    jax.tree.map(
        np.testing.assert_array_equal,
        shtopk.topk(e, v, 2, boost=shtopk.Scaled(c)),  # pyright: ignore[reportArgumentType] (as jnp's types)
        shtopk.topk(E, V, 2, boost=shtopk.Scaled(2.0)),
    )
    k: Any = Parameter(jnp.asarray(2.5))
    np.testing.assert_array_equal(shtopk.topk_mask(V, k), shtopk.topk_mask(V, jnp.asarray(2.5)))
    for same in (k, np.asarray(jnp.bfloat16(2.5))):
        np.testing.assert_allclose(shtopk.topk_mask(V, same), shtopk.topk_mask(V, 2.5), rtol=1e-12)


def test_numpy_arrays_and_numpy_scalars_are_arrays():
    k: Any = np.int32(2)
    got = shtopk.topk(np.asarray(E), np.asarray(V), k, where=np.ones(5, bool))
    want = shtopk.topk(E, V, 2)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.usefixtures("x32")
@pytest.mark.parametrize("number", [3 * 10**9, 10**20, np.int64(3 * 10**9), np.array(3 * 10**9)], ids=repr)
def test_whole_numbers_beyond_32_bits_are_those_of_floats(number):
    """While x64 is off, `jit` wraps an integer to 32 bits, or refuses it."""
    v, e = np.arange(4, dtype=np.float32) / 10, np.ones((4, 2), np.float32)

    def calls(number):
        for boost in (shtopk.Scaled(number), shtopk.Relative(number), shtopk.Power(number)):
            yield shtopk.topk_mask(v, 2, boost=boost)
        yield shtopk.iterative_topk(e, v, 2, alpha=number)
        yield shtopk.anneal(v, 0.5, jax.random.key(0), noise=number)
        yield shtopk.anneal(v, 1.0, sharpness=(1, number))

    for got, want in zip(calls(number), calls(float(number)), strict=True):
        chex.assert_trees_all_close(got, want, rtol=0)


def test_a_real_k_in_half_precision_goes_with_any_n():
    mask = jax.eval_shape(lambda v: shtopk.topk_mask(v, np.float16(2.5)), jnp.zeros(70000))  # 70000 overflows
    assert mask.shape == (70000,)
