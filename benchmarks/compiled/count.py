"""What a compiled program would start, from its text: kernels, sorts and loops.

In a program compiled for a GPU each instruction of the entry computation is a kernel, a fusion counting as one; a loop
starts its body's kernels once a trip, and of a conditional the longest branch counts. For a TPU the same count is of
the operations in sequence. Each carries the compiler's own estimate of its cycles, except for sorts, gathers, scatters
and kernels of the compiler's own, such as that of a softmax with a product.
"""

import math
import re
from dataclasses import dataclass

# Instructions for which nothing is started: names for buffers that are there already.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"
}  # fmt: skip
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"(?:ROOT )?%?[\w.\-]+ = .*? (?P<op>[\w\-]+)\(")
_GATHER = re.compile(r" = [a-z]+\d*\[(?P<shape>[\d,]*)\]\S* gather\(")
_OPERAND = re.compile(r"[a-z]+(?P<bits>\d+)\[(?P<shape>[\d,]+)\]")


@dataclass
class Count:
    """Of one call: `launches` of kernels, a sort's stages each one; `sorts`; `loops`, and of these the ones whose
    trips are not known, which count as one trip; `cycles`, a TPU's."""

    launches: int = 0
    sorts: int = 0
    loops: int = 0
    unknown_trips: int = 0
    cycles: int = 0

    def add(self, other, times=1):
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


def count(text):
    """The `Count` of a compiled program's text, `compiled.as_text()`."""
    computations, entry = _computations(text)
    return _count(computations, entry)


def gathering(text, least):
    """The instructions in the largest kernel that gathers `least` elements or more, 0 if none does.

    A kernel computes the operands of a gather again for each element that it gathers, along diverging paths, so a large
    kernel of this kind is slow.
    """
    computations, _ = _computations(text)
    return max(
        (len(lines) for lines in computations.values() if any(_gathered(x) >= least for x in lines)),
        default=0,
    )


def _gathered(line):
    """The number of elements that an instruction gathers."""
    found = _GATHER.search(line)
    return math.prod(int(size) for size in found["shape"].split(",") if size) if found else 0


def _computations(text):
    """`{name: instructions}`, and the name of the one that is entered."""
    found, name, entry = {}, None, None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head["name"]
            found[name] = []
            entry = name if head["entry"] else entry
        elif line.startswith("}"):
            name = None
        elif name:
            found[name].append(line.strip())
    return found, entry


def _count(computations, name):
    """What one run of the computation `name` starts."""
    total = Count()
    for line in computations[name]:
        instruction = _INSTRUCTION.match(line)
        if instruction is None or instruction["op"] in FREE:
            continue
        op = instruction["op"]
        total.add(Count(cycles=int(_found(r'"estimated_cycles":"(\d+)"', line) or 0)))
        if op == "while":
            trips = _trips(computations, line)
            total.add(Count(loops=1, unknown_trips=int(trips is None)))
            total.add(_count(computations, _called("body", line)), 1 if trips is None else trips)
        elif op == "call":
            total.add(_count(computations, _called("to_apply", line)))
        elif op == "conditional":
            branches = [_count(computations, branch) for branch in _branches(line)]
            total.add(Count(launches=1))
            total.add(max(branches, key=lambda branch: branch.launches))
        else:
            stages = _sort_stages(computations, line, op)
            total.add(Count(launches=stages or 1, sorts=int(stages > 0)))
    return total


def _trips(computations, line):
    """How often a loop runs; None if that is not known.

    XLA notes it for GPUs. For TPUs it is read from the condition, `counter < constant`: where the number of trips is
    known when tracing, JAX counts them from 0.
    """
    noted = _found(r'known_trip_count":\{"n":"(\d+)"', line)
    if noted is not None:
        return int(noted)
    condition = computations[_called("condition", line)]
    bounds = [bound for inner in condition if (bound := _found(r" constant\((\d+)\)", inner))]
    counts = any(inner.startswith("ROOT") and "direction=LT" in inner for inner in condition)
    return int(bounds[0]) if counts and len(bounds) == 1 else None


def _sort_stages(computations, line, op):
    """Kernels of a sort, alone or in a fusion; 0 of what is none.

    XLA sorts bitonically: what fits a block is sorted in one kernel, and each doubling beyond it takes one kernel for
    every distance that is wider than a block, and one for all the others.
    """
    if op == "fusion":
        called = computations.get(_called("calls", line), [])
        line = next((inner for inner in called if " sort(" in inner), None)
    elif op != "sort":
        return 0
    if line is None:
        return 0
    operands = [*_OPERAND.finditer(line.split(" sort(")[0])]
    width = sum(int(operand["bits"]) // 8 for operand in operands)
    length = int(operands[0]["shape"].split(",")[-1])
    block = 4096 if width <= 8 else 2048
    doublings = max(0, math.ceil(math.log2(max(2, length))) - int(math.log2(block)))
    return 1 + sum(wide + 1 for wide in range(1, doublings + 1))


def _branches(line):
    """The computations of which a conditional runs one."""
    listed = _found(r"branch_computations=\{([^}]*)\}", line)
    if listed is None:
        return [_called("true_computation", line), _called("false_computation", line)]
    return re.findall(r"[\w.\-]+", listed)


def _called(role, line):
    return _found(role + r"=%?([\w.\-]+)", line)


def _found(pattern, line):
    found = re.search(pattern, line)
    return found[1] if found else None
