"""The laws, as properties of any scores hypothesis can think of."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shtopk
from tests import wild

# Few sizes, so that few things have to be compiled; many values, in which the surprises are. No round, three rounds
# with byes, two without, and one with byes.
SIZES = st.sampled_from([(1, 1), (5, 1), (12, 3), (30, 16)])
BOOSTS = st.sampled_from([shtopk.Scaled(4.0), shtopk.Power(), shtopk.Relative()])
SMALL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3.0])  # so that ties are common
FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)

run = settings(max_examples=60, deadline=None)
select = jax.jit(shtopk.select, static_argnames=("k", "reseed", "candidates"))


@st.composite
def cases(draw, elements=SMALL | FINITE):
    n, k = draw(SIZES)
    return draw(hnp.arrays(np.float64, n, elements=elements)), k, draw(BOOSTS), draw(st.booleans())


@run
@given(cases())
def test_weights_of_a_slot_sum_to_one_and_the_mask_to_k(case):
    scores, k, boost, reseed = case
    selection = select(scores, k, boost=boost, reseed=reseed)
    mask = np.asarray(selection.mask())
    np.testing.assert_allclose(np.asarray(selection.weights).sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(mask.sum(), k, rtol=1e-12)
    assert np.all((mask >= 0) & (mask <= 1 + 1e-12))


@run
@given(cases())
def test_a_slots_score_is_its_members_scores_weighed(case):
    scores, k, boost, reseed = case
    selection = select(scores, k, boost=boost, reseed=reseed)
    want = np.sum(np.asarray(selection.weights) * scores[np.asarray(selection.indices)], -1)
    # A product that is below the smallest normal number may come out as 0.
    floor = np.finfo(np.float64).tiny * selection.indices.shape[-1]
    np.testing.assert_allclose(selection.scores, want, rtol=1e-9, atol=1e-9 * np.abs(scores).max() + floor)


@run
@given(cases(), st.data())
def test_permuting_distinct_candidates_permutes_the_mask_exactly(case, data):
    scores, k, boost, reseed = case
    scores = np.argsort(np.argsort(scores + np.arange(len(scores)) * 1e-3)) * 0.37  # distinct
    order = np.array(data.draw(st.permutations(range(len(scores)))))
    mask = np.asarray(select(scores, k, boost=boost, reseed=reseed).mask())
    permuted = select(scores[order], k, boost=boost, reseed=reseed).mask()
    np.testing.assert_array_equal(permuted, mask[order])


@run
@given(cases(st.integers(-1000, 1000).map(float)), st.integers(-20, 20), st.integers(-8, 8))
def test_relative_is_free_of_scale_and_shift(case, exponent, shift):
    scores, k, _, reseed = case
    boost = shtopk.Relative()
    mask = select(scores, k, boost=boost, reseed=reseed).mask()
    # Powers of two and whole numbers, so that not even rounding differs in the first round.
    moved = select((scores + shift) * 2.0**exponent, k, boost=boost, reseed=reseed).mask()
    np.testing.assert_allclose(moved, mask, atol=1e-6)


@run
@given(cases(SMALL | FINITE | st.sampled_from([np.inf, -np.inf])))
def test_infinities_never_make_a_nan(case):
    scores, k, boost, reseed = case
    selection = select(scores, k, boost=boost, reseed=reseed)
    np.testing.assert_allclose(np.asarray(selection.mask()).sum(), k, rtol=1e-12)
    assert not np.any(np.isnan(selection.scores))


@run
@given(cases(), st.data())
def test_rows_left_out_change_nothing(case, data):
    scores, k, boost, reseed = case
    where = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    mask = np.asarray(select(scores, k, boost=boost, reseed=reseed, where=where).mask())
    noise = np.where(where, scores, np.nan)
    np.testing.assert_array_equal(select(noise, k, boost=boost, reseed=reseed, where=where).mask(), mask)
    np.testing.assert_allclose(mask.sum(), min(k, where.sum()), rtol=1e-12)
    assert np.all(mask[~where] == 0)


@partial(jax.jit, static_argnames=("k", "reseed"))
def mask_of(scores, boost, k, reseed):
    return shtopk.topk_mask(scores, k, boost=boost, reseed=reseed)


@partial(jax.jit, static_argnums=(2, 3))
def masks_of(scores, boost, k, reseed):
    """Of a batch: together, under `vmap`, and in a loop."""
    mask = partial(mask_of, boost=boost, k=k, reseed=reseed)
    return mask(scores), jax.vmap(mask)(scores), jax.lax.map(mask, scores)


@settings(max_examples=6, deadline=None)  # each compiles three programs
@given(cases())
def test_batch_is_vmap_is_a_loop(case):
    scores, k, boost, reseed = case
    together, mapped, alone = masks_of(np.stack([scores, scores[::-1]]), boost, k, reseed)
    np.testing.assert_allclose(mapped, together, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(alone, together, rtol=1e-12, atol=1e-300)


@run
@given(cases())
def test_gradients_are_finite(case):
    scores, k, boost, reseed = case
    chex.assert_tree_all_finite(gradient_and_mask(scores, boost, k, reseed)[0])


@partial(jax.jit, static_argnums=(2, 3))
@partial(jax.grad, argnums=(0, 1), has_aux=True)
def gradient_and_mask(scores, boost, k, reseed):
    mask = shtopk.topk_mask(scores, k, boost=boost, reseed=reseed)
    return jnp.sum(np.sin(np.arange(len(scores))).astype(mask.dtype) * mask), mask


# Scores as they come, in the dtypes that they come in: what holds in float64 alone helps nobody.


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(wild.KINDS)),
    st.integers(0, 10**6),
    st.sampled_from([1e1, 1e3, 1e5, 1e9]),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    st.sampled_from([(16, 2), (300, 7)]),
)
def test_narrow_scores_do_as_well_as_wide_ones(kind, seed, far, dtype, size):
    n, k = size
    with np.errstate(over="ignore"):
        scores = np.clip(wild.scores(kind, seed, 1, n, far)[0], -6e4, 6e4 if dtype == jnp.float16 else 1e30)
    scores = scores.astype(dtype)
    wide = scores.astype(np.float64)
    if dtype == jnp.float16:  # in which a steep slope may be beyond 65504
        mask = mask_of(scores, shtopk.Relative(), k, False)
    else:
        gradient, mask = gradient_and_mask(scores, shtopk.Relative(), k, False)
        chex.assert_tree_all_finite(gradient[0])
    mask = np.asarray(mask, np.float64)
    np.testing.assert_allclose(mask.sum(), k, rtol=4 * float(jnp.finfo(dtype).eps))
    chosen = wide >= np.sort(wide)[n - k]
    clusters, distinct = kind in ("bimodal", "trimodal"), len(np.unique(wide)) == n
    # Ties may reorder the best cluster, see test_outliers.py: the lowest of 4000 rows was 0.65 and 0.57.
    tied = {jnp.float32: 0.7, jnp.bfloat16: 0.6, jnp.float16: 0.5}[dtype]
    assert mask[chosen].sum() > (tied if clusters and not distinct else 0.7) * k
    if distinct:  # of rows that tie, either may be taken
        want = mask_of(wide, shtopk.Relative(), k, False)
        # Clusters a thousandth wide leave gaps of some hundred roundings, and survivors are rounded in float32.
        slack = 0.02 if clusters else 1e-4
        np.testing.assert_allclose(mask, want, atol=2 * float(jnp.finfo(dtype).eps) + slack)
