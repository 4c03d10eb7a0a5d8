"""The example runs, from the command line, and leaves a picture."""

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
