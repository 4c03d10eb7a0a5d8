"""Every way to choose that the training benchmark compares, with the numbers each is tuned over."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

import shtopk
from benchmarks.boosts import COMPROMISE, FAMILIES, by_gaps_as_played
from benchmarks.learning import drawn, peers

SWITCH = 0.75  # the progress at which the second of two methods takes over


class Method(NamedTuple):
    """`choose` as in `peers`; `hard_weights(scores (b, k), number, k)` at hard evaluation, 1 if None.

    `logs` is `choose` with the logs of its weights, where the log of what it gives is not finite. `first` names the
    method that trains until `SWITCH`, if that is another. `tuned_as` names the method whose rate and number this one
    takes, if it is not tuned itself: a part of the recipe is judged at the recipe's own rate.
    """

    choose: Callable
    numbers: tuple = (1.0,)
    hard_weights: Callable | None = None
    logs: Callable | None = None
    first: str | None = None
    tuned_as: str | None = None

    def choose_log(self, *args):
        """The rows and the logs of their weights."""
        if self.logs is not None:
            return self.logs(*args)
        rows, weights = self.choose(*args)
        return rows, jnp.log(weights)


def annealed(first, last, progress):
    return first * (last / first) ** progress


def slots(out):
    return out.embeddings, jnp.ones(out.scores.shape)


def recipe(
    boost=shtopk.Scaled,
    sharpness=(0.1, 100.0),
    noise=0.5,
    before=lambda scores: scores,
    narrow=None,
    log=False,
):
    """The documented recipe: every row weighed by the soft mask, soft at first and sharp at the end.

    Or with one thing changed: a part of it, the scores of the network `before` it, or `narrow` times k candidates.
    """

    def choose(embeddings, scores, k, at):
        best = narrow and min(scores.shape[-1], narrow * k)
        scores, scaled = shtopk.anneal(before(scores), at.progress, at.key, noise=noise, sharpness=sharpness)
        mask = shtopk.topk_mask(scores, k, boost=boost(scaled.sharpness), candidates=best, log=log)
        return embeddings, mask

    return choose


def standardised(scores):
    """The scores in units of their spread over the batch, as in `anneal`, but differentiated through the spread."""
    return jax.nn.standardize(scores, axis=None, epsilon=1e-12)


def recipe_by_slots(embeddings, scores, k, at, straight_through=False):
    """The same, the rows folded into k slots."""
    scores, boost = shtopk.anneal(scores, at.progress, at.key)
    out = shtopk.topk(embeddings, scores, k, boost=boost, straight_through=straight_through, order="position")
    return slots(out)


def recipe_by_drawn_slots(draw=lambda progress: progress, pooled=drawn.first_order):
    """The same, each slot moved the part `draw(progress)` of the way to one of its rows, drawn by weight."""

    def choose(embeddings, scores, k, at):
        scores, boost = shtopk.anneal(scores, at.progress, at.key)
        key = jax.random.fold_in(at.key, 1)
        return pooled(embeddings, scores, k, boost, draw(at.progress), key), jnp.ones((len(scores), k))

    return choose


def sharp_early(choose):
    """The same, its progress done after two thirds of the training."""
    return lambda embeddings, scores, k, at: choose(
        embeddings, scores, k, at._replace(progress=jnp.minimum(1.0, 1.5 * at.progress))
    )


def geometric(sharpness):
    """The frontier's best compromise, against which `Relative` has to hold its own in training."""
    family, _, number = COMPROMISE
    return FAMILIES[family][0](sharpness, number)


def threshold_by_recipe(embeddings, scores, k, at, of=jax.nn.sigmoid):
    """The recipe around a peer's mask: how much of it is the operator's."""
    scores, boost = shtopk.anneal(scores, at.progress, at.key)
    return peers.threshold_mask(embeddings, scores, k, at._replace(number=1 / boost.sharpness), of)


def relative(sharpness, straight_through=False):
    """`Relative`, its sharpness by `sharpness(at)`."""

    def choose(embeddings, scores, k, at):
        out = shtopk.topk(
            embeddings,
            scores,
            k,
            boost=shtopk.Relative(sharpness(at)),
            order="position",
            straight_through=straight_through,
        )
        return slots(out)

    return choose


def as_published(embeddings, scores, k, at):
    boost, scores = shtopk.Power(at.number), jax.nn.sigmoid(scores)
    return slots(shtopk.topk(embeddings, scores, k, boost=boost, reseed=True, order="position"))


def iterative(alpha):
    return lambda embeddings, scores, k, at: slots(
        shtopk.iterative_topk(embeddings, scores, k, alpha=alpha(at))
    )


def by_recipe(**changed):
    """The recipe with what is `changed`, by the mask and by its log."""
    tuned_as = "recipe" if changed else None
    return Method(recipe(**changed), logs=recipe(**changed, log=True), tuned_as=tuned_as)


def drawn_otherwise(choose):
    """The recipe by drawn slots with one thing changed."""
    return Method(choose, tuned_as="recipe, by drawn slots")


def mask_then(choose):
    """The recipe by the mask, and by `choose` at the end."""
    return Method(choose, first="recipe", tuned_as="recipe")


def by_gate(choose):
    """A method whose k rows have gates, at hard evaluation as well."""
    return Method(choose, (1.0, 3.0), lambda scores, number, k: jax.nn.sigmoid(number * scores))


