"""Where the time goes: the operator's stages one by one, beside the limit of each."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

import shtopk
from benchmarks.timing import compiled, interleaved, read, write
from shtopk import _pooling, _rounds, _seeding

SIZES = [
    (16, 1024, 32, 256),
    (16, 16384, 2, 32),
    (16, 16384, 256, 32),
    (16, 8192, 256, 256),
    (16, 8192, 256, 1024),
]

# stage -> the limit that it is held against
AGAINST = {
    "sort": "sort of bare scores",
    "top 4k": "read scores",
    "rounds": "read scores",
    "rounds, with gradient": "read scores",
    "rounds, reseed=True": "read scores",
    "rounds, reseed=True, with gradient": "read scores",
    "pool": "read E",
    "dots": "read E",
    "spread": "write E",
    "dots and spread": "read E + write E",
}


def prepare(size):
    """The size, its stages and limits compiled, `{name: call}`, and the arrays that each of them takes."""
    batch, n, k, d = size
    keys = jax.random.split(jax.random.key(0), 5)
    scores = jax.random.uniform(keys[0], (batch, n))
    chosen = shtopk.select(scores, k)
    x = {
        "scores": scores,
        "seeded": jnp.sort(scores, axis=-1, descending=True),
        "members": (chosen.indices, chosen.places),
        "weights": chosen.weights,
        "E": jax.random.uniform(keys[1], (batch, n, d)),
        "G": jax.random.normal(keys[2], (batch, k, d)),
        # The loss weighs the squares of the slots' scores and of the weights of the bracket's places.
        "loss": (jax.random.normal(keys[3], (batch, k)), jax.random.normal(keys[4], (batch, width(n, k)))),
    }
    stages = limits() | tournament(n, k) | payload()
    return size, {name: compiled(stage, x) for name, stage in stages.items()}, x


def finish(prepared):
    """`{"batch", "n", "k", "d", "ms": {stage or limit: ms}}`."""
    (batch, n, k, d), calls, x = prepared
    found = {name: times["ms"] for name, times in interleaved(calls, (x,)).items()}
    found["read E + write E"] = found["read E"] + found["write E"]
    return {"batch": batch, "n": n, "k": k, "d": d, "ms": found}


def limits():
    return {
        "read scores": lambda x: read(x["scores"]),
        "sort of bare scores": lambda x: lax.sort(x["scores"]),
        "read E": lambda x: read(x["E"]),
        "write E": lambda x: write(x["E"]),
    }


def width(n, k):
    """The places of the bracket."""
    return k << _rounds.round_count(n, k)


def tournament(n, k):
    def play(scores, reseed):
        def row(v):
            return _rounds.play(jnp.pad(v, (0, width(n, k) - n)), n, n, k, shtopk.Relative(), reseed)[:2]

        return jax.vmap(row)(scores)

    def with_gradient(x, reseed):
        out, pull = jax.vjp(lambda v: play(v, reseed), x["seeded"])
        return out, pull(jax.tree.map(jnp.multiply, x["loss"], out))

    return {
        "sort": lambda x: jax.vmap(_seeding.seed_order)(x["scores"]),
        "top 4k": lambda x: jax.vmap(partial(_seeding.seed_order, best=min(n, 4 * k)))(x["scores"]),
        "rounds": lambda x: play(x["seeded"], False),
        "rounds, with gradient": lambda x: with_gradient(x, False),
        "rounds, reseed=True": lambda x: play(x["seeded"], True),
        "rounds, reseed=True, with gradient": lambda x: with_gradient(x, True),
    }


def payload():
    def dots(x):
        return _pooling.dots(x["members"], x["E"], x["G"])

    def spread(x):
        return _pooling.spread(x["members"], x["weights"], x["G"])

    return {
        "pool": lambda x: _pooling.pool(x["members"], x["weights"], x["E"]),
        "dots": dots,
        "spread": spread,
        "dots and spread": lambda x: (dots(x), spread(x)),
    }
