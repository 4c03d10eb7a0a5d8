"""Random scores, sizes, masks, dtypes and options, against the float64 oracle and the laws.

`python -m tests.fuzz --minutes M` tries new cases for M minutes, says how many, and shrinks what fails. What
is static is drawn once for a thousand cases, because each such configuration has to be compiled.
"""

import argparse
import itertools
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import shtopk
from tests import reference, wild

SIZES = [(1, 1), (4, 4), (5, 2), (8, 1), (13, 3), (21, 1), (24, 5)]
BOOSTS = {
    "Scaled": (shtopk.Scaled, reference.scaled),
    "Power": (shtopk.Power, reference.power),
    "Relative": (shtopk.Relative, lambda number: reference.relative(number, 0.75)),
}


@dataclass(frozen=True)
class Configuration:
    """All that is static."""

    n: int
    k: int
    dtype: str
    boost: str
    reseed: bool
    candidates: int | None
    straight_through: bool
    order: str

    @property
    def eps(self):
        return float(jnp.finfo(self.dtype).eps)

    @property
    def inside(self):
        """The eps of what is computed with inside."""
        return min(self.eps, float(jnp.finfo("float32").eps))


def configuration(seed):
    rng = np.random.default_rng(seed)
    n, k = SIZES[rng.integers(len(SIZES))]
    return Configuration(
        n,
        k,
        str(rng.choice(["float16", "bfloat16", "float32", "float64"])),
        str(rng.choice(list(BOOSTS))),
        bool(rng.integers(2)),
        None if rng.integers(2) else min(n, 2 * k),
        bool(rng.integers(4) == 0),
        str(rng.choice(["score", "position"])),
    )


def payload(c):
    return jnp.asarray(np.random.default_rng(0).normal(size=(c.n, 2)), c.dtype)


def everything(c):
    """One compiled function of scores `(n,)`, where `(n,)` and the boost's number: all there is to check."""
    cast = {"Scaled": 1.0, "Power": 20.0, "Relative": 1.0}[c.boost]
    make, _ = BOOSTS[c.boost]

    def soft(e, v, where, number):
        options = {"boost": make(cast * number), "reseed": c.reseed, "where": where}
        out = shtopk.topk(
            e, v, c.k, candidates=c.candidates, straight_through=c.straight_through, order=c.order, **options
        )
        return out, shtopk.select(v, c.k, candidates=c.candidates, **options), options

    def loss(e, v, where, number):
        out, selection, _ = soft(e, v, where, number)
        slots = jnp.where(jnp.isfinite(out.scores), out.scores, 0)
        weights = jnp.sin(jnp.arange(c.n, dtype=v.dtype))
        return jnp.sum(jnp.cos(out.embeddings)) + jnp.sum(slots) / 8 + jnp.sum(weights * selection.mask())

    def run(v, where, number):
        e = payload(c)
        out, selection, options = soft(e, v, where, number)
        tangent = jnp.cos(jnp.arange(c.n, dtype=v.dtype))
        directional = jax.jvp(lambda v: loss(e, v, where, number), (v,), (tangent,))[1]
        gradients = jax.grad(loss, (0, 1, 3))(e, v, where, number)
        mask = partial(shtopk.topk_mask, k=c.k, boost=options["boost"], reseed=c.reseed)
        pair, wheres = jnp.stack([v, v[::-1]]), jnp.stack([where, where[::-1]])
        return {
            "out": out,
            "hard": shtopk.hard_topk(e, v, c.k, where=where, order=c.order),
            "selection": selection,
            "mask": selection.mask(),
            "gradients": gradients,
            "slope": (directional, tangent),
            "alone": mask(v, where=where),
            "batch": mask(pair, where=wheres)[0],
            "vmap": jax.vmap(lambda v, where: mask(v, where=where))(pair, wheres)[0],
            "traced k": shtopk.topk_mask(v, jnp.int32(c.k), **options),
            "float64": mask(v.astype(jnp.float64), where=where),
        }

    return jax.jit(run)


