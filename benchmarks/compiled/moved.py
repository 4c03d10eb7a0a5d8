"""The bytes that a kernel reads and writes, from the text of a compiled program.

XLA's GPU compiler has no estimate of them. A kernel reads its operands and writes its result. If it only slices or
gathers from an operand, the elements taken count as read. If it updates an operand in place, the elements updated
count. Caches do not count: an array that two kernels read counts twice.
"""

from benchmarks.compiled.hlo import called, operands, parsed, size

PARTS = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written into the first
RENAMES = {"bitcast", "tuple"}


def moved(by_name, kernel, sizes):
    """The bytes of one parsed instruction outside of fusions, `sizes` having those of its operands."""
    inside, read, root = {kernel["name"]: kernel}, operands(kernel), kernel["name"]
    if kernel["op"] == "fusion":
        inside = {
            each["name"]: each for each in filter(None, map(parsed, by_name[called("calls", kernel.string)]))
        }
        sizes = {name: size(each["type"]) for name, each in inside.items()}
        read = [name for name, each in inside.items() if each["op"] == "parameter"]
        root = next(name for name, each in inside.items() if each["root"])
    return _written(inside, root, sizes) + sum(_read(inside, name, sizes) for name in dict.fromkeys(read))


def _read(inside, name, sizes):
    """The bytes read of an array: those of the parts if every user takes a part, else the whole array."""
    read = 0
    for user in inside.values():
        names = operands(user)
        if name not in names:
            continue
        if user["op"] == "bitcast":
            read += _read(inside, user["name"], sizes)
        elif user["op"] in PARTS and name not in names[1:]:
            read += size(user["type"])
        elif user["op"] in UPDATES and name not in names[1:]:
            read += _written(inside, user["name"], sizes) if user["op"] == "scatter" else 0
        else:
            return sizes.get(name, 0)
    return min(read, sizes.get(name, 0))


def _written(inside, name, sizes):
    """The bytes that an instruction writes: its result, or what it updates of an operand of the kernel."""
    instruction = inside[name]
    names = operands(instruction)
    if instruction["op"] in RENAMES:
        return sum(_written(inside, each, sizes) for each in names)
    if instruction["op"] in UPDATES and _is_operand(inside, names[0]):
        return sizes.get(names[UPDATES[instruction["op"]]], 0)
    return size(instruction["type"])


def _is_operand(inside, name):
    """Whether an array comes from outside the kernel."""
    while name in inside and inside[name]["op"] == "bitcast":
        (name,) = operands(inside[name])
    return name not in inside or inside[name]["op"] == "parameter"
