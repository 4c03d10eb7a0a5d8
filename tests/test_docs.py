"""What the docs say is run: docstring examples, the README's code, its commands, the public surface."""

import doctest
import inspect
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

import shtopk
from benchmarks import pages, readme

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [page.read_text() for page in pages.PAGES]
PUBLIC = [name for name in vars(shtopk) if not name.startswith("_")]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(shtopk, name))]


def examples(thing, name):
    names = {"jax": jax, "jnp": jnp, **{public: getattr(shtopk, public) for public in PUBLIC}}
    return [t for t in doctest.DocTestFinder(recurse=True).find(thing, name, globs=names) if t.examples]


def run(test):
    log = []
    doctest.DocTestRunner(verbose=False).run(test, out=log.append)
    assert not log, "".join(log)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("TopK", "Annealed")])
def test_every_public_name_has_an_example_that_runs(name, x32):
    tests = examples(getattr(shtopk, name), name)
    assert tests
    for test in tests:
        run(test)


def test_the_tour_runs(x32):
    (test,) = examples(shtopk, "shtopk")
    run(test)


def test_the_public_names_are_the_contracts():
    assert sorted(PUBLIC) == sorted(
        [
            *("topk", "select", "topk_mask", "anneal", "iterative_topk", "hard_topk", "nccs"),
            *("Boost", "Scaled", "Power", "Relative", "TopK", "Selection", "Annealed"),
        ]
    )
    for name in PUBLIC:
        assert inspect.getdoc(getattr(shtopk, name))


BRACKET: dict[str, Any] = {"boost": shtopk.Relative(6.0, 0.75), "reseed": False, "candidates": None}
DEFAULTS: dict[str, dict[str, Any]] = {
    "topk": {**BRACKET, "straight_through": False, "draw": None, "key": None, "order": "score"},
    "select": BRACKET,
    "topk_mask": {**BRACKET, "log": False},
    "anneal": {"key": None, "noise": 0.5, "sharpness": (0.1, 100.0)},
    "iterative_topk": {"alpha": 1.0, "normalizer": "softmax"},
    "hard_topk": {"order": "score"},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_defaults_are_the_contracts(name):
    parameters = inspect.signature(getattr(shtopk, name)).parameters.values()
    split = {} if name in ("iterative_topk", "hard_topk") else {"axis_name": None}
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert given == {**DEFAULTS[name], **split, "where": None}


def test_the_numbers_of_boosts_are_the_contracts():
    assert shtopk.Power() == shtopk.Power(20.0)
    assert shtopk.Relative() == shtopk.Relative(6.0, 0.75)


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


def test_the_readmes_example_runs_as_pasted_and_learns(tmp_path):
    assert README[: README.index("```python")].count("\n") < 20
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    learned = np.fromstring(done.stdout.strip().strip("[]"), sep=" ")
    assert learned.shape == (8,)
    assert learned[0] > 0.95
    assert np.all(np.abs(learned[1:]) < 0.2)


def test_the_pages_show_the_results():
    shown = [name for page in PAGES for _, name, _ in pages.REGION.findall(page)]
    assert sorted(shown) == sorted(pages.PARTS)
    assert list(map(pages.rendered, PAGES)) == PAGES
    assert len(shown) == sum(page.count("<!-- results:") for page in PAGES)
    speed = pages.read("speed")
    assert (speed["hardware"]["backend"], speed["hardware"]["cpu_count"]) == ("cpu", 2)


def test_the_readme_compares_by_the_milliseconds_of_kernels(monkeypatch):
    taken = {"default": 2.0, "plain port": 6.0, "gated top k": 0.25}
    rows = [
        {"n": 16384, "k": 2, "mode": "gradient", "way": way, "busy_ms": busy, "kernels": 10 * busy}
        for way, busy in taken.items()
    ]
    others = [{"mode": "forward", "busy_ms": 1.0}, {"k": 4, "busy_ms": 9.0}, {"n": 8192, "busy_ms": 5.0}]
    rows += [row | other for row in rows for other in others]
    queued = {"shtopk": 3.0, "PyTorch, compiled": 15.0}
    methods = {name: {"gradient": {"ms": ms}} for name, ms in queued.items()}
    beside = [{"n": n, "k": 2, "methods": methods} for n in (16384, 8192)]
    monkeypatch.setattr(
        readme.records, "read", {"gpu-profiled": {"rows": rows}, "gpu-pytorch": {"rows": beside}}.get
    )
    said = " ".join(readme.kernels().split())
    assert "k = 2 is 5 times faster than Algorithm 2 compiled by PyTorch." in said
    assert "takes 2 ms (20 kernels), 3 times faster than the plain port (60) and 8 times slower" in said
    assert said.endswith("than the gated top k (2).")


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert README.count("\n") <= 110
    for link in re.findall(r"(?:\]\(|src=\"|srcset=\")(?!https:)([^)\"]+)", README):
        assert (ROOT / link).exists(), link


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


def test_version_and_date_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {shtopk.__version__}\n" in citation
    (date,) = re.findall(r'^date-released: "(.*)"$', citation, flags=re.MULTILINE)
    assert f"## [{shtopk.__version__}] - {date}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_hooks_and_workflow_run_the_commands_of_ci():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 3
    assert set(hooks) <= set(script)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r"run: (.*)", workflow) == [".ci/run"]


def test_what_the_pages_show_of_python_is_run_in_the_build():
    # `{code-cell}` is run; a plain block of Python is only shown, and stands for other people's code.
    texts = "\n".join(page for page in PAGES if page != README)
    blocks = re.findall(r"```python\n(.*?)```", texts, flags=re.DOTALL)
    assert blocks
    assert all("torch" in block for block in blocks)


def test_the_wheel_is_small_typed_and_without_tests(tmp_path):
    if not (ROOT / "shtopk").exists():
        pytest.skip("the package's sources are not here: the suite runs on an installed wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    assert Path(wheel).stat().st_size < 100_000
    names = zipfile.ZipFile(wheel).namelist()
    assert "shtopk/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"shtopk", f"shtopk-{shtopk.__version__}.dist-info"}
