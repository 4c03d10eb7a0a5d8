"""Every public function as a function of arrays alone, with arguments to call it on.

What every transformation is tried on: a public name that is not in this table fails a test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import shtopk

# Small, as nearly all of the time goes into compiling: two rounds to K slots, one to N // 2.
N, K, D = 6, 2, 2

rng = np.random.default_rng(0)
E, P = jnp.asarray(rng.normal(size=(N, D))), jnp.asarray(rng.normal(size=(K, D)))
# Far enough apart for a finite difference to change no rank.
V = jnp.asarray(rng.permutation(N) / 3 + rng.uniform(0, 0.1, N))
HIGH, LOW = jnp.array([4.0, 2.5, 1.7]), jnp.array([-1.0, 0.5, 0.9])
WHERE = jnp.arange(N) % 5 != 3
C = jnp.asarray(1.5)
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Call:
    """`function(*arguments)`, pytrees of arrays.

    `exact` says that the derivative is the slope, with nothing held constant.
    """

    function: Callable
    arguments: tuple[Any, ...]
    exact: bool = True

    def others(self):
        """Other arguments of the same types, leaf by leaf."""
        return jax.tree.map(_other, self.arguments)

    def flat(self):
        """The floating results as a vector function of the floating arguments, `(p,)` to `(q,)`, and where."""
        leaves, tree = jax.tree.flatten(self.arguments)
        floats, unravel = ravel_pytree([x for x in leaves if _is_float(x)])

        def function(vector):
            values = iter(unravel(vector))
            out = self.function(*tree.unflatten(next(values) if _is_float(x) else x for x in leaves))
            return ravel_pytree([x for x in jax.tree.leaves(out) if _is_float(x)])[0]

        return function, floats


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _other(x):
    """Floats and booleans turned about; indices as they are, a number of slots one more."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        return x + 1 if x.ndim == 0 else x
    flipped = np.flip(x)
    return jnp.asarray(flipped * np.asarray(0.75, x.dtype) if _is_float(x) else flipped)


def _boosted(name):
    boost = getattr(shtopk, name)
    return lambda number, high, low: boost(number)(high, low, jnp.ones(high.shape, bool))


SELECTION = shtopk.select(V, K, boost=shtopk.Scaled(C))
CHAMPIONS = SELECTION.champions

CALLS = {
    "topk": Call(lambda e, v, c: shtopk.topk(e, v, N // 2, boost=shtopk.Scaled(c)), (E, V, C)),
    "topk: its options": Call(
        lambda e, v, where: shtopk.topk(
            e, v, K, reseed=True, where=where, candidates=5, straight_through=True, order="position"
        ),
        (E, V, WHERE),
        exact=False,
    ),
    "topk: split over an axis": Call(
        lambda e, v: jax.vmap(lambda e, v: shtopk.topk(e, v, N // 2, axis_name="x"), axis_name="x")(
            e.reshape(2, N // 2, D), v.reshape(2, N // 2)
        ),
        (E, V),
        exact=False,
    ),
    "topk: drawn": Call(
        lambda e, v, t: shtopk.topk(
            e, v, N // 2, draw=t, boost=shtopk.Scaled(1.5), key=KEY, order="position"
        ),
        (E, V, jnp.asarray(0.75)),
        exact=False,
    ),
    "hard_topk": Call(lambda e, v: shtopk.hard_topk(e, v, K), (E, V)),
    "iterative_topk": Call(lambda e, v, c: shtopk.iterative_topk(e, v, K, alpha=c), (E, V, C)),
    "select": Call(lambda v, c: shtopk.select(v, K, boost=shtopk.Scaled(c), reseed=True), (V, C)),
    "topk_mask": Call(lambda v, c: shtopk.topk_mask(v, K, boost=shtopk.Relative(c)), (V, C), exact=False),
    # For a traced k all rounds down to one slot are compiled: two for three candidates, with a bye.
    "topk_mask: traced k": Call(
        lambda v, k, c: shtopk.topk_mask(v, k, boost=shtopk.Scaled(c)), (V[:3], jnp.int32(1), C)
    ),
    "topk_mask: real k": Call(
        lambda v, k, c: shtopk.topk_mask(v, k, boost=shtopk.Scaled(c)), (V[:3], jnp.asarray(1.5), C)
    ),
    "topk_mask: its log": Call(
        lambda v, c: shtopk.topk_mask(v, N // 2, boost=shtopk.Scaled(c), candidates=5, log=True)[:3], (V, C)
    ),
    "anneal": Call(lambda v, p, where: shtopk.anneal(v, p, KEY, where=where), (V, C / 4, WHERE), exact=False),
    "Selection.pool": Call(lambda s, e: s.pool(e), (SELECTION, E)),
    "Selection.unpool": Call(lambda s, p: s.unpool(p), (SELECTION, P)),
    "Selection.mask": Call(lambda s: s.mask(), (SELECTION,)),
    "Selection.matrix": Call(lambda s: s.matrix(), (SELECTION,)),
    "Selection.champions": Call(lambda s: s.champions, (SELECTION,)),
    "Selection.sample": Call(lambda s: s.sample(KEY), (SELECTION,)),
    "Selection.log_prob": Call(lambda s: s.log_prob(CHAMPIONS), (SELECTION,)),
    "Selection.entropy": Call(lambda s: s.entropy(), (SELECTION,), exact=False),
    "TopK": Call(lambda e, v: shtopk.TopK(jnp.sin(e), jnp.cos(v), jnp.arange(N)), (E, V)),
    "Annealed": Call(lambda v, c: shtopk.Annealed(jnp.sin(v), shtopk.Scaled(c)), (V, C)),
    "nccs": Call(shtopk.nccs, (E[:3], jnp.flip(E[3:6]))),
    "Scaled": Call(_boosted("Scaled"), (C, HIGH, LOW)),
    "Power": Call(_boosted("Power"), (C, HIGH, LOW)),
    "Relative": Call(_boosted("Relative"), (C, HIGH, LOW), exact=False),
}

# A choice has no derivative: it is left out where derivatives are taken.
DIFFERENTIABLE = [name for name in CALLS if name not in ("Selection.champions", "Selection.sample")]
