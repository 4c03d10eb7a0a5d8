"""The training benchmark: what its tables say, its methods' laws, and that the docs show its committed results."""

import json
import re
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shtopk
from benchmarks import learning, records
from benchmarks.learning import drawn, report
from benchmarks.learning.methods import BY_LOGS, METHODS, OURS
from benchmarks.learning.peers import Moment, _log_sums, _subset
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.train import Trainer

ROOT = Path(__file__).parent.parent
RESULTS = report.read(ROOT / "benchmarks" / "results")
MORE = report.read(ROOT / "benchmarks" / "results", more_seeds=True)


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", METHODS)
def test_every_method_weighs_k_rows_in_all(name):
    # One candidate in four is far above the others, so that every method comes close to choosing it.
    scores = jnp.where(jnp.arange(16) % 4 == 0, 3.0, -3.0).astype(jnp.float32) + jnp.zeros(
        (3, 1), jnp.float32
    )
    embeddings = jnp.broadcast_to(jnp.eye(16, dtype=jnp.float32), (3, 16, 16))
    at = Moment(jnp.float32(METHODS[name].numbers[-1]), jnp.float32(1), jnp.float32(0), jax.random.key(0))
    rows, weights = jax.jit(METHODS[name].choose, static_argnums=2)(embeddings, scores, 4, at)
    mask = jnp.einsum("brn,br->bn", rows, weights)
    gate = jax.nn.sigmoid(3.0 * METHODS[name].numbers[-1]) if name == "gated top k" else 1
    if name == "noise gate":  # its rows are noise as far as they are not chosen
        return np.testing.assert_allclose(weights.sum(-1), jnp.full(3, 4), rtol=1e-3)
    np.testing.assert_allclose(mask.sum(-1), jnp.full(3, 4 * gate), rtol=1e-3)
    if name != "random choice":
        assert jnp.all(mask[:, ::4].mean(-1) > mask.sum(-1) / 8)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_marks_k_candidates(name):
    task = TASKS[name]
    _, right, _ = task.draw(jax.random.key(0), 4, held_out=True)
    assert right.shape == (4, task.n)
    assert jnp.all(right.sum(-1) == task.k)


@cache
def transformer():
    """The task whose model reads rows by logs, each part compiled once, and its parameters at the start of training."""
    task = TASKS["pruned-transformer"]
    trainer = Trainer(task, METHODS["recipe"], 100)
    parts = {
        "model": SimpleNamespace(apply=jax.jit(trainer.model.apply, static_argnames="method")),
        "task": SimpleNamespace(
            draw=jax.jit(task.draw, static_argnames=("batch", "held_out")),
            loss=jax.jit(task.loss),
            **{name: getattr(task, name) for name in ("batch", "k")},
        ),
    }
    return task, parts, trainer.init(0)[0]


@pytest.mark.parametrize("name", BY_LOGS)
def test_what_is_read_by_logs_learns_by_finite_gradients(name):
    task, parts, params = transformer()
    trainer: Any = Trainer(task, METHODS[name], 100)
    vars(trainer).update(parts, choose=jax.jit(trainer.choose, static_argnums=2))
    for progress in (0.0, 1.0):
        key = jax.random.key(1, impl="rbg")
        gradient = jax.grad(trainer._loss)(params, METHODS[name].numbers[0], progress, key)
        chex.assert_tree_all_finite(gradient)


def test_simple_draws_subsets_and_has_their_marginals():
    scores = np.random.default_rng(0).normal(size=6).astype(np.float32)
    subsets = np.array(list(combinations(range(6), 3)))
    chance = np.exp(scores[subsets].astype(np.float64).sum(-1))
    member = (subsets[..., None] == np.arange(6)).any(1)
    marginals = (chance / chance.sum()) @ member
    exact = jax.grad(lambda v: _log_sums(v, 3)[-1, -1])(jnp.asarray(scores))
    np.testing.assert_allclose(exact, marginals, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: _subset(key, jnp.asarray(scores), 3))(keys)
    np.testing.assert_array_equal(drawn.sum(-1), 3)
    np.testing.assert_allclose(drawn.mean(0), marginals, atol=0.04)


