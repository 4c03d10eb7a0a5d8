"""What travels between devices: the collectives in compiled HLO, and their bytes."""

import re

import numpy as np

# `%name = f32[64,512]{1,0} all-reduce(...)`, the result a tuple if several arrays travel together.
_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"\b(?P<kind>pred|[a-z]+)(?P<bits>\d*)\[(?P<shape>[\d,]*)\]")


def arrays(compiled):
    """`[(collective, bytes of one array of its result)]`, as one device sees it."""
    return [
        (found["kind"], _size(array))
        for found in _COLLECTIVE.finditer(compiled.as_text())
        for array in _ARRAY.finditer(found["result"])
    ]


def _size(array):
    elements = np.prod([int(x) for x in array["shape"].split(",") if x], dtype=np.int64)
    return int(elements) * max(1, int(array["bits"] or 8) // 8)


def sent(collective, result, devices):
    """The bytes that each device sends, and receives, to get a `result` of so many bytes: a ring's.

    An all-reduce is a reduce-scatter and an all-gather. Of a tuple that goes all to all one part stays.
    """
    if collective == "collective-permute":
        return result
    if collective == "reduce-scatter":
        return result * (devices - 1)
    return (2 if collective == "all-reduce" else 1) * result * (devices - 1) / devices
