"""Learn how many: explain each label by as few features as it needs.

A row has 16 features. From 1 to 8 of them are marked, each carries 1 or -1, and the label is the sum of what the marked
ones carry. The model scores the features, reads the k best, and adds up. It is told neither which features are marked
nor how many. It learns both from the label, and from a price on each feature that it reads.

`shtopk.topk_mask` takes a real k, so k comes out of the network, row by row, and has a gradient. The comparison is the
same model with one k for all rows. Everything is evaluated with whole features: the round(k) best, each with a weight
of 1. A table and a picture, in two minutes on two cores:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/how_many.py
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

import shtopk

N, MOST, WIDTH = 16, 8, 8  # features of a row, how many of them a label needs at most, numbers in a feature
PRICE = 0.2  # of a feature, in units of the squared error
BATCH, HELD_OUT, SHOWN = 32, 2048, 256  # rows in a step, to evaluate on, and in the picture
STEPS, SEEDS = 1000, 5  # training steps of a model, and models trained for each way
FIXED = (2, 4, 6, 8)  # one k for all rows, to compare with


# Data
class Rows(NamedTuple):
    features: jax.Array  # (batch, 16, 8)
    needed: jax.Array  # (batch,), how many are marked
    label: jax.Array  # (batch,)


@partial(jax.jit, static_argnames="batch")
def draw_rows(key, batch):
    count_key, place_key, feature_key = jax.random.split(key, 3)
    needed = jax.random.randint(count_key, (batch, 1), 1, MOST + 1)
    marked = jnp.broadcast_to(jnp.arange(N), (batch, N)) < needed
    marked = jax.random.permutation(place_key, marked, axis=1, independent=True)
    features = jax.random.normal(feature_key, (batch, N, WIDTH)).at[..., 0].add(6.0 * marked)
    features = features.at[..., 1].set(jnp.sign(features[..., 1]))
    return Rows(features, needed[:, 0], jnp.sum(features[..., 1] * marked, axis=1))


# Model
class Explainer(nn.Module):
    """Features `(batch, 16, 8)` to scores and to what each feature says `(batch, 16)`, and to k `(batch,)`."""

    @nn.compact
    def __call__(self, features):
        scores = nn.Dense(1)(nn.relu(nn.Dense(32)(features)))[..., 0]
        says = (nn.Dense(1)(features) * nn.sigmoid(nn.Dense(1)(features)))[..., 0]
        row = nn.relu(nn.Dense(32)(features)).mean(axis=1)
        raw = nn.Dense(1, bias_init=nn.initializers.constant(2.0))(nn.relu(nn.Dense(32)(row)))[..., 0]
        return scores, says, 1 + (N - 1) * nn.sigmoid(raw)  # never out of [1, n]


def soft_mask(scores, k, progress, key):
    """Weights `(batch, 16)`, of which row i sums to `k[i]` once half of the training is over."""
    scores, boost = shtopk.anneal(scores, progress, key)
    # All features are read at first, whatever k is: what they say is learned before what can be left out.
    k = N + jnp.minimum(1, 2 * progress) * (k - N)
    return jax.vmap(lambda row, k: shtopk.topk_mask(row, k, boost=boost))(scores, k)


def hard_mask(scores, k):
    mask = partial(shtopk.topk_mask, boost=shtopk.Scaled(jnp.inf))
    return jax.vmap(mask)(scores, jnp.round(k).astype(int))


# Training and evaluation
def train(steps, fixed, held_out, seed):
    """Train with `fixed` features for each row, or with a learned k if that is None, and evaluate on held-out rows.

    Returns the squared error and k of each row `(2048,)`.
    """
    model, key = Explainer(), jax.random.key(seed)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    )

    def read(params, rows, mask):
        scores, says, k = model.apply(params, rows.features)
        k = k if fixed is None else jnp.full(k.shape, float(fixed))
        return (jnp.sum(mask(scores, k) * says, axis=1) - rows.label) ** 2, k

    def loss(params, step):
        data_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        mask = partial(soft_mask, progress=step / steps, key=noise_key)
        error, k = read(params, draw_rows(data_key, BATCH), mask)
        price = PRICE * jnp.clip(4 * step / steps - 2, 0, 1)  # from where on k rows are read
        return jnp.mean(error + price * k)

    def update(carry, step):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params, step), state)
        return (optax.apply_updates(params, updates), state), None

    params = model.init(key, held_out.features)
    (params, _), _ = jax.lax.scan(update, (params, optimiser.init(params)), jnp.arange(steps))
    return read(params, held_out, hard_mask)


def summary(error, k):
    """What is reported of a way, from `(seeds, rows)` each."""
    read = np.round(k)
    row = {"features": float(read.mean()), "error": float(error.mean())}
    row["cost"] = row["error"] + PRICE * row["features"]
    row["errors"] = error.mean(axis=1).round(4).tolist()
    row["costs"] = (error + PRICE * read).mean(axis=1).round(4).tolist()
    return row


def compare(steps, seeds, fixed_ks):
    """The summary of each way; of the learned k also how it goes with the number needed."""
    held_out = draw_rows(jax.random.key(0), HELD_OUT)
    needed = np.asarray(held_out.needed)
    ways, learned = {}, None
    for fixed in (None, *fixed_ks):
        of_seeds = jax.jit(jax.vmap(partial(train, steps, fixed), in_axes=(None, 0)))
        error, k = map(np.asarray, of_seeds(held_out, jnp.arange(1, seeds + 1)))
        name = f"k = {fixed}" if fixed else "learned k"
        ways[name] = summary(error, k)
        if not fixed:
            learned = {
                "correlations": [float(np.corrcoef(k[s], needed)[0, 1]) for s in range(seeds)],
                "exact": float((np.round(k) == needed).mean()),
                "needed": needed[:SHOWN].tolist(),
                "k": k[0, :SHOWN].round(3).tolist(),
            }
            low = min(learned["correlations"])
            print(
                f"correlation of learned and needed {low:.3f} or more, equal in {learned['exact']:.1%} of the rows"
            )
        row = ways[name]
        print(f"{name:12}{row['features']:12.2f}{row['error']:12.3f}{row['cost']:12.3f}", flush=True)
    return ways, learned


# Picture
def draw_picture(ways, learned, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    needed, k = np.array(learned["needed"]), np.array(learned["k"])
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(needed))
    left.plot([1, MOST], [1, MOST], color="0.7", lw=1)
    left.plot(needed + jitter, k, "o", ms=3, alpha=0.5, color="#0072b2")
    left.set(xlabel="features that the label needs", ylabel="learned k")
    fixed = [row for name, row in ways.items() if name != "learned k"]
    right.plot([row["features"] for row in fixed], [row["error"] for row in fixed], "o-", color="#d55e00")
    right.annotate(
        "one k for all rows",
        (fixed[0]["features"], fixed[0]["error"]),
        (8, 0),
        textcoords="offset points",
        color="#d55e00",
    )
    ours = ways["learned k"]
    right.plot(ours["features"], ours["error"], "o", ms=10, color="#0072b2")
    right.annotate(
        "learned k",
        (ours["features"], ours["error"]),
        (0, 10),
        textcoords="offset points",
        ha="center",
        color="#0072b2",
    )
    right.set(xlabel="features read, on average", ylabel="held-out squared error")
    right.set_ylim(0)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Learn how many features each label needs.")
    parser.add_argument("--out", type=Path, default="how_many.png", help="picture; a .json beside it")
    parser.add_argument("--quick", action="store_true", help="one fixed k, 4 steps, to see that it runs")
    args = parser.parse_args()
    steps, seeds, fixed = (4, 2, (4,)) if args.quick else (STEPS, SEEDS, FIXED)
    print(f"{'':12}{'features':>12}{'error':>12}{'with price':>12}")
    ways, learned = compare(steps, seeds, fixed)
    settings = {"steps": steps, "seeds": seeds, "rows": BATCH, "price": PRICE}
    settings |= {"jax": jax.__version__, "backend": jax.default_backend()}
    results = {"settings": settings, "learned": learned, "ways": ways}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw_picture(ways, learned, args.out)


if __name__ == "__main__":
    main()
