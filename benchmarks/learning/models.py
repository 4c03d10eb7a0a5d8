"""The models: `reading` gives every candidate an embedding and a score, `answering` goes by the chosen rows."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn


class Model(nn.Module):
    """A reader and an answerer, and one parameter that a method may learn its sharpness with."""

    reader: nn.Module
    answerer: nn.Module

    def setup(self):
        self.learned = self.param("learned", nn.initializers.zeros, ())

    def reading(self, x):
        return self.reader(x)

    def answering(self, rows, weights):
        return self.answerer(rows, weights)

    def __call__(self, x, k):
        embeddings, scores = self.reader(x)
        return self.answerer(embeddings[:, :k], jnp.ones(scores[:, :k].shape))


class PatchReader(nn.Module):
    """An MLP on each row `(b, n, f)`."""

    width: int

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(2 * self.width)(x))
        embeddings = nn.LayerNorm()(nn.relu(nn.Dense(self.width)(hidden)))
        return embeddings, nn.Dense(1)(embeddings)[..., 0]


class TokenReader(nn.Module):
    """Tokens `(b, n)`: scores in the light of the whole sequence; what is chosen are the tokens themselves."""

    vocabulary: int
    width: int = 32

    @nn.compact
    def __call__(self, x):
        embeddings = nn.Embed(self.vocabulary, self.width)(x)
        seen = embeddings + nn.SelfAttention(num_heads=2)(nn.LayerNorm()(embeddings))
        hidden = nn.relu(nn.Dense(2 * self.width)(nn.LayerNorm()(seen)))
        return nn.LayerNorm()(embeddings), nn.Dense(1)(hidden)[..., 0]


class FeatureReader(nn.Module):
    """Features `(b, n)`: row i is feature i alone, so that the chosen rows add up to the masked input."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(x))))
        return x[..., None] * jnp.eye(x.shape[-1]), nn.Dense(x.shape[-1])(hidden)


class MeanOfRows(nn.Module):
    """What an MLP makes of each row, averaged by weight, to logits `(b, classes)`."""

    classes: int
    k: int

    @nn.compact
    def __call__(self, rows, weights):
        hidden = nn.relu(nn.Dense(64)(nn.LayerNorm()(rows)))
        return nn.Dense(self.classes)(jnp.einsum("brd,br->bd", hidden, weights) / self.k)


class AnyOfRows(nn.Module):
    """The log-probabilities `(b, 10)` that a digit is absent: absent from every row."""

    @nn.compact
    def __call__(self, rows, weights):
        hidden = nn.relu(nn.Dense(64)(nn.LayerNorm()(rows)))
        logits = nn.Dense(10, bias_init=nn.initializers.constant(-2.5))(hidden)
        absent = jnp.einsum("brc,br->bc", jax.nn.log_sigmoid(-logits), weights)
        return jnp.minimum(absent, -1e-6)  # log(1 - exp(0)) is -inf


class RowsInOrder(nn.Module):
    """A Transformer layer on k slots, to logits `(b, k, classes)`.

    If there are k rows, they are the slots: each is normalised, then multiplied by its weight. More rows are folded
    into slots: row r stands where the weights before it end.
    """

    classes: int
    k: int
    width: int = 32

    @nn.compact
    def __call__(self, rows, weights):
        if rows.shape[1] == self.k:
            slots = weights[..., None] * nn.LayerNorm()(rows)  # before the norm, a weight would be lost
        else:
            middle = jnp.cumsum(weights, axis=-1) - weights / 2
            near = nn.relu(1 - jnp.abs(middle[:, None] - (jnp.arange(self.k) + 0.5)[:, None]))  # (b, k, r)
            slots = nn.LayerNorm()(jnp.einsum("bkr,br,brd->bkd", near, weights, rows))
        place = self.param("place", nn.initializers.normal(0.02), (self.k, self.width))
        h = nn.Dense(self.width)(slots) + place
        h = h + nn.SelfAttention(num_heads=2)(nn.LayerNorm()(h))
        h = h + nn.Dense(self.width)(nn.relu(nn.Dense(2 * self.width)(nn.LayerNorm()(h))))
        return nn.Dense(self.classes)(nn.LayerNorm()(h))


class SumOfRows(nn.Module):
    """An MLP on the masked input, to logits `(b, 2)`."""

    @nn.compact
    def __call__(self, rows, weights):
        x = jnp.einsum("brd,br->bd", rows, weights)
        return nn.Dense(2)(nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(x)))))


class LayersAbove(nn.Module):
    """Two Transformer layers over the rows that are left, and a query for each digit, to log-probabilities `(b, 10)`.

    `log_weights` are added to the logits of every attention, so a row of weight 0 is not there.
    """

    width: int

    @nn.compact
    def __call__(self, rows, log_weights):
        look = partial(nn.dot_product_attention, bias=log_weights[:, None, None])
        h = rows
        for _ in range(2):
            h = h + nn.MultiHeadDotProductAttention(num_heads=2, attention_fn=look)(nn.LayerNorm()(h))
            h = h + nn.Dense(self.width)(nn.relu(nn.Dense(2 * self.width)(nn.LayerNorm()(h))))
        query = self.param("query", nn.initializers.normal(0.5), (10, self.width))
        query = jnp.broadcast_to(query, (len(h), *query.shape))
        seen = nn.MultiHeadDotProductAttention(num_heads=2, attention_fn=look)(query, nn.LayerNorm()(h))
        out = self.param("out", nn.initializers.normal(0.1), (10, self.width))
        logits = jnp.einsum("bcd,cd->bc", nn.LayerNorm()(seen), out) - 1  # rare at first
        return jnp.minimum(jax.nn.log_sigmoid(-logits), -1e-6)
