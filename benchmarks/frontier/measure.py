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
            selection = shtopk.select(v, k, boost=boost, reseed=reseed)
            soft = selection.pool(embeddings)
            return jnp.sum(direction * soft), (soft, selection.mask(), selection.weights)

        gradient, (soft, mask, weights) = jax.grad(loss, has_aux=True)(scores)
        return _quantities(embeddings, scores, k, soft, mask, weights, jnp.abs(gradient))

    return jax.jit(lambda numbers, *data: lax.map(lambda some: one_boost(some, *data), numbers))


def _quantities(embeddings, scores, k, soft, mask, weights, gradient):
    hard = shtopk.hard_topk(embeddings, scores, k)
    boundary = hard.scores[:, -1:]
    quality = shtopk.nccs(hard.embeddings, soft)
    largest = jnp.max(gradient, axis=-1, keepdims=True)
    reached = jnp.sum((gradient >= 1e-3 * largest) & (largest > 0), axis=-1)
    # The scores' spread where it is decided, between the seeds k/2 and 3k/2: free of scale and of tails.
    best = lax.top_k(scores, min(scores.shape[-1], k + (k + 1) // 2 + 1))[0]
    spread = best[:, k // 2] - best[:, -1]
    tied = scores == boundary
    share = jnp.sum(mask * tied, -1, keepdims=True) / jnp.sum(tied, -1, keepdims=True)
    return {
        "nccs": jnp.mean(quality),
        "nccs_error": jnp.std(quality) / jnp.sqrt(quality.shape[0]),
        "mass": jnp.mean(jnp.sum(mask * (scores >= boundary), axis=-1)) / k,
        "reach": jnp.median(reached) / k,
        "gradient": jnp.median(largest[:, 0] * spread),
        "gradient_95": jnp.quantile(largest[:, 0] * spread, 0.95),
        "last_round": jnp.mean(_last_round(weights)),
        "tie_spread": jnp.mean(jnp.sqrt(jnp.sum(tied * (mask - share) ** 2, -1) / jnp.sum(tied, -1))),
    }


def _last_round(weights):
    """4w(1 - w) of each match in the last round, 1 where it is soft and 0 where it is hard: `(draws, k)`.

    Of a slot's members, seeds p with p // k = 0, 1, 2, ... under `reseed=False`, every first and fourth of
    four came to the last round's match on its high side.
    """
    block = jnp.arange(weights.shape[-1]) % 4
    w = jnp.sum(jnp.where((block == 0) | (block == 3), weights, 0), axis=-1)
    return 4 * w * (1 - w)
