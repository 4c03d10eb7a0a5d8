"""Choose the features of a real table: 30 measurements of a tumour, and the 64 pixels of a digit.

Reading a feature costs something: a laboratory test, a sensor, a column to keep up. A model should read k of n. The
choice is either global (the same k features for every row) or made input by input (a small net scores the features of
each row). k is fixed, or learned: `shtopk.topk_mask` takes a real k, and its derivative in k weighs the loss against a
price on each feature.

The script also measures scikit-learn's `SelectKBest`, L1 logistic regression, a gated top k and a random choice. A
logistic regression, refitted on the chosen features alone, judges every global choice. Three minutes on two cores:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/choose_the_features.py
"""

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import sklearn
from flax import linen as nn
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import shtopk

WIDTH, BATCH, RATE = 64, 128, 1e-2
STEPS, SPLITS = 500, 5  # training steps of a choice, and splits of each table


# Data
class Table(NamedTuple):
    """The splits of a table, each standardised by its own training rows."""

    name: str
    x: np.ndarray  # (splits, rows, n), to train on
    y: np.ndarray  # (splits, rows), a class
    x_test: np.ndarray
    y_test: np.ndarray
    ks: tuple  # how many features a global choice keeps
    k: int  # how many a choice input by input keeps
    prices: tuple  # of a feature where k is learned, in nats of the loss, for a global choice
    price: float  # the same, input by input


def load(name, read, splits, columns=None, **choices):
    x, y = read(return_X_y=True)
    x = x[:, :columns]
    parts = []
    for seed in range(splits):
        x_train, x_test, y_train, y_test = train_test_split(
            x, y, test_size=0.3, stratify=y, random_state=seed
        )
        scaler = StandardScaler().fit(x_train)
        parts.append((scaler.transform(x_train), y_train, scaler.transform(x_test), y_test))
    return Table(name, *(np.stack(part) for part in zip(*parts, strict=True)), **choices)


# Model
class Chooser(nn.Module):
    """Scores the features, and reads the weighed row."""

    features: int
    classes: int
    by_input: bool
    spread: float = 0.0  # of the first scores of a global choice

    def setup(self):
        if self.by_input:
            self.scorer = nn.Sequential([nn.Dense(WIDTH), nn.gelu, nn.Dense(self.features + 1)])
            self.reader = nn.Sequential([nn.Dense(WIDTH), nn.gelu, nn.Dense(self.classes)])
        else:
            self.table_scores = self.param("scores", nn.initializers.normal(self.spread), (1, self.features))
            self.number = self.param("number", nn.initializers.zeros, (1,))
            self.reader = nn.Dense(self.classes)

    def scores(self, x):
        """One score for each feature `(rows or 1, n)`, and the number that gives k where k is learned."""
        if not self.by_input:
            return self.table_scores, self.number
        out = self.scorer(x)
        return out[:, :-1], out[:, -1]

    def read(self, x):
        return self.reader(x)

    def __call__(self, x):
        return self.scores(x), self.read(x)


class Run(NamedTuple):
    """One training. With a price above 0, k is learned."""

    split: jax.Array
    k: jax.Array
    price: jax.Array


def size(run, number, n):
    return jnp.where(run.price > 0, 1 + (n - 1) * nn.sigmoid(number), run.k)


# Ways to weigh the features, from scores (rows or 1, n) and k (rows or 1,)
def soft(scores, k, progress, key):
    scores, boost = shtopk.anneal(scores, progress, key)
    return jax.vmap(partial(shtopk.topk_mask, boost=boost))(scores, k)


def hard(scores, k, progress, key):
    rank = jnp.argsort(jnp.argsort(scores, axis=-1, descending=True), axis=-1)
    return jnp.where(rank < jnp.round(k)[:, None], 1.0, 0.0)


def gated(scores, k, progress, key):
    scores += 0.5 * (1 - progress) * jax.random.normal(key, scores.shape)  # as in `anneal`
    return nn.sigmoid(scores) * hard(scores, k, progress, key)


def random(scores, k, progress, key):
    return hard(jax.random.normal(key, scores.shape), k, progress, key)


