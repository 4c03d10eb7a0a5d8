"""Prune the tokens of a small vision Transformer: accuracy against compute.

A handwritten digit lies on a canvas cluttered with pieces of other digits. The canvas is cut into 64 overlapping
patches, and each patch becomes a token on its own. Most tokens show clutter or nothing. So a scorer keeps k of the 64,
and the layers above, which have most of the compute, work on k tokens. The scorer learns from the digit's label alone.

While training, `shtopk.topk` folds the 64 tokens into k slots, by `shtopk.anneal` mixtures at first and nearly single
tokens in the end. To evaluate, `shtopk.hard_topk` keeps the k best tokens. The script also measures no pruning, a top k
that learns by a gate alone, and a random choice. The table has the accuracy of each, its multiply-adds, and the time of
a training step and of inference. Six minutes on one core:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/prune_the_tokens.py
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
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
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import shtopk

DIGIT, SIDE, STRIDE, PATCH = 8, 16, 2, 6  # pixels: of a digit, of a canvas, from patch to patch, of a patch
TOKENS, MARGIN = (SIDE // STRIDE) ** 2, (PATCH - STRIDE) // 2  # 64 patches; blank pixels around the canvas
PIECES, PIECE = 8, 4  # of clutter on a canvas, and the pixels along one
WIDTH, HEADS, DEPTH = 32, 4, 2  # DEPTH: the layers above the choice
BATCH, RATE, INFERENCE = 32, 6e-3, 256  # INFERENCE: canvases classified at once
STEPS, SEEDS = 600, 5  # training steps of a model, and models trained for each way and k
FIRST_SEED = 10  # the ways were settled on seeds 0, 1, 2 and 100


# Data
class Canvases(NamedTuple):
    """What a model is given, and the answers."""

    patches: np.ndarray  # (canvases, 64, 36)
    labels: np.ndarray  # (canvases,), the digit


def load(train, held_out):
    """Canvases to train on and to evaluate on, with no digit in common, not even in the clutter."""
    data, generator = load_digits(), np.random.default_rng(0)
    images = (data.images / data.images.max()).astype(np.float32)
    parts = train_test_split(images, data.target, test_size=0.25, stratify=data.target, random_state=0)
    return [
        make_canvases(*part, count, generator)
        for part, count in ((parts[0::2], train), (parts[1::2], held_out))
    ]


def make_canvases(images, labels, count, generator):
    """A digit on each canvas, at one of nine places, over pieces of other digits."""
    chosen = generator.integers(len(images), size=count)
    canvases = np.zeros((count, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), np.float32)
    for canvas, image in zip(canvases, images[chosen], strict=True):
        for other in generator.integers(len(images), size=PIECES):
            row, column = generator.integers(DIGIT - PIECE + 1, size=2)
            place = generator.integers(SIDE - PIECE + 1, size=2)
            paste(canvas, images[other, row : row + PIECE, column : column + PIECE], place)
        paste(canvas, image, generator.integers(3, size=2) * (SIDE - DIGIT) // 2)
    windows = np.lib.stride_tricks.sliding_window_view(canvases, (PATCH, PATCH), axis=(1, 2))
    return Canvases(windows[:, ::STRIDE, ::STRIDE].reshape(count, TOKENS, PATCH**2), labels[chosen])


def paste(canvas, piece, place):
    (top, left), size = MARGIN + place, len(piece)
    canvas[top : top + size, left : left + size] = piece


# Model
class Layer(nn.Module):
    """A Transformer layer. A row of log weight v counts exp(v) times in its attention."""

    @nn.compact
    def __call__(self, x, log_weights):
        look = partial(nn.dot_product_attention, bias=log_weights[:, None, None])
        x += nn.MultiHeadDotProductAttention(HEADS, attention_fn=look)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))


class Classifier(nn.Module):
    """Patches `(batch, 64, 36)` to the logits of the digits `(batch, 10)`.

    `prune` takes tokens `(batch, 64, 32)` and scores `(batch, 64)`. It returns rows `(batch, k or 64, 32)` and the log
    of a weight for each, of mean 1.
    """

    depth: int = DEPTH

    @nn.compact
    def __call__(self, patches, prune):
        x = nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(patches)))
        x += self.param("positions", nn.initializers.normal(0.3), (TOKENS, WIDTH))
        scores = nn.Dense(1)(nn.LayerNorm()(x))[..., 0]
        x, log_weights = prune(x, scores)
        for _ in range(self.depth):
            x = Layer()(x, log_weights)
        return nn.Dense(10)((jnp.exp(log_weights)[..., None] * nn.LayerNorm()(x)).mean(axis=1))


# Ways to prune
def unpruned(x, scores, **_):
    return x, jnp.zeros(scores.shape)


def soft(x, scores, *, k, progress, key):
    scores, boost = shtopk.anneal(scores, progress, key)
    slots = shtopk.topk(x, scores, k, boost=boost).embeddings
    return slots, jnp.zeros(slots.shape[:2])


def hard(x, scores, *, k, **_):
    rows = shtopk.hard_topk(x, scores, k).embeddings
    return rows, jnp.zeros(rows.shape[:2])


def gated(x, scores, *, k, **_):
    rows, gates = shtopk.hard_topk((x, nn.log_sigmoid(scores)), scores, k).embeddings
    return rows, nn.log_softmax(gates) + np.log(k)


def random(x, scores, *, k, key, **_):
    return hard(x, jax.random.uniform(key, scores.shape), k=k)


WAYS = {  # to train with, and to evaluate with
    "no pruning": (unpruned, unpruned),
    "shtopk": (soft, hard),
    "gated top k": (gated, gated),
    "random": (random, random),
}


# Training and evaluation
class Case(NamedTuple):
    """One way to prune to k tokens, compiled."""

    way: str
    k: int
    update: Callable
    classify: Callable
    multiply_adds: int  # to classify one canvas


def compile_case(model, way, k, optimiser, params, canvases):
    learn, evaluate = WAYS[way]

    def loss(params, patches, labels, progress, key):
        logits = model.apply(params, patches, partial(learn, k=k, progress=progress, key=key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(params, moments, *batch):
        updates, moments = optimiser.update(jax.grad(loss)(params, *batch), moments)
        return optax.apply_updates(params, updates), moments

    @jax.jit
    def classify(params, patches, key):
        logits = model.apply(params, patches, partial(evaluate, k=k, key=key))
        return logits.argmax(axis=-1)

    state = params, optimiser.init(params)
    patches, labels = canvases.patches[:BATCH], canvases.labels[:BATCH]
    update = update.lower(*state, patches, labels, 0.0, jax.random.key(0)).compile()
    lowered = classify.lower(params, canvases.patches[:INFERENCE], jax.random.key(0))
    multiply_adds = round(lowered.cost_analysis()["flops"] / 2 / INFERENCE)
    return Case(way, k, update, lowered.compile(), multiply_adds)


def train(case, params, optimiser, canvases, steps, seed):
    """The parameters of a model trained with one way and one seed."""
    moments, generator = optimiser.init(params), np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), steps)
    for step in range(steps):
        rows = generator.integers(len(canvases.labels), size=BATCH)
        batch = canvases.patches[rows], canvases.labels[rows], step / steps, keys[step]
        params, moments = case.update(params, moments, *batch)
    return params


def accuracy(case, params, canvases, seed):
    keys = jax.random.split(jax.random.key(seed), len(canvases.labels) // INFERENCE)
    batches = canvases.patches.reshape(len(keys), INFERENCE, TOKENS, PATCH**2)
    answers = [case.classify(params, *batch) for batch in zip(batches, keys, strict=True)]
    return float((np.concatenate(answers) == canvases.labels).mean())


def times(cases, params, optimiser, canvases, repeats):
    """The times of each case over those of the first `(cases, 2)`: of a training step, and of inference.

    All cases take turns, so that the rest of the machine's work slows all of them alike.
    """
    moments, key = optimiser.init(params), jax.random.key(0)
    batch = canvases.patches[:BATCH], canvases.labels[:BATCH], 0.5, key
    seconds = np.zeros((repeats, len(cases), 2))
    for turn in seconds:
        for case, spent in zip(cases, turn, strict=True):
            marks = [time.perf_counter()]
            jax.block_until_ready(case.update(params, moments, *batch))
            marks.append(time.perf_counter())
            jax.block_until_ready(case.classify(params, canvases.patches[:INFERENCE], key))
            spent[:] = np.diff([*marks, time.perf_counter()])
    return np.median(seconds / seconds[:, :1], axis=0)


def measure(model, cases_to_measure, steps, seeds, train_canvases, held_out, repeats):
    """Rows of the results; and for each way and k the parameters of the first seed."""
    schedule = optax.warmup_cosine_decay_schedule(0, RATE, min(50, steps // 2), steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    start = jax.jit(lambda key: model.init(key, held_out.patches[:1], unpruned))
    starts = {seed: start(jax.random.key(seed)) for seed in seeds}  # the same for every way
    first = starts[seeds[0]]
    cases, rows, trained = [], [], {}
    for way, k in (progress := tqdm(cases_to_measure)):
        progress.set_description(f"{way}, k = {k}")
        case = compile_case(model, way, k, optimiser, first, held_out)
        models = {seed: train(case, p, optimiser, train_canvases, steps, seed) for seed, p in starts.items()}
        right = [round(accuracy(case, p, held_out, seed), 4) for seed, p in models.items()]
        rows.append({"way": way, "k": k, "accuracy": right, "multiply_adds": case.multiply_adds})
        cases.append(case)
        trained[way, k] = models[seeds[0]]
    ratios = times(cases, first, optimiser, held_out, repeats).round(3).tolist()
    for row, (step, inference) in zip(rows, ratios, strict=True):
        row |= {"step": step, "inference": inference}
    return rows, trained


@partial(jax.jit, static_argnames=("model", "way", "k"))
def kept(model, params, way, k, patches):
    """The tokens that a trained model keeps `(canvases, k)`."""
    found = []

    def prune(x, scores):
        found.append(shtopk.hard_topk(x, scores, k).indices)
        return WAYS[way][1](x, scores, k=k)

    model.apply(params, patches, prune)
    return found[0]


# Picture
COLOURS = {"shtopk": "#0072b2", "gated top k": "#d55e00", "random": "0.5"}


def draw_picture(rows, model, trained, k, canvases, path, count=4):
    figure = plt.figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 6))
    draw_curves(rows, left.subplots())
    ways = [way for way in COLOURS if way != "random"]
    axes = right.subplots(len(ways), count)
    for way, line in zip(ways, axes, strict=True):
        chosen = np.asarray(kept(model, trained[way, k], way, k, canvases.patches[:count]))
        for ax, patches, tokens in zip(line, canvases.patches, chosen, strict=False):
            draw_canvas(ax, patches, tokens, COLOURS[way])
        line[0].set_ylabel(way)
    right.suptitle(f"{k} of {TOKENS} tokens kept, on canvases of unseen digits", fontsize=11)
    figure.savefig(path, dpi=110)


def draw_curves(rows, ax):
    whole, *pruned = rows
    for way, colour in COLOURS.items():
        found = [row for row in pruned if row["way"] == way]
        compute = [row["multiply_adds"] / 1e6 for row in found]
        mean = [np.mean(row["accuracy"]) for row in found]
        error = [standard_error(row) for row in found]
        ax.errorbar(compute, mean, error, fmt="o-", ms=5, lw=1, capsize=2, color=colour, label=way)
    whole_compute = whole["multiply_adds"] / 1e6
    mean, error = np.mean(whole["accuracy"]), standard_error(whole)
    ax.errorbar(whole_compute, mean, error, fmt="s", ms=7, capsize=2, color="0.2", label=whole["way"])
    ax.axhline(mean, color="0.3", lw=1, ls=":")
    ax.set(xlabel="millions of multiply-adds to classify a canvas", ylabel="held-out accuracy", xscale="log")
    places = [*compute, whole_compute]
    labels = [f"{x:.2f}\nk = {row['k']}" for x, row in zip(places, [*found, whole], strict=True)]
    ax.set_xticks(places, labels)
    ax.minorticks_off()
    ax.legend(frameon=False)


def draw_canvas(ax, patches, tokens, colour):
    """A canvas, made of the middle of each patch, with the patches of the kept tokens framed."""
    side, middle = SIDE // STRIDE, slice(MARGIN, MARGIN + STRIDE)
    pixels = patches.reshape(side, side, PATCH, PATCH)[:, :, middle, middle].swapaxes(1, 2)
    ax.imshow(pixels.reshape(SIDE, SIDE), cmap="gray_r", extent=(0, SIDE, SIDE, 0))
    for token in tokens:
        corner = STRIDE * (token % side), STRIDE * (token // side)
        ax.add_patch(Rectangle(corner, STRIDE, STRIDE, color=colour, alpha=0.45, lw=0))
    ax.set(xticks=[], yticks=[])


def standard_error(row):
    return np.std(row["accuracy"], ddof=1) / len(row["accuracy"]) ** 0.5


def main():
    parser = argparse.ArgumentParser(description="Keep k of 64 tokens: accuracy against compute.")
    parser.add_argument(
        "--out", type=Path, default=Path("prune_the_tokens.png"), help="picture; a .json beside it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one layer, one k, 2 seeds, 4 steps: to see that it runs"
    )
    args = parser.parse_args()
    steps, seeds, ks, repeats = (4, 2, (8,), 2) if args.quick else (STEPS, SEEDS, (4, 8, 16, 32), 30)
    model = Classifier(depth=1 if args.quick else DEPTH)
    canvases = load(512 if args.quick else 12_800, INFERENCE if args.quick else 8 * INFERENCE)
    cases = [("no pruning", TOKENS)] + [(way, k) for way in COLOURS for k in ks]
    rows, trained = measure(model, cases, steps, range(FIRST_SEED, FIRST_SEED + seeds), *canvases, repeats)
    print(f"{'':16}{'k':>4}{'accuracy':>18}{'multiply-adds':>16}{'step':>8}{'inference':>12}")
    for row in rows:
        right = f"{np.mean(row['accuracy']):.3f} ± {standard_error(row):.3f}"
        compute = f"{row['multiply_adds']:16,}{row['step']:8.2f}{row['inference']:12.2f}"
        print(f"{row['way']:16}{row['k']:4}{right:>18}{compute}")
    settings = {"steps": steps, "seeds": seeds, "batch": BATCH, "inference_batch": INFERENCE}
    settings |= {"canvases": len(canvases[0].labels), "held_out": len(canvases[1].labels)}
    settings |= {"repeats": repeats, "cores": os.cpu_count(), "python": platform.python_version()}
    settings |= {"jax": jax.__version__, "sklearn": sklearn.__version__, "backend": jax.default_backend()}
    results = {"settings": settings, "rows": rows}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw_picture(rows, model, trained, 8, canvases[1], args.out)


if __name__ == "__main__":
    main()
