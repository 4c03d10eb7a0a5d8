"""What a researcher would train with instead, each in a few lines.

All have one signature, `choose(embeddings (b, n, d), scores (b, n), k, at) -> (rows (b, r, d), weights (b, r))`: a
model reads `rows` weighed by `weights`, which sum to k; `at` is a `Moment` of training. Peers of k rows give them
in the order in which they stand in the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers import over_threshold, rows

SAMPLES = 32  # of the perturbed top k


class Moment(NamedTuple):
    """What a method may go by: its own number (tuned), progress from 0 to 1, a parameter it may learn, a key."""

    number: jax.Array
    progress: jax.Array
    learned: jax.Array
    key: jax.Array


def best(scores, k):
    """Where the k best scores stand `(..., k)`, in the order of the input."""
    return jnp.sort(lax.top_k(lax.stop_gradient(scores), k)[1], axis=-1)


def _forward_hard(embeddings, soft, index):
    """Weights 1 for the rows `index` forward, those of `soft` `(b, n)` backward."""
    hard = jax.vmap(lambda i: jnp.zeros(soft.shape[1]).at[i].set(1.0))(index)
    return embeddings, hard + soft - lax.stop_gradient(soft)


def gated(embeddings, scores, k, at):
    index = best(scores, k)
    return rows(embeddings, index), jax.nn.sigmoid(at.number * rows(scores, index))


def noisy_gated(embeddings, scores, k, at):
    """`gated` under noise that fades, so that other rows get a chance (noisy top-k gating, Shazeer et al. 2017)."""
    noise = (1 - at.progress) * jax.random.normal(at.key, scores.shape)
    return gated(embeddings, scores + noise, k, at)


def softmax_straight_through(embeddings, scores, k, at):
    return _forward_hard(embeddings, k * jax.nn.softmax(scores / at.number), best(scores, k))


def gumbel_straight_through(embeddings, scores, k, at):
    noisy = scores + jax.random.gumbel(at.key, scores.shape)
    return _forward_hard(embeddings, k * jax.nn.softmax(noisy / at.number), best(noisy, k))


def attention(embeddings, scores, k, at):
    return embeddings, k * jax.nn.softmax(scores / at.number)


def softsort(embeddings, scores, k, at):
    """Prillo and Eisenschlos 2020; its k rows put in the order of their largest weights."""
    top = lax.top_k(scores, k)[0]
    weights = jax.nn.softmax(-jnp.abs(top[..., None] - scores[:, None]) / at.number, axis=-1)
    place = jnp.argsort(jnp.argmax(weights, axis=-1), axis=-1)
    return rows(weights, place) @ embeddings, jnp.ones(top.shape)


def threshold_mask(embeddings, scores, k, at, of=jax.nn.sigmoid):
    """Weighed by the mask, or with `jax.nn.log_sigmoid` by its log; so are the two peers below that take `of`."""
    return embeddings, of(over_threshold(scores, k, at.number))


def perturbed(embeddings, scores, k, at):
    """The mean of hard choices under noise, differentiated by the score function (Berthet et al. 2020)."""
    noise = jax.random.normal(at.key, (SAMPLES, *scores.shape))
    index = best(scores + at.number * noise, k)  # (samples, b, k)
    lean = jnp.sum(noise * (scores - lax.stop_gradient(scores)) / at.number, axis=-1)
    weights = (1 + lean) / SAMPLES

    def pooled(e, index, weights):
        matrix = jnp.zeros((k, e.shape[0])).at[jnp.arange(k), index].add(weights[:, None])
        return matrix @ e

    return jax.vmap(pooled, (0, 1, 1))(embeddings, index, weights), jnp.ones((scores.shape[0], k))


def random_choice(embeddings, scores, k, at):
    """The control: k rows at random, whatever their scores; the reader alone is trained."""
    return rows(embeddings, best(jax.random.uniform(at.key, scores.shape), k)), jnp.ones((len(scores), k))


def gumbel_sigmoid(embeddings, scores, k, at, of=jax.nn.sigmoid):
    """A relaxed coin for each row (Maddison et al. 2017), about the threshold at which all of them sum to k."""
    return threshold_mask(embeddings, scores + jax.random.logistic(at.key, scores.shape), k, at, of)


def noise_gate(embeddings, scores, k, at, of=jax.nn.sigmoid):
    """What a mask that sums to k leaves out of a row is noise in its place (Schulz et al. 2020).

    A row is `m * E + (1 - m) * noise`, weighed by m; the noise has the rows' own mean and spread.
    """
    over, still = over_threshold(scores, k, at.number), lax.stop_gradient(embeddings)
    noise = still.mean((0, 1)) + still.std((0, 1)) * jax.random.normal(at.key, still.shape)
    return noise + jax.nn.sigmoid(over)[..., None] * (embeddings - noise), of(over)


def _log_sums(scores, k):
    """Row i: the log of the sum over all j-subsets of the first i of `scores` `(n,)`, `(n + 1, k + 1)`."""
    first = jnp.full(k + 1, -1e9).at[0].set(0.0)

    def one_more(sums, score):
        sums = sums.at[1:].set(jnp.logaddexp(sums[1:], sums[:-1] + score))
        return sums, sums

    return jnp.concatenate([first[None], lax.scan(one_more, first, scores)[1]])


def _subset(key, scores, k):
    """A k-subset drawn with the probability that the product of its `exp(scores)` gives it: `(n,)`, 1 or 0."""
    sums = _log_sums(scores, k)

    def decide(left, at):
        score, before, after, uniform = at
        chance = jnp.exp(score + before[left - 1] - after[left])
        taken = (left > 0) & (uniform < chance)
        return left - taken, taken

    uniforms = jax.random.uniform(key, scores.shape)
    taken = lax.scan(decide, k, (scores, sums[:-1], sums[1:], uniforms), reverse=True)[1]
    return taken.astype(scores.dtype)


def simple(embeddings, scores, k, at):
    """SIMPLE (Ahmed et al. 2023): a k-subset drawn, the gradient that of its exact marginals."""

    def weights(key, scores):
        marginals = jax.grad(lambda v: _log_sums(v, k)[-1, -1])(scores)
        return marginals + lax.stop_gradient(_subset(key, scores, k) - marginals)

    return embeddings, jax.vmap(weights)(jax.random.split(at.key, len(scores)), scores / at.number)
