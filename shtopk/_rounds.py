"""The tournament: rounds of matches on the scores, then the weights of the candidates.

Upwards, round after round, `width` entries become `k` survivors. Downwards the weights go the other way: a slot starts
with weight 1, and each match hands a share of it to `low` and the rest to `high`, so that a candidate ends with the
product of its match weights. Every function here takes one row of scores, best seed first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from shtopk import _checks
from shtopk._boost import by_match, half_gap, low_weights, units
from shtopk._reorder import by_seed, ranks, reordered, value_of, whole_cotangent
from shtopk._seeding import filled, taken
from shtopk._sharding import match_varying_axes

# The number of rounds that are written out at their own width, before the loop over the later rounds. Compiled for an
# H100 at 16 x 16384 scores and k = 2, the gradient starts 48 kernels. It starts 52, with 6 times the temporary memory,
# with all rounds in the loop, and 441 with a loop that is not unrolled. It starts 80 with one round written out and an
# unrolled loop for every three later rounds, each at its own width. With four rounds written out, the gradient takes
# 1.2 times as long on an H200 (JAX 0.11) and 1.4 times as long on CPU (JAX 0.12).
OPENING = 10
# If a slot has more members than this, a barrier follows the last product of match weights. Otherwise XLA computes the
# products of all rounds in the kernel that brings the places into slots. When that kernel was a transposition, a
# forward pass at 16 x 16384 scores and k = 256 then took 1.6 times as long (H200, JAX 0.11). For smaller slots, and if
# rounds are sorted again, the barrier would cost a kernel; whether it pays was not measured.
MANY = 32


def round_count(n, k):
    """`R = ceil(log2(n / k))`, in integers."""
    return (-(-n // k) - 1).bit_length()


def match(high, low, played, unit, boost):
    """The shares of `low` and the survivors' scores `(h,)` of the matches `high` against `low`, `(h,)` both.

    Only the matches marked in `played`, `(h,)` or True for all, count. In the others `high` has no opponent: a bye, a
    share of 0 and the score unchanged. An infinite or NaN score decides its match alone. The survivor's score is then
    `high`, because the sort puts infinities at the ends. `unit` is that of the round, from `units`.
    """
    contested = jnp.isfinite(half_gap(high, low)) & played
    boosted = low_weights(boost, high, low, contested, unit)
    unordered = jnp.isnan(high) | jnp.isnan(low)
    outright = jnp.where(high == low, 0.5, jnp.where(unordered, jnp.nan, 0).astype(high.dtype))
    share = jnp.where(played, jnp.where(contested, boosted, outright), 0)
    return share, jnp.where(contested, _mixed(boosted, high, low), high)


def _between(first, end, width):
    """Which of `width` entries are from `first` to `end - 1`, `(width,)`; True if a trace can tell that all are."""
    if isinstance(first, int) and (first, end) == (0, width):
        return True
    entry = lax.iota(jnp.int32, width)
    return (entry >= first) & (entry < end)


@jax.custom_jvp
def _mixed(share, high, low):
    """The survivor's score, `(1 - share) * high + share * low`.

    Within 4 eps of 0 or 1 a share counts as 0 or 1. Otherwise tiny shares of far-away losers would decide between
    winners that tie.
    """
    least, mixed = 4 * float(jnp.finfo(high.dtype).eps), (1 - share) * high + share * low
    return jnp.where(share <= least, high, jnp.where(1 - share <= least, low, mixed))


@_mixed.defjvp
def _mixed_jvp(primals, tangents):
    # d score = (1 - share) dhigh + share dlow + (low - high) dshare. The gap of two finite scores may overflow, alone
    # or times the cotangent from later rounds, and infinity times a dshare of 0 is NaN. So a wide gap is clipped, and
    # counts as 0 where the share is 0 or 1 to a rounding. Above 1e6 it is wide: the slope of a later round is at most
    # 1e31 (1e301 in float64).
    (share, high, low), (dshare, dhigh, dlow) = primals, tangents
    most, eps = float(jnp.finfo(high.dtype).max), float(jnp.finfo(high.dtype).eps)
    half = jnp.clip(half_gap(low, high), -most / 16, most / 16)
    decided = (jnp.abs(half) > 1e6) & (jnp.abs(share - 0.5) >= 0.5 - eps)
    gap = jnp.where(decided | jnp.isnan(half), 0, 2 * half)
    return _mixed(share, high, low), dhigh + share * (dlow - dhigh) + gap * dshare


def _computed_first(x):
    """A barrier that keeps XLA from computing every earlier round again in the kernels that read `x`.

    The barrier is for values alone: compiled for an H100, a barrier for derivatives as well takes up to 12 more
    kernels.
    """
    return value_of(lax.optimization_barrier(lax.stop_gradient(x)), x)


def play(scores, count, above, k, boost, reseed):
    """Bring `scores` `(k * 2**R,)`, of which `count` take part and `above` are above -inf, down to k slots.

    Returns the scores of the slots `(k,)`, and for each place in the bracket `(k * 2**R,)` its weight and its seed. If
    no round sorts again, the seed of a place is its position.
    """
    width, entrants, played = scores.shape[0], count, []
    halves = [width >> r for r in range(1, round_count(width, k) + 1)]
    unit = units(boost, scores, halves, above)
    for r, half in enumerate(halves[:OPENING]):
        order = None
        if reseed and r:
            # An int is the count where every row takes part: then all entries are live after the first round.
            live = None if isinstance(count, int) else lax.iota(jnp.int32, 2 * half) < count
            scores, order, _ = by_seed(scores, live)
        high, low = jnp.split(scores, 2)
        share, scores = match(high, jnp.flip(low), _between(2 * half - count, half, half), unit[r], boost)
        if reseed:  # a sort separates the scores of the rounds by itself
            share = _computed_first(share)
        else:
            share, scores = _computed_first((share, scores))
        count = at_most(count, half)
        played.append((share, order))

    halves = halves[OPENING:]
    scores, count, shares, orders = _loop_up(scores, unit[OPENING:], count, halves, boost, reseed)
    weights, seats = _loop_down(jnp.ones_like(scores), halves, shares, orders)
    for share, order in reversed(played):
        weights, seats = _undone(weights, seats, share, order, share.shape[0], _joined)

    seeds = lax.iota(jnp.int32, width) if seats is None else seats.entries
    if not reseed and width > MANY * k:
        weights = _computed_first(weights)
    weights = _cut(weights, seeds < entrants, boost)
    slot_scores = jnp.where(lax.iota(jnp.int32, k) < count, scores[:k], -jnp.inf)
    return slot_scores, weights, seeds


def _cut(weights, live, boost):
    """`weights`, and 0 except where `live`.

    A selection, not a product: no cotangent of a missing row passes, not even NaN, as from a NaN in its payload or from
    the log of its weight. Under a boost of this library a row of weight 0 counts as missing, too: where such a boost
    gives exactly 0, its derivative is 0.
    """
    return jnp.where(live & (weights != 0) if by_match(boost) else live, weights, 0)


class Seats(NamedTuple):
    """The entry in each place of the bracket before a round, and the place of each entry.

    An entry is a position in the sorted scores of that round; before the first round it is a seed. Only derivatives
    read the places, which cost nothing without derivatives.
    """

    entries: jax.Array
    places: jax.Array


def _undone(weights, seats, share, order, half, join):
    """`weights` and `seats`, by place, one round earlier: each of `half` places becomes two.

    `share` has those of the worse sides in the round, and `order` its sort, or None. `join` puts the places of the
    better sides and those of the worse sides together.
    """
    if seats is None:
        return join(weights * (1 - share), weights * share), None
    own, seats = reordered(share, *seats), Seats(*(join(x, 2 * half - 1 - x) for x in seats))
    # The values are one gather of the weights of both sides, which XLA fuses into the kernel that reads the product.
    # Derivatives go by match. Compiled for an H100 at 16 x 16384 scores and k = 2, the forward pass starts 50 kernels.
    # It starts 53 with the values by match as well. (JAX 0.10)
    both = reordered(join(1 - share, share), *seats)
    weights = value_of(join(weights, weights) * both, join(weights * (1 - own), weights * own))
    if order is not None:
        rank = ranks(order, order.shape[0])
        seats = Seats(taken(order, seats.entries), reordered(seats.places, rank, order))
    return weights, seats


def _joined(high, low):
    return jnp.concatenate([high, jnp.flip(low)])


def at_most(x, most):
    """The smaller of `x`, an int or traced, and an int."""
    return min(x, most) if isinstance(x, int) else jnp.minimum(x, most)


def _loop_up(scores, unit, count, halves, boost, reseed):
    """The rounds of a `lax.fori_loop`: `scores` `(width,)` is a carry whose first `count` entries take part.

    `halves` holds each round's number of survivors h, and `unit` `(rounds,)` its unit. Entry i < h plays entry
    2h - 1 - i, if there is one. Returns the scores, their count, and each round's shares and order `(rounds, width)`.
    """
    rounds, width = len(halves), scores.shape[0]
    orders = jnp.zeros((rounds, width), jnp.int32) if reseed else None
    if rounds == 0:
        return scores, count, None, orders
    count, halves = jnp.asarray(count, jnp.int32), jnp.asarray(halves, jnp.int32)
    shares = jnp.zeros((rounds, width), scores.dtype)

    def play_round(r, carry):
        scores, count, shares, orders = carry
        half = halves[r]
        if reseed:
            scores, order, _ = by_seed(scores, lax.iota(jnp.int32, scores.shape[0]) < count)
            orders = orders.at[r].set(order)
        played = _between(2 * half - count, half, width)
        share, scores = match(scores, _opponents(scores, half), played, unit[r], boost)
        return scores, jnp.minimum(count, half), shares.at[r].set(share), orders

    count, halves, scores, shares, orders = match_varying_axes(count, halves, scores, shares, orders)
    return lax.fori_loop(0, rounds, play_round, (scores, count, shares, orders), unroll=True)


def _loop_down(weights, halves, shares, orders):
    """Hand the slots' `weights` `(width,)` down through the rounds of `_loop_up`, last round first.

    Returns each place's weight `(width,)`, and the `Seats`, None if no round was sorted again.
    """
    entry = lax.iota(jnp.int32, weights.shape[0])
    seats = None if orders is None else Seats(entry, entry)
    if len(halves) == 0:
        return weights, seats

    def undo_round(carry, played):
        (weights, seats), (half, share, order) = carry, played

        def join(high, low):
            return jnp.where(entry < half, high, _opponents(low, half))

        return _undone(weights, seats, share, order, half, join), None

    played = jnp.asarray(halves, jnp.int32), shares, orders
    start, played = match_varying_axes((weights, seats), played)
    return lax.scan(undo_round, start, played, reverse=True, unroll=True)[0]


def _opponents(x, half):
    """`x[2*half - 1 - i]` for each i, 0 where there is no such entry: a slice, not a gather."""
    width = x.shape[0]
    padded = jnp.pad(jnp.flip(x), width)
    return lax.dynamic_slice_in_dim(padded, 2 * (width - half), width)


def play_traced_k(scores, count, above, k, boost, reseed):
    """The weights `(n,)` of `scores` `(n,)`, best seed first, as for `play`, for a traced k, 1 to n.

    The widths of the rounds are those of k = 1, and rounds after the last are idle.
    """
    n, most = scores.shape[0], round_count(scores.shape[0], 1)
    places, seeds, rounds = _by_slot(n, k, 2 << most)
    halves = k << jnp.maximum(rounds - 1 - lax.iota(jnp.int32, most), 0)
    unit, played = units(boost, scores, halves, above), []
    scores = whole_cotangent(reordered(scores, seeds, places))
    for r in range(most):
        half, seats = scores.shape[0] // 2, None
        if reseed and r:
            scores, seats = _seated_again(scores, count, seeds[: 2 * half], places[: 2 * half])
        busy = r < rounds
        pairs = (seeds[half : 2 * half] < count) & busy
        ordered = boost if by_match(boost) else _in_order_of_seeds(boost, seeds[:half], places[:half])
        share, scores = match(*jnp.split(scores, 2), pairs, unit[r], ordered)
        if not reseed:
            share, scores = _computed_first((share, scores))
        played.append((1 - share, jnp.where(busy, share, 1), seats))

    weights = jnp.ones_like(scores)
    for high, low, seats in reversed(played):
        weights = jnp.concatenate([weights * high, weights * low])
        if seats is not None:
            weights = reordered(weights, seats.places, seats.entries)
    weights = reordered(_computed_first(weights), places, seeds)
    return _cut(weights, lax.iota(jnp.int32, n) < count, boost)


def _by_slot(n, k, width):
    """The bracket in a layout whose second half plays its first half in each round, whatever the traced k.

    Seed p is entry p % k of block b = p // k. In a round of 2B blocks, block b plays block 2B - 1 - b. They differ in
    all bits, so the Gray codes of the two, `b ^ (b >> 1)`, differ in the first bit alone. So with the blocks in the
    order of their Gray codes, and `width >> rounds` places for each, opponents are half of the round's width apart.

    Returns the place of each seed `(n,)`, the seed of each place `(width,)`, n if none, and the number of rounds.
    """
    rounds = jnp.sum(k <= ((n - 1) >> lax.iota(jnp.int32, round_count(n, 1))), dtype=jnp.int32)
    block, slot = block_and_slot(lax.iota(jnp.int32, n), k)
    places = (block ^ (block >> 1)) * (width >> rounds) + slot
    # A scatter, because XLA on CPU would compute an arithmetic inverse again in each kernel that reads it.
    return places, ranks(places, width), rounds


def _seated_again(scores, count, seeds, places):
    """The survivors' `scores` `(width,)`, by place, sorted and seated as new seeds; and their `Seats`.

    They are sorted in the order of their old seeds, so that ties go to the better seed.
    """
    width, seed = seeds.shape[0], lax.iota(jnp.int32, places.shape[0])
    ranked, order, rank = by_seed(reordered(scores, places, seeds), (seed < count) & (places < width))
    seats = Seats(*(filled(taken(places, x), seeds, width) for x in (order, rank)))
    return reordered(ranked, seeds, places), seats


def _in_order_of_seeds(boost, seeds, places):
    """`boost` as a function of sides in the order of the places: it gets them best seed first."""

    def ordered(high, low, where):
        high, low = reordered(high, places, seeds), reordered(low, places, seeds)
        won = boost(high, low, filled(where, places, False))
        return reordered(_checks.win_weights(won, high), seeds, places)

    return ordered


def block_and_slot(place, k):
    """The block of k entries in which `place` is, and the slot of that entry."""
    block = lax.div(place, jnp.asarray(k, jnp.int32))  # no place is negative
    return block, mirrored(block, place - block * k, k)


def mirrored(block, column, k):
    """The slot of each `column` of a block, or the column of a slot: every other block of k entries is mirrored."""
    return jnp.where(block & 1 == 1, k - 1 - column, column)
