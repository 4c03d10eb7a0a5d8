"""The speed benchmark in a few ratios, each with the cell that is worst: what the docs quote."""

STEP = "gradient in both"


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
    """`(what is asked, cells, method, other, mode)`."""
    cells = large(rows)
    few = [row for row in cells if row["k"] <= row["n"] // 16]
    contested = [row for row in cells if row["k"] >= 8]
    widest = [row for row in contested if row["n"] >= 8192 and row["k"] >= 256]
    wide = [row for row in cells if row["d"] >= 256]
    for mode in ("forward", STEP):
        yield f"{mode}: n >= 1024", cells, "shtopk", "plain port", mode
        yield f"{mode}: n >= 1024", cells, "shtopk", "shtopk, sort once", mode
        yield f"{mode}: n >= 1024, k >= 8", contested, "shtopk, sort once", "softsort", mode
        yield f"{mode}: n >= 8192, k >= 256", widest, "shtopk, sort once", "softsort", mode
        yield f"{mode}: k <= n / 16", few, "shtopk, candidates=4k", "top_k + gather, gated", mode
    yield f"{STEP}: d >= 256", wide, "shtopk, sort once", "plain port", STEP


def growth(rows, method, mode):
    """`{k: how many times as long n = 2**20 takes as n = 2**16}`, for k = 64 and k = n / 16."""
    found = {}
    for name, k_of in {"64": lambda n: 64, "n / 16": lambda n: n // 16}.items():
        ms = {
            row["n"]: row["methods"][method][mode]["ms"]
            for row in rows
            if row["section"] == "growth" and row["k"] == k_of(row["n"])
        }
        if {2**16, 2**20} <= ms.keys():
            found[name] = ms[2**20] / ms[2**16]
    return found


def lines(rows):
    """Markdown: the ratios, lowest and highest."""
    yield "| cells | how many times as long | lowest | highest |"
    yield "| --- | --- | --- | --- |"
    for asked, cells, method, other, mode in questions(rows):
        found = sorted(ratios(cells, method, other, mode), key=lambda x: x[0])
        if found:
            ends = (
                f"{value:.3g} (batch {row['batch']}, n = {row['n']}, k = {row['k']}, d = {row['d']})"
                for value, row in (found[0], found[-1])
            )
            yield f"| {asked} | {method} against {other} | " + " | ".join(ends) + " |"
    for method in ("shtopk", "shtopk, sort once"):
        for mode in ("forward", STEP):
            for k, times in growth(rows, method, mode).items():
                yield f"| {mode}: k = {k} | {method}, n = 2^20 against n = 2^16 | {times:.3g} | {times:.3g} |"
