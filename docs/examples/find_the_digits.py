"""Find the digits: learn where to look from the answer alone.

Eight handwritten digits are scattered over a canvas of 16 x 16 patches. The other 248 patches are clutter:
crops that straddle four digits, quarters of digits put together wrongly, digits with their pixels shuffled,
blanks. The question is which of the ten digits are there, and its answer is all that a model learns from.

A small network scores every patch. `shtopk.topk` folds the 256 patches into k = 8 slots, and the answer comes from the
slots. `shtopk.anneal` makes the selection soft at first, so that every patch gets a share of the gradient, and sharp at
the end. Slots begin as mixtures of patches and end as single patches. After training, the model reads the 8 best
patches alone (`shtopk.hard_topk`). Two baselines share all code but the selection: attention with 8 heads, which pools
as many slots, and 8 random patches. A table and a picture, both for held-out digits, take two minutes on two cores:

    pip install -e '.[examples]'    # in a clone of shtopk
    python docs/examples/find_the_digits.py
"""

import argparse
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from matplotlib.patches import Patch, Rectangle
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import shtopk

SIDE, PIXELS = 16, 8  # a canvas is 16 x 16 patches of 8 x 8 pixels
N, K = SIDE * SIDE, 8  # candidates and slots; there are as many digits on a canvas as slots
BATCH, HELD_OUT = 32, 512  # canvases in a training step, and to evaluate on
STEPS, SEED = 1500, 0  # training steps of each method; of the parameters and the training canvases


# Data
class Split(NamedTuple):
    """What canvases are made of."""

    digits: jax.Array  # (m, 64)
    labels: jax.Array  # (m,), 0 to 9
    clutter: jax.Array  # (c, 64)


def load_splits():
    """A split to train on and one to evaluate on, with no digit in common, not even in the clutter."""
    data, rng = load_digits(), np.random.default_rng(0)
    images = (data.images / data.images.max()).astype(np.float32)
    parts = train_test_split(images, data.target, test_size=0.2, stratify=data.target, random_state=0)
    for digits, labels in (parts[0::2], parts[1::2]):
        clutter = make_clutter(digits, 20_000, rng)
        yield Split(*map(jnp.asarray, (digits.reshape(-1, PIXELS**2), labels, clutter)))


def make_clutter(images, count, rng):
    """Clutter `(count, 64)` from `images` `(m, 8, 8)`: of the same ink, so brightness tells little."""
    each, half = np.arange(count)[:, None], PIXELS // 2
    four = images[rng.integers(len(images), size=(count, 4))]  # (count, 4, 8, 8)
    rows, columns = rng.integers(2, PIXELS - 1, size=(2, count, 1)) + np.arange(PIXELS)  # (count, 8) each
    straddling = tile(four)[each[..., None], rows[:, :, None], columns[:, None, :]]
    quarters = four.reshape(count, 4, 2, half, 2, half).swapaxes(3, 4).reshape(count, 4, 4, half, half)
    corners = (np.arange(4) + rng.integers(1, 4, size=(count, 1))) % 4  # none stays where it was
    misplaced = tile(quarters[each, np.arange(4), corners])
    shuffled = rng.permuted(four[:, 0].reshape(count, -1), axis=1).reshape(count, PIXELS, PIXELS)
    kind = rng.choice(4, size=(count, 1, 1), p=[0.4, 0.2, 0.2, 0.2])
    return np.choose(kind, [straddling, misplaced, shuffled, np.zeros_like(shuffled)]).reshape(count, -1)


def tile(pieces):
    """Lay out `(..., s * s, p, p)` as one square `(..., s * p, s * p)`."""
    *lead, count, p, _ = pieces.shape
    s = round(count**0.5)
    return pieces.reshape(*lead, s, s, p, p).swapaxes(-3, -2).reshape(*lead, s * p, s * p)


@partial(jax.jit, static_argnames="batch")
def draw_canvases(split, key, batch):
    """Patches `(batch, 256, 64)`, which of them are digits `(batch, 256)`, the answers `(batch, 10)`."""
    digit_key, clutter_key, cell_key = jax.random.split(key, 3)
    digit = jax.random.randint(digit_key, (batch, K), 0, len(split.digits))
    clutter = jax.random.randint(clutter_key, (batch, N - K), 0, len(split.clutter))
    patches = jnp.concatenate([split.digits[digit], split.clutter[clutter]], axis=1)
    cells = jnp.broadcast_to(jnp.arange(N), (batch, N))
    cells = jax.random.permutation(cell_key, cells, axis=1, independent=True)
    present = (split.labels[digit][..., None] == jnp.arange(10)).any(axis=1)
    return jnp.take_along_axis(patches, cells[..., None], axis=1), cells < K, present


