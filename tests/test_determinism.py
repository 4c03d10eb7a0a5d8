"""The same input gives the same bits; the same rows in another batch or order give the same numbers."""

import hashlib
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk

pytestmark = pytest.mark.usefixtures("full_effort")

N, K = 20, 3


@jax.jit
@partial(jax.grad, argnums=(0, 1), has_aux=True)
def step(e, v):
    out = shtopk.topk(e, v, K)
    return jnp.sum(jnp.sin(out.embeddings)) + jnp.sum(out.scores), out


def everything(scores):
    """Values and gradients of each function on `scores` `(..., n)`, float32 as in training."""
    v = np.asarray(scores, np.float32)
    e = np.sin(np.arange(N * 4, dtype=v.dtype)).reshape(N, 4) * v[..., None]
    gradients, out = step(e, v)
    masks = shtopk.topk_mask(v, K), shtopk.topk_mask(v, jnp.int32(K))
    return jax.tree.leaves((out, gradients, masks, shtopk.hard_topk(e, v, K)))


def draw():
    return np.random.default_rng(0).normal(size=(3, N))


def digest():
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in everything(draw()))).hexdigest()


def test_calls_and_processes_agree_to_the_bit():
    here = digest()
    jax.clear_caches()  # compiled again
    assert digest() == here
    code = f"""
import sys, jax
jax.config.update("jax_enable_x64", True)
sys.path[:0] = {sys.path!r}
import test_determinism
print(test_determinism.digest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


def test_a_row_in_a_batch_is_the_row_alone():
    """To 64 eps of the largest: sums may be taken in another order."""
    eps = float(jnp.finfo(jnp.float32).eps)
    for got, want in zip(everything(draw()), everything(draw()[1]), strict=True):
        np.testing.assert_allclose(got[1], want, rtol=0, atol=64 * eps * np.abs(want).max())


@pytest.mark.parametrize("k", [K, jnp.int32(K)], ids=["static k", "traced k"])
def test_permuted_scores_give_the_permuted_mask_to_the_bit(k):
    scores, order = np.asarray(draw()[0], np.float32), np.random.default_rng(1).permutation(N)
    mask, permuted = (np.asarray(shtopk.topk_mask(v, k)) for v in (scores, scores[order]))
    np.testing.assert_array_equal(permuted, mask[order])
