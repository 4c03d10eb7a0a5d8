"""The examples and the docs' pictures run from the command line, and leave what they say."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.mark.usefixtures("little_effort_in_processes")
@pytest.mark.parametrize(
    ("example", "words"),
    [
        ("find_the_digits", ("soft", "hard", "attention", "random")),
        ("pooled_transformer", ("shtopk", "mean", "unpooled", "MiB")),
        ("subsets", ("log_prob", "Gumbel", "soft recipe", "random")),
        ("how_many", ("learned k", "k = 4", "correlation")),
        ("choose_the_features", ("SelectKBest", "L1", "shtopk, k learned", "input by input")),
        ("sparse_attention", ("shtopk", "full attention", "sliding window", "perplexity")),
        ("prune_the_tokens", ("no pruning", "shtopk", "gated top k", "multiply-adds")),
    ],
)
def test_an_example_runs(example, words, tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-W", "error", EXAMPLES / f"{example}.py", "--quick", "--out", picture]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout
    image = matplotlib.image.imread(picture)
    assert min(image.shape[:2]) > 400
    assert image[..., :3].std() > 0.1  # something is drawn


@pytest.mark.usefixtures("little_effort_in_processes")
def test_the_docs_pictures_are_those_that_the_script_draws(tmp_path):
    figures = EXAMPLES.parent / "figures"
    command = [sys.executable, "-W", "error", figures / "draw.py", "--out", tmp_path]
    subprocess.run(command, capture_output=True, text=True, check=True)
    drawn = {path.name: matplotlib.image.imread(path).shape for path in tmp_path.iterdir()}
    assert set(drawn) == {path.name for path in figures.glob("*.png")}
    assert all(min(shape[:2]) > 300 for shape in drawn.values())


def results_of(example):
    return json.loads((EXAMPLES.parents[1] / "benchmarks" / "results" / f"{example}.json").read_text())


def test_what_the_guide_says_of_sampled_subsets():
    results = results_of("subsets")
    assert results["settings"]["seeds"] == 5
    ways = results["ways"]
    reward = {name: row["reward"] for name, row in ways.items()}
    assert all(results["limits"]["random"] < won < results["limits"]["best"] for won in reward.values())
    assert reward["log_prob, annealed"] < reward["log_prob"] - 0.03
    assert max(reward, key=lambda name: reward[name]) == "soft recipe"  # it is shown the votes

    def worst(name):
        return min(curve[-1] for curve in ways[name]["curves"])

    assert worst("log_prob, entropy") > max(worst("log_prob"), worst("Gumbel top k")) + 0.03


def test_what_the_guide_says_of_the_learned_k():
    results = results_of("how_many")
    assert results["settings"]["seeds"] == len(results["learned"]["correlations"]) == 5
    assert min(results["learned"]["correlations"]) > 0.8
    learned, *fixed = results["ways"].values()
    assert learned["cost"] < min(row["cost"] for row in fixed)
    *others, last = sorted(learned["costs"])
    (six,) = (row for row in fixed if row["features"] == 6)
    assert (round(last, 2), round(six["cost"], 2)) == (1.94, 1.63) and max(others) <= 1.275
    for row in fixed:
        if row["features"] <= 6:
            assert learned["error"] < row["error"]


def test_what_the_guide_says_of_the_pooled_encoder():
    results = results_of("pooled_transformer")
    ours, mean, unpooled = (results["encoders"][name] for name in ("shtopk", "mean", "unpooled"))
    assert ours["accuracy"] > mean["accuracy"] + 0.3
    assert ours["step_seconds"] < unpooled["step_seconds"] / 2
    assert ours["memory"] < unpooled["memory"] / 2

    def steps(row):
        return next(step for step, accuracy in row["curve"] if accuracy > 0.9)

    assert steps(ours) > steps(unpooled)  # longer to learn, in steps
    assert steps(ours) * ours["step_seconds"] < steps(unpooled) * unpooled["step_seconds"]


def choices(table, kind):
    """The rows for one table and kind of choice, by way and the mean k to a whole number, as arrays over splits."""
    rows = [
        r for r in results_of("choose_the_features")["rows"] if (r["table"], r["choice"]) == (table, kind)
    ]
    return {(r["way"], round(np.mean(r["k"]))): (np.array(r["k"]), np.array(r["accuracy"])) for r in rows}


def lead(rows, ours, peer):
    """The mean lead of one way over another, and its standard error over the splits."""
    better = rows[ours][1] - rows[peer][1]
    return better.mean(), better.std(ddof=1) / len(better) ** 0.5


PEERS = ("SelectKBest", "L1", "gated top k", "random")


def test_the_guide_says_where_a_global_choice_leads():
    digits, cancer = choices("digits", "global"), choices("breast cancer", "global")
    for k, said in ((8, 0.083), (16, 0.013), (32, 0.009)):
        leads = {peer: lead(digits, ("shtopk", k), (peer, k)) for peer in PEERS}
        assert all(mean > 2 * error for mean, error in leads.values())
        assert min(leads, key=lambda peer: leads[peer][0]) == "SelectKBest"
        assert round(leads["SelectKBest"][0], 3) == said
    for k, level in ((2, {"L1"}), (5, {"L1"}), (10, {"gated top k"})):
        leads = {peer: lead(cancer, ("shtopk", k), (peer, k)) for peer in PEERS}
        assert all(mean > 0 for mean, _ in leads.values())
        assert {peer for peer, (mean, error) in leads.items() if mean < error} == level
    assert lead(cancer, ("random", 10), ("SelectKBest", 10))[0] > 0


def test_the_guide_says_what_a_choice_by_input_gives():
    digits, cancer = choices("digits", "input by input"), choices("breast cancer", "input by input")
    assert round(lead(digits, ("all features", 64), ("shtopk", 16))[0], 3) == 0.007
    assert round(lead(digits, ("shtopk", 16), ("gated top k", 16))[0], 3) == 0.030
    mean, error = lead(cancer, ("shtopk", 5), ("gated top k", 5))
    assert abs(mean) < error
    for rows, low, high in ((cancer, 2, 12), (digits, 7, 9)):
        (sizes,) = (k for (way, _), (k, _) in rows.items() if way == "shtopk, k learned")
        assert (round(sizes.min()), round(sizes.max())) == (low, high)
    assert round(sizes.mean(), 1) == 7.4
    assert round(digits["shtopk, k learned", 7][1].mean(), 3) == 0.954
    assert round(choices("digits", "global")["shtopk", 32][1].mean(), 3) == 0.960


@pytest.mark.parametrize("table", ["breast cancer", "digits"])
def test_a_higher_price_buys_fewer_features(table):
    learned = [r for r in results_of("choose_the_features")["rows"] if r["price"] and r["choice"] == "global"]
    learned = sorted((r for r in learned if r["table"] == table), key=lambda r: r["price"])
    sizes = [np.mean(r["k"]) for r in learned]
    assert sizes == sorted(sizes, reverse=True)
    assert all(np.ptp(r["k"]) <= 2 for r in learned)


def test_the_guide_says_how_the_ways_to_choose_keys_compare():
    found = {(r["way"], r["k"]): np.mean(r["perplexity"]) for r in results_of("sparse_attention")["rows"]}
    for k, behind in ((4, 1.4), (8, 1.2), (16, 0.7)):
        others = [found["gated top k", k], found["random", k], found["full attention", 64]]
        assert found["shtopk", k] < min(others)
        assert round(found["shtopk", k] - found["sliding window", k], 1) == behind
    for way in ("shtopk", "sliding window"):
        assert found[way, 4] < found[way, 16]


def pruned():
    return {(row["way"], row["k"]): row for row in results_of("prune_the_tokens")["rows"]}


KS = (4, 8, 16, 32)


def test_what_the_guide_says_of_the_accuracy_with_pruned_tokens():
    rows = {case: (None, np.array(row["accuracy"])) for case, row in pruned().items()}
    for k, said in zip(KS, (0.059, -0.075, -0.037, -0.022), strict=True):
        mean, error = lead(rows, ("shtopk", k), ("gated top k", k))
        assert round(mean, 3) == said
        assert abs(mean) < 2 * error
    for k, said in ((4, 0.69), (32, 0.30)):
        assert round(lead(rows, ("shtopk", k), ("random", k))[0], 2) == said
    for way, losses, worst in (
        ("shtopk", (0.117, 0.033), (8, 0.655)),
        ("gated top k", (0.042, 0.011), (4, 0.460)),
    ):
        assert tuple(round(lead(rows, ("no pruning", 64), (way, k))[0], 3) for k in (8, 32)) == losses
        assert all(lead(rows, ("no pruning", 64), (way, k))[0] > 0 for k in KS)
        assert all(lead(rows, (way, k), ("random", k))[0] > 0.29 for k in KS)
        lowest, k = min((rows[way, k][1].min(), k) for k in KS)
        assert (k, round(lowest, 3)) == worst


def test_what_the_guide_says_of_the_compute_with_pruned_tokens():
    rows = pruned()
    whole = rows["no pruning", 64]["multiply_adds"]
    for way in ("shtopk", "gated top k"):
        assert round(whole / rows[way, 16]["multiply_adds"], 1) == 3.2
        assert round(whole / rows[way, 4]["multiply_adds"], 1) == 5.3
        assert 1 / rows[way, 16]["inference"] > 9
        assert 1 / rows[way, 4]["inference"] > 18
    steps = [(rows["shtopk", k]["step"], rows["gated top k", k]["step"]) for k in KS]
    behind = [100 * (ours - gated) for ours, gated in steps]
    assert (round(min(behind)), round(max(behind))) == (2, 8)
    faster = [1 / ours for ours, _ in steps]
    assert (round(min(faster), 1), round(max(faster), 1)) == (1.8, 2.7)