# Model
class Finder(nn.Module):
    """Score every patch, let `select` make slots of them, answer from the slots.

    Takes patches `(batch, 256, 64)`. Returns the log-probabilities `(batch, 10)` that a digit is absent, and
    the ranking `(batch, 256)` of the patches that the selection went by.
    """

    heads: int = 1

    @nn.compact
    def __call__(self, patches, select):
        hidden = nn.relu(nn.Dense(128)(patches))
        embeddings = nn.LayerNorm()(nn.relu(nn.Dense(64)(hidden)))  # (batch, 256, 64)
        slots, ranking = select(embeddings, nn.Dense(self.heads)(embeddings))  # (batch, slots, 64)
        # At first a slot is a mean of many patches, all slots much alike: the norm brings the differences out.
        features = nn.relu(nn.Dense(64)(nn.LayerNorm()(slots)))
        logits = nn.Dense(10, bias_init=nn.initializers.constant(-2.5))(features)  # rare at first
        # A digit is absent from the canvas if it is absent from every slot.
        return jax.nn.log_sigmoid(-logits).sum(axis=1), ranking


# Ways to select, from embeddings `(batch, 256, 64)` and scores `(batch, 256, heads)`.
def soft(embeddings, scores, progress, key):
    scores, boost = shtopk.anneal(scores[..., 0], progress, key)
    return shtopk.topk(embeddings, scores, K, boost=boost).embeddings, scores


def hard(embeddings, scores, progress, key):
    return shtopk.hard_topk(embeddings, scores[..., 0], K).embeddings, scores[..., 0]


def random(embeddings, scores, progress, key):
    return hard(embeddings, jax.random.uniform(key, scores.shape), progress, key)


def attention(embeddings, scores, progress, key):
    weights = jax.nn.softmax(scores, axis=1)
    return jnp.einsum("bnh,bnd->bhd", weights, embeddings), weights.max(axis=-1)


# Training and evaluation
@partial(jax.jit, static_argnums=0)
def start(model, key):
    return model.init(key, jnp.zeros((1, N, PIXELS**2)), partial(hard, progress=0, key=key))


