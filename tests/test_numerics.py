"""Every floating dtype and every extreme of it: within a stated bound of the oracle, and always finite."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import shtopk

pytestmark = pytest.mark.usefixtures("full_effort")

DTYPES = ["float16", "bfloat16", "float32", "float64"]
BOOSTS = [shtopk.Scaled(5.0), shtopk.Power(), shtopk.Relative()]
EVERY_BOOST = pytest.mark.parametrize("boost", BOOSTS, ids=repr)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def finite(tree):
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


# Against the oracle


def weighed(e, v, weights, k):
    """A loss `sum_sj weights[s, j] * E'[s, j]`, its terms added up in the oracle's float64, and the slots."""
    slots = shtopk.topk(e, v, k)[:2]
    return jnp.sum(weights * slots[0].astype(weights.dtype)), slots


@pytest.mark.parametrize(("dtype", "scores_dtype"), list(product(DTYPES, DTYPES)))
def test_the_error_is_one_rounding_of_the_result(dtype, scores_dtype):
    """`|got - want| <= eps(result) * |want| + inside * max |want|`, values and gradients alike.

    The first term is the one rounding of a result into its own dtype. `inside` is 96 times the eps of what
    is computed with inside, float32 at least: what a sharpness of 6 and two rounds make of it.
    """
    n, k = 12, 3
    rng = np.random.default_rng(0)
    scores, embeddings = jnp.asarray(rng.permutation(n) / 4, scores_dtype), rng.normal(size=(n, 2))
    embeddings, weights = jnp.asarray(embeddings, dtype), rng.integers(-8, 8, (k, 2)) / 4.0
    e, v = (np.asarray(x, np.float64) for x in (embeddings, scores))
    units = []
    pooled, slots = reference.algorithm2(e, v, k, reference.relative(6.0, 0.75, units), reseed=False)
    units = units[:2]  # those of the two rounds, which a derivative holds constant

    def oracle(e, v):
        return reference.algorithm2(e, v, k, reference.relative(6.0, 0.75, list(units)), reseed=False)[0]

    d_embeddings = oracle(np.eye(n), v).T @ weights
    d_scores = reference.numeric_gradient(lambda v: np.sum(weights * oracle(e, v)), v)
    gradients, out = jax.jit(jax.grad(weighed, (0, 1), has_aux=True), static_argnums=3)(
        embeddings, scores, jnp.asarray(weights), k
    )
    assert [x.dtype for x in (*out, *gradients)] == [dtype, scores_dtype] * 2
    inside = 96 * max(min(eps(dtype), eps("float32")), min(eps(scores_dtype), eps("float32")))
    for got, want, slack in zip(
        (*out, *gradients), (pooled, slots, d_embeddings, d_scores), (0, 0, 0, 1e-8), strict=True
    ):
        error = np.abs(np.asarray(got, np.float64) - want)
        assert np.all(error <= eps(got.dtype) * np.abs(want) + (inside + slack) * np.abs(want).max())


@pytest.mark.parametrize("dtype", DTYPES[1:3])
def test_x64_changes_not_a_bit_of_what_is_narrower(dtype, request):
    """Pooled sums may differ by a rounding, because XLA may add them up in another order."""
    rng = np.random.default_rng(1)
    embeddings, scores = rng.normal(size=(32, 11, 4)), rng.normal(size=(32, 11))

    def loss(v):
        mask = shtopk.topk_mask(v, 3)
        return jnp.sum(mask.astype("float32") ** 2), mask

    def results():
        e, v = jnp.asarray(embeddings, dtype), jnp.asarray(scores, dtype)
        gradient, mask = jax.jit(jax.grad(loss, has_aux=True))(v)
        slots = shtopk.topk(e, v, 3)
        return slots.embeddings, slots.scores, gradient, mask, shtopk.topk_mask(v, jnp.int32(3))

    wide = results()
    request.getfixturevalue("x32")
    eps = float(jnp.finfo(dtype).eps)
    for got, want, roundings in zip(results(), wide, (2, 0, 0, 0, 0), strict=True):
        assert got.dtype == want.dtype == dtype
        np.testing.assert_allclose(
            got.astype("float32"), want.astype("float32"), rtol=0, atol=roundings * eps
        )


# Extremes

NAMES = [
    *("all equal", "two values", "1e4 apart", "gaps of 1e-38", "gaps near the largest", "denormals"),
    *("largest and smallest", "every magnitude", "one valid", "none valid"),
]


# A slope of 6 in units of these gaps is beyond 65504, where float16 ends.
TOO_STEEP = ["gaps of 1e-38", "denormals"]


def not_finite(outs):
    """The names of the rows of `outs` that hold a NaN or an infinity."""
    rows = [jax.tree.map(lambda x, i=i: x[i], outs) for i in range(len(NAMES))]
    return [name for name, row in zip(NAMES, rows, strict=True) if not finite(row)]


