"""What the operator starts on a GPU, and the memory it takes, as compiled for one that is not there.

The counts are exact for a version of XLA, and small changes to the code move them: these are upper bounds for the
compilers of JAX 0.10, and what they were set against is in benchmarks/results/compiled.md. With those of JAX 0.12 five
of these tests fail, by one to three kernels and by one array of the size of E on a TPU. JAX as it comes: float32, x64
off, in a process of its own.
"""

import functools

import pytest

from benchmarks.compiled import targets
from benchmarks.compiled.cells import Cell
from benchmarks.compiled.count import Count, count, gathering
from benchmarks.compiled.measure import measured

pytestmark = pytest.mark.usefixtures("full_effort")

# batch, n, k, d: launches of a forward pass and of a gradient; memory and bytes in units of the size of E.
BARS = {
    Cell(16, 16384, 2, 32): {
        "default": (28, 48),
        "where=": (29, 48),
        "reseed=True": (50, 105),
        "topk_mask": (27, 41),
        "topk_mask, traced k": (36, 51),
        "temporary": 0.5,
        "moved": (2.4, 5.4),
    },
    Cell(16, 16384, 256, 32): {
        "default": (20, 30),
        "where=": (21, 31),
        "reseed=True": (30, 53),
        "topk_mask": (20, 25),
        "topk_mask, traced k": (36, 51),
        "temporary": 0.35,
        "moved": (2.4, 5.4),
    },
    Cell(16, 8192, 256, 256): {
        "default": (13, 22),
        "where=": (14, 23),
        "reseed=True": (20, 39),
        "topk_mask": (14, 18),
        "topk_mask, traced k": (31, 43),
        "temporary": 0.1,
        "moved": (1.15, 3.4),
    },
    Cell(16, 1024, 32, 512): {
        "default": (11, 21),
        "where=": (11, 21),
        "reseed=True": (16, 40),
        "topk_mask": (12, 16),
        "topk_mask, traced k": (24, 34),
        "temporary": 0.1,
        "moved": (1.1, 3.3),
    },
}
# Where a row of E is wide, temporary memory is small beside E: from 64 numbers on a GPU, 128 on a TPU.
WIDE = [
    ("h100", Cell(16, 1024, 8, 64)),
    ("h100", Cell(1, 2048, 100, 128)),
    ("a100", Cell(16, 1024, 32, 64)),
    ("tpu", Cell(16, 1024, 32, 128)),
    ("tpu", Cell(16, 8192, 256, 256)),
]
WIDE_MOST = 0.25


def needs(target):
    reason = targets.missing(target)
    if reason is not None:
        pytest.skip(reason)


@functools.cache
def figures(target, cell, *ways):
    """`{way: (forward, gradient)}`."""
    modes = ("forward", "gradient")
    cases = [cell._asdict() | {"way": way, "mode": mode} for way in ways for mode in modes]
    rows = list(measured(target, cases))
    return {way: tuple(row for row in rows if row["way"] == way) for way in ways}


def launches(pair):
    assert all(row["unknown_trips"] == 0 for row in pair)
    return tuple(row["launches"] for row in pair)


def temporary(pair):
    return max(row["temporary"] for row in pair)


def within(found, bound):
    return all(x <= most for x, most in zip(found, bound, strict=True))


@pytest.mark.parametrize("cell", BARS, ids=str)
def test_launches_memory_and_bytes_moved_on_an_h100(cell):
    needs("h100")
    bars = BARS[cell]
    ways = ("default", "where=", "reseed=True", "topk_mask", "topk_mask, traced k")
    found = figures("h100", cell, *ways, "plain port")
    seen = {way: launches(pair) for way, pair in found.items()}
    over = {way: (seen[way], bars[way]) for way in ways if not within(seen[way], bars[way])}
    assert not over, "launches forward and gradient, and their bounds"
    assert within(seen["default"], seen["plain port"])
    assert temporary(found["default"]) <= bars["temporary"]
    assert within([row["moved"] for row in found["default"]], bars["moved"])


