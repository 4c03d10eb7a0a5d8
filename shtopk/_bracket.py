"""The tournament of one row of scores: its candidates are seeded, and play.

`topk_mask` gathers the weights of the places by candidate. `select` brings the places into slots.
"""

import jax.numpy as jnp
from jax import lax

from shtopk import _rounds
from shtopk._boost import centred
from shtopk._reorder import by_seed, ranks, whole_cotangent
from shtopk._seeding import filled, taken


def bracket(entry, n, boost, k, reseed, candidates):
    """The tournament of one row, which the best `candidates` of `entry` enter.

    Returns the scores of the slots `(k,)`; the weight of each place in the bracket, and the candidate in it, in the
    place of a bye its opponent of the first round, `(k * M,)` both; and the place of each of the n candidates `(n,)`,
    k * M for a candidate that does not enter.
    """
    ranked, count, above, order, rank = seeded(entry, n, candidates)
    rounds = _rounds.round_count(candidates, k)
    width = k << rounds
    own = centred(boost, ranked, _rounds.at_most(count, k) - 1)
    slot_scores, weights, seeds = _rounds.play(
        jnp.pad(own, (0, width - candidates)), count, above, k, boost, reseed
    )
    slot_scores = _moved_back(slot_scores, own[:k], ranked[:k])

    # Seeds from `candidates` on are byes, and that is the rank of a candidate that does not enter.
    indices = jnp.concatenate([order, jnp.flip(order[: width - candidates])])
    places = rank if candidates == width else jnp.where(rank < candidates, rank, width)
    if reseed and rounds > 1:
        indices, places = taken(indices, seeds), filled(ranks(seeds, width), places, width)
    return slot_scores, weights, indices, places


def seeded(entry, n, candidates):
    """One row of scores by seed, for the best `candidates` of `entry`, which enter the tournament.

    Returns their scores `(candidates,)`, best first, the number of them that take part, the number of these above -inf,
    their indices among n `(candidates,)`, and the seed of each of the n candidates `(n,)`, `candidates` for one that
    does not enter.
    """
    scores, where, indices = entry
    # Counted before the sort: of the sorted scores, the count would start a kernel more on a GPU.
    above = lax.stop_gradient(scores) != -jnp.inf
    above = jnp.sum(above if where is None else above & where, dtype=jnp.int32)
    ranked, order, rank = by_seed(scores, where, candidates)
    count = candidates if where is None else jnp.minimum(jnp.sum(where, dtype=jnp.int32), candidates)
    if indices is not None:
        order = taken(indices, order)
        rank = ranks(order, n)
    return whole_cotangent(ranked), count, jnp.minimum(above, candidates), order, rank


def _moved_back(slot_scores, own, ranked):
    """`slot_scores` `(k,)`, moved as far as the best seeds are from `own` to `ranked`, both `(k,)`.

    A slot whose best seed wins outright gets the score of this seed, without a rounding.
    """
    own, ranked = lax.stop_gradient((own, ranked))
    return jnp.where(own == ranked, slot_scores, slot_scores - own + ranked)