def test_second_order_draws_are_right_of_quadratic_losses():
    rng = np.random.default_rng(3)
    embeddings, scores = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((1, 8, 3), (1, 8)))
    boost, price = shtopk.Scaled(1.0), jnp.arange(3, dtype=jnp.float32)

    def expected(scores):
        return jnp.sum(shtopk.select(scores, 2, boost=boost).pool(embeddings**2) @ price)

    def mean_gradient(pooled):
        def loss(scores, key):
            return jnp.sum(pooled(embeddings, scores, 2, boost, 1.0, key) ** 2 @ price)

        keys = jax.random.split(jax.random.key(0), 20_000)
        return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(scores, keys).mean(0)

    exact = jax.grad(expected)(scores)
    largest = jnp.abs(exact).max()
    assert jnp.abs(mean_gradient(drawn.second_order) - exact).max() < 0.05 * largest
    assert jnp.abs(mean_gradient(drawn.first_order) - exact).max() > 0.2 * largest


def test_steps_to_a_level_count_from_where_it_stays_above():
    assert report.since([0.1, 0.9, 0.3, 0.8, 0.9], 0.5) == 4
    assert report.since([0.9, 0.9], 0.5) == 1
    assert report.since([0.9, 0.1], 0.5) == float("inf")


def test_a_new_row_says_where_it_was_made_and_keeps_the_others(tmp_path):
    path = tmp_path / "learning-marked-tokens.json"
    old = [{"method": "recipe", "score": [[0.9]]}, {"method": "gated top k", "score": [[0.1]]}]
    path.write_text(json.dumps({"settings": {"seeds": [0]}, "rows": old}))
    learning.write(path, {"seeds": (0,)}, {"method": "recipe", "score": [[0.8]]}, started=0.0)
    new, kept = json.loads(path.read_text())["rows"]
    assert kept == old[1]
    assert new == {"method": "recipe", "score": [[0.8]], "made": records.environment()}


def test_methods_and_tasks_without_further_seeds_have_a_dash():
    more = MORE["marked-tokens"]
    one = more | {"rows": [row for row in more["rows"] if row["method"] == "recipe"]}
    *_, first, second = report.by_all_seeds(
        {"marked-tokens": RESULTS["marked-tokens"]}, {"marked-tokens": one, "digits-256": one}
    )
    assert first.startswith("| marked-tokens | 0.9") and first.endswith(" | -" * 6 + " |")
    assert second == "| digits-256" + " | -" * 7 + " |"


def test_every_task_was_measured_and_ours_stayed_finite():
    assert set(RESULTS) == set(TASKS)
    for result in RESULTS.values():
        measured = {row["method"] for row in result["rows"]}
        assert measured >= {*report.FORMS, "gated top k", "threshold mask"}
        assert measured <= set(METHODS)
        assert len(result["settings"]["seeds"]) >= 5
        for row in report.summary(result):
            assert row["finite"] or row["method"] not in OURS


def test_the_page_beside_the_results_is_theirs():
    assert (ROOT / "benchmarks" / "results" / "learning.md").read_text() == report.text(RESULTS, MORE)


def test_the_docs_have_the_size_and_the_limits_of_each_task():
    lines = (ROOT / "docs" / "training.md").read_text().splitlines()
    readme = " ".join((ROOT / "README.md").read_text().split())
    best = {}
    for name, task in TASKS.items():
        told = next(line for line in lines if line.startswith(f"| {name} | {task.k} of {task.n} |"))
        *_, chance, limit, _ = told.split("|")
        assert chance.strip() == f"{task.chance:.2f}"
        if name.startswith("features-"):
            logit = task.explained(jax.random.key(0), 2**18)[2]
            best[name] = f"{jax.nn.sigmoid(jnp.abs(logit)).mean():.2f}"
        assert limit.strip() == best.get(name, "")
    assert "best possible shares are {}, {}, {} and {}.".format(*best.values()) in readme


def test_the_recipe_of_the_docs_is_the_one_measured():
    docs = (ROOT / "docs" / "training.md").read_text()
    names = {}
    exec(re.findall(r"```{code-cell}\n(.*?)```", docs, flags=re.DOTALL)[0], names)
    scores = 3 * jax.random.normal(jax.random.key(3), (4, 32), jnp.float32) + 7
    rows = jax.random.normal(jax.random.key(4), (4, 32, 5), jnp.float32)
    for progress in (0.0, 0.4, 1.0):
        at = Moment(jnp.float32(1), jnp.float32(progress), jnp.float32(0), jax.random.key(5))
        _, mask = METHODS["recipe"].choose(None, scores, 4, at)
        np.testing.assert_allclose(names["mask_of_rows"](scores, 4, progress, at.key), mask, atol=1e-4)
        slots, _ = METHODS["recipe, by drawn slots"].choose(rows, scores, 4, at)
        np.testing.assert_allclose(names["drawn_slots"](rows, scores, 4, progress, at.key), slots, atol=1e-4)


