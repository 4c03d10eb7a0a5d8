"""What the docs say is run: docstring examples, the README's code, its commands, the public surface."""

import doctest
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

import shtopk

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PUBLIC = [name for name in vars(shtopk) if not name.startswith("_")]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(shtopk, name))]


def examples(thing, name):
    names = {"jax": jax, "jnp": jnp, **{public: getattr(shtopk, public) for public in PUBLIC}}
    return [t for t in doctest.DocTestFinder(recurse=True).find(thing, name, globs=names) if t.examples]


def run(test, tmp_path):
    log = []
    doctest.DocTestRunner(verbose=False).run(test, out=log.append)
    assert not log, "".join(log)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "TopK"])
def test_every_public_name_has_an_example_that_runs(name, x32, tmp_path):
    tests = examples(getattr(shtopk, name), name)
    assert tests
    for test in tests:
        run(test, tmp_path)


def test_the_tour_runs(x32, tmp_path):
    (test,) = examples(shtopk, "shtopk")
    run(test, tmp_path)


def test_the_public_names_are_the_contracts():
    assert sorted(PUBLIC) == sorted(
        [
            *("topk", "select", "topk_mask", "iterative_topk", "hard_topk", "nccs"),
            *("Scaled", "Power", "Relative", "TopK", "Selection"),
        ]
    )
    for name in PUBLIC:
        assert inspect.getdoc(getattr(shtopk, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_three_positional_arguments_at_most_and_each_documented(name):
    function = getattr(shtopk, name)
    parameters = inspect.signature(function).parameters.values()
    assert sum(p.kind is not p.KEYWORD_ONLY for p in parameters) <= 3
    text = inspect.getdoc(function) or ""
    for parameter in parameters:
        assert re.search(rf"\b{parameter.name}\b[^\n]*:", text), parameter.name


def test_no_source_file_reads_private_jax_or_sets_its_config():
    for path in Path(shtopk.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert "jax._src" not in text
        assert "config.update" not in text


def test_the_readmes_first_block_is_early_short_and_shows_a_gradient(tmp_path):
    assert README[: README.index("```python")].count("\n") < 40
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) < 15
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[0]], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    gradient = np.fromstring(done.stdout.strip("[]\n ").replace("\n", " "), sep=" ")
    assert gradient.shape == (8,)
    assert np.sum(gradient != 0) >= 4


def test_the_readmes_flax_module_trains_a_scorer(x32):
    names = {}
    exec(BLOCKS[1], names)
    tokens = jax.random.normal(jax.random.key(0), (2, 12, 4))
    module = names["PoolTokens"](k=3)
    parameters = module.init(jax.random.key(1), tokens, 1.0)
    gradient = jax.grad(lambda p: jnp.sum(module.apply(p, tokens, 1.0) ** 2))(parameters)
    kernel = gradient["params"]["Dense_0"]["kernel"]
    assert np.all(np.isfinite(kernel))
    assert np.any(kernel != 0)


def test_the_readme_names_every_public_function():
    assert all(f"{name}(" in README for name in FUNCTIONS if name != "nccs")


def test_every_guarantee_names_a_test_that_exists():
    guarantees = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/test_\w+\.py)\)", guarantees)
    assert len(named) == guarantees.count("](") > 20
    for test, path in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(), test
    rows = re.findall(r"^\| (?!---|guarantee)(.*) \|$", guarantees, flags=re.MULTILINE)
    assert all("](../tests/" in row for row in rows)


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert f"## [{shtopk.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {shtopk.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{shtopk.__version__}}}" in README


def test_the_readme_is_short_and_its_links_and_tests_exist():
    assert README.count("\n") < 150
    for link in re.findall(r"(?:\]\(|src=\"|srcset=\")(?!https:)([^)\"]+)", README):
        assert (ROOT / link).exists(), link
    for test, path in re.findall(r"\[`(test_\w+)`\]\((tests/test_\w+\.py)\)", README):
        assert f"\ndef {test}(" in (ROOT / path).read_text(), test


def test_the_readmes_figures_of_speed_are_those_of_the_docs():
    table = README[README.index("how many times as long | lowest") :]
    rows = table[: table.index("\n\n")].splitlines()[2:]
    assert len(rows) == 3
    for row in rows:
        assert row in (ROOT / "docs" / "speed.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_of_python_is_run_when_it_is_built(page):
    # `{code-cell}` is run; a plain block of Python is only shown, and stands for other people's code.
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert all("torch" in block for block in blocks)


def test_the_wheel_is_small_typed_and_without_tests(tmp_path):
    if not (ROOT / "shtopk").exists():
        pytest.skip("the package's sources are not here: the suite runs on an installed wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert Path(wheel).stat().st_size < 100_000
    names = zipfile.ZipFile(wheel).namelist()
    assert "shtopk/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"shtopk", f"shtopk-{shtopk.__version__}.dist-info"}
