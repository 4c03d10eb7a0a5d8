"""Training one task by one method: tuned first, then on fresh seeds."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks import records
from benchmarks.learning.methods import METHODS, SWITCH
from benchmarks.learning.peers import Moment, best
from benchmarks.peers import rows

RATES = (2e-3, 5e-3)
SEGMENTS = 20  # evaluations over a run
TUNING_SEED = 100
HELD_OUT = 16  # batches to evaluate on
RUNS = ("score", "recall", "loss", "largest_norm")  # what a row has of each run


class Trainer:
    """A task and a method, compiled once; rates, numbers and seeds are traced."""

    def __init__(self, task, method, steps):
        self.task, self.method, self.steps = task, method, steps
        self.choose = self._way(method)
        self.first = None if method.first is None else self._way(METHODS[method.first])
        self.model = task.model()
        self.held_out = task.draw(jax.random.key(10**6), HELD_OUT * task.batch, held_out=True)
        self.adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
        self.warm_up = optax.warmup_cosine_decay_schedule(0, 1, steps // 15, steps)
        self.init = jax.jit(self._init)
        self.segment = jax.jit(self._segment)

    def run(self, rate, number, seed, progress):
        """The history of one run: a dict of lists, one entry for each segment."""
        state, history = self.init(seed), []
        for part in range(SEGMENTS):
            state, seen = self.segment(state, rate, number, seed, part)
            history.append({name: float(x) for name, x in seen.items()})
            progress.update()
        return {name: [seen[name] for seen in history] for name in history[0]}

    def _way(self, method):
        return method.choose_log if self.task.reads_logs else method.choose

    def _init(self, seed):
        params = self.model.init(jax.random.key(seed), self.held_out[0][:1], self.task.k)
        return params, self.adam.init(params)

    def _segment(self, state, rate, number, seed, part):
        each = self.steps // SEGMENTS
        step = partial(self._step, rate=rate, number=number, key=jax.random.key(seed, impl="rbg"))
        state, (losses, norms) = lax.scan(step, state, part * each + jnp.arange(each))
        score, recall = self._evaluate(state[0], number)
        seen = {"score": score, "recall": recall, "loss": losses.mean(), "largest_norm": norms.max()}
        return state, seen

    def _step(self, state, step, *, rate, number, key):
        params, moments = state
        loss, gradient = jax.value_and_grad(self._loss)(
            params, number, step / self.steps, jax.random.fold_in(key, step + 1)
        )
        updates, moments = self.adam.update(gradient, moments)
        updates = jax.tree.map(lambda x: -rate * self.warm_up(step) * x, updates)
        return (optax.apply_updates(params, updates), moments), (loss, optax.global_norm(gradient))

    def _loss(self, params, number, progress, key):
        data_key, key = jax.random.split(key)
        x, _, answer = self.task.draw(data_key, self.task.batch, held_out=False)
        embeddings, scores = self.model.apply(params, x, method="reading")
        at = Moment(number, progress, params["params"]["learned"], key)

        def loss(choose):
            chosen = choose(embeddings, scores, self.task.k, at)
            return self.task.loss(self.model.apply(params, *chosen, method="answering"), answer)

        if self.first is None:
            return loss(self.choose)
        return lax.cond(progress < SWITCH, partial(loss, self.first), partial(loss, self.choose))

    def _evaluate(self, params, number):
        """Score and recall on held-out data, of the k best rows outright."""
        x, right, answer = self.held_out
        embeddings, scores = self.model.apply(params, x, method="reading")
        index = best(scores, self.task.k)
        weights = jnp.ones(index.shape)
        if self.method.hard_weights is not None:
            weights = self.method.hard_weights(rows(scores, index), number, self.task.k)
        if self.task.reads_logs:
            weights = jnp.log(weights)
        out = self.model.apply(params, rows(embeddings, index), weights, method="answering")
        return self.task.score(out, answer), rows(right, index).mean()


def configurations(name):
    """What a method is tuned over: pairs of a rate and its own number."""
    return [(rate, number) for rate in RATES for number in METHODS[name].numbers]


def measure(task, name, steps, seeds, progress, grid):
    """The row of one task and method: which of the configurations `grid` tuning chose, and the runs of it."""
    trainer = Trainer(task, METHODS[name], steps)
    tuning = [trainer.run(*config, TUNING_SEED, progress) for config in grid if len(grid) > 1]
    chosen = max(range(len(tuning)), key=lambda i: tuning[i]["score"][-1], default=0)
    runs = [trainer.run(*grid[chosen], seed, progress) for seed in seeds]
    return {
        "method": name,
        "rate": grid[chosen][0],
        "number": grid[chosen][1],
        "steps": steps // SEGMENTS * SEGMENTS,
        **{name: [[records.rounded(x, 4) for x in run[name]] for run in runs] for name in RUNS},
    }
