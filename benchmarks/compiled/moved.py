"""The bytes that a kernel reads and writes, from the text of a compiled program.

XLA's GPU compiler has no estimate of them. A kernel reads its operands and writes its result. Of an array that it only
slices or gathers from, it reads that part; an array that it scatters into stays where it is, and the part is read and
written. Caches are not counted: an array that two kernels read counts twice.
"""

from benchmarks.compiled.hlo import called, operands, parsed, size

PARTS = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written into the first


def moved(by_name, line, sizes):
    """The bytes of one instruction outside of fusions, `sizes` having those of its operands."""
    inside = [parsed(line)]
    names = operands(inside[0])
    if inside[0]["op"] == "fusion":
        inside = [*filter(None, map(parsed, by_name.get(called("calls", line), [])))]
        names = [instruction["name"] for instruction in inside if instruction["op"] == "parameter"]
        sizes = {instruction["name"]: size(instruction["type"]) for instruction in inside}
    written = sum(
        _written(instruction, sizes) for instruction in inside if instruction["root"] or len(inside) == 1
    )
    return written + sum(_read(inside, name, sizes) for name in dict.fromkeys(names))


def _read(inside, name, sizes):
    """How much is read of an array: parts, if all that read it take parts, and else the whole."""
    read = 0
    for user in inside:
        place = operands(user)
        if name not in place:
            continue
        if user["op"] == "bitcast":
            read += _read(inside, user["name"], sizes)
        elif user["op"] in PARTS and name not in place[1:]:
            read += size(user["type"])
        elif user["op"] in UPDATES and name not in place[1:]:
            read += _written(user, sizes)
        else:
            return sizes.get(name, 0)
    return min(read, sizes.get(name, 0))


def _written(instruction, sizes):
    """How much an instruction writes: its result, or the part that it updates."""
    if instruction["op"] in UPDATES:
        return sizes.get(operands(instruction)[UPDATES[instruction["op"]]], 0)
    return size(instruction["type"])
