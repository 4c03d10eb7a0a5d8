"""What the docs say of quality and speed is what the committed results hold."""

import jax
import pytest

from benchmarks import records
from benchmarks.boosts import COMPROMISE
from benchmarks.compiled import report as compiled
from benchmarks.compiled.cells import CELLS
from benchmarks.devices import report as devices
from benchmarks.profiled import report as profiled
from benchmarks.published import published_seconds
from benchmarks.pytorch import report as pytorch
from benchmarks.quality import distributions
from benchmarks.quality import report as quality
from benchmarks.speed import report as speed
from benchmarks.speed import summary
from benchmarks.speed.measure import MODES, OURS, arrays, cell, task
from benchmarks.speed.stages import AGAINST

QUALITY, SCORES, FRONTIER = map(records.read, ("quality", "quality-scores", "frontier"))
SPEED, COMPILED = map(records.read, ("speed", "compiled-h100"))
ON_GPU, PROFILED, PYTORCH = map(records.read, ("gpu-speed", "gpu-profiled", "gpu-pytorch"))


def nccs(row, method):
    return row["methods"][method]["nccs"][0]


def test_the_whole_grid_was_measured():
    assert len({(row["n"], row["k"]) for row in QUALITY["rows"]}) == 85
    assert QUALITY["settings"]["draws"] == 256


def test_power_20_is_the_published_operator_in_every_cell():
    for row in QUALITY["rows"]:
        mean, error = row["methods"]["power"]["nccs"]
        published, published_error = row["published"]["power"]
        assert abs(mean - published) <= 4 * (error**2 + published_error**2) ** 0.5 + 0.003


def test_the_published_baseline_is_alpha_2():
    for row in QUALITY["rows"]:
        mean, error = row["methods"]["iterative, alpha=2"]["nccs"]
        published, published_error = row["published"]["iterative"]
        assert abs(mean - published) <= 4 * (error**2 + published_error**2) ** 0.5 + 0.003
        assert nccs(row, "iterative") < mean


def test_the_default_is_above_the_published_figure_in_every_cell():
    for row in QUALITY["rows"]:
        assert nccs(row, "default") >= 0.986
        assert nccs(row, "default") > row["published"]["power"][0]
        for other in ("default, reseed=True", "default, candidates=4k"):
            if other in row["methods"]:
                assert nccs(row, other) == pytest.approx(nccs(row, "default"), abs=1e-4)
    (hardest,) = (row for row in QUALITY["rows"] if (row["n"], row["k"]) == (16384, 2))
    assert (round(nccs(hardest, "default"), 3), round(hardest["published"]["power"][0], 3)) == (0.993, 0.195)


def test_no_distribution_of_scores_spoils_the_default():
    assert len(SCORES["rows"]) == 28
    few = {(row["scores"], row["n"]): row for row in SCORES["rows"]}
    clusters = [few.pop((scores, 16)) for scores in ("bimodal", "trimodal")]
    assert [round(nccs(row, "default"), 2) for row in clusters] == [0.95, 0.95]
    for row in few.values():
        assert round(nccs(row, "default"), 3) >= 0.987
        assert row["methods"]["default"]["mass"][0] >= 0.956


def test_the_defaults_place_on_the_frontier():
    finalists = [row for row in FRONTIER["finalists"] if row["family"] == "Relative"]
    assert [row["reseed"] for row in finalists] == [False, True]
    assert FRONTIER["settings"]["cells"][0] == [16, 2]
    for row in finalists:
        assert (row["sharpness"], row["number"]) == (6.0, 0.75)
        names = set(row["nccs"]) - {"quantised"}
        assert len(names) == 7
        assert round(min(min(row["reach"][name]) for name in names), 2) >= 0.56
        lowest = min(min(row["nccs"][name]) for name in names - {"bimodal"})
        assert round(lowest, 3) == round(row["nccs"]["log-normal"][0], 3) == 0.97
        assert round(min(row["nccs"]["bimodal"]), 3) == round(row["nccs"]["bimodal"][0], 3) == 0.956
    tied = finalists[0]["nccs"]["quantised"]
    assert round(tied[FRONTIER["settings"]["cells"].index([16384, 2])], 3) == 0.149


