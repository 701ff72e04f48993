"""A character language model, a small transformer, on the text of Python's own standard library.

python -m vmaptune run experiments/char_lm.py
"""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vmaptune as vt

CONTEXT, WIDTH, HEADS, LAYERS = 32, 32, 2, 2
VOCABULARY = "\n" + "".join(map(chr, range(32, 127)))

space = {
    "learning_rate": vt.loguniform(1e-4, 1e-1),
    "beta2": vt.reverseloguniform(0.9, 0.9999),
    "weight_decay": vt.loguniform(1e-4, 1.0, or_zero=0.2),
    "warmup": vt.uniform(0.0, 0.3),  # share of the steps
}


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        batch, length, _ = x.shape
        q, k, v = jnp.split(self.qkv(self.norm1(x)).reshape(batch, length, HEADS, -1), 3, axis=-1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(scores), v)
        x = x + self.out(mixed.reshape(batch, length, WIDTH))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.letters = nnx.Embed(len(VOCABULARY), WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = getattr(nnx, "List", list)([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, len(VOCABULARY), rngs=rngs)

    def __call__(self, text):
        x = self.letters(text) + self.positions(jnp.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def model(hp, rngs):
    return Transformer(rngs)


def optimizer(hp, steps):
    learning_rate = vt.schedules.cosine(hp.learning_rate, steps, warmup=hp.warmup * steps)
    adam = optax.adamw(learning_rate, b2=hp.beta2, weight_decay=hp.weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def loss(model, batch, hp):
    logits = model(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def metrics(model, batch):
    return {"nats": loss(model, batch, None)}  # per character


def data():
    text = pathlib.Path(argparse.__file__).read_text(encoding="utf-8")
    codes = np.array([VOCABULARY.find(letter) for letter in text if letter in VOCABULARY], np.int32)
    rows = len(codes) // (CONTEXT + 1)
    windows = codes[: rows * (CONTEXT + 1)].reshape(rows, CONTEXT + 1)
    return vt.Data(train=windows[:2400], valid=windows[2400:2656], test=windows[2656:2912])


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, metrics=metrics, data=data,
    objective="nats", direction="minimize", batch_size=16, steps=200, trials=64, rounds=3,
)  # fmt: skip