def train(name, select, split, steps, heads=1):
    """A model and its parameters, trained with one way to select."""
    model = Finder(heads)
    optimiser = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, min(100, steps // 2), steps))

    def loss(params, step, key):
        data_key, select_key = jax.random.split(key)
        patches, _, present = draw_canvases(split, data_key, BATCH)
        # The progress is a traced number: it changes at every step, and nothing is compiled again.
        pick = partial(select, progress=step / steps, key=select_key)
        log_absent = jnp.minimum(model.apply(params, patches, pick)[0], -1e-6)  # log(1 - exp(0)) is -inf
        return -jnp.where(present, jnp.log(-jnp.expm1(log_absent)), log_absent).mean()

    @jax.jit
    def update(params, state, step):
        key = jax.random.fold_in(jax.random.key(SEED), step)
        value, gradient = jax.value_and_grad(loss)(params, step, key)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = start(model, jax.random.key(SEED))
    state = optimiser.init(params)
    for step in (progress := tqdm(range(steps), desc=f"{name:9}")):
        params, state, value = update(params, state, step)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{value:.3f}")
    return model, params


@partial(jax.jit, static_argnums=(0, 2))
def evaluate(model, params, select, canvases, key):
    """Shares of the answers that are right, of canvases with all ten right, of digits among the 8 chosen."""
    patches, is_digit, present = canvases
    log_absent, ranking = model.apply(params, patches, partial(select, progress=1.0, key=key))
    right = (log_absent < jnp.log(0.5)) == present
    chosen = jax.lax.top_k(ranking, K)[1]
    return right.mean(), right.all(axis=1).mean(), jnp.take_along_axis(is_digit, chosen, axis=1).mean()


# Picture
def draw_picture(model, params, split, path, rows=3):
    """Held-out canvases with the patches chosen, the soft mask over them, and the chosen patches close up."""
    patches, is_digit, present = (x[:rows] for x in draw_canvases(split, jax.random.key(1), HELD_OUT))
    log_absent, scores = model.apply(params, patches, partial(hard, progress=1.0, key=None))
    sharp, boost = shtopk.anneal(scores, progress=1.0)
    masks = shtopk.topk_mask(sharp, K, boost=boost)
    shown = [patches.reshape(rows, N, PIXELS, PIXELS), is_digit, jax.lax.top_k(scores, K)[1], masks]
    figure, axes = plt.subplots(rows, 3, figsize=(10, 12.5), width_ratios=(5, 5, 2.4), layout="constrained")
    for row, (canvas, mask, close_up) in enumerate(axes):
        heat = draw_row(canvas, mask, close_up, *(np.asarray(values[row]) for values in shown))
        digits, answer = jnp.flatnonzero(present[row]), jnp.flatnonzero(log_absent[row] < jnp.log(0.5))
        canvas.set_title(f"on the canvas: {' '.join(map(str, digits))}", loc="left")
        mask.set_title(f"answer: {' '.join(map(str, answer))}", loc="left")
    figure.colorbar(heat, ax=axes[:, 1], location="bottom", shrink=0.8, pad=0.01, label="soft mask")
    kinds = [("limegreen", "-", "digit"), ("red", "-", "clutter"), ("darkorange", "--", "digit, missed")]
    handles = [Patch(fill=False, lw=3, edgecolor=colour, ls=ls, label=label) for colour, ls, label in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("8 of 256 patches chosen, on canvases of unseen digits", fontsize=16)
    figure.savefig(path, dpi=100)


def draw_row(canvas, mask, close_up, patches, is_digit, chosen, weights):
    """One canvas in three axes, from patches `(256, 8, 8)`, is_digit and weights `(256,)`, chosen `(8,)`."""

    def frame(ax, x, y, colour, style="-"):
        ax.add_patch(Rectangle((x, y), PIXELS, PIXELS, fill=False, lw=3, edgecolor=colour, ls=style))

    extent = (0, SIDE * PIXELS, SIDE * PIXELS, 0)
    for ax, alpha in (canvas, 1), (mask, 0.4):
        ax.imshow(tile(patches), cmap="gray_r", alpha=alpha, extent=extent)
        ax.set(xticks=[], yticks=[])
    for cell in np.setdiff1d(np.flatnonzero(is_digit), chosen):
        frame(canvas, cell % SIDE * PIXELS, cell // SIDE * PIXELS, "darkorange", "--")
    for place, cell in enumerate(chosen):  # best score first
        colour = "limegreen" if is_digit[cell] else "red"
        frame(canvas, cell % SIDE * PIXELS, cell // SIDE * PIXELS, colour)
        x, y = place % 2 * (PIXELS + 2), place // 2 * (PIXELS + 2)
        close_up.imshow(patches[cell], cmap="gray_r", extent=(x, x + PIXELS, y + PIXELS, y))
        frame(close_up, x, y, colour)
    close_up.set(xlim=(-1, 19), ylim=(39, -1), title="the 8 chosen")
    close_up.set_axis_off()
    return mask.imshow(weights.reshape(SIDE, SIDE), cmap="YlOrRd", vmin=0, vmax=1, alpha=0.6, extent=extent)


def main():
    parser = argparse.ArgumentParser(description="Learn where the digits are from the answer alone.")
    parser.add_argument("--out", default="find_the_digits.png", help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="train for 5 steps only, to see that it runs")
    args = parser.parse_args()
    train_split, test_split = load_splits()
    learn = partial(train, split=train_split, steps=5 if args.quick else STEPS)
    data_key, select_key = jax.random.split(jax.random.key(0))
    judge = partial(evaluate, canvases=draw_canvases(test_split, data_key, HELD_OUT), key=select_key)
    ours = learn("shtopk", soft)
    table = {
        "shtopk, soft": judge(*ours, soft),
        "shtopk, hard": judge(*ours, hard),
        "attention": judge(*learn("attention", attention, heads=K), attention),
        "random patches": judge(*learn("random", random), random),
    }
    print(f"{'held-out canvases':20}{'answers right':>16}{'all ten right':>16}{'digits found':>16}")
    for name, shares in table.items():
        print(f"{name:20}" + "".join(f"{share:>16.1%}" for share in shares))
    draw_picture(*ours, test_split, args.out)


if __name__ == "__main__":
    main()
