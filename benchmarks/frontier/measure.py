"""What a boost gives up and what it gains: quality on one side, the gradient's reach on the other."""

import jax
import jax.numpy as jnp
from jax import lax

import shtopk
from benchmarks.frontier.scores import DISTRIBUTIONS

D = 32


def draws_of(n, quick, scale=1):
    """Many draws where they are cheap, and noisy; few where they are not."""
    return scale * max(16, min(32 if quick else 256, 2**17 // n))


def sample(n, k, draws, seed):
    """Embeddings, the loss's direction, and the scores of each distribution."""
    e_key, g_key, v_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), n * 2**12 + k), 3)
    embeddings = jax.random.uniform(e_key, (draws, n, D), minval=-1)
    direction = jax.random.normal(g_key, (draws, k, D))
    scores = {name: make(v_key, (draws, n)) for name, make in DISTRIBUTIONS.items()}
    return embeddings, direction, scores


def measurement(family, k, reseed):
    """A compiled function of numbers `(p, 2)`, embeddings, direction, scores; it gives quantities `(p,)`."""

    def one_boost(numbers, embeddings, direction, scores):
        boost = family(numbers[0], numbers[1])

        def loss(v):
            soft = shtopk.topk(embeddings, v, k, boost=boost, reseed=reseed).embeddings
            return jnp.sum(direction * soft), soft

        gradient, soft = jax.grad(loss, has_aux=True)(scores)
        return _quantities(embeddings, scores, k, soft, jnp.abs(gradient))

    return jax.jit(lambda numbers, *data: lax.map(lambda some: one_boost(some, *data), numbers))


def _quantities(embeddings, scores, k, soft, gradient):
    hard = shtopk.hard_topk(embeddings, scores, k).embeddings
    largest = jnp.max(gradient, axis=-1, keepdims=True)
    reached = jnp.sum((gradient >= 1e-3 * largest) & (largest > 0), axis=-1)
    return {"nccs": jnp.mean(shtopk.nccs(hard, soft)), "reach": jnp.median(reached) / k}
