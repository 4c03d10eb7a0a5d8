"""Sparse attention trained end to end: a language model of characters, each query reading k of 64 keys.

Attention compares every query with every key. Here a small indexer scores the keys for each query and head, scores of
shape (batch, heads, queries, keys), and the query reads the k keys of the highest scores. While training, the log of
`shtopk.topk_mask` is added to the attention logits: all keys are read at first, and nearly k in the end, so that the
indexer learns from the loss of the language model alone. To evaluate, `shtopk.hard_topk` gathers k keys and values.

The script also measures full attention, a sliding window of k characters, a random choice, and a gated top k. The text
is the source of Python's standard library, which every machine has. Three minutes on two cores:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/sparse_attention.py
"""

import argparse
import json
import platform
import sysconfig
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

import shtopk

TRAIN = ("argparse", "ast", "calendar", "configparser", "difflib")
TRAIN += ("doctest", "fractions", "inspect", "optparse", "pickle")
HELD_OUT = ("subprocess", "tarfile")
CHARACTERS = 20_000  # of each module, from its first
LENGTH, VOCABULARY = 64, 128  # of a piece of text; of ASCII
DEPTH, WIDTH, HEADS, INDEX = 2, 64, 2, 8  # INDEX: the width of an indexer's queries and keys
BATCH, RATE = 8, 3e-3
STEPS, SEEDS = 600, 2  # training steps of a model, and models trained for each way and k


# Data
def pieces(modules):
    """The text of modules `(pieces, 65)`: 64 characters and the next ones, which are to be predicted."""
    library = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((library / f"{name}.py").read_text("utf-8")[:CHARACTERS] for name in modules)
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    starts = np.arange(0, len(codes) - LENGTH, LENGTH)
    return codes[starts[:, None] + np.arange(LENGTH + 1)]