@pytest.mark.parametrize("cell", BARS, ids=str)
def test_the_scores_gradient_is_computed_before_it_is_gathered(cell):
    """A kernel that gathers by candidate has few instructions, so it computes no round again for each of them."""
    needs("h100")
    rows = figures("h100", cell, "topk_mask")["topk_mask"]
    assert all(0 < row["gathering"] <= 100 for row in rows)


@pytest.mark.parametrize(("target", "cell"), WIDE, ids=str)
def test_temporary_memory_is_small_beside_wide_embeddings(target, cell):
    needs(target)
    assert temporary(figures(target, cell, "default")["default"]) <= WIDE_MOST


@pytest.mark.parametrize("cell", [Cell(16, 256, 8, 32), Cell(16, 4096, 1024, 32)], ids=str)
def test_no_more_launches_than_the_plain_port(cell):
    needs("h100")
    found = figures("h100", cell, "default", "plain port")
    assert within(launches(found["default"]), launches(found["plain port"]))


PROGRAM = """
%f (a: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  ROOT %n = s32[] negate(%a)
}

%body (a: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %one = s32[] fusion(%a), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"10"}
  ROOT %two = s32[] copy(%one)
}

%condition (a: s32[]) -> pred[] {
  ROOT %less = pred[] fusion(%a), kind=kLoop, calls=%f
}

%below (a: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %bound = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%a, %bound), direction=LT
}

%sorting (p: s64[2,16384]) -> s64[2,16384] {
  %p = s64[2,16384]{1,0} parameter(0)
  ROOT %s = s64[2,16384]{1,0} sort(%p), dimensions={1}, to_apply=%compare
}

%picked (p: f32[9], i: s32[2,1]) -> f32[2] {
  %p = f32[9]{0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  ROOT %g = f32[2]{0} gather(%p, %i), offset_dims={}
}

%called (a: s32[]) -> s32[] {
  ROOT %b = s32[] fusion(%a), kind=kLoop, calls=%f
}

ENTRY %main (x: s32[], y: s64[2,16384]) -> s32[] {
  %x = s32[] parameter(0)
  %y = s64[2,16384]{1,0} parameter(1)
  %sorted = s64[2,16384]{1,0} fusion(%y), kind=kCustom, calls=%sorting
  %pairs = (f32[2,1024]{1,0}, s32[2,1024]{1,0}) sort(%u, %v), dimensions={1}, to_apply=%compare
  %loop = s32[] while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %open = s32[] while(%loop), condition=%condition, body=%body
  %counted = s32[] while(%open), condition=%below, body=%body
  %call = s32[] call(%counted), to_apply=%called
  %one = s32[] conditional(%p, %x, %x), true_computation=%body, false_computation=%called
  ROOT %out = s32[] bitcast(%one)
}
"""


def test_loops_sorts_and_conditionals_count_all_their_launches():
    # Of 16384 sorted eight bytes wide, 4096 fit a block: one kernel for those, two and three for the doublings.
    stages, trips = 1 + 2 + 3, 5 + 1 + 7
    body, called = 2 * (4 + 4), 4 + 4  # bytes of the kernels, each of which reads a number and writes one
    # Each stage reads and writes everything. The operands of the other sort are not declared.
    sorts = stages * 2 * (8 * 2 * 16384) + 2 * 1024 * (4 + 4)
    assert count(PROGRAM) == Count(
        launches=stages + 1 + 2 * trips + 1 + (1 + 2),
        sorts=2,
        loops=3,
        unknown_trips=1,
        moved=sorts + body * trips + called + body,
        cycles=10 * (trips + 1),
    )


