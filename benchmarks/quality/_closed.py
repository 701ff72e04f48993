"""Tasks whose values are formulas, so that a study of thousands of trainings takes seconds and its winner's true worth
is known: what makes a training's landscape hard, one thing a task.

A value is the task's `true` one with a seed's luck on top; NaN where a training would diverge. Lower is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

import vmaptune as vt

Columns = Mapping[str, np.ndarray]  # name -> values [N]


@dataclass(frozen=True)
class Closed:
    """A task in closed form."""

    name: str
    what: str
    space: vt.Space
    true: Callable[[Columns], np.ndarray]  # [N]; NaN where it diverges
    noise: float = 0.0  # the deviation of what a seed adds
    share: float = 0.0  # and of what it multiplies
    tuned: bool = False  # whether the search was tuned on it
    trap: bool = False


class Formula:
    """Answers for a trainer: `values` of (setting, seed) pairs."""

    def __init__(self, task: Closed):
        self.task, self.space = task, task.space

    def true(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What each setting is worth, `[N]`; NaN where it diverges."""
        columns = {name: column([row[name] for row in rows]) for name in self.space}
        return np.asarray(self.task.true(columns), np.float64)

    def values(self, pairs: Sequence[tuple[Mapping[str, Any], int]]) -> list[float]:
        if not pairs:
            return []
        true = self.true([params for params, _ in pairs])
        z = luck(np.array([seed for _, seed in pairs], np.uint64))
        return [float(v) for v in true * np.exp(self.task.share * z) + self.task.noise * z]


def column(values: Sequence[Any]) -> np.ndarray:
    """A setting's values: numbers, or objects where one is none."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return np.array(values, np.float64)
    return np.array([*values, None], object)[:-1]


def luck(seeds: np.ndarray) -> np.ndarray:
    """A normal number for each seed: SplitMix64 (Steele, Lea and Flood 2014) and the normal law's inverse."""
    z = seeds + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ndtri((z >> np.uint64(11)).astype(np.float64) / 2**53 + 2**-54)


def log(x: np.ndarray) -> np.ndarray:
    return np.log10(x)


def far(m: np.ndarray) -> np.ndarray:
    """A momentum as the logarithm of how far it looks back."""
    return -np.log10(1 - m)


# ---- those that defaults were chosen on ------------------------------------------------------------------

RATE, MOMENTUM = vt.loguniform(1e-5, 1.0), vt.reverseloguniform(0.0, 0.999)
DECAY = vt.loguniform(1e-6, 1e-1)


def valley(c: Columns) -> np.ndarray:
    """A learning rate's decades, with less of momentum and decay; flat where the rate is hopeless."""
    return np.minimum(
        1.0,
        0.02 + 0.25 * (log(c["learning_rate"]) + 2.5) ** 2 + 0.02 * (far(c["momentum"]) - 1) ** 2
        + 0.005 * (log(c["weight_decay"]) + 3.5) ** 2,
    )  # fmt: skip


def cliff(c: Columns) -> np.ndarray:
    """Better the larger the step, until it diverges: at a rate that falls with momentum."""
    step = log(c["learning_rate"]) + far(c["momentum"])
    loss = 0.1 + 0.12 * (0.4 - step) + 0.02 * (far(c["momentum"]) - 1.2) ** 2 + 0.1 * (c["dropout"] - 0.2) ** 2
    return np.where(step > 0.4, np.nan, loss)


def ridge(c: Columns) -> np.ndarray:
    """Rate, gain and momentum on a narrow ridge askew to all axes, slightly better at one end."""
    across = log(c["learning_rate"]) + 2 * log(c["gain"]) + far(c["momentum"]) + 1
    along = log(c["gain"]) - 0.7
    return 0.1 + 0.3 * np.tanh(across**2) + 0.01 * along**2 + 0.01 * (log(c["weight_decay"]) + 4) ** 2