# Model
class Attention(nn.Module):
    """Attention whose keys `attend` weighs or chooses by the scores of an indexer."""

    @nn.compact
    def __call__(self, x, attend):
        def heads(width):
            return nn.DenseGeneral((HEADS, width))(x).swapaxes(1, 2)  # (batch, heads, 64, width)

        def by_distance(name):
            table = self.param(name, nn.initializers.zeros, (HEADS, LENGTH))
            return table[:, np.maximum(np.arange(LENGTH)[:, None] - np.arange(LENGTH), 0)]  # (heads, 64, 64)

        index_queries, index_keys = heads(INDEX), heads(INDEX)
        scores = jnp.einsum("bhqd,bhkd->bhqk", index_queries, index_keys) / INDEX**0.5
        scores += by_distance("index_bias")
        queries = heads(WIDTH // HEADS) / (WIDTH // HEADS) ** 0.5
        out = attend(queries, heads(WIDTH // HEADS), heads(WIDTH // HEADS), by_distance("bias"), scores)
        return nn.DenseGeneral(WIDTH, axis=(1, 3))(out)


class Transformer(nn.Module):
    """The logits of the next characters `(batch, 64, 128)`."""

    depth: int = DEPTH

    @nn.compact
    def __call__(self, text, attend):
        x = nn.Embed(VOCABULARY, WIDTH)(text)
        for layer in range(self.depth):
            x += Attention()(nn.LayerNorm()(x), partial(attend, layer))
            x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(VOCABULARY)(nn.LayerNorm()(x))


# Ways to attend. causal (64, 64): True = this query may read this key
def dense(queries, keys, values, bias, log_weights):
    logits = jnp.einsum("bhqd,bhkd->bhqk", queries, keys) + bias + log_weights
    return jnp.einsum("bhqk,bhkd->bhqd", nn.softmax(logits), values)


def sparse(queries, keys, values, bias, scores, *, k, causal, gate=jnp.zeros_like):
    """Each query reads the k keys of its highest scores, or all it may where these are fewer."""
    rows = (keys[:, :, None], values[:, :, None])  # (batch, heads, 1, 64, width): the same for every query
    (keys, values), scores, indices = shtopk.hard_topk(rows, scores, k, where=causal)
    bias = jnp.take_along_axis(bias[None], jnp.minimum(indices, LENGTH - 1), axis=-1)
    logits = jnp.einsum("bhqd,bhqkd->bhqk", queries, keys) + bias + gate(scores)
    return jnp.einsum("bhqk,bhqkd->bhqd", nn.softmax(jnp.where(scores > -jnp.inf, logits, -jnp.inf)), values)


def full(layer, queries, keys, values, bias, scores, *, causal, **_):
    return dense(queries, keys, values, bias, jnp.where(causal, 0.0, -jnp.inf))


def soft(layer, queries, keys, values, bias, scores, *, k, causal, progress, key):
    scores, boost = shtopk.anneal(scores, progress, jax.random.fold_in(key, layer), where=causal)
    options = {"boost": boost, "where": causal, "candidates": LENGTH // 2}
    return dense(queries, keys, values, bias, shtopk.topk_mask(scores, k, log=True, **options))


def hard(layer, *to_read, k, causal, **_):
    return sparse(*to_read, k=k, causal=causal)


def gated(layer, *to_read, k, causal, **_):
    return sparse(*to_read, k=k, causal=causal, gate=lambda scores: nn.log_sigmoid(jnp.maximum(scores, -1e3)))


def window(layer, queries, keys, values, bias, scores, *, k, causal, **_):
    return sparse(queries, keys, values, bias, scores * 0 + jnp.arange(LENGTH), k=k, causal=causal)


def random(layer, queries, keys, values, bias, scores, *, k, causal, key, **_):
    drawn = jax.random.uniform(jax.random.fold_in(key, layer), scores.shape)
    return sparse(queries, keys, values, bias, drawn + jnp.eye(LENGTH), k=k, causal=causal)  # and itself


WAYS = {  # to train with, and to evaluate with
    "full attention": (full, full),
    "shtopk": (soft, hard),
    "gated top k": (gated, gated),
    "sliding window": (window, window),
    "random": (random, random),
}


# Training and evaluation
def nats(model, params, text, attend):
    logits = model.apply(params, text[:, :-1], attend)
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()


def start(model, seeds, text, causal):
    """The parameters to start from, for each seed."""
    attend = partial(full, causal=causal)
    return jax.lax.map(lambda seed: model.init(jax.random.key(seed), text[:1, :-1], attend), seeds)


@partial(jax.jit, static_argnames=("model", "way", "k", "steps"))
def train(model, way, k, seeds, starts, text, held_out, causal, steps):
    """Train one model for each seed, from `starts`. Returns held-out nats a character, and the parameters.

    `causal` is an argument: XLA would try to fold what follows from a constant while it compiles.
    """
    loss = partial(nats, model)
    learn, evaluate = (partial(attend, k=k, causal=causal) for attend in WAYS[way])
    schedule = optax.warmup_cosine_decay_schedule(0, RATE, min(50, steps // 2), steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def one(run):
        seed, params = run

        def step(state, i):
            params, moments = state
            row_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
            rows = text[jax.random.randint(row_key, (BATCH,), 0, len(text))]
            gradient = jax.grad(loss)(params, rows, partial(learn, progress=i / steps, key=key))
            updates, moments = optimiser.update(gradient, moments)
            return (optax.apply_updates(params, updates), moments), None

        at_the_end = partial(evaluate, progress=1.0, key=jax.random.key(seed))
        (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(steps))
        batches = held_out[: len(held_out) // 32 * 32].reshape(-1, 32, LENGTH + 1)
        return jax.lax.map(lambda rows: loss(params, rows, at_the_end), batches).mean(), params

    return jax.lax.map(one, (seeds, starts))


@partial(jax.jit, static_argnames=("model", "k"))
def distances(model, params, text, k, causal):
    """Of the keys that trained indexers choose, the share at each distance `(layers, heads, 64)`."""
    shares = []

    def attend(layer, *to_read):
        places = jnp.arange(LENGTH)[None, None, None]
        places = shtopk.hard_topk(places, to_read[-1], k, where=causal).embeddings
        distance = jnp.arange(k, LENGTH)[:, None] - places[:, :, k:]  # of the queries that have a choice
        shares.append((distance[..., None] == jnp.arange(LENGTH)).mean(axis=(0, 2, 3)))
        return hard(layer, *to_read, k=k, causal=causal)

    model.apply(params, text[:, :-1], attend)
    return jnp.stack(shares)


# Picture
COLOURS = {"shtopk": "#0072b2", "gated top k": "#d55e00", "sliding window": "#009e73", "random": "0.5"}


def draw_picture(rows, shares, k, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for way, colour in COLOURS.items():
        found = [row for row in rows if row["way"] == way]
        ks, mean = [row["k"] for row in found], [np.mean(row["perplexity"]) for row in found]
        left.plot(ks, mean, "o-", color=colour, label=way)
    left.axhline(np.mean(rows[0]["perplexity"]), color="0.3", lw=1, ls=":", label="full attention")
    left.set(xlabel=f"keys read by a query, of {LENGTH}", ylabel="held-out perplexity of a character")
    left.set_xscale("log", base=2)
    left.set_xticks(ks, ks)
    left.margins(y=0.2)  # room for the legend
    left.legend(frameon=False, loc="upper right", ncols=2)
    for layer, heads in enumerate(shares):
        for head, share in enumerate(heads):
            right.plot(share, label=f"layer {layer + 1}, head {head + 1}", lw=1.5)
    right.set(xlabel="characters back", ylabel="share of the keys chosen", title=f"shtopk, k = {k}")
    right.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="A language model whose queries choose the keys they read.")
    parser.add_argument(
        "--out", type=Path, default=Path("sparse_attention.png"), help="picture; a .json beside it"
    )
    parser.add_argument("--quick", action="store_true", help="one layer, one k, 4 steps, to see that it runs")
    args = parser.parse_args()
    steps, count, ks = (4, 1, (8,)) if args.quick else (STEPS, SEEDS, (4, 8, 16))
    model, seeds = Transformer(depth=1 if args.quick else DEPTH), jnp.arange(count)
    text, held_out = pieces(TRAIN), pieces(HELD_OUT)[: 32 if args.quick else None]
    causal = jnp.tri(LENGTH, dtype=bool)
    starts = start(model, seeds, text, causal)  # the same for every way
    cases = [("full attention", LENGTH)] + [(way, k) for way in COLOURS for k in ks]
    rows = []
    for way, k in (progress := tqdm(cases)):
        progress.set_description(f"{way}, k = {k}")
        loss, params = train(model, way, k, seeds, starts, text, held_out, causal, steps)
        rows.append({"way": way, "k": k, "perplexity": [round(float(x), 4) for x in np.exp(loss)]})
        if (way, k) == ("shtopk", 8):
            first = jax.tree.map(lambda x: x[0], params)
            shares = np.asarray(distances(model, first, held_out[:32], k, causal), float)
    print(f"{'':16}{'k':>6}{'perplexity':>14}")
    for row in rows:
        print(f"{row['way']:16}{row['k']:6}{np.mean(row['perplexity']):14.3f}")
    settings = {"steps": steps, "seeds": count, "batch": BATCH, "characters": text[:, 1:].size}
    settings |= {"python": platform.python_version(), "jax": jax.__version__}
    settings |= {"backend": jax.default_backend()}
    results = {"settings": settings, "distances": np.round(shares, 4).tolist(), "rows": rows}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw_picture(rows, shares, 8, args.out)


if __name__ == "__main__":
    main()
