"""Timing functions side by side, so that their ratios are taken within one run."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.records import rounded

LEAST, MOST = 3, 21  # rounds of a cell


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def temporary(call):
    """The temporary bytes of a compiled function."""
    return call.memory_analysis().temp_size_in_bytes


def compiled_together(functions, arguments):
    """All of `functions`, compiled in two threads: quicker, but their compile times would mean nothing."""
    lowered = [jax.jit(function).lower(*arguments) for function in functions.values()]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(functions, pool.map(lambda one: one.compile(), lowered), strict=True))


def read(array):
    """The limit of what reads an array."""
    return jnp.sum(array)


def write(array):
    """The limit of what writes an array like this one."""
    return jnp.broadcast_to(array[(0,) * array.ndim], array.shape)


class Pace(NamedTuple):
    """How many calls are timed together, and the seconds that the repetitions of a cell may take."""

    queue: int
    budget: float


def pace():
    """On a GPU, calls are timed in a queue, as in training: the host submits a call before the previous one ends."""
    return Pace(queue=1, budget=1.5) if jax.default_backend() == "cpu" else Pace(queue=20, budget=0.5)


def seconds_of(call, arguments):
    """The seconds of one call, the mean of those in a queue."""
    calls = pace().queue
    started = time.perf_counter()
    for _ in range(calls):
        last = call(*arguments)
    jax.block_until_ready(last)
    return (time.perf_counter() - started) / calls


def interleaved(calls, arguments):
    """`{name: {"ms": median, "ms_low": lower quartile, "ms_high": upper quartile, "repeats": count}}`.

    Every round runs each of `calls` once, in turn. A first round warms up and says how many rounds the
    budget, in seconds, allows; a call that alone takes more than it runs only the fewest rounds.
    """
    queue, budget = pace()
    first = {name: seconds_of(call, arguments) for name, call in calls.items()}
    again = {name: seconds_of(call, arguments) for name, call in calls.items()}
    slow = {name for name, seconds in again.items() if queue * seconds > budget}
    quick_round = sum(seconds for name, seconds in again.items() if name not in slow)
    rounds = int(np.clip(budget / max(queue * quick_round, 1e-9), LEAST, MOST))
    samples = {name: [min(first[name], again[name])] if name in slow else [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if name not in slow or turn < LEAST - 1:
                samples[name].append(seconds_of(call, arguments))
    return {name: _summary(taken) for name, taken in samples.items()}


def _summary(samples):
    low, middle, high = np.percentile(np.array(samples) * 1e3, [25, 50, 75])
    return {
        "ms": rounded(middle, 4),
        "ms_low": rounded(low, 4),
        "ms_high": rounded(high, 4),
        "repeats": len(samples),
    }
