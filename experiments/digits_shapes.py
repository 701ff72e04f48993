"""Handwritten digits, the shape of the MLP searched too.  python -m vmaptune run experiments/digits_shapes.py

Width, depth and activation are read by masked layers alone, so all of their combinations can share one program.
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import vmaptune as vt

space = {
    "learning_rate": vt.loguniform(1e-4, 1e-1),
    "width": vt.ordinal([16, 32, 48, 64]),
    "depth": vt.ordinal([1, 2, 3]),
    "activation": vt.choice(["relu", "gelu", "tanh"]),
    "batch": vt.ordinal([16, 32, 64]),
}


class MLP(nnx.Module):
    def __init__(self, hp, rngs):
        width, self.activation = vt.nn.size(hp, "width"), vt.nn.activation(hp, "activation")
        self.first = vt.nn.Linear(64, width, rngs=rngs)
        self.hidden = vt.nn.Blocks(
            vt.nn.size(hp, "depth"),
            lambda rngs: vt.nn.Linear(width, width, rngs=rngs),
            between=self.activation,
            rngs=rngs,
        )
        self.last = vt.nn.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(self.hidden(self.activation(self.first(x))))


def model(hp, rngs):
    return MLP(hp, rngs)


def optimizer(hp, steps):
    return optax.adam(vt.schedules.cosine(hp.learning_rate, steps))


def loss(model, batch):
    x, y = batch
    return vt.nn.batch_mean(optax.softmax_cross_entropy_with_integer_labels(model(x), y))


def metrics(model, batch):
    x, y = batch
    logits = model(x)
    return {
        "error": (logits.argmax(-1) != y).mean(),
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
    }


def data():
    digits = load_digits()
    x, y = (digits.data / 16).astype(jnp.float32), digits.target
    order = np.random.default_rng(0).permutation(len(x))
    train, valid, test = np.split(order, [1077, 1437])
    return vt.Data(train=(x[train], y[train]), valid=(x[valid], y[valid]), test=(x[test], y[test]))


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, metrics=metrics, data=data,
    objective="error", direction="minimize", batch_size="batch", steps=300,
)  # fmt: skip
