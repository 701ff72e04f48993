"""Handwritten digits with a small MLP.  python -m vmaptune run experiments/digits_mlp.py"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import vmaptune as vt

space = {
    "learning_rate": vt.loguniform(1e-4, 1.0),
    "beta1": vt.reverseloguniform(0.5, 0.999),
    "weight_decay": vt.loguniform(1e-6, 1e-1, or_zero=0.2),
    "dropout": vt.uniform(0.0, 0.6),
    "width": vt.ordinal([16, 32, 64, 128]),  # changes shapes: trials are grouped by it
}


class MLP(nnx.Module):
    def __init__(self, width, dropout, rngs):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 10, rngs=rngs)
        self.dropout = vt.nn.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        x = self.dropout(nnx.relu(self.second(x)))
        return self.last(x)


def model(hp, rngs):
    return MLP(hp.width, hp.dropout, rngs=rngs)


def optimizer(hp, steps):
    return optax.adamw(vt.schedules.cosine(hp.learning_rate, steps), b1=hp.beta1, weight_decay=hp.weight_decay)


def loss(model, batch, hp):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


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
    order = np.random.default_rng(0).permutation(len(x))  # a random split, always the same one
    train, valid, test = np.split(order, [1077, 1437])
    return vt.Data(train=(x[train], y[train]), valid=(x[valid], y[valid]), test=(x[test], y[test]))


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, metrics=metrics, data=data,
    objective="error", direction="minimize", batch_size=64, steps=400,
)  # fmt: skip
