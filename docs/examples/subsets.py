"""A policy that picks subsets: choose 5 of 32 advisers, and learn only whether their vote was right.

Each adviser has six features, and is right with a probability that is an unknown function of two of them. A policy
scores the advisers of an episode and picks five. They vote on a question of yes or no, and the reward is 1 if the
majority is right. The single votes are not shown. So the reward belongs to the subset, and has no gradient.

Five ways to learn share the network that scores, and the number of subsets or votes that they are given:

- `Selection.log_prob`: subsets drawn by `Selection.sample`, a policy gradient by their log-probability;
- the same with the entropy of the selection as a bonus, which keeps it from settling early;
- the same with the sharpness of `anneal` in place of one that the network sets by the size of its scores;
- the Gumbel top k, a policy gradient by the log-probability of the order in which the five came out;
- the soft recipe, which is shown each adviser's vote, and has a loss with a gradient.

The better of two learning rates is found on seeds of its own. Five fresh seeds are then evaluated with the five best
scores. A table and a picture, in two minutes on two cores:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/subsets.py
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

import shtopk

N, K, FEATURES = 32, 5, 6  # advisers, how many are picked, what is known of each
BATCH, DRAWS, HELD_OUT = 32, 4, 2048  # episodes in a step, subsets tried in each, episodes to evaluate on
STEPS, SEEDS = 600, 5  # training steps, a multiple of CURVE, and models trained for each way
RATES = (1e-3, 3e-3)
CURVE = 20  # how many times a training is evaluated


# Task
class Episodes(NamedTuple):
    advisers: jax.Array  # (batch, 32, 6)
    right: jax.Array  # (batch, 32), the probability that each is right


@partial(jax.jit, static_argnames="batch")
def draw_episodes(key, batch):
    advisers = jax.random.normal(key, (batch, N, FEATURES))
    return Episodes(advisers, 0.5 + 0.3 * jnp.tanh(advisers[..., 0] * advisers[..., 1]))


def rewards(key, right, subsets):
    """Whether the majority of each subset `(draws, batch, 5)` was right: 1 or 0, `(draws, batch)`."""
    right = jnp.take_along_axis(right[None], subsets, axis=-1)
    return (jax.random.bernoulli(key, right).sum(axis=-1) > K // 2).astype(jnp.float32)


# Policies: from scores (batch, 32), progress and a key to subsets (draws, batch, 5), their log-probabilities and
# entropy, (draws, batch) and (batch,).
def by_selection(scores, progress, key):
    return drawn(scores, shtopk.Scaled(1.0), key)


def by_annealed_selection(scores, progress, key):
    return drawn(*shtopk.anneal(scores, progress), key)


def drawn(scores, boost, key):
    selection = shtopk.select(scores, K, boost=boost)
    subsets = jax.vmap(selection.sample)(jax.random.split(key, DRAWS))
    return subsets, selection.log_prob(subsets), selection.entropy()


def by_gumbel(scores, progress, key):
    noisy = scores + jax.random.gumbel(key, (DRAWS, *scores.shape))
    subsets = jax.lax.top_k(noisy, K)[1]
    chosen = jnp.take_along_axis(scores[None], subsets, axis=-1)
    taken = jax.nn.one_hot(subsets, N).cumsum(axis=-2) - jax.nn.one_hot(subsets, N)  # by the places before
    left = jax.nn.logsumexp(jnp.where(taken > 0, -jnp.inf, scores[None, :, None]), axis=-1)
    return subsets, (chosen - left).sum(axis=-1), jnp.zeros(len(scores))


# Losses, from scores (batch, 32), the probabilities right, the bonus for entropy, progress and a key.
def policy_gradient(policy):
    def loss(scores, right, bonus, progress, key):
        draw_key, vote_key = jax.random.split(key)
        subsets, log_prob, entropy = policy(scores, progress, draw_key)
        reward = rewards(vote_key, right, subsets)
        # The baseline is what the episode's other subsets won.
        others = (reward.sum(axis=0) - reward) / (DRAWS - 1)
        return -jnp.mean((reward - others) * log_prob) - bonus * jnp.mean(entropy)

    return loss


def soft(scores, right, bonus, progress, key):
    noise_key, vote_key = jax.random.split(key)
    scores, boost = shtopk.anneal(scores, progress, noise_key)
    votes = 2.0 * jax.random.bernoulli(vote_key, right, (DRAWS, *right.shape)) - 1
    margin = jnp.sum(shtopk.topk_mask(scores, K, boost=boost) * votes, axis=-1)
    return jnp.mean(jax.nn.softplus(-margin))


selected = policy_gradient(by_selection)
WAYS = {  # the loss, and the bonus for entropy
    "log_prob": (selected, 0.0),
    "log_prob, entropy": (selected, 0.01),
    "log_prob, annealed": (policy_gradient(by_annealed_selection), 0.0),
    "Gumbel top k": (policy_gradient(by_gumbel), 0.0),
    "soft recipe": (soft, 0.0),
}


# Training and evaluation
class Scorer(nn.Module):
    @nn.compact
    def __call__(self, advisers):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(nn.relu(nn.Dense(32)(advisers)))))[..., 0]


def majority_right(right):
    """The probability that more than half of five, right with these probabilities `(..., 5)`, are right."""
    count = jnp.zeros((*right.shape[:-1], K + 1)).at[..., 0].set(1.0)
    for voter in range(K):
        p = right[..., voter, None]
        count = (1 - p) * count + p * jnp.roll(count, 1, axis=-1)  # the last is 0 before the roll
    return count[..., K // 2 + 1 :].sum(axis=-1)


@partial(jax.jit, static_argnames=("loss", "steps"))
def train(loss, steps, held_out, bonus, rate, seeds):
    """The expected reward on held-out episodes, with the five best scores, `CURVE + 1` times over each training."""
    return jax.vmap(partial(train_one, loss, steps, held_out, bonus, rate))(seeds)


def train_one(loss, steps, held_out, bonus, rate, seed):
    model, key = Scorer(), jax.random.key(seed)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def objective(params, step):
        data_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
        advisers, right = draw_episodes(data_key, BATCH)
        return loss(model.apply(params, advisers), right, bonus, step / steps, loss_key)

    def update(carry, step):
        params, state = carry
        updates, state = optimiser.update(jax.grad(objective)(params, step), state)
        return (optax.apply_updates(params, updates), state), None

    def evaluate(params):
        best = shtopk.hard_topk(held_out.right, model.apply(params, held_out.advisers), K)
        return majority_right(best.embeddings).mean()

    def stretch(carry, steps):
        reward = evaluate(carry[0])
        return jax.lax.scan(update, carry, steps)[0], reward

    params = model.init(key, held_out.advisers)
    carry = params, optimiser.init(params)
    (params, _), curve = jax.lax.scan(stretch, carry, jnp.arange(steps).reshape(CURVE, -1))
    return jnp.append(curve, evaluate(params))


def compare(steps, seeds, held_out):
    rows = {}
    for name, (loss, bonus) in WAYS.items():
        learn = partial(train, loss, steps, held_out, bonus)
        tuning = [float(learn(rate, 1000 + jnp.arange(seeds))[:, -1].mean()) for rate in RATES]
        rate = RATES[int(np.argmax(tuning))]
        curves = np.asarray(learn(rate, 1 + jnp.arange(seeds)))
        rows[name] = {
            "rate": rate,
            "tuning": tuning,
            "reward": float(curves[:, -1].mean()),
            "standard_error": float(curves[:, -1].std(ddof=1) / seeds**0.5),
            "curves": curves.round(4).tolist(),
        }
        reward, error = rows[name]["reward"], rows[name]["standard_error"]
        print(f"{name:20}{reward:10.3f} ± {error:.3f}   rate {rate:g}", flush=True)
    return rows


def limits(right):
    """The expected reward of five at random, and of the five that are right most often."""
    best = shtopk.hard_topk(right, right, K).embeddings
    return {"random": float(majority_right(right[:, :K]).mean()), "best": float(majority_right(best).mean())}


# Picture
def draw_picture(rows, bounds, steps, path):
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    at = np.linspace(0, steps, CURVE + 1)
    for (name, row), colour in zip(
        rows.items(), ("#0072b2", "#56b4e9", "#999999", "#d55e00", "#009e73"), strict=True
    ):
        curves = np.array(row["curves"])
        ax.plot(at, curves.mean(axis=0), color=colour, label=name)
        ax.fill_between(at, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, lw=0)
    for name, level in bounds.items():
        ax.axhline(level, color="0.5", lw=1, ls=":")
        ax.annotate(name, (steps, level), (-2, 3), textcoords="offset points", ha="right", color="0.4")
    ax.set(xlabel="training step", ylabel="held-out votes right, by the five best scores")
    ax.margins(x=0.01)
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.2))  # above `random`
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description="Learn to pick a subset from its reward alone.")
    parser.add_argument("--out", type=Path, default="subsets.png", help="picture; a .json beside it")
    parser.add_argument(
        "--quick", action="store_true", help="train for a few steps only, to see that it runs"
    )
    args = parser.parse_args()
    steps, seeds = (CURVE, 2) if args.quick else (STEPS, SEEDS)
    held_out = draw_episodes(jax.random.key(0), 64 if args.quick else HELD_OUT)
    bounds = limits(held_out.right)
    print(f"{'random':20}{bounds['random']:10.3f}\n{'best':20}{bounds['best']:10.3f}")
    rows = compare(steps, seeds, held_out)
    settings = {"steps": steps, "seeds": seeds, "episodes": BATCH, "draws": DRAWS}
    settings |= {"jax": jax.__version__, "backend": jax.default_backend()}
    results = {"settings": settings, "limits": bounds, "ways": rows}
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw_picture(rows, bounds, steps, args.out)


if __name__ == "__main__":
    main()
