"""The text of a compiled program, `compiled.as_text()`, taken apart."""

import math
import re

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(
    r"(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<op>[\w\-]+)\((?P<operands>[^)]*)"
)
_ARRAY = re.compile(r"(?:pred|[a-z]+(?P<bits>\d+))\w*\[(?P<shape>[\d,]*)\]")


def computations(text):
    """`{name: instructions}`, and the name of the one that is entered."""
    by_name, name, entry = {}, None, None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head["name"]
            by_name[name] = []
            entry = name if head["entry"] else entry
        elif line.startswith("}"):
            name = None
        elif name:
            by_name[name].append(line.strip())
    return by_name, entry


def parsed(line):
    """`root`, `name`, `type`, `op` and `operands` of an instruction; None if the line has none."""
    return _INSTRUCTION.match(line)


def operands(instruction):
    """The names of what a parsed instruction reads."""
    return re.findall(r"%([\w.\-]+)", instruction["operands"])


def arrays(types):
    """`[(bits of an element, shape)]` of an array, or of the arrays of a tuple."""
    found = ((array["bits"] or "8", array["shape"]) for array in _ARRAY.finditer(types))
    return [(int(bits), tuple(map(int, filter(None, shape.split(","))))) for bits, shape in found]


def size(types):
    """The bytes of an array, or of all arrays of a tuple."""
    return sum(bits * math.prod(shape) // 8 for bits, shape in arrays(types))


def called(role, line):
    """The computation that an instruction calls in a role, such as `body` of a loop or `calls` of a fusion."""
    return found(role + r"=%?([\w.\-]+)", line)


def found(pattern, line):
    """The group of a pattern in a line; None if it is not there."""
    match = re.search(pattern, line)
    return match[1] if match else None