def test_drawn_slots_follow_the_mask_after_three_quarters():
    task = TASKS["features-xor"]
    names = ("recipe, mask then drawn slots", "recipe", "recipe, by drawn slots")
    trainers = [Trainer(task, METHODS[name], 100) for name in names]
    params, key = trainers[0].init(0)[0], jax.random.key(1)
    both, mask, slots = (jax.jit(trainer._loss) for trainer in trainers)
    for progress, alone in ((0.74, mask), (0.75, slots)):
        loss = both(params, 1.0, progress, key)
        np.testing.assert_allclose(loss, alone(params, 1.0, progress, key), rtol=1e-5)
    assert abs(mask(params, 1.0, 0.75, key) - loss) > 5e-5


ROWS = {name: {s["method"]: s for s in report.summary(result)} for name, result in RESULTS.items()}


def mean(task, method):
    return round(ROWS[task][method]["mean"], 3)


def standard_errors(task, method, other, rows=ROWS):
    """By how many standard errors of their difference `method` is ahead of `other`."""
    ours, theirs = rows[task][method], rows[task][other]
    return (ours["mean"] - theirs["mean"]) / (np.hypot(ours["error"], theirs["error"]) + 1e-9)


PRUNING = "pruned-transformer"
EIGHT = [task for task in ROWS if task != PRUNING]


def failed(method, tasks=EIGHT):
    """How many seeds failed, of how many, over all these tasks."""
    return tuple(sum(ROWS[task][method][name] for task in tasks) for name in ("failed", "seeds"))


def peers(task):
    return {name: s for name, s in ROWS[task].items() if name not in OURS}


def best_peer(task):
    return max(peers(task), key=lambda name: ROWS[task][name]["mean"])


def test_the_mask_is_level_with_the_best_peer_on_eight_tasks():
    for task in EIGHT:
        assert standard_errors(task, "recipe", best_peer(task)) > -1
    assert failed("recipe") == (0, 40)
    for task in ("marked-tokens", "features-additive"):
        assert standard_errors(task, "recipe", best_peer(task)) > 1
    additive = "features-additive"
    assert all(ROWS[additive]["recipe"]["worst"] > s["median"] for s in peers(additive).values())


def test_what_the_docs_say_of_the_pruned_transformer():
    rows, (mask, _, drawn_slots, plain_slots) = ROWS[PRUNING], report.FORMS
    assert (best_peer(PRUNING), mean(PRUNING, best_peer(PRUNING))) == ("Gumbel-sigmoid", 0.924)
    behind = [standard_errors(PRUNING, best_peer(PRUNING), form) for form in (mask, drawn_slots, plain_slots)]
    assert [round(x, 1) for x in behind] == [1.5, 1.3, 0.5]
    assert abs(standard_errors(PRUNING, mask, "threshold mask")) < 1
    for slots in (plain_slots, drawn_slots):
        assert abs(standard_errors(PRUNING, slots, mask)) < 1
    assert mean(PRUNING, "gated top k") == 0.779
    methods = ("gated top k", mask, "threshold mask", "Gumbel-sigmoid", drawn_slots, plain_slots)
    assert [rows[name]["failed"] for name in methods] == [6, 1, 2, 0, 0, 0]
    assert {rows[name]["seeds"] for name in methods} == {15}


def test_what_the_docs_say_of_the_pace():
    mask, drawn_slots = "recipe, sharp at two thirds", "recipe, by drawn slots, sharp at two thirds"
    assert max(ROWS[PRUNING], key=lambda name: mean(PRUNING, name)) == drawn_slots
    assert (mean(PRUNING, mask), mean(PRUNING, drawn_slots)) == (0.882, 0.926)
    for task in ("marked-tokens", "digits-256", "digits-1024", "selective-copying"):
        assert standard_errors(task, mask, "recipe") < 1
        assert standard_errors(task, drawn_slots, "recipe, by drawn slots") < 1
    assert (mean("digits-1024", mask), ROWS["digits-1024"][mask]["failed"]) == (0.677, 4)
    assert mean("marked-tokens", drawn_slots) == 0.691


