"""The tournament: rounds of matches on the scores, then the weights of the candidates.

Upwards, round after round, `width` entries become `k` survivors. Downwards the weights go the other way: a slot starts
with weight 1, and each match hands `w` of it to `high` and `1 - w` to `low`, so that a candidate ends with the product
of its match weights. Every function here takes one row of scores, best seed first.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from shtopk._boost import half_gap, win_weights
from shtopk._reorder import by_seed, reordered
from shtopk._seeding import filled, ranks
from shtopk._sharding import match_varying_axes

# The number of rounds that are unrolled at their own width, before the loop over the later rounds. Compiled for an H100
# at 16 x 16384 scores and k = 2, the gradient starts 49 kernels, against 46 with four rounds unrolled and 52, with 5
# times the temporary memory, with all rounds in the loop. On CPU the gradient is slower with four.
OPENING = 10


def round_count(n, k):
    """`R = ceil(log2(n / k))`, in integers."""
    return (-(-n // k) - 1).bit_length()


def match(high, low, seeds, first, half, boost):
    """Win weights and survivors' scores `(h,)` of the matches `high` against `low`, `(h,)` both.

    Matches `first` to `half - 1` are played. In earlier entries `high` has no opponent: a bye, `w = 1` and the score
    unchanged. Later entries do not count. An infinite or NaN score decides its match alone. The survivor's score is
    then `high`, because the sort puts infinities at the ends.
    """
    contested, played = jnp.isfinite(half_gap(high, low)), _between(first, half, high.shape[0])
    if played is not None:
        contested &= played
    boosted = win_weights(boost, high, low, contested, seeds, first, half)
    outright = jnp.where(high == low, 0.5, jnp.where(high > low, 1, jnp.nan).astype(high.dtype))
    w = jnp.where(contested, boosted, outright)
    w = w if played is None else jnp.where(played, w, 1)
    return w, jnp.where(contested, _mixed(boosted, high, low), high)


def _sides(x, half):
    """The better and the other side of `half` matches, `(width / 2,)` both, from the entries `x` `(width,)`."""
    better, others = jnp.split(x, 2)
    return better, jnp.flip(others) if isinstance(half, int) else _mirrored(x, half, better.shape[0])


def _between(first, half, width):
    """Which of `width` matches are played, `(width,)`; None if it is known at trace time that all are."""
    if isinstance(first, int) and isinstance(half, int) and (first, half) == (0, width):
        return None
    entry = lax.iota(jnp.int32, width)
    return (entry >= first) & (entry < half)


@jax.custom_jvp
def _mixed(w, high, low):
    """The survivor's score, `w * high + (1 - w) * low`; a share within the rounding of `w` counts as 0.

    Otherwise tiny shares of far-away losers would decide between winners that tie.
    """
    least = 4 * float(jnp.finfo(high.dtype).eps)
    return jnp.where(1 - w <= least, high, jnp.where(w <= least, low, w * high + (1 - w) * low))


@_mixed.defjvp
def _mixed_jvp(primals, tangents):
    # d score = w dhigh + (1 - w) dlow + (high - low) dw. The gap of two finite scores may overflow, alone or times the
    # cotangent from later rounds, and infinity times a saturated dw of 0 is NaN. So a wide gap is clipped, and counts
    # as 0 where w is 0 or 1.
    (w, high, low), (dw, dhigh, dlow) = primals, tangents
    most = float(jnp.finfo(high.dtype).max)
    half = jnp.clip(half_gap(high, low), -most / 16, most / 16)
    decided = (jnp.abs(half) > most**0.5) & (jnp.abs(w - 0.5) == 0.5)
    gap = jnp.where(decided | jnp.isnan(half), 0, 2 * half)
    return _mixed(w, high, low), w * dhigh + (1 - w) * dlow + gap * dw


@jax.custom_jvp
def _round_by_round(x):
    """A barrier that keeps XLA from computing every earlier round again in the kernels of this round.

    The barrier is for values alone: compiled for an H100, a barrier for derivatives as well takes up to 12 more
    kernels.
    """
    return lax.optimization_barrier(x)


@_round_by_round.defjvp
def _round_by_round_jvp(primals, tangents):
    return _round_by_round(*primals), *tangents


def play(scores, live, k, rounds, boost, reseed):
    """Bring `scores` `(places,)`, of which the first `live` count, down to k slots in `rounds` rounds.

    Each round halves the width of the arrays. Ints `k` and `rounds` fill the bracket, `places = k * 2**rounds`. If both
    are traced, `places` is a power of 2 with room for every k, `k * 2**rounds <= places`, and rounds after the last one
    do not count.

    Returns the scores of the survivors, k of them first if k is an int; the weight of each place in the bracket
    `(places,)`; and the `Seats`. They are None if no round sorts again: then the seed of a place is its position.
    """
    seeds, entrants, played = scores, live, []
    most = rounds if isinstance(rounds, int) else scores.shape[0].bit_length() - 2
    halves = [k << _at_least_0(rounds - 1 - r) for r in range(most)]
    for half in halves[:OPENING]:
        order = None
        if reseed and played:
            scores, order, _ = by_seed(scores, lax.iota(jnp.int32, scores.shape[0]) < live)
        sides = _sides(seeds[: scores.shape[0]], half)
        won, scores = match(*_sides(scores, half), sides, _at_least_0(2 * half - live), half, boost)
        if not reseed:  # a sort separates the rounds by itself
            won, scores = _round_by_round((won, scores))
        live = at_most(live, half)
        played.append((won, order))

    width = scores.shape[0]
    later = [_if_played(r, rounds, half, width) for r, half in enumerate(halves)][OPENING:]
    scores, live, wins, orders = loop_up(scores, seeds[:width], live, later, boost, reseed)
    weights, seats = loop_down(_ones(width, at_most(live, k), scores.dtype), later, wins, orders)
    for r, (won, order) in reversed(list(enumerate(played))):
        weights, seats = _undone(weights, seats, won, order, halves[r], _joined)
        if not isinstance(rounds, int):
            weights, seats = _begun(r >= rounds, at_most(entrants, k), weights, seats)

    # A selection, not a product: no gradient from the payload of a missing row, not even NaN, passes here.
    seed = lax.iota(jnp.int32, weights.shape[0]) if seats is None else seats.entries
    return scores, jnp.where(seed < entrants, weights, 0), seats


def _if_played(r, rounds, half, width):
    """The survivors of round r in a loop; `width`, which changes nothing, for a round after the last one."""
    return half if isinstance(rounds, int) else jnp.where(r < rounds, half, width)


def _ones(width, count, dtype):
    """The weights `(width,)` of `count` slots, before any round is undone."""
    return jnp.where(lax.iota(jnp.int32, width) < count, 1, 0).astype(dtype)


class Seats(NamedTuple):
    """The order before a round is sorted again: the entry in each place of the bracket, and the place of each entry.

    Only derivatives read the places, which cost nothing without derivatives.
    """

    entries: jax.Array
    places: jax.Array


def _seated(seats, width):
    """The seats before any round is undone: each place holds its own entry. None if `seats` are."""
    return None if seats is None else Seats(lax.iota(jnp.int32, width), lax.iota(jnp.int32, width))


def _begun(ended, slots, weights, seats):
    """The weights and seats of `slots` slots before any round is undone if the rounds have `ended`, or those given."""
    width = weights.shape[0]
    begun = _ones(width, slots, weights.dtype), _seated(seats, width)
    return jax.tree.map(partial(jnp.where, ended), begun, (weights, seats))


def _undone(weights, seats, won, order, half, join):
    """`weights` and `seats`, by place, one round earlier: each of `half` places becomes two.

    `won` has the match weights of the round, and `order` its sort, or None. `join(high, low, half)` puts the places of
    the better sides and those of the other sides together.
    """
    w = won if seats is None else reordered(won, *seats)
    weights = join(weights * w, weights * (1 - w), half)
    if seats is None:
        return weights, None
    seats = Seats(*(join(x, 2 * half - 1 - x, half) for x in seats))
    if order is not None:
        n = order.shape[0]
        rank = ranks(order, n, n)
        seats = Seats(filled(order, seats.entries, n), reordered(seats.places, rank, order))
    return weights, seats


def _joined(high, low, half):
    """Places `(width,)` of the better and the other sides of `half` matches, as `(2 * width,)` places."""
    if isinstance(half, int):
        return jnp.concatenate([high, jnp.flip(low)])
    width = 2 * high.shape[0]
    better = lax.iota(jnp.int32, width) < half
    return jnp.where(better, jnp.pad(high, (0, width // 2)), _mirrored(low, half, width))


def _at_least_0(x):
    return max(x, 0) if isinstance(x, int) else jnp.maximum(x, 0)


def at_most(x, most):
    """The smaller of two numbers, ints or traced."""
    return min(x, most) if isinstance(x, int) and isinstance(most, int) else jnp.minimum(x, most)


def loop_up(scores, seeds, live, halves, boost, reseed):
    """The rounds of a `lax.fori_loop`: `scores` `(width,)` is a carry whose first `live` entries count.

    `halves` holds each round's number of survivors h, ints or traced. Entry i < h plays entry 2h - 1 - i, if there is
    one. Returns the scores, the number of live entries, and the weights and order of each round `(rounds, width)`.
    """
    rounds, width = len(halves), scores.shape[0]
    orders = jnp.zeros((rounds, width), jnp.int32) if reseed else None
    if rounds == 0:
        return scores, live, None, orders
    live, halves = jnp.asarray(live, jnp.int32), jnp.asarray(halves, jnp.int32)
    wins = jnp.zeros((rounds, width), scores.dtype)

    def play_round(r, carry):
        scores, live, wins, orders = carry
        half = halves[r]
        if reseed:
            scores, order, _ = by_seed(scores, lax.iota(jnp.int32, scores.shape[0]) < live)
            orders = orders.at[r].set(order)
        byes = jnp.maximum(2 * half - live, 0)
        sides = seeds, _mirrored(seeds, half, width)
        won, scores = match(scores, _mirrored(scores, half, width), sides, byes, half, boost)
        return scores, jnp.minimum(live, half), wins.at[r].set(won), orders

    live, halves, scores, wins, orders = match_varying_axes(live, halves, scores, wins, orders)
    return lax.fori_loop(0, rounds, play_round, (scores, live, wins, orders), unroll=True)


def loop_down(weights, halves, wins, orders):
    """Hand the slots' `weights` `(width,)` down through the rounds of `loop_up`, last round first.

    Returns each place's weight `(width,)`, and the `Seats`, None if no round was sorted again.
    """
    width = weights.shape[0]
    seats = _seated(orders, width)
    if len(halves) == 0:
        return weights, seats

    def undo_round(carry, played):
        (weights, seats), (half, won, order) = carry, played

        def join(high, low, half):
            return jnp.where(lax.iota(jnp.int32, width) < half, high, _mirrored(low, half, width))

        return _undone(weights, seats, won, order, half, join), None

    played = jnp.asarray(halves, jnp.int32), wins, orders
    start, played = match_varying_axes((weights, seats), played)
    return lax.scan(undo_round, start, played, reverse=True, unroll=True)[0]


def _mirrored(x, half, width):
    """`x[2*half - 1 - i]` for i below `width`, 0 where there is no such entry: a slice, not a gather."""
    size = x.shape[0]
    return lax.dynamic_slice_in_dim(jnp.pad(jnp.flip(x), (size, width)), 2 * (size - half), width)
