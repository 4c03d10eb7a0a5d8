"""A Transformer that pools its sequence: read 64 facts, keep 16, then 4, and answer a question from those.

A document is a list of facts, each a name and a colour. Questions ask only about some of the names, and four of the 64
facts have such names. The model is not told which names these are. It reads the document before it gets the question, a
name, and answers with the colour of that name.

Three encoders share all code but the step before each layer. One has no such step, one takes the mean of every four
neighbours, and one calls `shtopk.topk`, which scores the facts and keeps a quarter of them, in their order. Its slots
are mixtures of facts at first, and nearly single facts at the end of the training (`shtopk.anneal`). At evaluation it
keeps the best facts alone (`shtopk.hard_topk`). A layer's time and memory grow with the number of facts. The table
has the accuracy of each encoder, and the cost of a training step. Two minutes on two cores:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/pooled_transformer.py
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

import shtopk

FACTS, WANTED = 64, 4  # in a document, and how many of them may be asked for
ASKED, OTHERS, COLOURS = 8, 24, 4  # names that may be asked for, names that never are, colours
DEPTH, WIDTH, HEADS, KEEP = 2, 64, 4, 4  # layers; before each of them one fact in 4 is kept
BATCH, HELD_OUT = 64, 512  # documents in a training step, and to evaluate on
STEPS, SEED = 600, 0  # training steps of each encoder; of the parameters and the documents


# Data
class Documents(NamedTuple):
    """What a model is given."""

    names: jax.Array  # (batch, 64), below 8 if they may be asked for
    colours: jax.Array  # (batch, 64)
    question: jax.Array  # (batch,), a name


@partial(jax.jit, static_argnames="batch")
def draw(key, batch):
    """Documents and the answers to their questions `(batch,)`, a colour each."""
    asked_key, other_key, colour_key, place_key = jax.random.split(key, 4)
    asked = jnp.broadcast_to(jnp.arange(ASKED), (batch, ASKED))
    asked = jax.random.permutation(asked_key, asked, axis=1, independent=True)[:, :WANTED]
    others = jax.random.randint(other_key, (batch, FACTS - WANTED), ASKED, ASKED + OTHERS)
    names = jnp.concatenate([asked, others], axis=1)
    colours = jax.random.randint(colour_key, (batch, FACTS), 0, COLOURS)
    place = jnp.broadcast_to(jnp.arange(FACTS), (batch, FACTS))
    place = jax.random.permutation(place_key, place, axis=1, independent=True)
    shuffled = (jnp.take_along_axis(x, place, axis=1) for x in (names, colours))
    return Documents(*shuffled, question=names[:, 0]), colours[:, 0]


# Model
class Encoder(nn.Module):
    """Documents to the logits of the answers `(batch, 4)`, with one `pool` before each layer.

    `pool` takes embeddings `(batch, n, 64)`, scores `(batch, n)` and k, and returns `(batch, k or n, 64)`.
    """

    depth: int = DEPTH

    @nn.compact
    def __call__(self, documents, pool):
        normal = nn.initializers.normal(1.0)
        name = nn.Embed(ASKED + OTHERS, WIDTH, embedding_init=normal)
        colour = nn.Embed(COLOURS, WIDTH, embedding_init=normal)
        x = name(documents.names) + colour(documents.colours)
        for _ in range(self.depth):
            scores = nn.Dense(1, use_bias=False)(nn.LayerNorm()(x))[..., 0]
            # A soft slot is a mean of several facts, and small: the norm brings the differences out.
            x = nn.LayerNorm()(pool(x, scores, x.shape[1] // KEEP))
            x += nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
            x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        question = name(documents.question)[:, None]
        read = nn.MultiHeadDotProductAttention(HEADS)(question, nn.LayerNorm()(x))[:, 0]
        return nn.Dense(COLOURS)(nn.LayerNorm()(read))


# Ways to pool
def soft(x, scores, k, *, progress, key):
    # Slots go from mixtures of facts to nearly single facts, the input of the layer above at evaluation.
    scores, boost = shtopk.anneal(scores, progress, key)
    return shtopk.topk(x, scores, k, boost=boost, order="position").embeddings


def hard(x, scores, k, **_):
    return shtopk.hard_topk(x, scores, k, order="position").embeddings


def mean(x, scores, k, **_):
    return x.reshape(len(x), k, -1, WIDTH).mean(axis=2)


def unpooled(x, scores, k, **_):
    return x


# Training and evaluation
def train(name, pool, pool_to_evaluate, model, params, held_out, steps):
    """Train an encoder, from `params` on. Returns its row of the table, and its parameters."""
    optimiser = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, min(50, steps // 2), steps))

    def loss(params, step, key):
        data_key, pool_key = jax.random.split(key)
        documents, answers = draw(data_key, BATCH)
        logits = model.apply(params, documents, partial(pool, progress=step / steps, key=pool_key))
        return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()

    @jax.jit
    def update(params, state, step):
        key = jax.random.fold_in(jax.random.key(SEED), step)
        value, gradient = jax.value_and_grad(loss)(params, step, key)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    @jax.jit
    def accuracy(params, documents, answers):
        return (model.apply(params, documents, pool_to_evaluate).argmax(axis=1) == answers).mean()

    state = optimiser.init(params)
    compiled = update.lower(params, state, 0).compile()
    curve, seconds = [], []
    for step in (progress := tqdm(range(steps), desc=f"{name:12}")):
        if step % max(10, steps // 20) == 0:
            curve.append((step, float(accuracy(params, *held_out))))
        start = time.perf_counter()
        params, state, value = jax.block_until_ready(compiled(params, state, step))
        seconds.append(time.perf_counter() - start)
        if step % 20 == 0:
            progress.set_postfix(loss=f"{value:.3f}", accuracy=f"{curve[-1][1]:.1%}")
    curve.append((steps, float(accuracy(params, *held_out))))
    memory = compiled.memory_analysis().temp_size_in_bytes
    fastest = min(seconds)  # what else the machine does, it does to the others
    return {"accuracy": curve[-1][1], "step_seconds": fastest, "memory": memory, "curve": curve}, params


@partial(jax.jit, static_argnames="model")
def wanted_kept(model, params, documents):
    """Of the facts that may be asked for, the share that is left after each `topk`."""
    wanted = (documents.names < ASKED).astype(float)
    shares = []

    def pool(x, scores, k):
        nonlocal wanted
        x, wanted = shtopk.hard_topk((x, wanted), scores, k, order="position").embeddings
        shares.append(wanted.sum() / (HELD_OUT * WANTED))
        return x

    model.apply(params, documents, pool)
    return shares


# Picture
def draw_picture(rows, path):
    figure, (learning, cost) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained")
    colours = dict(zip(rows, ("#0072b2", "#d55e00", "#009e73"), strict=True))
    for name, row in rows.items():
        steps, accuracies = zip(*row["curve"][1:], strict=True)
        spent = np.array(steps) * row["step_seconds"]
        learning.plot(spent, accuracies, "o-", ms=3, color=colours[name], label=name)
        cost.plot(1e3 * row["step_seconds"], row["memory"] / 2**20, "o", ms=10, color=colours[name])
        place = 1e3 * row["step_seconds"], row["memory"] / 2**20
        cost.annotate(name, place, (0, 10), textcoords="offset points", ha="center")
    learning.axhline(1 / COLOURS, color="0.6", lw=1, ls=":")
    learning.set(xlabel="seconds of training", ylabel="held-out questions answered right", ylim=(0, 1.02))
    learning.set_xscale("log")
    learning.legend(frameon=False, loc="center right")
    cost.set(xlabel="milliseconds of a training step", ylabel="temporary memory of it, MiB", xscale="log")
    cost.set(yscale="log")
    cost.margins(0.3)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="What pooling costs a Transformer, and what it saves.")
    parser.add_argument(
        "--out", type=Path, default="pooled_transformer.png", help="picture; a .json beside it"
    )
    parser.add_argument("--quick", action="store_true", help="one layer, 4 steps, to see that it runs")
    args = parser.parse_args()
    steps, model = (4, Encoder(depth=1)) if args.quick else (STEPS, Encoder())
    held_out = documents, _ = draw(jax.random.key(SEED + 1), HELD_OUT)
    start = jax.jit(lambda key: model.init(key, documents, hard))(jax.random.key(SEED))
    learn = partial(train, model=model, params=start, held_out=held_out, steps=steps)
    rows = {}
    rows["shtopk"], params = learn("shtopk", soft, hard)
    rows["mean"], _ = learn("mean", mean, mean)
    rows["unpooled"], _ = learn("unpooled", unpooled, unpooled)
    print(f"{'':12}{'accuracy':>12}{'ms a step':>12}{'MiB':>12}")
    for name, row in rows.items():
        print(
            f"{name:12}{row['accuracy']:>12.1%}{1e3 * row['step_seconds']:>12.1f}{row['memory'] / 2**20:>12.1f}"
        )
    kept = [float(share) for share in wanted_kept(model, params, documents)]
    print("facts that may be asked for, kept by each topk: " + ", ".join(f"{share:.1%}" for share in kept))
    settings = {"steps": steps, "documents": BATCH, "seed": SEED, "cores": os.cpu_count()}
    settings |= {"jax": jax.__version__, "backend": jax.default_backend()}
    results = {"settings": settings, "wanted_kept": kept, "encoders": rows}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw_picture(rows, args.out)


if __name__ == "__main__":
    main()