def extremes(dtype):
    """Rows of eight scores `(names, 8)`, and which of them take part."""
    limits, steps = jnp.finfo(dtype), np.arange(8.0)[[3, 0, 6, 1, 7, 2, 5, 4]]
    largest, tiny = float(limits.max), float(limits.tiny)
    least = float(limits.smallest_subnormal)
    mixed = [0.0, least, tiny, 1.0, largest, -largest, -1.0, -tiny]
    rows = [
        *(np.full(8, 3.0), steps % 2, np.where(steps > 3, 1e4, -1e4) + steps, steps * max(1e-38, 10 * least)),
        *((steps / 3.5 - 1) * largest, steps * least),
        *(np.where(steps % 2, largest, -largest), np.array(mixed), steps, steps),
    ]
    valid = np.ones((len(rows), 8), bool)
    valid[-2], valid[-1] = steps == 6, False
    return jnp.asarray(np.stack(rows), dtype), jnp.asarray(valid)


def by_topk(scores, where, boost, reseed):
    """Values, and the gradient in payload, scores and the boost's numbers, of one row."""
    payload = jnp.cos(jnp.arange(16.0)).reshape(8, 2).astype(scores.dtype)

    def loss(e, v, boost):
        out = shtopk.topk(e, v, 2, boost=boost, reseed=reseed, where=where)
        mask = shtopk.topk_mask(v, 2, boost=boost, reseed=reseed, where=where)
        weights = jnp.asarray([[1.0], [-2.0]], e.dtype)
        return jnp.sum(weights * out.embeddings) + mask[2] - mask[5], (out.embeddings, mask)

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(payload, scores, boost)


@pytest.mark.parametrize(("dtype", "reseed"), [*((dtype, True) for dtype in DTYPES), ("float32", False)])
@EVERY_BOOST
def test_no_extreme_makes_a_nan_or_an_infinity(boost, dtype, reseed):
    scores, where = extremes(dtype)
    boost = jax.tree.map(jnp.asarray, boost)
    (_, (_, masks)), gradients = outs = jax.jit(jax.vmap(partial(by_topk, reseed=reseed), (0, 0, None)))(
        scores, where, boost
    )
    bad = not_finite(outs)
    assert bad == (TOO_STEEP if (dtype, type(boost)) == ("float16", shtopk.Relative) else [])
    mass = np.asarray(masks.astype("float64")).sum(-1)
    np.testing.assert_allclose(mass, np.minimum(2, where.sum(-1)), rtol=8 * eps(dtype))
    assert np.all(np.asarray(gradients[1])[~np.asarray(where)] == 0)


@pytest.mark.parametrize("reseed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_of_all_magnitudes_have_finite_gradients(dtype, reseed):
    """The gap of one match may be that of another times more than the largest number."""
    rng, limits = np.random.default_rng(0), np.finfo(dtype)
    powers = rng.uniform(np.log10(limits.smallest_subnormal), np.log10(limits.max), size=(2000, 4))
    scores = (rng.choice([-1, 0, 1], size=powers.shape) * 10**powers).astype(dtype)

    def loss(v):
        out = shtopk.topk(jnp.arange(4.0).astype(dtype), v, 1, reseed=reseed)
        return jnp.sum(jnp.sin(out.embeddings)) + jnp.sum(out.scores)

    gradients = jax.jit(jax.vmap(jax.grad(loss)))(scores)
    assert np.flatnonzero(~np.isfinite(gradients).all(axis=-1)).tolist() == []


def test_slopes_of_power_multiply_beyond_the_range():
    slope = jax.jit(jax.grad(lambda v: shtopk.select(v, 1, boost=shtopk.Power(20.0)).scores[0]))
    for largest, is_finite in ((1e18, True), (4e37, False)):
        scores = jnp.asarray([0.0] * 14 + [-largest] * 4 + [0.75, -1e4, -1e4], jnp.float32)
        assert finite(slope(scores)) == is_finite


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_extreme_makes_a_nan_or_an_infinity_in_the_baseline(dtype):
    def loss(e, v, alpha, where):
        return jnp.sum(shtopk.iterative_topk(e, v, 2, alpha=alpha, where=where).embeddings)

    scores, where = extremes(dtype)
    payload, alpha = jnp.ones((8, 2), dtype), jnp.asarray(1.0)
    outs = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1, 2)), (None, 0, None, 0)))(
        payload, scores, alpha, where
    )
    assert not_finite(outs) == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_power_at_scores_of_1e4(dtype):
    high, low = jnp.asarray([[1e4, 1e4, -1e4 + 1, 1e4], [1e4 - 1, 1e4, -1e4, -1e4]], dtype)
    weight = jax.jit(lambda boost, *sides: boost(*sides))(shtopk.Power(), high, low, np.ones(4, bool))
    assert weight.tolist() == [1.0, 0.5, 0.5, 1.0]  # 20**-1e4 is as good as 0


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("float32", 2.0**-90), ("float32", 2.0**120), ("float64", 2.0**-130), ("float64", 2.0**1000)],
)
def test_relative_is_free_of_scale_to_the_ends_of_the_range(dtype, scale):
    scores = jnp.asarray([3, 0, 6, 1, 7, 2, 5.5, 4.2], dtype)
    mask = partial(shtopk.topk_mask, k=2)
    np.testing.assert_allclose(mask(scores * scale), mask(scores), rtol=100 * eps(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relative_treats_gaps_near_the_smallest_normal_as_ties(dtype):
    scores = jnp.arange(8, dtype=dtype) * jnp.finfo(dtype).tiny
    np.testing.assert_allclose(shtopk.topk_mask(scores, 2), 0.25, rtol=1e-6)
