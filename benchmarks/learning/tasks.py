"""The nine tasks, in each of which a model has to choose k of n: data, model, loss and score.

A task draws `(x, right (batch, n) boolean, answer)`; `right` marks the k candidates that matter, and is for measuring
alone. `chance` is the score of a guess that looks at nothing.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.learning import models

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "find_the_digits.py"


class Classification:
    """Logits `(..., classes)` against a class `(...)`."""

    reads_logs = False  # whether the model reads rows by the logs of their weights
    seeds = 5

    def loss(self, logits, answer):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), answer[..., None], axis=-1).mean()

    def score(self, logits, answer):
        return (logits.argmax(-1) == answer).mean()


def scattered(key, batch, n, k):
    """k places of n at random, `(batch, n)` boolean."""
    return jnp.argsort(jax.random.uniform(key, (batch, n)), axis=-1) < k


@dataclass(frozen=True)
class MarkedTokens(Classification):
    """8 of 256 tokens lean to one side of a mark and to the class; the others to the other side and to any class."""

    n: int = 256
    k: int = 8
    classes: int = 10
    batch: int = 16
    steps: int = 600
    chance: float = 0.1

    def model(self):
        return models.Model(models.PatchReader(32), models.MeanOfRows(self.classes, self.k))

    def draw(self, key, batch, held_out):
        keys = jax.random.split(key, 5)
        answer = jax.random.randint(keys[0], (batch,), 0, self.classes)
        right = scattered(keys[1], batch, self.n, self.k)
        other = jax.random.randint(keys[2], (batch, self.n), 0, self.classes)
        label = jnp.where(right, answer[:, None], other)
        codes = jax.random.normal(jax.random.key(7), (self.classes, 12))
        mark = jnp.where(right, 0.75, -0.75)[..., None] + 0.5 * jax.random.normal(keys[3], (*right.shape, 1))
        token = codes[label] + 1.5 * jax.random.normal(keys[4], (*right.shape, 12))
        return jnp.concatenate([token, mark], axis=-1), right, answer


@cache
def splits():
    """The digits and clutter of `docs/examples/find_the_digits.py`, to train on and held out."""
    spec = importlib.util.spec_from_file_location("find_the_digits", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    # The first caller may be under `jit`, whose tracers must not be kept.
    with jax.ensure_compile_time_eval():
        return list(example.load_splits())


def alike(labels, index, each):
    """Images `index` `(b, m)`, each followed by `each - 1` others of its label: `(b, m * each)`."""
    order, count = jnp.argsort(labels), jnp.bincount(labels, length=10)
    first, count = (jnp.cumsum(count) - count)[labels[index]], count[labels[index]]
    shift = jnp.arange(each) * (count // each)[..., None]
    place = (jnp.argsort(order)[index] - first)[..., None] + shift
    return order[first[..., None] + place % count[..., None]].reshape(len(index), -1)


@dataclass(frozen=True)
class DigitsOnACanvas:
    """Which of the ten digits are among the k on a canvas of n patches, the others clutter.

    8 labels are drawn, each shown by k / 8 images, so that larger canvases ask the same question.
    """

    n: int = 256
    k: int = 8
    batch: int = 16
    steps: int = 1400
    chance: float = 0.57
    reads_logs: bool = False  # with Transformer layers over the chosen patches; without, an MLP on each
    seeds: int = 5

    def model(self):
        above = models.LayersAbove(48) if self.reads_logs else models.AnyOfRows()
        return models.Model(models.PatchReader(48), above)

    def draw(self, key, batch, held_out):
        split, keys = splits()[int(held_out)], jax.random.split(key, 3)
        digit = jax.random.randint(keys[0], (batch, 8), 0, len(split.digits))
        digit = alike(split.labels, digit, self.k // 8)
        clutter = jax.random.randint(keys[1], (batch, self.n - self.k), 0, len(split.clutter))
        patches = jnp.concatenate([split.digits[digit], split.clutter[clutter]], axis=1)
        right = jnp.broadcast_to(jnp.arange(self.n) < self.k, (batch, self.n))
        # Nothing here sees a position but a tie, so a turn of the canvas scatters enough.
        turn = jax.random.randint(keys[2], (batch,), 0, self.n)
        turned = jax.vmap(lambda x, by: jnp.roll(x, by, axis=0))
        present = (split.labels[digit][..., None] == jnp.arange(10)).any(axis=1)
        return turned(patches, turn), turned(right, turn), present

    def loss(self, log_absent, present):
        return -jnp.where(present, jnp.log(-jnp.expm1(log_absent)), log_absent).mean()

    def score(self, log_absent, present):
        return ((log_absent < jnp.log(0.5)) == present).mean()


@dataclass(frozen=True)
class SelectiveCopying(Classification):
    """The values of the 8 tokens of the first kind among 128 of four kinds, in order."""

    n: int = 128
    k: int = 8
    values: int = 8
    kinds: int = 4
    batch: int = 16
    steps: int = 700
    chance: float = 0.125

    def model(self):
        return models.Model(
            models.TokenReader(self.values * self.kinds), models.RowsInOrder(self.values, self.k)
        )

    def draw(self, key, batch, held_out):
        keys = jax.random.split(key, 3)
        right = scattered(keys[0], batch, self.n, self.k)
        value = jax.random.randint(keys[1], right.shape, 0, self.values)
        kind = jnp.where(right, 0, jax.random.randint(keys[2], right.shape, 1, self.kinds))
        place = lax.top_k(right.astype(jnp.float32), self.k)[1]
        return kind * self.values + value, right, jnp.take_along_axis(value, place, axis=1)


def _xor(x):
    return x[:, 0] * x[:, 1]


def _orange_skin(x):
    return jnp.sum(x[:, :4] ** 2, axis=-1) - 4


def _additive(x):
    return -10 * jnp.sin(2 * x[:, 0]) + 2 * jnp.abs(x[:, 1]) + x[:, 2] + jnp.exp(-x[:, 3]) - 2.4


@dataclass(frozen=True)
class FeatureSelection(Classification):
    """Explain a label by k of 10 features, chosen input by input (the data of Chen et al. 2018, L2X)."""

    kind: str
    k: int
    n: int = 10
    batch: int = 256
    steps: int = 800
    chance: float = 0.5

    def model(self):
        return models.Model(models.FeatureReader(), models.SumOfRows())

    def draw(self, key, batch, held_out):
        x, right, logit, key = self.explained(key, batch)
        return x, right, jax.random.bernoulli(key, jax.nn.sigmoid(logit)).astype(jnp.int32)

    def explained(self, key, batch):
        """Features, those that matter, and the logit of the label `(batch,)`, with a key to draw the label."""
        keys = jax.random.split(key, 3)
        x, place = jax.random.normal(keys[0], (batch, self.n)), jnp.arange(self.n)
        right = jnp.broadcast_to(place < self.k, x.shape)
        if self.kind == "switch":
            side = jax.random.bernoulli(keys[1], 0.5, (batch,))
            x = x.at[:, 9].add(jnp.where(side, 3.0, -3.0))
            logit = jnp.where(side, _orange_skin(x), _additive(x[:, 4:8]))
            right = jnp.where(side[:, None], place < 4, (place >= 4) & (place < 8)) | (place == 9)
        else:
            logit = {"xor": _xor, "orange skin": _orange_skin, "additive": _additive}[self.kind](x)
        return x, right, logit, keys[2]


TASKS = {
    "marked-tokens": MarkedTokens(),
    "digits-256": DigitsOnACanvas(),
    "digits-1024": DigitsOnACanvas(n=1024, k=32, batch=8),
    "selective-copying": SelectiveCopying(),
    # More seeds, because with 5 the standard errors here are as large as the differences between methods.
    "pruned-transformer": DigitsOnACanvas(n=64, steps=1000, reads_logs=True, seeds=15),
    "features-xor": FeatureSelection("xor", 2),
    "features-orange-skin": FeatureSelection("orange skin", 4),
    "features-additive": FeatureSelection("additive", 4),
    "features-switch": FeatureSelection("switch", 5),
}
