"""shtopk: a differentiable top-k operator for JAX, by successive halving.

Pick k of n rows by their scores, and learn the scores by gradient descent:

>>> import jax, jax.numpy as jnp
>>> import shtopk
>>> embeddings = jax.random.normal(jax.random.key(0), (2, 100, 16))  # 2 sequences of 100 tokens
>>> scores = embeddings[..., 0]
>>> shtopk.topk(embeddings, scores, 8).embeddings.shape
(2, 8, 16)

The result has a gradient with respect to the embeddings, the scores and the numbers of the boost:

>>> def loss(scores, sharpness):
...     return jnp.mean(shtopk.topk(embeddings, scores, 8, boost=shtopk.Relative(sharpness)).embeddings[..., 1])
>>> d_scores, d_sharpness = jax.jit(jax.grad(loss, argnums=(0, 1)))(scores, 4.0)
>>> d_scores.shape, d_sharpness.shape
((2, 100), ())

`topk_mask` returns the weight of each candidate. The weights of each sequence sum to k:

>>> mask = shtopk.topk_mask(scores, 8)
>>> mask.shape, mask.sum(-1).round(3).tolist()
((2, 100), [8.0, 8.0])

To train, let `anneal` prepare the scores and the boost of each step. At evaluation, `hard_topk` picks the k best rows:

>>> annealed, boost = shtopk.anneal(scores, progress=0.5, key=jax.random.key(1))
>>> shtopk.topk_mask(annealed, 8, boost=boost).shape
(2, 100)
>>> shtopk.hard_topk(embeddings, scores, 8).embeddings.shape
(2, 8, 16)
"""

from shtopk._boost import Boost, Power, Relative, Scaled
from shtopk._iterative import iterative_topk
from shtopk._mask import topk_mask
from shtopk._metrics import nccs
from shtopk._operator import TopK, hard_topk, topk
from shtopk._select import Selection, select
from shtopk._training import Annealed, anneal

__all__ = [
    "Annealed",
    "Boost",
    "Power",
    "Relative",
    "Scaled",
    "Selection",
    "TopK",
    "anneal",
    "hard_topk",
    "iterative_topk",
    "nccs",
    "select",
    "topk",
    "topk_mask",
]

__version__ = "0.2.0"
