"""The default's quality on scores that are not uniform: outliers, offsets, finite padding, clusters."""

import jax
import jax.numpy as jnp
from jax import lax

import shtopk
from benchmarks import records
from benchmarks.quality.measure import CHUNK, SEED, D, mean_and_error

SIZES = [(16, 2), (300, 7), (2048, 64), (16384, 4)]


def _first(value):
    return lambda key, v: v.at[0].set(value)


def _clusters(shares):
    """Clusters a unit apart, a thousandth wide."""

    def scores(key, v):
        return jax.random.choice(key, len(shares), v.shape, p=jnp.array(shares)) + 1e-3 * v

    return scores


# Each makes scores `(n,)` of normal ones and a key.
DISTRIBUTIONS = {
    "normal": lambda key, v: v,
    "bimodal": _clusters([0.9, 0.1]),
    "trimodal": _clusters([0.8, 0.15, 0.05]),
    "one outlier, -1e9": _first(-1e9),
    "one outlier, +1e9": _first(1e9),
    "offset 1e5": lambda key, v: v + 1e5,
    "half padded by -1e9": lambda key, v: jnp.where(jnp.arange(v.shape[0]) % 2 == 0, v, -1e9),
}
METHODS = {"default": {}, "default, reseed=True": {"reseed": True}}


def measurement(n, k, scores_of):
    """A compiled function from keys to `{method: {"nccs": (keys,), "mass": (keys,)}}`."""

    def one_draw(key):
        e_key, v_key, key = jax.random.split(key, 3)
        embeddings = jax.random.uniform(e_key, (n, D), minval=-1)
        scores = scores_of(key, jax.random.normal(v_key, (n,)))
        hard = shtopk.hard_topk(embeddings, scores, k)

        def judge(options):
            selection = shtopk.select(scores, k, **options)
            nccs = shtopk.nccs(hard.embeddings, selection.pool(embeddings))
            return {"nccs": nccs, "mass": jnp.sum(selection.mask()[hard.indices]) / k}

        return {name: judge(options) for name, options in METHODS.items()}

    return jax.jit(lambda keys: lax.map(one_draw, keys, batch_size=CHUNK))


def measure(draws):
    """One row a distribution and size: each method's mean and standard error over the draws."""
    rows = []
    for name, scores_of in DISTRIBUTIONS.items():
        for n, k in SIZES:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), n), draws)
            found = jax.device_get(measurement(n, k, scores_of)(keys))
            rows.append({"scores": name, "n": n, "k": k, "methods": jax.tree.map(mean_and_error, found)})
    return rows


def text(results):
    """The lines of the page: nCCS and mass on the true top k, a row for each distribution and size."""
    head = ["scores", "n", "k", *(f"{what}, {name}" for name in METHODS for what in ("nCCS", "mass"))]
    lines = []
    for row in results["rows"]:
        figures = [row["methods"][name][what] for name in METHODS for what in ("nccs", "mass")]
        lines.append([row["scores"], row["n"], row["k"], *(f"{x:.4f} ± {error:.4f}" for x, error in figures)])
    return [
        "# Scores that are not uniform",
        "",
        f"{results['settings']['draws']} draws in each cell, d = {D}, scores in float32; mean ± standard error. "
        "Clusters lie 1 apart and are 0.001 wide; bimodal is 90 and 10 %, trimodal 80, 15 and 5 %. Mass is the "
        "share of the mask on the true top k.",
        "",
        *records.markdown(head, lines),
        "",
    ]