def boost_of(row):
    return row["family"], row["sharpness"], row["number"]


def test_the_compromises_place_on_the_frontier():
    found = {(*boost_of(row), row["reseed"]): row for row in FRONTIER["finalists"]}
    row = found[(*COMPROMISE, False)]
    assert row["worst"]["nccs"][1] == "bimodal"
    assert row["worst"]["nccs"][0] == pytest.approx(0.953, abs=0.001)
    assert row["worst but bimodal"]["nccs"][0] >= 0.99


def test_the_finalists_of_the_frontier_agree_with_its_plot():
    plotted = {boost_of(row): row for row in FRONTIER["rows"]}
    apart = [
        abs(row[worst]["nccs"][0] - plotted[boost_of(row)][worst]["nccs"][0])
        for row in FRONTIER["finalists"]
        for worst in ("worst", "worst but bimodal")
    ]
    assert (len(apart), round(max(apart), 3)) == (8, 0.017)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("quality", quality.text),
        ("quality-scores", distributions.text),
        ("speed", speed.text),
        ("gpu-speed", speed.text),
        ("gpu-profiled", profiled.text),
        ("gpu-pytorch", pytorch.text),
        ("devices", devices.text),
    ],
)
def test_the_page_beside_the_results_is_theirs(name, text):
    assert (records.RESULTS / f"{name}.md").read_text() == "\n".join(text(records.read(name)))


def test_a_training_step_grows_faster_than_n_on_a_cpu():
    assert min(summary.growth(SPEED["rows"], summary.OURS, summary.STEP).values()) > 16


def test_what_the_changelog_says_of_experts():
    rows = records.read("experts")["rows"]
    taken = {(row["capacity"], row["mode"], row["way"]): row["ms"] for row in rows}
    ratios = [
        taken[capacity, mode, "select, pool, unpool"] / ms
        for (capacity, mode, way), ms in taken.items()
        if way == "gated top k, scatter"
    ]
    assert len(ratios) == 4
    assert (round(min(ratios), 1), round(max(ratios), 1)) == (0.9, 1.1)


def of_cells(results, way, mode, figure):
    return {
        (row["n"], row["k"], row["d"]): row[figure]
        for row in results["rows"]
        if (row["way"], row["mode"]) == (way, mode)
    }


def launches(way, mode, results=COMPILED):
    return of_cells(results, way, mode, "launches")


def test_what_the_docs_say_of_kernels_on_a_gpu():
    for mode in ("forward", "gradient"):
        ours, port = launches("default", mode), launches("plain port", mode)
        assert set(ours) == set(port)
        assert all(ours[cell] <= port[cell] for cell in ours)
        older = launches("default", mode, records.read("compiled-a100"))
        assert len(older) == 4
        assert max(older[cell] - ours[cell] for cell in older) == {"forward": 3, "gradient": 5}[mode]
    traced, static = launches("topk_mask, traced k", "gradient"), launches("topk_mask", "gradient")
    more = [traced[cell] / static[cell] for cell in static]
    assert (round(min(more), 1), round(max(more), 1)) == (1.2, 2.4)
    reseeded, port = launches("reseed=True", "forward"), launches("plain port", "forward")
    assert sorted(reseeded[cell] - port[cell] for cell in reseeded) == [-3, -1, 0, 1]
    assert [reseeded[cell] - port[cell] for cell in ((8192, 256, 256), (1024, 32, 512))] == [0, 1]
    reseeded, port = launches("reseed=True", "gradient"), launches("plain port", "gradient")
    assert sorted(reseeded[cell] - port[cell] for cell in reseeded) == [-16, -8, -6, -2]


def busy(way, mode):
    """The milliseconds of the kernels on the GPU."""
    return of_cells(PROFILED, way, mode, "busy_ms")


