"""The cells: numbers of devices, n, k and d, each swept from one cell."""

BASE = {"devices": 8, "n": 2**20, "k": 64, "d": 512}
SWEEPS = {
    "devices": [1, 2, 4, 8, 16, 32, 64],
    "n": [2**16, 2**18, 2**20, 2**22, 2**24],
    "k": [16, 64, 256, 1024],
    "d": [64, 256, 512, 1024],
}
LARGEST = {"devices": 64, "n": 2**24, "k": 64, "d": 512}


def plan(quick):
    """The cell that sweeps start from, the largest, and all of them."""
    if quick:
        base = BASE | {"n": 2**14}
        return base, base, [base, base | {"devices": 1}]
    found = [BASE | {name: value} for name, values in SWEEPS.items() for value in values]
    return BASE, LARGEST, list({tuple(cell.values()): cell for cell in [*found, LARGEST]}.values())
