"""What an editor is told of a call: `assert_type` is read by pyright, and does nothing when it runs."""

import functools
import inspect
from typing import assert_type

import jax
import jax.numpy as jnp

import shtopk

E, V = jnp.ones((8, 4)), jnp.arange(8.0)


def traced(test):
    """Nothing is compiled: types are all there is to see."""
    return functools.wraps(test)(lambda: jax.eval_shape(test))


@traced
def test_what_goes_in_comes_out():
    for call in (shtopk.topk, shtopk.hard_topk, shtopk.iterative_topk):
        assert isinstance(call(E, V, 2), shtopk.TopK)
    assert_type(shtopk.topk(E, V, 2).embeddings, jax.Array)
    assert_type(shtopk.topk(E, V, 2).scores, jax.Array)
    assert_type(shtopk.hard_topk({"a": E}, V, 2).embeddings, dict[str, jax.Array])
    assert_type(shtopk.iterative_topk((E, E), V, 2).embeddings, tuple[jax.Array, jax.Array])


@traced
def test_a_selections_arrays_are_arrays():
    selection = shtopk.select(V, 2)
    assert_type(selection, shtopk.Selection)
    assert_type(selection.champions, jax.Array)
    assert_type(selection.pool([E]), list[jax.Array])
    assert_type(selection.unpool(selection.pool(E)), jax.Array)
    assert_type(shtopk.topk_mask(V, 2), jax.Array)


@traced
def test_a_boost_is_a_callable_of_three_arrays():
    def even(high: jax.Array, low: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.full(high.shape, 0.5)

    boosts: list[shtopk.Boost] = [shtopk.Relative(), shtopk.Scaled(2.0), shtopk.Power(), even]
    for boost in boosts:
        assert_type(shtopk.topk_mask(V, 2, boost=boost), jax.Array)
    assert_type(shtopk.topk_mask(V, 2, boost=lambda high, low, where: jnp.where(where, 0.75, 0.5)), jax.Array)


def test_signatures_print_short():
    """Names of types: the type that `ArrayLike` stands for would print as a line of its own."""
    for name in shtopk.__all__:
        assert "Union" not in str(inspect.signature(getattr(shtopk, name)))
    assert str(inspect.signature(shtopk.nccs)) == (
        "(reference: 'ArrayLike', approximation: 'ArrayLike') -> 'jax.Array'"
    )
