"""The examples and the docs' pictures run from the command line, and leave what they say."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ("find_the_digits", ("soft", "hard", "attention", "random")),
        ("pooled_transformer", ("shtopk", "mean", "unpooled", "MiB")),
        ("subsets", ("log_prob", "Gumbel", "soft recipe", "random")),
        ("how_many", ("learned k", "k = 4", "correlation")),
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