def by_threshold(choose, numbers=(0.3, 1.0), tuned_as=None):
    """A method that weighs rows by a mask about a threshold, or by the log of this mask."""
    return Method(choose, numbers, logs=partial(choose, of=jax.nn.log_sigmoid), tuned_as=tuned_as)


def schedule(at):
    return annealed(0.5, at.number, at.progress)


METHODS = {
    "recipe": by_recipe(),
    "recipe, mask then slots": mask_then(recipe_by_slots),
    "recipe, mask then drawn slots": mask_then(recipe_by_drawn_slots()),
    "recipe, by slots": Method(recipe_by_slots),
    "recipe, straight-through": Method(
        partial(recipe_by_slots, straight_through=True), tuned_as="recipe, by slots"
    ),
    "recipe, by drawn slots": Method(recipe_by_drawn_slots()),
    "recipe, by drawn slots, second order": drawn_otherwise(recipe_by_drawn_slots(pooled=drawn.second_order)),
    "recipe, drawn outright": drawn_otherwise(recipe_by_drawn_slots(jnp.ones_like)),
    "recipe, sharp at two thirds": Method(
        sharp_early(recipe()), logs=sharp_early(recipe(log=True)), tuned_as="recipe"
    ),
    "recipe, by drawn slots, sharp at two thirds": drawn_otherwise(sharp_early(recipe_by_drawn_slots())),
    "recipe, no noise": by_recipe(noise=0.0),
    "recipe, 0.5 to 16": by_recipe(sharpness=(0.5, 16.0)),
    "recipe, 0.03 to 30": by_recipe(sharpness=(0.03, 30.0)),
    "recipe, standardised": by_recipe(before=standardised),
    "recipe, candidates=8k": by_recipe(narrow=8),
    "recipe, candidates=4k": by_recipe(narrow=4),
    "recipe, Relative": by_recipe(boost=shtopk.Relative, sharpness=(0.05, 16.0)),
    "recipe, geometric quantile": by_recipe(boost=geometric, sharpness=(0.05, 16.0)),
    "recipe, gaps as played": by_recipe(
        boost=partial(by_gaps_as_played, constant=True), sharpness=(0.05, 16.0)
    ),
    "recipe, gaps as played, unit differentiated": by_recipe(
        boost=partial(by_gaps_as_played, constant=False), sharpness=(0.05, 16.0)
    ),
    "recipe, scores x 1000": by_recipe(before=lambda scores: 1000 * scores),
    "recipe, scores + 100": by_recipe(before=lambda scores: scores + 100),
    "Relative, fixed": Method(relative(lambda at: at.number), (2.0, 6.0)),
    "Relative, annealed": Method(relative(schedule), (8.0, 16.0)),
    "Relative, learned": Method(relative(lambda at: at.number * jnp.exp(at.learned)), (0.5, 2.0)),
    "Relative, straight-through": Method(relative(lambda at: at.number, straight_through=True), (2.0, 6.0)),
    "as published, Power": Method(as_published, (5.0, 20.0)),
    "gated top k": by_gate(peers.gated),
    "gated top k, noisy": by_gate(peers.noisy_gated),
    "softmax straight-through": Method(peers.softmax_straight_through, (0.3, 1.0)),
    "Gumbel straight-through": Method(peers.gumbel_straight_through, (0.3, 1.0)),
    "SIMPLE": Method(peers.simple, (0.3, 1.0)),
    "Gumbel-sigmoid": by_threshold(peers.gumbel_sigmoid),
    "noise gate": by_threshold(peers.noise_gate),
    "random choice": Method(peers.random_choice),
    "attention": Method(peers.attention, (0.3, 1.0), lambda v, number, k: k * jax.nn.softmax(v / number)),
    "soft sort": Method(peers.softsort, (0.3, 1.0)),
    "threshold mask": by_threshold(peers.threshold_mask),
    "threshold mask, by the recipe": by_threshold(threshold_by_recipe, (1.0,), tuned_as="recipe"),
    "perturbed top k": Method(peers.perturbed, (0.3, 1.0)),
    "iterative": Method(iterative(lambda at: at.number), (1.0, 3.0)),
    "iterative, annealed": Method(iterative(lambda at: annealed(0.1, at.number, at.progress)), (10.0, 50.0)),
}
# Methods that are measured on a model that adds the logs of their weights to its attention.
BY_LOGS = [
    "recipe",
    "recipe, mask then slots",
    "recipe, mask then drawn slots",
    "recipe, by slots",
    "recipe, straight-through",
    "recipe, by drawn slots",
    "recipe, by drawn slots, second order",
    "recipe, drawn outright",
    "recipe, sharp at two thirds",
    "recipe, 0.03 to 30",
    "recipe, standardised",
    "recipe, candidates=4k",
    "recipe, by drawn slots, sharp at two thirds",
    "Relative, straight-through",
    "gated top k",
    "gated top k, noisy",
    "Gumbel-sigmoid",
    "noise gate",
    "threshold mask",
    "threshold mask, by the recipe",
    "random choice",
]
# Methods that the slowest task leaves out.
LEFT_OUT = {
    "digits-1024": [
        "recipe, straight-through",
        "recipe, by drawn slots, second order",
        "recipe, drawn outright",
        "recipe, gaps as played",
        "recipe, gaps as played, unit differentiated",
        "gated top k, noisy",
        "softmax straight-through",
        "Gumbel straight-through",
        "SIMPLE",
    ],
}
OURS = [name for name in METHODS if "recipe" in name or "Relative" in name or "Power" in name]
