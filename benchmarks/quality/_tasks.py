"""The tasks of `search_quality.py`: small, but real trainings, each with four to seven settings.

All are written as plain functions of one model; a training is a hundred steps or a few hundred.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vmaptune as vt

Params = Any


@dataclass(frozen=True)
class Work:
    """A task and what is special about it."""

    name: str
    what: str
    build: Callable[[], vt.Experiment]
    lanes: int  # of a tile
    trap: bool = False  # whether it is there only to mislead: a narrow good region away from a broad mediocre one


def dense(rngs: Any, sizes: list[int], scale: Any = 1.0) -> Params:
    """Layers of weights and biases, He-initialised times `scale`."""
    return [
        {"w": jax.random.normal(rngs.params(), (a, b)) * scale * jnp.sqrt(2.0 / a), "b": jnp.zeros(b)}
        for a, b in itertools.pairwise(sizes)
    ]


def forward(layers: Params, x: jax.Array, activation: Callable = jax.nn.relu) -> jax.Array:
    for layer in layers[:-1]:
        x = activation(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def cross_entropy(logits: jax.Array, y: jax.Array, smoothing: Any = 0.0) -> jax.Array:
    log_p = jax.nn.log_softmax(logits)
    return -(
        (1 - smoothing) * (jax.nn.one_hot(y, logits.shape[-1]) * log_p).sum(-1) + smoothing * log_p.mean(-1)
    ).mean()


def dropped(x: jax.Array, rate: Any, key: jax.Array) -> jax.Array:
    kept = jax.random.uniform(key, x.shape) >= rate
    return jnp.where(kept, x / (1 - rate), 0.0)


def split(x: Any, y: Any, train: int, valid: int) -> vt.Data:
    order = np.random.default_rng(0).permutation(len(x))
    a, b = order[:train], order[train : train + valid]
    return vt.Data(train=(x[a], y[a]), valid=(x[b], y[b]))


def standard(x: Any) -> Any:
    return ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float32)


def adamw(hp: Any, steps: int) -> Any:
    rate = vt.schedules.cosine(hp.learning_rate, steps)
    return optax.adamw(rate, b1=hp.beta1, b2=getattr(hp, "beta2", 0.999), weight_decay=hp.weight_decay)


ADAM = {
    "learning_rate": vt.loguniform(1e-5, 1.0),
    "beta1": vt.reverseloguniform(0.3, 0.999),
    "weight_decay": vt.loguniform(1e-5, 10.0, or_zero=0.1),
}


def digits() -> Any:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target.astype(np.int32)


def digits_mlp() -> vt.Experiment:
    x, y = digits()

    def loss(layers: Params, batch: Any, hp: Any, key: Any) -> Any:
        return cross_entropy(forward(layers, dropped(batch[0], hp.dropout, key)), batch[1], hp.smoothing)

    def metrics(layers: Params, batch: Any) -> Any:
        return {"loss": cross_entropy(forward(layers, batch[0]), batch[1])}

    space = ADAM | {
        "beta2": vt.reverseloguniform(0.9, 0.9999), "dropout": vt.uniform(0.0, 0.6),
        "smoothing": vt.uniform(0.0, 0.3), "scale": vt.loguniform(0.05, 5.0),
    }  # fmt: skip
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [64, 16, 10], hp.scale), optimizer=adamw, loss=loss,
        metrics=metrics, data=split(x, y, 600, 300), objective="loss", batch_size=32, steps=150,
    )  # fmt: skip


def digits_cnn() -> vt.Experiment:
    x, y = digits()
    x = x.reshape(-1, 8, 8, 1)

    def model(hp: Any, rngs: Any) -> Params:
        kernel = jax.random.normal(rngs.params(), (3, 3, 1, 4)) * hp.scale * np.sqrt(2 / 9)
        return {"kernel": kernel, "bias": jnp.zeros(4), "head": dense(rngs, [64, 10], hp.scale)}

    def logits(p: Params, x: Any) -> Any:
        x = jax.lax.conv_general_dilated(x, p["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return forward(p["head"], jax.nn.relu(x + p["bias"]).reshape(len(x), -1))

    def optimizer(hp: Any, steps: int) -> Any:
        rate = vt.schedules.cosine(hp.learning_rate, steps, warmup=hp.warmup * steps)
        return optax.chain(
            optax.add_decayed_weights(hp.weight_decay), optax.sgd(rate, momentum=hp.momentum, nesterov=True)
        )

    space = {
        "learning_rate": vt.loguniform(1e-4, 10.0), "momentum": vt.reverseloguniform(0.0, 0.999),
        "weight_decay": vt.loguniform(1e-6, 1e-1, or_zero=0.2), "warmup": vt.uniform(0.0, 0.5),
        "scale": vt.loguniform(0.05, 5.0),
    }  # fmt: skip
    return vt.Experiment(
        space=space, model=model, optimizer=optimizer, data=split(x, y, 400, 300), objective="loss",
        loss=lambda p, batch: cross_entropy(logits(p, batch[0]), batch[1]),
        metrics=lambda p, batch: {"loss": cross_entropy(logits(p, batch[0]), batch[1])}, batch_size=16, steps=80,
    )  # fmt: skip


CONTEXT, WIDTH, LETTERS = 8, 12, 28


def transformer() -> vt.Experiment:
    text = Path(argparse.__file__).read_text(encoding="utf-8").lower()
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    codes = np.array([alphabet.find(c) + 1 for c in text], np.int32)  # 0 is everything else
    rows = len(codes) // (CONTEXT + 1)
    windows = codes[: rows * (CONTEXT + 1)].reshape(rows, CONTEXT + 1)
    windows = windows[np.random.default_rng(0).permutation(rows)]

    def model(hp: Any, rngs: Any) -> Params:
        def table(*shape: int, by: float) -> Any:
            return jax.random.normal(rngs.params(), shape) * hp.scale * by

        return {
            "letters": table(LETTERS, WIDTH, by=0.5), "positions": table(CONTEXT, WIDTH, by=0.5),
            "qkv": table(WIDTH, 3 * WIDTH, by=WIDTH**-0.5), "out": table(WIDTH, WIDTH, by=WIDTH**-0.5),
            "mlp": dense(rngs, [WIDTH, 2 * WIDTH, WIDTH], hp.scale), "head": dense(rngs, [WIDTH, LETTERS], hp.scale),
        }  # fmt: skip

    def norm(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)

    def nats(p: Params, batch: Any) -> Any:
        x = jax.nn.one_hot(batch[:, :-1], LETTERS) @ p["letters"] + p["positions"]
        q, k, v = jnp.split(norm(x) @ p["qkv"], 3, axis=-1)
        scores = jnp.einsum("bqd,bkd->bqk", q, k) / WIDTH**0.5
        scores = jnp.where(jnp.tril(jnp.ones((CONTEXT, CONTEXT), bool)), scores, -1e9)
        x = x + jax.nn.softmax(scores) @ v @ p["out"]
        x = x + forward(p["mlp"], norm(x))
        return cross_entropy(forward(p["head"], norm(x)), batch[:, 1:])

    def optimizer(hp: Any, steps: int) -> Any:
        rate = vt.schedules.cosine(hp.learning_rate, steps, warmup=hp.warmup * steps)
        return optax.adamw(rate, b1=hp.beta1, b2=hp.beta2, weight_decay=hp.weight_decay)

    space = ADAM | {
        "beta2": vt.reverseloguniform(0.8, 0.9999),
        "warmup": vt.uniform(0.0, 0.5),
        "scale": vt.loguniform(0.1, 4.0),
    }
    return vt.Experiment(
        space=space, model=model, optimizer=optimizer, loss=nats, metrics=lambda p, batch: {"nats": nats(p, batch)},
        data=vt.Data(train=windows[:2000], valid=windows[2000:2128]), objective="nats", batch_size=8, steps=80,
    )  # fmt: skip


def regression() -> vt.Experiment:
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)

    def error(layers: Params, batch: Any) -> Any:
        return ((forward(layers, batch[0], jnp.tanh)[:, 0] - batch[1]) ** 2).mean()

    def loss(layers: Params, batch: Any, hp: Any, key: Any) -> Any:
        return error(layers, (batch[0] + hp.noise * jax.random.normal(key, batch[0].shape), batch[1]))

    space = ADAM | {"noise": vt.loguniform(1e-3, 3.0, or_zero=0.2), "scale": vt.loguniform(0.05, 5.0)}
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [10, 16, 1], hp.scale), optimizer=adamw, loss=loss,
        metrics=lambda p, batch: {"mse": error(p, batch)}, data=split(standard(x), standard(y), 265, 170),
        objective="mse", batch_size=32, steps=150,
    )  # fmt: skip


def classification() -> vt.Experiment:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)

    def loss(layers: Params, batch: Any, hp: Any, key: Any) -> Any:
        return cross_entropy(forward(layers, dropped(batch[0], hp.dropout, key)), batch[1], hp.smoothing)

    def optimizer(hp: Any, steps: int) -> Any:
        rate = vt.schedules.cosine(hp.learning_rate, steps)
        return optax.chain(optax.add_decayed_weights(hp.weight_decay), optax.sgd(rate, momentum=hp.momentum))

    space = {
        "learning_rate": vt.loguniform(1e-4, 10.0), "momentum": vt.reverseloguniform(0.0, 0.999),
        "weight_decay": vt.loguniform(1e-5, 1.0, or_zero=0.1), "dropout": vt.uniform(0.0, 0.7),
        "smoothing": vt.uniform(0.0, 0.3),
    }  # fmt: skip
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [30, 8, 2]), optimizer=optimizer, loss=loss,
        metrics=lambda p, batch: {"loss": cross_entropy(forward(p, batch[0]), batch[1])},
        data=split(standard(x), y.astype(np.int32), 269, 300), objective="loss", batch_size=16, steps=200,
    )  # fmt: skip


def few_noisy() -> vt.Experiment:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40 + 400, 12)).astype(np.float32)
    clean = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2] / 2 + x[:, 3] / 2
    y = (clean + rng.normal(0, 0.5, len(x))).astype(np.float32)

    def error(layers: Params, batch: Any) -> Any:
        return ((forward(layers, batch[0])[:, 0] - batch[1]) ** 2).mean()

    def loss(layers: Params, batch: Any, hp: Any, key: Any) -> Any:
        return error(layers, (batch[0] + hp.noise * jax.random.normal(key, batch[0].shape), batch[1]))

    space = ADAM | {"noise": vt.loguniform(1e-2, 3.0, or_zero=0.2)}
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [12, 16, 1]), optimizer=adamw, loss=loss,
        metrics=lambda p, batch: {"mse": error(p, batch)}, data=vt.Data(train=(x[:40], y[:40]), valid=(x[40:], y[40:])),
        objective="mse", batch_size=4, steps=150,
    )  # fmt: skip


def ill_conditioned() -> vt.Experiment:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(256, 10)).astype(np.float32) * np.logspace(0, -1.5, 10).astype(np.float32)
    y = x @ rng.normal(size=10).astype(np.float32) * 3

    def error(w: Params, batch: Any) -> Any:
        return ((batch[0] @ w["w"] - batch[1]) ** 2).mean()

    def optimizer(hp: Any, steps: int) -> Any:
        rate = vt.schedules.cosine(hp.learning_rate, steps, warmup=hp.warmup * steps)
        return optax.chain(optax.clip_by_global_norm(hp.clip), optax.sgd(rate, momentum=hp.momentum))

    space = {
        "learning_rate": vt.loguniform(1e-4, 10.0), "momentum": vt.reverseloguniform(0.0, 0.9999),
        "warmup": vt.uniform(0.0, 0.5), "clip": vt.loguniform(1e-2, 1e2),
    }  # fmt: skip
    return vt.Experiment(
        space=space, model=lambda hp, rngs: {"w": jax.random.normal(rngs.params(), (10,)) * 0.1}, optimizer=optimizer,
        loss=error, metrics=lambda w, batch: {"log_mse": jnp.log10(error(w, batch) + 1e-12)},
        data=vt.Data(train=(x[:192], y[:192]), valid=(x[192:], y[192:])), objective="log_mse", batch_size=32, steps=200,
    )  # fmt: skip


def near_bound() -> vt.Experiment:
    x, y = digits()

    def optimizer(hp: Any, steps: int) -> Any:
        rate = vt.schedules.cosine(hp.learning_rate, steps)
        return optax.chain(optax.add_decayed_weights(hp.weight_decay), optax.sgd(rate, momentum=hp.momentum))

    space = {
        "learning_rate": vt.loguniform(1e-5, 0.1), "momentum": vt.uniform(0.0, 0.9),
        "weight_decay": vt.loguniform(1e-5, 1.0), "scale": vt.loguniform(0.05, 5.0),
    }  # fmt: skip
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [64, 16, 10], hp.scale), optimizer=optimizer,
        loss=lambda p, batch: cross_entropy(forward(p, batch[0]), batch[1]),
        metrics=lambda p, batch: {"loss": cross_entropy(forward(p, batch[0]), batch[1])},
        data=split(x, y, 600, 300), objective="loss", batch_size=32, steps=120,
    )  # fmt: skip


def static_width() -> vt.Experiment:
    x, y = digits()

    def loss(layers: Params, batch: Any, hp: Any, key: Any) -> Any:
        return cross_entropy(forward(layers, dropped(batch[0], hp.dropout, key)), batch[1])

    space = ADAM | {"dropout": vt.uniform(0.0, 0.6), "width": vt.ordinal([4, 12, 32])}
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [64, hp.width, 10]), optimizer=adamw, loss=loss,
        metrics=lambda p, batch: {"loss": cross_entropy(forward(p, batch[0]), batch[1])},
        data=split(x, y, 400, 300), objective="loss", batch_size=32, steps=120,
    )  # fmt: skip


def interaction() -> vt.Experiment:
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)

    def outputs(p: Params, x: Any, hp: Any) -> Any:
        return hp.gain * forward(p, x)  # a step of the outputs goes with learning_rate * gain^2 / (1 - momentum)

    def optimizer(hp: Any, steps: int) -> Any:
        return optax.chain(
            optax.add_decayed_weights(hp.weight_decay), optax.sgd(hp.learning_rate, momentum=hp.momentum)
        )

    space = {
        "learning_rate": vt.loguniform(1e-6, 1e2), "gain": vt.loguniform(1e-2, 1e2),
        "momentum": vt.reverseloguniform(0.0, 0.999), "weight_decay": vt.loguniform(1e-6, 1.0),
    }  # fmt: skip
    return vt.Experiment(
        space=space, model=lambda hp, rngs: dense(rngs, [13, 8, 3], 0.3), optimizer=optimizer,
        loss=lambda p, batch, hp: cross_entropy(outputs(p, batch[0], hp), batch[1]),
        metrics=lambda p, batch, hp: {"loss": cross_entropy(outputs(p, batch[0], hp), batch[1])},
        data=split(standard(x), y.astype(np.int32), 60, 118), objective="loss", batch_size=16, steps=150,
    )  # fmt: skip


def trap() -> vt.Experiment:
    """Sines of one frequency fitted to a slow wave (any low frequency does) and a fast one (only its own does)."""
    rng = np.random.default_rng(3)
    t = rng.uniform(-1, 1, (512, 1)).astype(np.float32)
    y = (np.sin(1.5 * t[:, 0]) + 1.2 * np.sin(10 * t[:, 0] + 0.5) + rng.normal(0, 0.1, 512)).astype(np.float32)

    def model(hp: Any, rngs: Any) -> Params:
        return {
            "phase": jax.random.uniform(rngs.params(), (16,)) * 2 * np.pi,
            "slow": jnp.zeros(2), "w": jax.random.normal(rngs.params(), (16,)) * 0.1,
        }  # fmt: skip

    def error(p: Params, batch: Any, hp: Any) -> Any:
        waves = jnp.sin(hp.frequency * batch[0] + p["phase"])
        return ((waves @ p["w"] + batch[0][:, 0] * p["slow"][0] + p["slow"][1] - batch[1]) ** 2).mean()

    space = ADAM | {"frequency": vt.loguniform(0.3, 300.0)}
    return vt.Experiment(
        space=space, model=model, optimizer=adamw, loss=error,
        metrics=lambda p, batch, hp: {"mse": error(p, batch, hp)},
        data=vt.Data(train=(t[:256], y[:256]), valid=(t[256:], y[256:])), objective="mse", batch_size=32, steps=150,
    )  # fmt: skip


WORKS = (
    Work("digits_mlp", "digits, an MLP, 7 settings", digits_mlp, 16),
    Work("digits_cnn", "digits, a CNN, 5 settings", digits_cnn, 4),
    Work("transformer", "letters of a text, a transformer, 6 settings", transformer, 2),
    Work("regression", "progression of diabetes, an MLP, 5 settings", regression, 32),
    Work("classification", "tumours, an MLP, 5 settings", classification, 32),
    Work("few_noisy", "40 noisy examples, an MLP, 4 settings", few_noisy, 32),
    Work("ill_conditioned", "SGD with momentum, an ill-conditioned quadratic, 4 settings", ill_conditioned, 32),
    Work("near_bound", "digits, an MLP, the optimum at a bound, 4 settings", near_bound, 16),
    Work("static_width", "digits, an MLP with a static width, 5 settings", static_width, 16),
    Work("interaction", "wines, learning rate and output gain on a ridge, 4 settings", interaction, 32),
    Work("trap", "a narrow good band of a frequency, far from a broad mediocre one, 4 settings", trap, 32, trap=True),
)