def test_what_the_docs_say_of_a_gpu():
    assert PROFILED["hardware"]["device_kind"] == "NVIDIA H200" and PROFILED["versions"]["jax"] == "0.11.2"
    ways = {way for *pair, _ in profiled.COMPARED for way in pair}
    assert {len(busy(way, mode)) for way in ways for mode in ("forward", "gradient")} == {4}
    iterative = [
        of_cells(PROFILED, "iterative_topk", mode, "kernels")[1024, 32, 512]
        for mode in ("forward", "gradient")
    ]
    assert iterative == [325, 883]
    assert round(busy("default", "forward")[16384, 2, 32], 1) == 0.1
    assert round(1e3 * published_seconds()["successive_halving", 16384, 2]) == 146
    rows = [row for row in PROFILED["rows"] if row["way"] == "default"]
    more = [r["kernels"] - launches("default", r["mode"])[r["n"], r["k"], r["d"]] for r in rows]
    assert (len(more), min(more), max(more)) == (8, -2, 4)


def test_what_the_docs_say_of_calls_in_a_queue_on_a_gpu():
    assert (ON_GPU["hardware"]["device_kind"], ON_GPU["settings"]["queue"]) == ("NVIDIA H200", 20)
    assert ON_GPU["versions"]["jax"] == "0.11.2"
    (widest,) = (row for row in ON_GPU["stages"] if row["d"] == 1024)
    ms, against = widest["ms"], AGAINST
    times = {stage: round(ms[stage] / ms[against[stage]], 1) for stage in ("pool", "dots", "spread")}
    assert times == {"pool": 1.5, "dots": 1.1, "spread": 1.2}
    shortest = min(row["methods"][name]["forward"]["ms"] for row in ON_GPU["rows"] for name in row["methods"])
    assert 0.045 < shortest < 0.055
    (longest,) = (row for row in ON_GPU["rows"] if (row["section"], row["n"], row["k"]) == ("grid", 16384, 2))
    queued = longest["methods"]["gated top k"][summary.STEP]["ms"]
    assert (round(busy("gated top k", "gradient")[16384, 2, 32], 3), round(queued, 3)) == (0.025, 0.109)
    (narrow,) = (row["methods"] for row in ON_GPU["rows"] if (row["n"], row["k"]) == (2**16, 2**12))
    steps = [narrow[name][summary.STEP]["ms"] for name in (summary.CANDIDATES, summary.OURS)]
    assert round(steps[0] / steps[1], 1) == 1.2


def test_the_page_of_what_was_compiled_is_that_of_the_results():
    text = "\n".join(compiled.text(compiled.read(records.RESULTS)))
    assert (records.RESULTS / "compiled.md").read_text() == text


def test_bytes_are_compared_in_the_cells_of_the_table():
    rows = [
        {**cell._asdict(), "way": way, "mode": "gradient", "moved": moved}
        for cell in CELLS
        for way, moved in (("default", 3.0), ("plain port", 6.0 + 3 * (cell.k == 2)))
    ]
    narrow = CELLS[-1]._replace(d=8)
    rows += [row | narrow._asdict() | {"moved": 9 * row["moved"] ** 2} for row in rows[-2:]]
    assert compiled.port_moves(rows) == "2 to 3 times as many bytes"


def test_kernels_are_compared_by_their_time_in_the_cells_named():
    busy_ms = {
        ("default", 2): 2.0, ("soft sort", 2): 1.0, ("default", 256): 2.0, ("soft sort", 256): 8.0
    }  # fmt: skip
    rows = [
        {"way": way, "batch": 16, "n": 8192, "k": k, "d": 32, "mode": mode, "busy_ms": ms}
        for (way, k), ms in busy_ms.items()
        for mode in ("forward", "gradient")
    ]
    lines = [line for line in profiled.comparisons(rows) if "soft sort" in line]
    assert lines == [
        "| default and soft sort | k = 2, 32 | 2 times slower | 2 times slower |",
        "| default and soft sort | k = 256 | 4 times faster | 4 times faster |",
    ]


def test_pytorch_was_timed_on_the_same_gpu():
    assert PYTORCH["hardware"]["device_kind"] == "NVIDIA H200" and PYTORCH["pytorch"].startswith("2.11.")