def test_what_the_docs_say_of_drawn_slots():
    for task in ROWS:
        assert abs(standard_errors(task, "recipe, by drawn slots", "recipe, by slots")) <= 2
        for slots in ("recipe, by drawn slots", "recipe, by slots"):
            assert standard_errors(task, "recipe", slots) > -1
    assert ROWS["digits-256"]["recipe, by drawn slots"]["failed"] == 3
    second = "recipe, by drawn slots, second order"
    for task in ("marked-tokens", "digits-256", PRUNING):
        assert abs(standard_errors(task, second, "recipe, by drawn slots")) <= 2


def test_what_the_docs_say_of_the_mask_and_then_drawn_slots():
    both, mask, drawn_slots = "recipe, mask then drawn slots", "recipe", "recipe, by drawn slots"
    assert all(abs(standard_errors(task, both, mask)) < 1 for task in ROWS)
    assert {row["method"]: row["tuned_over"] for row in RESULTS[PRUNING]["rows"]}[both] == 1
    assert failed(both) == (ROWS["digits-1024"][both]["failed"], 40) == (1, 40)
    ahead = {task for task in ROWS if standard_errors(task, both, drawn_slots) > 1}
    chosen = {"marked-tokens", "digits-256", "selective-copying", "features-orange-skin", "features-additive"}
    assert ahead == chosen
    assert round(standard_errors(PRUNING, "recipe, by slots", both), 1) == 1.5
    assert (mean("selective-copying", both), mean("selective-copying", drawn_slots)) == (1.0, 0.702)


OVER_ALL = {
    name: {s["method"]: s for s in report.summary(result)}
    for name, result in report.with_all_seeds(ROOT / "benchmarks" / "results").items()
}


def test_what_the_docs_say_of_more_seeds():
    assert set(MORE) == set(EIGHT)
    peers = ("threshold mask", "gated top k")
    lead = {task: min(standard_errors(task, "recipe", peer, OVER_ALL) for peer in peers) for task in EIGHT}
    assert {task for task in EIGHT if lead[task] > 2} == {
        "marked-tokens",
        "features-additive",
        "features-switch",
    }
    assert {task for task in EIGHT if lead[task] < -1} == {"digits-256"}
    assert round(standard_errors("digits-256", "recipe", "threshold mask", OVER_ALL), 1) == -1.2
    fails = [sum(OVER_ALL[task][name]["failed"] for task in EIGHT) for name in ("recipe", *peers)]
    assert fails == [4, 5, 56]
    seeds = [*(OVER_ALL[task] for task in EIGHT), ROWS[PRUNING]]
    for name, failures in (("recipe, by slots", 13), ("recipe, by drawn slots", 17)):
        assert sum(rows[name]["failed"] for rows in seeds) == failures
        assert sum(rows[name]["seeds"] for rows in seeds) == 175
    assert sum(OVER_ALL[task]["recipe"]["seeds"] for task in EIGHT) == 160
    for task in set(EIGHT) - {"digits-1024"}:
        assert abs(OVER_ALL[task]["recipe"]["mean"] - mean(task, "recipe")) < 0.008
        assert OVER_ALL[task]["recipe"]["failed"] == 0
    marked = OVER_ALL["marked-tokens"]
    for name, score in (("recipe", 0.933), ("recipe, mask then drawn slots", 0.936)):
        assert (round(marked[name]["mean"], 3), marked[name]["failed"]) == (score, 0)
        assert abs(score - mean("marked-tokens", name)) < 0.005
        assert standard_errors("marked-tokens", name, "threshold mask", OVER_ALL) > 2


def test_further_seeds_are_trained_as_the_first_were():
    for task, more in MORE.items():
        assert {row["method"] for row in more["rows"]} == set(report.FURTHER)
        tuned = {row["method"]: (row["rate"], row["number"]) for row in RESULTS[task]["rows"]}
        assert all(tuned[row["method"]] == (row["rate"], row["number"]) for row in more["rows"])