@st.composite
def inputs(draw, c):
    """Scores, who takes part, and the boost's number."""
    limits = jnp.finfo(c.dtype)
    special = [0.0, -0.0, 1.0, -1.0, 0.5, np.inf, -np.inf, np.nan, float(limits.tiny)]
    special += [float(limits.smallest_subnormal), 1e4, -1e4, float(limits.max) / 8, -float(limits.max) / 8]
    form = draw(st.sampled_from(["steps", "pool", "wild"]))
    if form == "wild":
        kind, far = draw(st.sampled_from(list(wild.KINDS))), draw(st.sampled_from([1e1, 1e3, 1e5, 1e9]))
        scores = wild.scores(kind, draw(st.integers(0, 10**6)), 1, c.n, far)[0]
        scores = np.clip(scores, float(limits.min), float(limits.max))
    elif form == "steps":
        steps = np.array(draw(st.permutations(range(c.n)))) - draw(st.integers(0, c.n))
        scores = steps / c.n + draw(st.floats(0, 0.001))
    else:
        pool = draw(st.lists(st.sampled_from(special) | st.floats(-10, 10), min_size=1, max_size=8))
        scores = np.array([draw(st.sampled_from(pool)) for _ in range(c.n)])
    where = draw(st.one_of(st.just([True] * c.n), st.lists(st.booleans(), min_size=c.n, max_size=c.n)))
    number = draw(st.sampled_from([1.0, 0.25, 4.0, 6.0]))
    return np.asarray(jnp.asarray(scores, c.dtype)), np.array(where), number


def check(c, run, scores, where, number):
    """All the laws for one case; the kinds of case that it was, to be counted."""
    outs = jax.tree.map(lambda x: np.asarray(x, np.float64), run(scores, where, number))
    v, live = scores.astype(np.float64), min(int(where.sum()), c.candidates or c.n)
    has_nan = bool(np.any(np.isnan(v[where])))
    if c.straight_through:
        jax.tree.map(np.testing.assert_array_equal, outs["out"], outs["hard"])
    by_every_way(c, outs, v, where, number)
    if has_nan:
        assert np.any(np.isnan(outs["mask"])) or np.any(np.isnan(outs["selection"].scores))
        return ["with NaN"]
    slots, mask = outs["selection"].weights.sum(-1), outs["mask"]
    np.testing.assert_allclose(slots, np.arange(c.k) < live, rtol=64 * c.inside)
    assert np.all((mask >= 0) & (mask <= 1 + 2 * c.eps))
    assert np.all(mask[~where] == 0)
    np.testing.assert_allclose(mask.sum(), min(c.k, live), rtol=64 * c.inside + c.n * c.eps)
    if not np.all(np.isfinite(v[where])):
        return ["with infinities"]
    assert np.all(np.isfinite(outs["out"].embeddings))
    assert np.all(np.isfinite(outs["out"].scores[: min(c.k, live)]))
    scores_are_pooled(c, outs["selection"], v, where, min(c.k, live))
    kinds = [
        "finite",
        *against_oracle(c, outs, v, where, number),
        *against_float64(c, outs, v[where], number),
    ]
    if c.dtype == "float16":  # a steep slope may be beyond 65504, and two of them then add up to NaN
        return kinds
    if c.boost == "Power" and np.abs(v[where]).max(initial=0) > 1e18:  # slopes multiply beyond the range
        return kinds
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(outs["gradients"]))
    (slope, tangent), gradient = outs["slope"], outs["gradients"][1]
    if max(np.abs(v[where]).max(initial=0), np.abs(gradient).max()) <= 100:  # where it is not steep
        error = np.abs(gradient @ tangent - slope)
        assert error <= 1e4 * (c.inside + c.eps) * (np.abs(gradient * tangent).sum() + 1)
    return kinds


def scores_are_pooled(c, selection, v, where, live):
    """The score of each of the `live` slots is the sum of its members' scores by weight.

    A slot that is won outright by the seed of its number has its score to a rounding of this score; others to one of
    the worst of the k best.
    """
    ranked, v = np.sort(v[where])[::-1][:live], np.where(where, v, 0)
    members = selection.indices[:live].astype(int)
    weights, parts = selection.weights[:live], selection.weights[:live] * np.abs(v[members])
    slight = np.sum(parts, axis=-1, where=weights <= 64 * c.inside)  # shares that may count as 0
    winner = np.take_along_axis(members, weights.argmax(-1)[:, None], -1)[:, 0]
    moved = (v[winner] != ranked) | (weights.max(-1) < 1 - 64 * c.inside)
    size = parts.sum(-1) + moved * np.abs(ranked[-1:])
    tiny = members.shape[-1] * float(jnp.finfo(c.dtype).tiny)  # each part may underflow
    most = (64 * c.inside + 2 * c.eps) * size + slight + tiny
    error = np.abs(selection.scores[:live] - np.sum(weights * v[members], axis=-1))
    assert np.all(error <= most), (selection.scores[:live], error, most)