def test_wide_rows_are_moved_little_more_than_they_have_to_be():
    for mode, least in (("forward", 1), ("gradient", 3)):
        moved = of_cells(COMPILED, "default", mode, "moved")
        wide = [times for (_, _, d), times in moved.items() if d >= 256]
        assert len(wide) == 2 and least < min(wide) and max(wide) < 1.15 * least


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([0.5, 0.25], "2 to 4 times faster"),
        ([2.0, 3.14], "2 to 3.1 times slower"),
        ([0.5, 0.499], "2 times faster"),
        ([0.5, 3.0], "up to 2 times faster, up to 3 times slower"),
        ([0.5, 1.004], "up to 2 times faster, level at worst"),
        ([0.996, 3.0], "level at best, up to 3 times slower"),
        ([0.998, 1.002], "level"),
        ([], None),
    ],
)
def test_a_comparison_in_words(ratios, words):
    rows = [{"methods": {"a": {"step": {"ms": 7 * ratio}}, "b": {"step": {"ms": 7.0}}}} for ratio in ratios]
    assert summary.in_words([*rows, {"methods": {"b": {}}}], "a", "b", "step") == words


def test_what_the_docs_say_of_a_tpu():
    rows = records.read("compiled-tpu")["rows"]
    found = {
        way: [row for row in rows if (row["way"], row["n"]) == (way, 8192)]
        for way in ("default", "plain port", "soft sort")
    }
    cycles = {way: [round(row["cycles"] / 1e6, 2) for row in both] for way, both in found.items()}
    assert cycles == {"default": [0.68, 1.86], "plain port": [1.44, 4.58], "soft sort": [0.33, 2.37]}
    temporary = {way: round(max(row["temporary"] for row in both), 2) for way, both in found.items()}
    assert temporary == {"default": 0.07, "plain port": 1.83, "soft sort": 1.0}


def test_what_the_docs_say_of_a_soft_sort_on_a_cpu():
    cells = summary.large(SPEED["rows"])
    narrow = [row for row in cells if 8 <= row["k"] <= row["n"] // 16]
    for mode in ("forward", summary.STEP):
        few, some, candidates = (
            [times for times, _ in summary.ratios(rows, method, "soft sort", mode)]
            for rows, method in (
                ([row for row in cells if row["k"] <= 8], summary.OURS),
                ([row for row in cells if row["k"] == 16], summary.OURS),
                (narrow, summary.CANDIDATES),
            )
        )
        assert few and min(few) > 1 and min(some) < 1 < max(some)
        assert candidates and max(candidates) < 1


def timed(n, k, **times):
    """A cell of the speed benchmark, with the milliseconds of each method in every mode."""
    named = {"ours": summary.OURS, "candidates": summary.CANDIDATES}
    methods = {named[name]: {mode: {"ms": ms} for mode in MODES} for name, ms in times.items()}
    return {"section": "grid", "n": n, "k": k, "methods": methods}


def test_the_sentence_on_few_candidates():
    rows = [timed(1024, 32, ours=6, candidates=2), timed(2048, 64, ours=6, candidates=4)]
    rows += [timed(1024, 128, ours=2, candidates=3), timed(1024, 256, ours=1, candidates=9)]
    said = "1.5 to 3 times faster for k <= n / 32, and 1.5 times slower for k = n / 8"
    assert summary.few_candidates([*rows, timed(512, 16, ours=9, candidates=1)]) == said


def test_the_whole_of_speed_was_measured():
    sizes = {(row["n"], row["k"]) for row in SPEED["rows"] if row["section"] == "grid"}
    assert len(sizes) == 85
    assert {row["section"] for row in SPEED["rows"]} == {"grid", "width", "batch", "growth"}
    assert max(row["n"] for row in SPEED["rows"]) == 2**20
    for row in SPEED["rows"]:
        assert set(row["methods"]) | set(row["skipped"]) == set(SPEED["rows"][-1]["methods"]) | set(
            SPEED["rows"][-1]["skipped"]
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_cell_is_timed_with_its_slots_alone(mode, x32):
    """The rows and scores of `topk`; its indices have no derivative to take."""
    c = cell("grid", 2, 64, 8, 4)
    out = jax.eval_shape(task(OURS["shtopk"], mode, c["k"]), *arrays(c))
    slots = out if mode == "forward" else out[0]
    assert [x.shape for x in slots] == [(2, 8, 4), (2, 8)]