def test_what_further_seeds_say_of_digits_among_1024():
    ahead, digits = partial(standard_errors, rows=OVER_ALL), OVER_ALL["digits-1024"]
    lower = {name: mean("digits-1024", name) - s["mean"] for name, s in digits.items()}
    assert lower.pop("recipe, 0.03 to 30") > 0.01
    assert all(by > 0.04 for by in lower.values())
    assert round(digits["recipe, 0.03 to 30"]["mean"], 3) == 0.861
    # Without seeds 5 to 9, on which the softer schedule was chosen.
    first, further = ({row["method"]: row for row in x["digits-1024"]["rows"]} for x in (RESULTS, MORE))
    others = {
        name: [run[-1] for run in first[name]["score"] + further[name]["score"][5:]]
        for name in ("recipe, 0.03 to 30", "recipe")
    }
    softer, recipe = map(np.array, others.values())
    lead = softer.mean() - recipe.mean()
    assert (len(recipe), round(lead, 3)) == (15, 0.034)
    assert lead < np.hypot(softer.std(ddof=1), recipe.std(ddof=1)) / 15**0.5
    told = {"recipe": (0.802, 4), "threshold mask": (0.836, 3), "gated top k": (0.763, 9)}
    assert {name: (round(digits[name]["mean"], 3), digits[name]["failed"]) for name in told} == told
    assert abs(ahead("digits-1024", "recipe", "threshold mask")) < 1
    assert 0 < ahead("digits-1024", "recipe", "gated top k") < 1


def test_what_the_docs_say_of_the_peers_over_all_tasks():
    assert [best_peer(task) for task in EIGHT].count("gated top k") == 5
    assert best_peer("digits-256") == "SIMPLE"
    fails = {name: failed(name)[0] for name in peers("marked-tokens")}
    assert all(failed(name)[1] == 40 for name in fails)
    told = {"gated top k": 13, "threshold mask": 0, "Gumbel-sigmoid": 6, "SIMPLE": 10}
    assert {name: fails.pop(name) for name in told} == told
    assert min(fails.values()) == 8
    behind = ("marked-tokens", "features-additive", "features-switch", "features-orange-skin")
    assert [mean(task, "threshold mask") for task in behind] == [0.873, 0.878, 0.804, 0.747]


def test_what_the_docs_say_of_a_random_choice():
    over = {
        task: round(ROWS[task]["random choice"]["mean"] - RESULTS[task]["settings"]["chance"], 2)
        for task in EIGHT
    }
    features = {over.pop(f"features-{name}") for name in ("orange-skin", "additive", "switch")}
    assert features == {0.19, 0.20}
    assert max(abs(over[task]) for task in ("digits-256", "digits-1024", "features-xor")) <= 0.01
    assert max(map(abs, over.values())) == 0.04


def test_what_the_docs_say_of_the_parts_of_the_recipe():
    marked, digits = "marked-tokens", "digits-1024"
    xor, orange, switch, additive = (
        f"features-{name}" for name in ("xor", "orange-skin", "switch", "additive")
    )
    assert [ROWS[task]["recipe, Relative"]["failed"] for task in (marked, digits)] == [0, 2]
    behind = [round(mean(task, "recipe") - mean(task, "recipe, Relative"), 3) for task in (orange, switch)]
    assert behind == [0.009, 0.0]
    assert ROWS[digits]["recipe, 0.5 to 16"]["failed"] == 4
    softer = {PRUNING: (0.807, 0.888), switch: (0.871, 0.878), additive: (0.942, 0.950), xor: (0.627, 0.630)}
    assert {task: (mean(task, "recipe, 0.03 to 30"), mean(task, "recipe")) for task in softer} == softer
    for task in set(ROWS) - set(softer):
        assert abs(standard_errors(task, "recipe, 0.03 to 30", "recipe")) < 1
    assert (mean(switch, "recipe, no noise"), mean(switch, "recipe")) == (0.793, 0.878)
    assert (mean(additive, "recipe, no noise"), mean(additive, "recipe")) == (0.940, 0.950)
    for task in set(EIGHT) - {switch, additive}:
        assert abs(standard_errors(task, "recipe", "recipe, no noise")) <= 2
    whole = {"digits-256": (0.803, 0.946), additive: (0.934, 0.950)}
    assert {task: (mean(task, "recipe, standardised"), mean(task, "recipe")) for task in whole} == whole
    for task in set(ROWS) - set(whole):
        assert abs(standard_errors(task, "recipe, standardised", "recipe")) <= 2
    for task in EIGHT:
        for other in ("recipe, scores x 1000", "recipe, scores + 100"):
            near = abs(standard_errors(task, "recipe", other)) <= 2
            assert near or (task, abs(mean(task, "recipe") - mean(task, other)) < 0.004) == (xor, True)
        ahead = standard_errors(task, "recipe", "threshold mask, by the recipe")
        assert (ahead > 2, ahead < -2) == (task in (marked, additive), task == switch)
    assert (mean(marked, "recipe"), mean(marked, "threshold mask, by the recipe")) == (0.937, 0.896)
    assert mean(additive, "threshold mask, by the recipe") == 0.948
    assert failed("threshold mask, by the recipe") == (1, 40)
    assert ROWS[digits]["threshold mask, by the recipe"]["failed"] == 1
    assert (mean(switch, "recipe"), mean(switch, "threshold mask, by the recipe")) == (0.878, 0.883)