def operations() -> tuple[vt.Space, Callable[[Columns], np.ndarray]]:
    """Six places for one of five operations, some alike, which work in pairs: as in a small cell search."""
    ops = ["none", "skip", "conv1", "conv3", "pool"]
    worth = dict(zip(ops, (-0.9, 0.2, 0.6, 1.0, -0.2), strict=True))
    weight = np.array([1.0, 0.5, 0.8, 1.2, 0.4, 0.9])

    def true(c: Columns) -> np.ndarray:
        w = np.stack([[worth[v] for v in c[f"edge{i}"]] for i in range(6)])  # [6, N]
        skips = np.stack([c[f"edge{i}"] == "skip" for i in range(6)])
        path = w[0] * w[3] + w[1] * w[4] + w[2] * w[5]
        return 1.0 - 0.08 * (weight @ w) - 0.06 * np.tanh(path) - 0.12 * (skips.sum(axis=0) == 1) * (w[5] > 0.5)

    return vt.Space({f"edge{i}": vt.choice(ops) for i in range(6)}), true


# ---- those that were looked at only when they were chosen ------------------------------------------------


def wide(c: Columns) -> np.ndarray:
    """Ten settings, of which three matter."""
    return (
        0.05 + 0.3 * (log(c["learning_rate"]) + 3) ** 2 / (1 + 0.1 * (log(c["learning_rate"]) + 3) ** 2)
        + 0.8 * (c["x1"] - 0.62) ** 2 + 0.3 * np.abs(c["x2"] - 0.15) + 0.001 * sum(c[f"y{i}"] for i in range(7))
    )  # fmt: skip


def optimizers(c: Columns) -> np.ndarray:
    """Three optimizers with settings of their own: the best one is mediocre at most rates."""
    rate = log(c["learning_rate"])
    momentum = np.array([0.0 if m is None else m for m in c["momentum"]], float)
    beta = np.array([0.9 if m is None else m for m in c["beta2"]], float)
    sgd = 0.12 + 0.5 * np.tanh((rate + far(momentum) + 0.2) ** 2 / 0.15) + 0.02 * (far(momentum) - 1) ** 2
    adam = 0.16 + 0.10 * (rate + 2.8) ** 2 + 0.02 * (far(beta) - 2) ** 2
    sign = 0.18 + 0.15 * (rate + 3.8) ** 2
    kind = c["optimizer"]
    found = np.where(kind == "sgd", sgd, np.where(kind == "adam", adam, sign))
    return np.minimum(found, 1.5) + 0.01 * (c["layers"] - 3) ** 2


def zeros(c: Columns) -> np.ndarray:
    """Two regularisers: one is best left out, one must be on; a width in whole numbers."""
    decay, drop = np.asarray(c["weight_decay"]), np.asarray(c["dropout"])
    decayed = np.where(decay == 0, 0.10, 0.0) + np.where(
        decay > 0, 0.03 * (np.log10(np.maximum(decay, 1e-12)) + 3) ** 2, 0
    )
    dropped = np.where(drop == 0, 0.0, 0.03 + 0.3 * drop)
    width = 0.05 * (log(c["width"]) - 1.8) ** 2
    return 0.1 + decayed + dropped + width + 0.15 * (log(c["learning_rate"]) + 2) ** 2


def noisy(c: Columns) -> np.ndarray:
    """What the settings make of it is no more than the seeds do."""
    return (
        1.0 + 0.05 * (log(c["learning_rate"]) + 3) ** 2 + 0.2 * (c["smoothing"] - 0.1) ** 2
        + 0.05 * (far(c["momentum"]) - 1.5) ** 2 + 0.02 * np.abs(log(c["scale"]))
    )  # fmt: skip


def two_wells(c: Columns) -> np.ndarray:
    """A broad mediocre region, and a better narrow one elsewhere."""
    a, b = log(c["frequency"]), log(c["learning_rate"])
    broad = 0.5 + 0.1 * (a + 0.2) ** 2 + 0.05 * (b + 3) ** 2
    narrow = -0.45 * np.exp(-(((a - 1.6) / 0.12) ** 2) - ((b + 2) / 1.2) ** 2)
    return broad + narrow + 0.05 * (c["warmup"] - 0.2) ** 2