# Training and evaluation
@partial(jax.jit, static_argnames=("model", "weigh", "weigh_to_evaluate", "steps"))
def train(model, weigh, weigh_to_evaluate, data, runs, steps):
    """Train all runs at once, as `vmap` of one. Returns scores (runs, n), k and accuracy (runs,), with hard choices."""
    x, y, x_test, y_test = data
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0, RATE, min(20, steps // 2), steps))
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), adam)

    def one(run):
        def loss(params, progress, key):
            row_key, key = jax.random.split(key)
            rows = jax.random.randint(row_key, (BATCH,), 0, x.shape[1])
            seen = x[run.split, rows]
            scores, number = model.apply(params, seen, method="scores")
            k = size(run, number, x.shape[-1])
            logits = model.apply(params, weigh(scores, k, progress, key) * seen, method="read")
            error = optax.softmax_cross_entropy_with_integer_labels(logits, y[run.split, rows])
            # The price comes in with the sharpness: while the choice is soft, a smaller k loses nothing yet.
            return error.mean() + run.price * progress * k.mean()

        def step(state, i):
            params, moments = state
            gradient = jax.grad(loss)(params, i / steps, jax.random.fold_in(key, i))
            updates, moments = optimiser.update(gradient, moments)
            return (optax.apply_updates(params, updates), moments), None

        key = jax.random.fold_in(jax.random.key(0), run.split)
        params = model.init(key, x[0, :1])
        (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(steps))
        held_out = x_test[run.split]
        scores, number = model.apply(params, held_out, method="scores")
        k = jnp.round(size(run, number, x.shape[-1]))
        logits = model.apply(params, weigh_to_evaluate(scores, k, 1.0, key) * held_out, method="read")
        return scores[0], k.mean(), (logits.argmax(axis=-1) == y_test[run.split]).mean()

    return jax.vmap(one)(runs)


def grid(splits, ks, prices):
    """Every split with every k, or else with every price."""
    pairs = [(k, 0.0) for k in ks] + [(1.0, price) for price in prices]
    runs = [Run(split, float(k), price) for k, price in pairs for split in range(splits)]
    return Run(*(jnp.array(column) for column in zip(*runs, strict=True)))


