"""A layer whose experts choose their tokens: time and memory, beside `lax.top_k` with a scatter, and beside a matrix.

Each expert chooses `capacity` of the tokens by its scores and works on them by one matrix and a tanh. Each token gets
the sum of its results. The gradient is that of a sum of squares in the router, the experts and the tokens.
"""

import time

import jax
import jax.numpy as jnp
from jax import lax
from tqdm import tqdm

import shtopk
from benchmarks import records, timing

TOKENS, EXPERTS, D = 2048, 8, 512
CAPACITIES = 256, 512


def soft(router, experts, tokens, capacity):
    selection = shtopk.select((tokens @ router).T, capacity, boost=shtopk.Scaled(1.0))
    return selection.unpool(worked(selection.pool(tokens[None]), experts), sum_axis=0)


def soft_by_matrix(router, experts, tokens, capacity):
    matrix = shtopk.select((tokens @ router).T, capacity, boost=shtopk.Scaled(1.0)).matrix()
    return jnp.einsum("ecn,ecd->nd", matrix, worked(jnp.einsum("ecn,nd->ecd", matrix, tokens), experts))


def gated(router, experts, tokens, capacity):
    best, index = lax.top_k((tokens @ router).T, capacity)
    return (
        jnp.zeros_like(tokens).at[index].add(jax.nn.sigmoid(best)[..., None] * worked(tokens[index], experts))
    )


def worked(slots, experts):
    return jnp.tanh(jnp.einsum("ecd,edf->ecf", slots, experts))


WAYS = {"select, pool, unpool": soft, "select, matrix": soft_by_matrix, "gated top k, scatter": gated}


def run(quick):
    started = time.monotonic()
    tokens, capacities = (256, (32,)) if quick else (TOKENS, CAPACITIES)
    router_key, expert_key, token_key = jax.random.split(jax.random.key(0), 3)
    arguments = (
        jax.random.normal(router_key, (D, EXPERTS)) / D**0.5,
        jax.random.normal(expert_key, (EXPERTS, D, D)) / D**0.5,
        jax.random.normal(token_key, (tokens, D)),
    )
    cases = [(capacity, mode) for capacity in capacities for mode in ("forward", "gradient")]
    rows = [row for case in tqdm(cases, desc="experts") for row in measured(*case, arguments)]
    settings = {"tokens": tokens, "experts": EXPERTS, "d": D, "dtype": "float32"}
    records.write(records.path("experts", quick), started=started, rows=rows, settings=settings)


def measured(capacity, mode, arguments):
    """A row for each way, timed side by side."""

    def function(way):
        def layer(router, experts, tokens):
            return way(router, experts, tokens, capacity)

        def loss(*arguments):
            return jnp.sum(layer(*arguments) ** 2)

        return layer if mode == "forward" else jax.grad(loss, (0, 1, 2))

    compiled = {name: timing.compiled(function(way), *arguments) for name, way in WAYS.items()}
    times = timing.interleaved(compiled, arguments)
    for name, one in compiled.items():
        mebibytes = records.rounded(timing.temporary(one) / 2**20, 3)
        yield {"way": name, "capacity": capacity, "mode": mode, "temporary_mib": mebibytes, **times[name]}
