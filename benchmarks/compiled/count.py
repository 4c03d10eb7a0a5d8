"""What a compiled program would start and move, from its text: kernels, sorts, loops and bytes.

In a program compiled for a GPU each instruction of the entry computation is a kernel, a fusion counting as one; a loop
starts its body's kernels once a trip, and of a conditional the longest branch counts. For a TPU the same count is of
the operations in sequence. Each carries the compiler's own estimate of its cycles, except for sorts, gathers, scatters
and kernels of the compiler's own, such as that of a softmax with a product.
"""

import math
import re
from dataclasses import dataclass

from benchmarks.compiled.hlo import arrays, called, computations, found, parsed, size
from benchmarks.compiled.moved import moved

# Instructions for which nothing is started: names for buffers that are there already.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"
}  # fmt: skip


@dataclass
class Count:
    """Of one call: `launches` of kernels, a sort's stages each one; `sorts`; `loops`, and of these the ones whose
    trips are not known, which count as one trip; `moved` bytes; `cycles`, a TPU's."""

    launches: int = 0
    sorts: int = 0
    loops: int = 0
    unknown_trips: int = 0
    moved: int = 0
    cycles: int = 0

    def add(self, other, times=1):
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


def count(text):
    """The `Count` of a compiled program's text, `compiled.as_text()`."""
    by_name, entry = computations(text)
    return _count(by_name, entry)


def gathering(text, least):
    """The instructions in the largest kernel that gathers `least` elements or more, 0 if none does.

    A kernel computes the operands of a gather again for each element that it gathers, along diverging paths, so a large
    kernel of this kind is slow.
    """
    by_name, _ = computations(text)
    return max(
        (len(lines) for lines in by_name.values() if any(_gathered(x) >= least for x in lines)),
        default=0,
    )


def _gathered(line):
    """The number of elements that an instruction gathers."""
    instruction = parsed(line)
    if instruction is None or instruction["op"] != "gather":
        return 0
    return sum(math.prod(shape) for _, shape in arrays(instruction["type"]))


def _count(by_name, name):
    """What one run of the computation `name` starts."""
    total, sizes = Count(), {}
    for line in by_name[name]:
        instruction = parsed(line)
        if instruction is None:
            continue
        op, sizes[instruction["name"]] = instruction["op"], size(instruction["type"])
        if op in FREE:
            continue
        total.add(Count(cycles=int(found(r'"estimated_cycles":"(\d+)"', line) or 0)))
        if op == "while":
            trips = _trips(by_name, line)
            total.add(Count(loops=1, unknown_trips=int(trips is None)))
            total.add(_count(by_name, called("body", line)), 1 if trips is None else trips)
        elif op == "call":
            total.add(_count(by_name, called("to_apply", line)))
        elif op == "conditional":
            branches = [_count(by_name, branch) for branch in _branches(line)]
            total.add(Count(launches=1))
            total.add(max(branches, key=lambda branch: branch.launches))
        else:
            stages = _sort_stages(by_name, instruction)
            total.add(Count(sorts=int(stages > 0)))
            total.add(Count(launches=1, moved=moved(by_name, instruction, sizes)), stages or 1)
    return total


def _trips(by_name, line):
    """How often a loop runs; None if that is not known.

    XLA notes it for GPUs. For TPUs it is read from the condition, `counter < constant`: where the number of trips is
    known when tracing, JAX counts them from 0.
    """
    noted = found(r'known_trip_count":\{"n":"(\d+)"', line)
    if noted is not None:
        return int(noted)
    condition = by_name[called("condition", line)]
    bounds = [bound for inner in condition if (bound := found(r" constant\((\d+)\)", inner))]
    counts = any(inner.startswith("ROOT") and "direction=LT" in inner for inner in condition)
    return int(bounds[0]) if counts and len(bounds) == 1 else None


def _sort_stages(by_name, instruction):
    """Kernels of a sort, alone or in a fusion; 0 of what is none.

    XLA sorts bitonically: what fits a block is sorted in one kernel, and each doubling beyond it takes one kernel for
    every distance that is wider than a block, and one for all the others.
    """
    if instruction["op"] == "fusion":
        fused = by_name.get(called("calls", instruction.string), [])
        instruction = next((parsed(inner) for inner in fused if " sort(" in inner), None)
    elif instruction["op"] != "sort":
        return 0
    if instruction is None:
        return 0
    sorted_together = arrays(instruction["type"])
    width = sum(bits // 8 for bits, _ in sorted_together)
    length = sorted_together[0][1][-1]
    block = 4096 if width <= 8 else 2048
    doublings = max(0, math.ceil(math.log2(max(2, length))) - int(math.log2(block)))
    return 1 + sum(wide + 1 for wide in range(1, doublings + 1))


def _branches(line):
    """The computations of which a conditional runs one."""
    listed = found(r"branch_computations=\{([^}]*)\}", line)
    if listed is None:
        return [called("true_computation", line), called("false_computation", line)]
    return re.findall(r"[\w.\-]+", listed)
