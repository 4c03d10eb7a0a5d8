"""The tournament: rounds of matches on the scores, then the weights they leave to the candidates.

Upwards, round after round, `width` entries become `k` survivors. Downwards the weights go the other way: a
slot starts with weight 1, and each match hands `w` of it to `high` and `1 - w` to `low`, so that a candidate
ends with the product of its match weights. Every function here sees one row of scores, best seed first.
"""

import jax
import jax.numpy as jnp
from jax import lax

from shtopk import _checks
from shtopk._seeding import seed_order
from shtopk._sharding import alike

# Rounds played before the loop, each at its own half of the width: 15/16 of all the matches. Measured on CPU at
# 16 x 16384 scores and k = 2, the fourth takes a third off the time and the memory of the weights' gradient, for
# a quarter more compilation.
OPENING = 4


def round_count(n, k):
    """`R = ceil(log2(n / k))`, in integers."""
    return (-(-n // k) - 1).bit_length()


def match(high, low, where, boost):
    """Win weights and survivors' scores `(h,)` of the matches `high` against `low`, `(h,)` both.

    Where not `where` the opponent is missing: a bye, `w = 1` and the score unchanged. An infinite or NaN
    score decides its match alone, so the boost only ever sees finite numbers and no inf - inf arises.
    """
    contested = where & jnp.isfinite(high) & jnp.isfinite(low)
    decided = jnp.where(high > low, 1.0, jnp.where(high < low, 0.0, 0.5)).astype(high.dtype)
    decided = jnp.where(jnp.isnan(high) | jnp.isnan(low), jnp.nan, decided)
    best = jnp.where(where, lax.stop_gradient(jnp.maximum(high, low)), high)

    # What is not contested is replaced before the boost, too, so that its derivative stays finite as well.
    high, low = jnp.where(contested, high, 0), jnp.where(contested, low, 0)
    boosted = _checks.win_weights(boost(high, low, contested), high)
    w = jnp.where(contested, boosted, jnp.where(where, decided, 1))
    return w, jnp.where(contested, _mixed(boosted, high, low), best)


@jax.custom_jvp
def _mixed(w, high, low):
    """The survivor's score, `w * high + (1 - w) * low`."""
    return w * high + (1 - w) * low


@_mixed.defjvp
def _mixed_jvp(primals, tangents):
    # d score = w dhigh + (1 - w) dlow + (high - low) dw. The gap of two finite scores may overflow, by itself
    # or times what comes from later rounds, and infinity times a saturated dw of 0 is NaN. So a wide gap
    # is held within the range, and counts for nothing where w is 0 or 1.
    (w, high, low), (dw, dhigh, dlow) = primals, tangents
    most = float(jnp.finfo(high.dtype).max)
    half = jnp.clip(0.5 * high - 0.5 * low, -most / 16, most / 16)
    decided = (jnp.abs(half) > most**0.5) & ((w == 1) | (1 - w == 1))
    gap = jnp.where(decided, 0, 2 * half)
    return _mixed(w, high, low), w * dhigh + (1 - w) * dlow + gap * dw


def play(scores, live, k, boost, reseed):
    """Bring `scores` `(k * 2**R,)`, of which the first `live` count, down to k slots.

    Returns the slots' scores `(k,)`, and for each seed its weight `(k * 2**R,)` and its place
    `(k * 2**R,)` in the bracket: the seed it would have had if no round had sorted again.
    """
    width, entrants = scores.shape[0], live
    opening = []
    while scores.shape[0] > k and len(opening) < OPENING:
        order = None
        if reseed and opening:
            scores, order = _sorted(scores, live)
        half = scores.shape[0] // 2
        present = jnp.flip(lax.iota(jnp.int32, half) + half) < live
        # The barrier keeps XLA from working out every earlier round again in the kernels of this one.
        won, scores = lax.optimization_barrier(match(scores[:half], jnp.flip(scores[half:]), present, boost))
        live = jnp.minimum(live, half)
        opening.append((won, order))

    targets = [scores.shape[0] >> r for r in range(1, round_count(scores.shape[0], k) + 1)]
    scores, live, wins, orders = loop_up(scores, live, targets, boost, reseed)
    weights = (lax.iota(jnp.int32, scores.shape[0]) < jnp.minimum(live, k)).astype(scores.dtype)
    weights, place = loop_down(weights, targets, wins, orders)

    for won, order in reversed(opening):
        half = won.shape[0]
        weights = jnp.concatenate([weights * won, jnp.flip(weights * (1 - won))])
        place = jnp.concatenate([place, jnp.flip(2 * half - 1 - place)])
        weights, place = _unsorted((weights, place), order)

    # Selected, not multiplied: whatever a missing row's payload holds, its gradient stops here.
    weights = jnp.where(lax.iota(jnp.int32, width) < entrants, weights, 0)
    slots = jnp.where(lax.iota(jnp.int32, k) < live, scores[:k], -jnp.inf)
    return slots, weights, place


def loop_up(scores, live, targets, boost, reseed):
    """The rounds of a `lax.fori_loop`: `scores` `(width,)` is a carry whose first `live` entries count.

    `targets` holds each round's number of survivors h, ints or traced. Entry i < h meets entry 2h - 1 - i,
    if there is one. Returns the scores, how many live, and each round's weights and order `(rounds, width)`.
    """
    rounds, width = len(targets), scores.shape[0]
    if rounds == 0:
        return scores, live, None, None
    live, targets = jnp.asarray(live, jnp.int32), jnp.asarray(targets, jnp.int32)
    entry = lax.iota(jnp.int32, width)
    wins = jnp.zeros((rounds, width), scores.dtype)
    orders = jnp.zeros((rounds, width), jnp.int32) if reseed else None

    def play_round(r, carry):
        scores, live, wins, orders = carry
        half = targets[r]
        if reseed:
            scores, order = _sorted(scores, live)
            orders = orders.at[r].set(order)
        present = (entry < half) & (2 * half - 1 - entry < live)
        won, scores = match(scores, _mirrored(scores, half), present, boost)
        return scores, jnp.minimum(live, half), wins.at[r].set(won), orders

    live, targets, scores, wins, orders = alike(live, targets, scores, wins, orders)
    return lax.fori_loop(0, rounds, play_round, (scores, live, wins, orders))


def loop_down(weights, targets, wins, orders):
    """Hand the slots' `weights` `(width,)` down through the rounds of `loop_up`, last round first.

    Returns each entry's weight `(width,)` and its place in the bracket `(width,)`.
    """
    entry = lax.iota(jnp.int32, weights.shape[0])
    if len(targets) == 0:
        return weights, entry

    def undo_round(carry, played):
        (weights, place), (half, won, order) = carry, played
        weights = jnp.where(entry < half, weights * won, _mirrored(weights * (1 - won), half))
        place = jnp.where(entry < half, place, _mirrored(2 * half - 1 - place, half))
        return _unsorted((weights, place), order), None

    played = jnp.asarray(targets, jnp.int32), wins, orders
    start, played = alike((weights, entry), played)
    return lax.scan(undo_round, start, played, reverse=True)[0]


def _mirrored(x, half):
    """`x[2*half - 1 - i]` for each i, 0 where there is no such entry: a slice, not a gather."""
    width = x.shape[0]
    padded = jnp.pad(jnp.flip(x), width)
    return lax.dynamic_slice_in_dim(padded, 2 * (width - half), width)


def _sorted(scores, live):
    order = seed_order(scores, lax.iota(jnp.int32, scores.shape[0]) < live)
    return scores.at[order].get(mode="promise_in_bounds", unique_indices=True), order


def _unsorted(arrays, order):
    if order is None:
        return arrays
    return tuple(
        jnp.zeros_like(x).at[order].set(x, mode="promise_in_bounds", unique_indices=True) for x in arrays
    )