# Choices of scikit-learn, and the judge
def by_univariate_test(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pixel that is blank in every row has no variance to test
        return np.nan_to_num(SelectKBest(k="all").fit(x, y).scores_, nan=-1.0)


def by_l1(x, y, k):
    """Scores of a fit that leaves k features, or the least more: the size of their coefficients."""
    model = LogisticRegression(l1_ratio=1, solver="saga", tol=1e-2, max_iter=200, warm_start=True)
    for c in np.geomspace(1e-3, 1, 25):
        size = np.linalg.norm(model.set_params(C=c).fit(x, y).coef_, axis=0)
        if (size > 0).sum() >= k:
            break
    return size


def judge(table, split, scores, k):
    """Held-out accuracy of a logistic regression refitted on the k features of the highest scores."""
    chosen = np.argsort(scores)[::-1][: int(k)]
    model = LogisticRegression(max_iter=5000).fit(table.x[split][:, chosen], table.y[split])
    return model.score(table.x_test[split][:, chosen], table.y_test[split])


def choose_globally(table, learn):
    """Rows of the results: one for each way and k, with the accuracy of each split."""
    splits, n = len(table.x), table.x.shape[-1]
    model = Chooser(n, len(np.unique(table.y)), by_input=False)
    # From equal scores, gated top k would keep its first k features, because the others get no gradient.
    scattered = model.clone(spread=1.0)
    generator = np.random.default_rng(0)
    scores = {
        "SelectKBest": lambda s, k: by_univariate_test(table.x[s], table.y[s]),
        "L1": lambda s, k: by_l1(table.x[s], table.y[s], k),
        "random": lambda s, k: generator.random(n),
        "all features": lambda s, k: np.ones(n),
    }
    choices = [
        (way, s, n if way == "all features" else k, 0.0, score(s, k))
        for way, score in scores.items()
        for k in (table.ks if way != "all features" else (n,))
        for s in range(splits)
    ]
    for way, start, weigh, runs in [
        ("shtopk", model, soft, grid(splits, table.ks, table.prices)),
        ("gated top k", scattered, gated, grid(splits, table.ks, [])),
    ]:
        found, ks, _ = learn(start, weigh, hard, table[1:5], runs)
        for score, k, s, price in zip(*map(np.array, (found, ks, runs.split, runs.price)), strict=True):
            choices.append((way if price == 0 else f"{way}, k learned", int(s), int(k), price, score))
    return gather(
        (way, price or k, s, k, judge(table, s, score, k), price) for way, s, k, price, score in choices
    )


def choose_by_input(table, learn):
    """The same for a choice of its own for each input, read by the net that it was trained with."""
    splits, n = len(table.x), table.x.shape[-1]
    model = Chooser(n, len(np.unique(table.y)), by_input=True)
    measured = []
    for way, weigh, weigh_to_evaluate, runs in [
        ("shtopk", soft, hard, grid(splits, [table.k], [table.price])),
        ("gated top k", gated, gated, grid(splits, [table.k], [])),
        ("random", random, random, grid(splits, [table.k], [])),
        ("all features", hard, hard, grid(splits, [n], [])),
    ]:
        _, ks, accuracy = learn(model, weigh, weigh_to_evaluate, table[1:5], runs)
        for k, right, s, price in zip(*map(np.array, (ks, accuracy, runs.split, runs.price)), strict=True):
            name = way if price == 0 else f"{way}, k learned"
            measured.append((name, float(price) or table.k, int(s), float(k), float(right), float(price)))
    return gather(measured)


def gather(measured):
    """Rows with a list over splits, from (way, group, split, k, accuracy, price)."""
    rows = {}
    for way, group, _, k, accuracy, price in measured:
        row = rows.setdefault((way, group), {"way": way, "price": float(price), "k": [], "accuracy": []})
        row["k"].append(round(float(k), 3))
        row["accuracy"].append(round(float(accuracy), 5))
    return list(rows.values())


# Picture
COLOURS = {
    "shtopk": "#0072b2",
    "shtopk, k learned": "#56b4e9",
    "SelectKBest": "#009e73",
    "L1": "#cc79a7",
    "gated top k": "#d55e00",
    "random": "0.5",
}


def draw_picture(rows, path):
    names = list(dict.fromkeys(row["table"] for row in rows))
    options = {"layout": "constrained", "sharex": "col", "squeeze": False}
    figure, axes = plt.subplots(2, len(names), figsize=(10, 8), **options)
    for (kind, name), ax in zip(
        ((kind, name) for kind in ("global", "input by input") for name in names), axes.flat, strict=True
    ):
        here = [row for row in rows if (row["choice"], row["table"]) == (kind, name)]
        for way, colour in COLOURS.items():
            found = [row for row in here if row["way"] == way]
            k, right = (np.array([np.mean(row[what]) for row in found]) for what in ("k", "accuracy"))
            error = [np.std(row["accuracy"], ddof=1) / len(row["k"]) ** 0.5 for row in found]
            line = "" if kind != "global" or way == "shtopk, k learned" else "-"
            ax.errorbar(k, right, error, fmt=f"o{line}", ms=5, lw=1, capsize=2, color=colour, label=way)
        (whole,) = (row for row in here if row["way"] == "all features")
        ax.axhline(np.mean(whole["accuracy"]), color="0.3", lw=1, ls=":", label="all features")
        ax.set(xlabel="features read", ylabel="held-out accuracy", title=f"{name}, {kind}")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description="Choose the features of a real table.")
    parser.add_argument(
        "--out", type=Path, default=Path("choose_the_features.png"), help="picture; a .json beside it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="8 columns of one table, 2 splits, 4 steps, to see that it runs"
    )
    args = parser.parse_args()
    steps, splits = (4, 2) if args.quick else (STEPS, SPLITS)
    # Where C is large, L1 converges slowly; which coefficients are 0 is decided long before.
    warnings.simplefilter("ignore", ConvergenceWarning)
    cancer = partial(load, "breast cancer", load_breast_cancer, splits, k=5, price=0.01)
    digits = partial(load, "digits", load_digits, splits, k=16, price=0.01)
    if args.quick:
        tables = [cancer(columns=8, ks=(2, 5), prices=(0.01,))]
    else:
        tables = [
            cancer(ks=(2, 5, 10), prices=(0.01, 0.02, 0.05)),
            digits(ks=(8, 16, 32), prices=(0.02, 0.04, 0.08)),
        ]
    rows, started = [], time.monotonic()
    print(f"{'':36}{'k':>10}{'accuracy':>20}")
    for table in tables:
        for kind, choose in (("global", choose_globally), ("input by input", choose_by_input)):
            for row in choose(table, partial(train, steps=steps)):
                rows.append({"table": table.name, "choice": kind} | row)
                error = np.std(row["accuracy"], ddof=1) / splits**0.5
                label = f"{table.name}, {kind}, {row['way']}"
                print(f"{label:50}{np.mean(row['k']):8.1f}{np.mean(row['accuracy']):10.3f} ± {error:.3f}")
            print(f"{time.monotonic() - started:.0f} s", flush=True)
    settings = {"steps": steps, "splits": splits, "jax": jax.__version__, "sklearn": sklearn.__version__}
    results = {"settings": settings | {"backend": jax.default_backend()}, "rows": rows}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw_picture(rows, args.out)


if __name__ == "__main__":
    main()