def by_every_way(c, outs, v, where, number):
    """Compares the mask alone with that in a batch, under `vmap` and for a traced k."""
    # Survivors of tied scores may differ by a rounding or two, which ranks them and so their rows in either order.
    tied = (c.boost == "Relative" or c.reseed) and len(np.unique(v[where])) < where.sum()
    atol = 0.1 if tied else min(0.1, 64 * c.inside * magnification(c, v[where], number))
    group = np.unique(v, return_inverse=True)[1] if tied else np.arange(c.n)
    for name in ("batch", "vmap", "traced k"):
        # For a traced k the roundings are others, and where survivors are sorted again, other rows may meet them.
        most = 0.3 if tied and c.reseed and name == "traced k" else atol
        found, expected = (np.bincount(group, outs[which]) for which in (name, "alone"))
        np.testing.assert_allclose(found, expected, rtol=64 * c.inside + c.eps, atol=most, err_msg=name)


def magnification(c, v, number):
    """How much larger the rounding of a weight may be than that of a number in [0, 1]: the largest score times the
    slope of the boost."""
    v = v[np.isfinite(v)]
    gaps = np.array([gap for gap in np.diff(np.sort(v)) if gap > 0])
    if len(gaps) == 0:
        return 1.0
    with np.errstate(over="ignore"):
        slopes = {"Scaled": number, "Power": (20 * number) ** v.max(), "Relative": number / np.median(gaps)}
        return max(1.0, float(np.abs(v).max() * slopes[c.boost]))


def against_oracle(c, outs, v, where, number):
    """Compares with the listing, where rounding cannot change a rank."""
    tiny = float(jnp.finfo(jnp.float64 if c.dtype == "float64" else jnp.float32).tiny)
    v = np.where(np.abs(v) < tiny, 0, v)  # XLA may take a subnormal number for 0
    best = np.argsort(-v[where], kind="stable")[: c.candidates]
    rows = np.flatnonzero(where)[np.sort(best)]
    if len(rows) < c.k or (c.boost == "Power" and number not in (1.0, 0.25)):
        return []
    theirs = BOOSTS[c.boost][1](number * (20.0 if c.boost == "Power" else 1.0))
    gaps = [np.diff(np.sort(v[rows]))]

    def boost(high, low, favourites):
        gaps.append(np.diff(np.sort(np.concatenate([high, low]))))
        return theirs(high, low, favourites)

    if np.abs(v[rows]).max() > 1.5 or np.min(gaps[0], initial=1) < 0.01:
        return []
    mask = np.zeros(c.n)
    mask[rows] = reference.mask(v[rows], c.k, boost, c.reseed)
    met = np.concatenate(gaps)
    # The listing has no second unit, which `Relative` takes in a round that spans clusters.
    if np.min(met, initial=1) < max(0.01, 0.02 * np.ptp(v[rows]) * (c.boost == "Relative")):
        return []
    np.testing.assert_allclose(outs["mask"], mask, rtol=2 * c.eps, atol=1e4 * c.inside)
    return ["compared with the oracle"]


def against_float64(c, outs, v, number):
    """Compares with the same rounded scores in float64, where no two are near a tie, and none is sorted again."""
    gaps = np.diff(np.sort(np.asarray(v, np.float64)))
    narrowest = np.min(gaps, initial=np.inf)
    near = 1e-3 * float(np.median(gaps)) if len(gaps) else 0.0
    if c.boost != "Relative" or c.reseed or narrowest <= max(near, 1e-30):
        return []
    # Of weights, if a score is far from the others.
    rounding = c.inside * number * np.abs(v).max(initial=0) / narrowest
    if rounding > 0.1:
        return []
    np.testing.assert_allclose(outs["alone"], outs["float64"], atol=2 * c.eps + 1e-3 + rounding)
    return ["compared with float64"]


def fuzz(seed, examples):
    """Try `examples` cases of one configuration; how many there were of which kind."""
    c, counts = configuration(seed), Counter()
    run = everything(c)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=examples, deadline=None, database=None, print_blob=False)
    @hypothesis.given(inputs(c))
    def cases(case):
        kinds = check(c, run, *case)
        counts.update(["cases", *kinds])

    try:
        cases()
    except BaseException as error:
        error.add_note(f"in fuzz({seed}, {examples}): {c}")
        raise
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first configuration")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    end, counts = time.monotonic() + 60 * arguments.minutes, Counter()
    for seed in itertools.count(arguments.seed):
        counts += fuzz(seed, 1000)
        jax.clear_caches()
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        print(f"{seed + 1 - arguments.seed} configurations: {said}", flush=True)
        if time.monotonic() > end:
            return


if __name__ == "__main__":
    main()