def networks() -> tuple[vt.Space, Callable[[Columns], np.ndarray]]:
    """Unordered and ordered choices beside a rate: activations of two kinds, norms, widths."""
    acts = ["relu", "gelu", "silu", "tanh", "sigmoid", "softsign"]
    good = dict(zip(acts, (0.0, -0.02, -0.03, 0.15, 0.25, 0.18), strict=True))
    shift = dict(zip(acts, (0.0, 0.2, 0.2, 0.8, 1.2, 0.8), strict=True))
    norms = {"none": (0.08, -0.6), "layer": (0.0, 0.2), "batch": (0.01, 0.3)}

    def true(c: Columns) -> np.ndarray:
        a = np.array([good[v] for v in c["activation"]])
        s = np.array([shift[v] + norms[n][1] for v, n in zip(c["activation"], c["norm"], strict=True)])
        n = np.array([norms[v][0] for v in c["norm"]])
        batch = np.array([{"16": 0.0, "64": 0.01, "256": 0.05}[v] for v in c["batch"]])
        width = 0.02 * (np.log2(c["width"]) - 7) ** 2
        return 0.2 + a + n + batch + width + 0.12 * (log(c["learning_rate"]) + 2.6 - s) ** 2

    space = {
        "learning_rate": RATE, "activation": vt.choice(acts), "norm": vt.choice(list(norms)),
        "batch": vt.choice(["16", "64", "256"]), "width": vt.ordinal([16, 32, 64, 128, 256, 512]),
    }  # fmt: skip
    return vt.Space(space), true


def corner(c: Columns) -> np.ndarray:
    """The best lies in a corner of the space, of five settings."""
    return 0.3 + 0.1 * (2 - log(c["learning_rate"])) / 7 + 0.1 * sum((1 - c[f"x{i}"]) ** 2 for i in range(4))


OPERATIONS, NETWORKS = operations(), networks()
X = vt.uniform(0.0, 1.0)
WORKS = (
    Closed("valley", "a rate's decades, 5 % noise, 3 settings",
           vt.Space({"learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}), valley, share=0.05,
           tuned=True),
    Closed("cliff", "best just before it diverges, 3 settings",
           vt.Space({"learning_rate": RATE, "momentum": MOMENTUM, "dropout": vt.uniform(0.0, 0.6)}), cliff, noise=0.005,
           tuned=True),
    Closed("ridge", "a narrow ridge askew to all axes, 4 settings",
           vt.Space({"learning_rate": vt.loguniform(1e-6, 1e2), "gain": vt.loguniform(1e-2, 1e2), "momentum": MOMENTUM,
                     "weight_decay": DECAY}), ridge, share=0.03, tuned=True),
    Closed("operations", "6 choices of 5 operations", *OPERATIONS, noise=0.01, tuned=True),
    Closed("wide", "3 of 10 settings matter",
           vt.Space({"learning_rate": RATE, "x1": X, "x2": X} | {f"y{i}": X for i in range(7)}), wide, share=0.05),
    Closed("optimizers", "conditional settings of 3 optimizers, 5 settings",
           vt.Space({"optimizer": vt.choice(["sgd", "adam", "sign"]), "learning_rate": RATE,
                     "momentum": vt.reverseloguniform(0.0, 0.999, when={"optimizer": ["sgd"]}),
                     "beta2": vt.reverseloguniform(0.9, 0.9999, when={"optimizer": ["adam"]}),
                     "layers": vt.randint(1, 6)}), optimizers, share=0.03),
    Closed("zeros", "a zero that is best, one that is not, 4 settings",
           vt.Space({"learning_rate": RATE, "weight_decay": vt.loguniform(1e-6, 1e-1, or_zero=0.2),
                     "dropout": vt.uniform(0.0, 0.6, or_zero=0.2), "width": vt.lograndint(1, 1000)}), zeros,
           share=0.03),
    Closed("noisy", "noise as large as the differences, 4 settings",
           vt.Space({"learning_rate": RATE, "smoothing": vt.uniform(0.0, 0.5), "momentum": MOMENTUM,
                     "scale": vt.loguniform(0.05, 5.0)}), noisy, noise=0.05),
    Closed("networks", "activations, norms, widths and a rate, 5 settings", *NETWORKS, noise=0.01),
    Closed("corner", "the best in a corner, 5 settings",
           vt.Space({"learning_rate": vt.loguniform(1e-5, 1e2)} | {f"x{i}": X for i in range(4)}), corner, noise=0.01),
    Closed("two_wells", "a narrow good region away from a broad mediocre one, 3 settings",
           vt.Space({"frequency": vt.loguniform(1e-3, 1e3), "learning_rate": RATE, "warmup": vt.uniform(0.0, 0.5)}),
           two_wells, noise=0.01, trap=True),
)  # fmt: skip
