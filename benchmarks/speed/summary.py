"""The speed benchmark in a few comparisons, in words: what the docs and the README quote."""

import datetime

from benchmarks import records

STEP = "gradient"  # of a training step: outputs and both gradients
OURS, CANDIDATES, RESEED = "shtopk", "shtopk, candidates=4k", "shtopk, reseed=True"
LARGEST, SMALLEST = 2**20, 2**16  # of the cells in which n grows


def ratios(rows, method, other, mode):
    """`[(how many times as long as `other` `method` takes, cell)]`, of the cells that have both."""
    return [
        (row["methods"][method][mode]["ms"] / row["methods"][other][mode]["ms"], row)
        for row in rows
        if method in row["methods"] and other in row["methods"]
    ]


def large(rows):
    return [row for row in rows if row["section"] != "growth" and row["n"] >= 1024]


def questions(rows):
    """`(method, other, the cells in words, cells)`."""
    cells = large(rows)
    few = [row for row in cells if row["k"] <= row["n"] // 16]
    contested = [row for row in cells if row["k"] >= 8]
    widest = [row for row in contested if row["n"] >= 8192 and row["k"] >= 256]
    yield OURS, "plain port", "n >= 1024", cells
    yield OURS, "plain port", "n >= 1024, d >= 256", [row for row in cells if row["d"] >= 256]
    yield OURS, "soft sort", "n >= 1024, k <= 4", [row for row in cells if row["k"] <= 4]
    yield OURS, "soft sort", "n >= 1024, k >= 8", contested
    yield OURS, "soft sort", "n >= 8192, k >= 256", widest
    yield OURS, "gated top k", "n >= 1024", cells
    yield CANDIDATES, "gated top k", "n >= 1024, k <= n / 16", few
    yield OURS, RESEED, "n >= 1024", cells


def lines(rows):
    """Markdown: a comparison a line, and the cell in which the training step compares worst."""
    head = ["compared", "cells", "forward", "training step", "worst step: batch, n, k, d"]
    table = []
    for method, other, words, cells in questions(rows):
        found = ratios(cells, method, other, STEP)
        if found:
            _, worst = max(found, key=lambda x: x[0])
            times = (in_words(cells, method, other, mode) for mode in ("forward", STEP))
            size = ", ".join(str(worst[name]) for name in ("batch", "n", "k", "d"))
            table.append([f"{method} and {other}", words, *times, size])
    yield from records.markdown(head, table)


def growth(rows, method, mode):
    """`{k: how many times as long the largest n takes as the smallest}`, for k = 64 and k = n / 16."""
    found = {}
    for name, k_of in {"64": lambda n: 64, "n / 16": lambda n: n // 16}.items():
        ms = {
            row["n"]: row["methods"][method][mode]["ms"]
            for row in rows
            if row["section"] == "growth" and row["k"] == k_of(row["n"])
        }
        if {SMALLEST, LARGEST} <= ms.keys():
            found[name] = ms[LARGEST] / ms[SMALLEST]
    return found


def growth_lines(rows):
    """Markdown: how the time grows from n = 2^16 to 2^20."""
    table = [
        [f"k = {k}", *(f"{growth(rows, OURS, mode)[k]:.3g} times" for mode in ("forward", STEP))]
        for k in growth(rows, OURS, STEP)
    ]
    yield from records.markdown(["16 times as many candidates", "forward", "training step"], table)


def machine(results):
    """Where and when the results were measured."""
    hardware, versions = results["hardware"], results["versions"]
    day = datetime.date.fromisoformat(results["date"])
    return (
        f"The machine has {hardware['cpu_count']} shared cores ({hardware['machine']}), JAX {versions['jax']} and "
        f"Python {versions['python']}. The results are of {day.day} {day:%B %Y}."
    )


def few_candidates(rows):
    """A training step with 4k candidates beside one with all of them, by the share of the slots."""
    few = [row for row in large(rows) if 32 * row["k"] <= row["n"]]
    many = [row for row in large(rows) if 8 * row["k"] == row["n"]]
    by_few, by_many = (in_words(cells, CANDIDATES, OURS, STEP) for cells in (few, many))
    return f"{by_few} for k <= n / 32, and {by_many} for k = n / 8"


def sort(stages):
    """By how much the sort of integers is faster than one of floats."""
    faster = [row["ms"]["sort of bare scores"] / row["ms"]["sort"] for row in stages]
    return f"{span(min(faster), max(faster))} times faster"


def compiling(rows):
    """The seconds to compile a training step for few and for many slots, beside the plain port."""
    longest = max(row["n"] for row in rows)
    cells = [row for row in rows if row["n"] == longest]
    few, *_, many = sorted(cells, key=lambda row: row["k"])
    ours, port = (
        [f"{row['seconds'][way][STEP]:.2g} s" for row in (few, many)] for way in (OURS, "plain port")
    )
    return (
        f"a training step at n = {longest} in {ours[0]} for k = {few['k']} and in {ours[1]} for k = {many['k']}, and "
        f"that of the plain port in {port[0]} and {port[1]}"
    )


def in_words(rows, ours, theirs, mode):
    """How many times faster or slower `ours` is than `theirs`, from the lowest to the highest; None without a cell."""
    found = sorted(ratio for ratio, _ in ratios(rows, ours, theirs, mode))
    if not found:
        return None
    low, high = found[0], found[-1]
    if level(low) and level(high):
        return "level"
    if high < 1 and not level(high):
        return f"{span(1 / high, 1 / low)} times faster"
    if low > 1 and not level(low):
        return f"{span(low, high)} times slower"
    fastest = "level at best" if level(low) else f"up to {two_digits(1 / low)} times faster"
    slowest = "level at worst" if level(high) else f"up to {two_digits(high)} times slower"
    return f"{fastest}, {slowest}"


def span(low, high):
    """From `low` to `high`, or one number if both have the same two digits."""
    return " to ".join(dict.fromkeys(map(two_digits, (low, high))))


def level(ratio):
    """Whether two digits of `ratio`, or of its inverse, are those of 1."""
    return "1" in (two_digits(ratio), two_digits(1 / ratio))


def times(ratio):
    """How many times faster or slower it is to take `ratio` times as long."""
    return f"{two_digits(1 / ratio)} times faster" if ratio < 1 else f"{two_digits(ratio)} times slower"


def two_digits(number):
    return f"{records.rounded(number, 2):g}"
