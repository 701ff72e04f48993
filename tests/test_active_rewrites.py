"""Which rewrites are active for the models that people train, with whatever JAX is installed.

A rewrite that no longer recognises what a new JAX or Flax makes of a model changes no number: the model only trains
slower. So what is exchanged in each model's training step is written down here and must be the same on every version.
"""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from rewritten import normal

import vmaptune as vt
from vmaptune.engine import functions
from vmaptune.engine.functions import LaneFunctions
from vmaptune.rewrite._columns import CONSTRAINT
from vmaptune.rewrite._walk import inner_jaxprs

CLASSES, BATCH = 5, {"GRU": 8}  # examples of a batch, 32 elsewhere
# The names of the calls that rewrites put in the place of equations.
CALLS = {
    "product_of_rows", "quotient", "sum_of_rows", "sum_over_rows", "sum_of_all", "extreme_of_rows", "sums_after_loop",
    "bits", "pick", "max_pool", "sum_pool", "convolution_im2col", "convolution_shifted",
    "convolution_depthwise",
}  # fmt: skip


class MLP(nnx.Module):
    def __init__(self, rngs, activation, *, drop=0.0, norm=False):
        self.first, self.second = nnx.Linear(12, 20, rngs=rngs), nnx.Linear(20, 16, rngs=rngs)
        self.last = nnx.Linear(16, CLASSES, rngs=rngs)
        self.drop = nnx.Dropout(drop, rngs=rngs) if drop else None
        self.norm = nnx.LayerNorm(20, rngs=rngs) if norm else None
        self.activation = activation

    def __call__(self, x):
        h = self.activation(self.first(x))
        h = self.norm(h) if self.norm else h
        h = self.drop(h) if self.drop else h
        return self.last(self.activation(self.second(h)))


class Convolutional(nnx.Module):
    def __init__(self, rngs, channels):
        self.conv = nnx.Conv(1, channels, (3, 3), rngs=rngs)
        self.last = nnx.Linear(16 * channels, CLASSES, rngs=rngs)

    def __call__(self, x):
        h = nnx.max_pool(nnx.relu(self.conv(x)), (2, 2), (2, 2))
        return self.last(h.reshape(len(h), -1))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(3, 32, rngs=rngs))
        self.last = nnx.Linear(32, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.last(self.rnn(x)[:, -1])


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(3, 32, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 32, decode=False, rngs=rngs)
        self.last = nnx.Linear(32, CLASSES, rngs=rngs)

    def __call__(self, x):
        h = self.embed(x)
        return self.last((h + self.attention(self.norm(h))).mean(1))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES)(jnp.tanh(linen.Dense(20)(x)))


FLAT, IMAGES, SERIES = (12,), (8, 8, 1), (24, 3)
MODELS = {
    "tanh": (lambda hp, rngs: MLP(rngs, jnp.tanh), FLAT),
    "relu": (lambda hp, rngs: MLP(rngs, nnx.relu), FLAT),
    "gelu": (lambda hp, rngs: MLP(rngs, nnx.gelu), FLAT),
    "silu": (lambda hp, rngs: MLP(rngs, nnx.silu), FLAT),
    "sigmoid": (lambda hp, rngs: MLP(rngs, nnx.sigmoid), FLAT),
    "softplus": (lambda hp, rngs: MLP(rngs, nnx.softplus), FLAT),
    "elu": (lambda hp, rngs: MLP(rngs, nnx.elu), FLAT),
    "sine": (lambda hp, rngs: MLP(rngs, jnp.sin), FLAT),
    "arctangent": (lambda hp, rngs: MLP(rngs, jnp.arctan), FLAT),
    "log cosh": (lambda hp, rngs: MLP(rngs, lambda x: jnp.log(jnp.cosh(x))), FLAT),
    "layer norm": (lambda hp, rngs: MLP(rngs, jnp.tanh, norm=True), FLAT),
    "dropout": (lambda hp, rngs: MLP(rngs, nnx.relu, drop=0.2), FLAT),
    "linen": (lambda hp, rngs: Linen(), FLAT),
    "few channels": (lambda hp, rngs: Convolutional(rngs, 8), IMAGES),
    "many channels": (lambda hp, rngs: Convolutional(rngs, 48), IMAGES),
    "GRU": (lambda hp, rngs: Recurrent(rngs), SERIES),
    "attention": (lambda hp, rngs: Attention(rngs), SERIES),
}  # fmt: skip
DENSE = {"bits": 1, "held transposed": 9, "pick": 2, "product_of_rows": 1, "quotient": 1, "rows in columns": 1}
EXPECTED: dict[str, dict[str, int]] = {
    **dict.fromkeys(
        ["tanh", "relu", "gelu", "silu", "sigmoid", "softplus", "elu", "sine", "arctangent", "log cosh"], DENSE
    ),
    "layer norm": DENSE | {"quotient": 1},
    "dropout": DENSE | {"quotient": 1},
    "linen": {"held transposed": 6, "pick": 2, "product_of_rows": 1, "quotient": 1, "rows in columns": 1},
    "few channels": {"bits": 1, "pick": 4, "product_of_rows": 1, "quotient": 1, "rows in columns": 2},
    "many channels": {
        "bits": 1,
        "convolution_im2col": 2,
        "max_pool": 2,
        "pick": 4,
        "product_of_rows": 1,
        "quotient": 1,
        "rows in columns": 2,
    },
    "GRU": {"bits": 1, "pick": 4, "product_of_rows": 6, "quotient": 1, "rows in columns": 2, "sums_after_loop": 1},
    "attention": {"bits": 1, "pick": 4, "product_of_rows": 1, "quotient": 1, "rows in columns": 2},
}


def loss(model, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def active(name: str) -> dict[str, int]:
    """How many equations of a training step are exchanged, by rewrite; of some, only whether there are any."""
    model, shape = MODELS[name]
    data = vt.Data(train=(normal(0, 96, *shape), jnp.arange(96) % CLASSES),
                   valid=(normal(1, 32, *shape), jnp.arange(32) % CLASSES))  # fmt: skip
    experiment = vt.Experiment(
        space={"rate": vt.loguniform(1e-3, 1e-1)}, model=model, optimizer=lambda hp: optax.adam(hp.rate), loss=loss,
        metrics=lambda model, batch: {"loss": loss(model, batch)}, data=lambda: data, objective="loss",
        direction="minimize", batch_size=BATCH.get(name, 32), steps=10, order="shared",
    )  # fmt: skip
    step = LaneFunctions(experiment.build(), {}, {"rate": jax.ShapeDtypeStruct((), jnp.float32)}).step
    found = Counter(_names(step.fitted))
    found["held transposed"] = sum(step.columns)
    for many in ("bits", "quotient"):  # how many is a matter of the model's own code
        found[many] = min(found[many], 1)
    return {name: count for name, count in sorted(found.items()) if count}


def _names(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.params.get("name") in CALLS:
            yield eqn.params["name"]
        if eqn.primitive.name == CONSTRAINT:
            yield "rows in columns"
        for inner in inner_jaxprs(eqn):
            yield from _names(inner)


@pytest.mark.parametrize("name", MODELS)
def test_the_rewrites_of_a_model_are_the_same_on_every_version(name, monkeypatch):
    monkeypatch.setattr(functions, "products_are_compiled", lambda: True)
    assert active(name) == EXPECTED[name], f"JAX {jax.__version__}: see what a rewrite no longer recognises"
