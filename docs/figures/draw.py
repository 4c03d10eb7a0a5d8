"""Draw the documentation's pictures, each for a light and a dark page: `python docs/figures/draw.py`."""

import argparse
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import shtopk

# text, faint lines, text upon colour, and colours told apart by readers of all kinds (after Okabe and Ito)
THEMES = {
    "light": (
        "#333333",
        "#b5b5b5",
        "#ffffff",
        ["#0072b2", "#d55e00", "#009e73", "#b8579a", "#8a7a00", "#56a0d0", "#c98a00", "#777777"],
    ),
    "dark": (
        "#dddddd",
        "#666666",
        "#131416",
        ["#4ba3de", "#f08040", "#30bf95", "#dd8cc0", "#d8c840", "#8fd0f8", "#f0b840", "#a8a8a8"],
    ),
}
SCORES = np.array([2.3, 1.9, 1.5, 1.0, 0.6, 0.1, -0.4, -1.2], np.float32)
BOOST = shtopk.Scaled(1.0)
SHARPNESSES = (0.5, 1.0, 2.0, 4.0, 8.0)


def rounds(scores, k):
    """For each round its entrants: (score, weight of each candidate `(n,)`), best first, and its match weights."""
    entrants = [(score, row) for score, row in zip(scores, np.eye(len(scores)), strict=True)]
    while len(entrants) > k:
        entrants.sort(key=lambda entrant: -entrant[0])
        half = len(entrants) // 2
        pairs = list(zip(entrants[:half], entrants[: half - 1 : -1], strict=True))
        high, low = (jnp.array([pair[side][0] for pair in pairs]) for side in (0, 1))
        wins = np.asarray(BOOST(high, low, jnp.ones(half, bool)))
        yield entrants, wins
        entrants = [
            tuple(w * of_high + (1 - w) * of_low for of_high, of_low in zip(*pair, strict=True))
            for w, pair in zip(wins, pairs, strict=True)
        ]
    yield entrants, None


def tournament(path, text, faint, upon, colours):
    """Eight candidates, two rounds, two slots: who meets whom, and what each entrant is made of."""
    stages = list(rounds(SCORES, 2))
    mask = np.asarray(shtopk.topk_mask(jnp.asarray(SCORES), 2, boost=BOOST))
    np.testing.assert_allclose(sum(row for _, row in stages[-1][0]), mask, atol=1e-5)
    fig, ax = plt.subplots(figsize=(9, 4.6))
    titles = ["8 candidates, sorted", "4 survivors, sorted", "2 slots"]
    places = []
    for x, (entrants, _) in enumerate(stages):
        step = 8 / len(entrants)
        places.append([(4.0 * x, (len(entrants) - 1 - i + 0.5) * step) for i in range(len(entrants))])
        for (left, y), (score, row) in zip(places[-1], entrants, strict=True):
            entrant(ax, left, y, score, row, (text, upon), colours)
        ax.text(4.0 * x + 0.75, 8.35, titles[x], ha="center", color=text, fontsize=12, weight="bold")
    for x, (entrants, wins) in enumerate(stages[:-1]):
        for i, w in enumerate(wins):
            matched(ax, places, x, i, len(entrants) - 1 - i, w, (text, faint))
    ax.set(xlim=(-0.75, 9.6), ylim=(-0.1, 8.9))
    ax.set_axis_off()
    save(fig, path)


def entrant(ax, left, y, score, row, ink, colours):
    """A bar of width 1.5, divided by the candidates' weights, with the score before it."""
    start = left
    for candidate, weight in enumerate(row):
        ax.add_patch(Rectangle((start, y - 0.3), 1.5 * weight, 0.6, color=colours[candidate], lw=0))
        if weight > 0.3:
            label = f"$E_{{{candidate + 1}}}$" if weight == 1 else f"{weight:.2f}"
            ax.text(start + 0.75 * weight, y, label, ha="center", va="center", color=ink[1], fontsize=10)
        start += 1.5 * weight
    label = f"{score:.1f}".replace("-", "\N{MINUS SIGN}")
    ax.text(left - 0.1, y, label, ha="right", va="center", color=ink[0], fontsize=10)


def matched(ax, places, x, high, low, w, ink):
    """The two weights of a match and its two lines, as wide as the weights."""
    text, faint = ink
    (left, end), right = places[x + 1][high], 4.0 * x + 1.6
    for entry, weight in (high, w), (low, 1 - w):
        start = places[x][entry][1]
        ax.text(right, start, f"{weight:.2f}", va="center", color=text, fontsize=9)
        line = [right + 0.5, left - 0.6], [start, end]
        ax.plot(*line, color=faint, lw=0.8 + 5 * weight, solid_capstyle="round", zorder=0)


def soft_mask(path, text, faint, upon, colours):
    """The mask over 32 normal scores as the sharpness grows."""
    del upon
    scores = jnp.sort(jnp.asarray(np.random.default_rng(0).normal(size=32), jnp.float32), descending=True)
    rank = np.arange(1, 33)
    fig, ax = plt.subplots(figsize=(9, 3.6))
    ax.fill_between([0.5, 4.5], 0, 1, color=faint, alpha=0.25, lw=0)
    ax.text(4.6, 0.95, "the hard choice, k = 4", color=text, va="center", fontsize=10)
    for sharpness, colour in zip(SHARPNESSES, colours, strict=False):
        mask = shtopk.topk_mask(scores, 4, boost=shtopk.Relative(sharpness))
        ax.plot(rank, mask, "o-", ms=3.5, lw=1.6, color=colour, label=f"sharpness {sharpness:g}")
    ax.set(xlim=(0.5, 32.5), ylim=(-0.02, 1.03), xticks=[1, 4, 8, 16, 24, 32])
    ax.set_xlabel("rank of the candidate", color=text)
    ax.set_ylabel("its weight in its slot", color=text)
    ax.legend(frameon=False, labelcolor=text, loc="upper right")
    ax.tick_params(colors=text)
    for side, spine in ax.spines.items():
        spine.set(color=faint, visible=side in ("left", "bottom"))
    save(fig, path)


def save(fig, path):
    fig.savefig(path, dpi=160, transparent=True, bbox_inches="tight", pad_inches=0.05)
    plt.close(fig)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the pictures go")
    folder = parser.parse_args().out
    for theme, ink in THEMES.items():
        tournament(folder / f"tournament-{theme}.png", *ink)
        soft_mask(folder / f"soft_mask-{theme}.png", *ink)


if __name__ == "__main__":
    main()