def test_what_the_docs_say_of_each_task():
    copying = ROWS["selective-copying"]
    assert copying["recipe"]["worst"] == 1
    perfect = {name: s["steps"] for name, s in peers("selective-copying").items() if s["worst"] == 1}
    assert set(perfect) == {"threshold mask", "Gumbel-sigmoid"}
    assert (copying["recipe"]["steps"], set(perfect.values())) == (105, {210})
    assert round(copying["recipe, by slots"]["mean"], 2) == 0.67
    order = ("threshold mask", "recipe", "attention", "gated top k")
    assert [mean("digits-256", name) for name in order] == [0.960, 0.946, 0.802, 0.578]
    order = ("recipe", "gated top k", "threshold mask", "attention")
    assert [mean("digits-1024", name) for name in order] == [0.929, 0.902, 0.895, 0.716]
    assert max(ROWS["digits-1024"], key=lambda name: mean("digits-1024", name)) == "recipe"


def test_what_the_docs_say_of_the_default_boost_in_training():
    told = {}
    for task in EIGHT:
        ahead = standard_errors(task, "recipe, Relative", "recipe, geometric quantile")
        told[task] = "ahead" if ahead > 1 else "behind" if ahead < -1 else "level"
    # By 1.02 standard errors on the last.
    won = {"marked-tokens", "digits-256", "features-orange-skin", "features-xor"}
    assert {task for task, said in told.items() if said == "ahead"} == won
    assert {task for task, said in told.items() if said == "behind"} == {"features-additive"}
    names = ("recipe, geometric quantile", "recipe, Relative")
    assert [mean("digits-256", name) for name in names] == [0.879, 0.963]
    assert [mean("marked-tokens", name) for name in names] == [0.795, 0.937]
    assert [mean("features-orange-skin", name) for name in names] == [0.799, 0.814]
    assert [mean("features-xor", name) for name in names] == [0.614, 0.629]
    assert [mean("features-additive", name) for name in names] == [0.949, 0.942]


def test_what_the_docs_say_of_candidates_in_training():
    narrow = ["recipe, candidates=8k", "recipe, candidates=4k"]
    assert [mean("marked-tokens", name) for name in ("recipe", *narrow)] == [0.937, 0.767, 0.577]
    assert [ROWS["digits-1024"][name]["failed"] for name in ("recipe", *narrow)] == [0, 3, 2]
    level = [(task, name) for task in ("digits-256", "selective-copying") for name in narrow]
    for task, name in [*level, ("pruned-transformer", narrow[1])]:
        assert abs(standard_errors(task, name, "recipe")) <= 2
    measured = {task for task in ROWS if set(narrow) & set(ROWS[task])}
    assert len(measured) == 5


def test_what_the_docs_say_of_shortcuts_from_the_first_step():
    fails = {task: ROWS[task]["Relative, straight-through"]["failed"] for task in EIGHT}
    assert [fails[task] for task in ("selective-copying", "marked-tokens")] == [5, 3]
    assert [fails[task] for task in ("features-orange-skin", "digits-256", "digits-1024")] == [4, 4, 4]
    last = [
        task
        for task, rows in ((task, ROWS[task]) for task in EIGHT)
        if "Relative, straight-through" in sorted(rows, key=lambda name: rows[name]["mean"])[:5]
    ]
    assert (len(last), len(EIGHT)) == (3, 8)