# Kernels around a table of 100 rows, one of them in a loop.
MOVING = """
%gathering (table: f32[100,8], i: s32[2,1]) -> f32[2,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %flat = f32[100,8]{1,0} bitcast(%table)
  %i = s32[2,1]{1,0} parameter(1)
  ROOT %rows = f32[2,8]{1,0} gather(%flat, %i), offset_dims={1}
}

%scattering (to: f32[100,8], i: s32[2,1], rows: f32[2,8]) -> f32[800] {
  %to = f32[100,8]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %rows = f32[2,8]{1,0} parameter(2)
  %there = f32[100,8]{1,0} scatter(%to, %i, %rows), to_apply=%add
  ROOT %flat = f32[800]{0} bitcast(%there)
}

%filling (row: f32[1,8], at: s32[]) -> (f32[100,8], f32[1,8]) {
  %row = f32[1,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zeros = f32[100,8]{1,0} broadcast(%zero), dimensions={}
  %filled = f32[100,8]{1,0} dynamic-update-slice(%zeros, %row, %at, %at)
  ROOT %both = (f32[100,8]{1,0}, f32[1,8]{1,0}) tuple(%filled, %row)
}

%summing (whole: f32[800]) -> pred[8] {
  %whole = f32[800]{0} parameter(0)
  %first = f32[8]{0} slice(%whole), slice={[0:8]}
  %all = f32[8]{0} reduce(%whole, %zero), dimensions={0}, to_apply=%add
  ROOT %less = pred[8]{0} compare(%all, %first), direction=LT
}

%body (a: bf16[5]) -> bf16[5] {
  %a = bf16[5]{0} parameter(0)
  ROOT %copied = bf16[5]{0} copy(%a)
}

ENTRY %main (table: f32[100,8], i: s32[2,1], at: s32[], a: bf16[5]) -> pred[8] {
  %table = f32[100,8]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %a = bf16[5]{0} parameter(3)
  %rows = f32[2,8]{1,0} fusion(%table, %i), kind=kLoop, calls=%gathering
  %row = f32[1,8]{1,0} slice(%table), slice={[0:1], [0:8]}
  %there = f32[800]{0} fusion(%table, %i, %rows), kind=kInput, calls=%scattering
  %both = (f32[100,8]{1,0}, f32[1,8]{1,0}) fusion(%row, %at), kind=kLoop, calls=%filling
  %updated = f32[100,8]{1,0} dynamic-update-slice(%table, %row, %at, %at)
  %loop = bf16[5]{0} while(%a), condition=%never, body=%body, backend_config={"known_trip_count":{"n":"7"}}
  ROOT %less = pred[8]{0} fusion(%there), kind=kLoop, calls=%summing
}
"""


def test_bytes_are_what_each_kernel_reads_and_writes():
    table, rows, indices, row, at = 4 * 100 * 8, 4 * 2 * 8, 4 * 2, 4 * 8, 4
    gathering = rows + indices + rows  # of the table, two rows
    slicing = row + row
    scattering = rows + indices + rows + rows  # two rows of the table, read and written in place
    filling = row + at + table + row  # an array made here is written as a whole
    updating = row + at + row  # of the table, one row is written and none is read
    summing = table + 8  # all of the table, although one user only slices it
    in_loop = 7 * (2 * 5 + 2 * 5)
    assert count(MOVING).moved == gathering + slicing + scattering + filling + updating + summing + in_loop


def test_only_kernels_that_gather_so_much_are_measured():
    assert gathering(PROGRAM, 2) == 3
    assert gathering(PROGRAM, 3) == gathering("", 1) == 0


def test_what_is_missing_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr(targets, "_version", lambda name: None)
    assert "libtpu not installed; in an environment of its own: pip install -e '.[compiled]'" in str(
        targets.missing("tpu")
    )
    monkeypatch.setattr(targets, "_version", lambda name: "0.0.1")
    assert "jax-cuda12-plugin is 0.0.1 and JAX is" in str(targets.missing("h100"))
    assert targets.missing("tpu") is None
