"""The workloads' models in plain Flax nnx, as a person would write one; shared by vmaptune and its JAX peers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from works import CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, Work


class MLP(nnx.Module):
    def __init__(self, hidden, rngs):
        self.first = nnx.Linear(64, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.head = nnx.Linear(hidden, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


class CNN(nnx.Module):
    def __init__(self, channels, rngs):
        self.first = nnx.Conv(1, channels[0], (3, 3), rngs=rngs)
        self.second = nnx.Conv(channels[0], channels[1], (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(channels[1], 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.mean((1, 2)))


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
        self.letters = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = getattr(nnx, "List", list)([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, text):
        x = self.letters(text) + self.positions(jnp.arange(text.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class GRU(nnx.Module):
    def __init__(self, rngs):
        self.letters = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.rnn = nnx.RNN(nnx.GRUCell(WIDTH, WIDTH, rngs=rngs))
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, text):
        return self.head(self.rnn(self.letters(text)))


def model_of(work: Work, rngs: nnx.Rngs) -> nnx.Module:
    """One freshly initialised model."""
    if work.kind == "mlp":
        return MLP(work.hidden, rngs)
    if work.kind == "cnn":
        return CNN(work.channels, rngs)
    return {"transformer": Transformer, "gru": GRU}[work.kind](rngs)


def loss(model: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()


def metrics(model: Any, batch: Any) -> dict[str, Any]:
    return {"error": (model(batch[0]).argmax(-1) != batch[1]).mean()}
