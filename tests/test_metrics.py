"""nccs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk


def test_nccs_of_two_rows_by_hand():
    # The first row has its like, the second one at 45 degrees, at best.
    assert np.isclose(shtopk.nccs(jnp.eye(2), jnp.array([[3.0, 0.0], [2.0, 2.0]])), (1 + np.sqrt(0.5)) / 2)


def test_against_the_reference_and_over_leading_axes():
    rng = np.random.default_rng(0)
    y, z = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 5, 4))
    got = shtopk.nccs(y, z)
    assert got.shape == (2, 3)
    want = [[reference.nccs(y[i, j], z[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.vmap(shtopk.nccs))(y, z), want, rtol=1e-12)


def test_no_scale_is_too_large_or_too_small():
    y = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    for scale in (1e-200, 1e200, 1e308, np.float32(1e38)):
        x = y.astype(np.asarray(scale).dtype) * scale
        assert np.isclose(shtopk.nccs(x, y), 1)
        assert np.isclose(shtopk.nccs(x, x), 1)


def test_no_rounding_takes_it_beyond_1(x32):
    y = jnp.asarray(np.random.default_rng(0).normal(size=(500, 1, 8)), jnp.float32)
    assert jnp.max(shtopk.nccs(y, y)) == 1
    assert jnp.min(shtopk.nccs(y, -y)) == -1


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e30])
def test_rows_of_any_length_have_a_gradient(scale, x32):
    reference, approximation = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([[1.0, 1.0], [2.0, -1.0]])
    gradient = jax.grad(lambda b: shtopk.nccs(reference, b))
    np.testing.assert_allclose(gradient(approximation * scale) * scale, gradient(approximation), rtol=1e-5)


def test_a_row_of_zeros_has_cosine_0_and_a_finite_gradient():
    y = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    value, gradient = jax.value_and_grad(shtopk.nccs)(y, y)
    assert value == 0.5
    chex.assert_tree_all_finite(gradient)
