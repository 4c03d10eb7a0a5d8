"""Slots moved to a row drawn from each, by two estimates of how the scores should change; both `(b, k, d)`."""

from dataclasses import replace

import jax.numpy as jnp
from jax import lax

import shtopk


def first_order(embeddings, scores, k, boost, draw, key):
    """`topk(..., draw=draw)`: the weights' gradient is that of the mixture."""
    options = {"boost": boost, "draw": draw, "key": key, "order": "position"}
    return shtopk.topk(embeddings, scores, k, **options).embeddings


def second_order(embeddings, scores, k, boost, draw, key):
    """The same values; the weights' gradient is that of Heun's rule (ReinMax, Liu et al. 2023).

    With m the weights of a slot, D one for its drawn member j and 0 for the others, the rule comes to
    `dm / 2 + (D - m) / 2 * d log m_j` in the place of `dm`, for the drawn part of a slot.
    """
    selection = shtopk.select(scores, k, boost=boost)
    row, m = selection.sample(key), selection.weights
    is_drawn = (selection.indices == row[..., None]) & (m > 0)
    log_weight = jnp.log(jnp.sum(jnp.where(is_drawn, m, 0), axis=-1, keepdims=True))
    step = lax.stop_gradient(draw * (is_drawn - m))
    weights = m + step + (step * _only_derivative(log_weight) - draw * _only_derivative(m)) / 2
    slots = replace(selection, weights=weights).pool(embeddings)
    return jnp.take_along_axis(slots, jnp.argsort(row, axis=-1)[..., None], axis=1)


def _only_derivative(x):
    return x - lax.stop_gradient(x)
