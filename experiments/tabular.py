"""Tabular regression: progression of diabetes.  python -m vmaptune run experiments/tabular.py"""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_diabetes

import vmaptune as vt

space = {
    "learning_rate": vt.loguniform(1e-4, 1.0),
    "beta1": vt.reverseloguniform(0.5, 0.999),
    "weight_decay": vt.loguniform(1e-4, 10.0, or_zero=0.1),
    "noise": vt.loguniform(1e-2, 1.0, or_zero=0.2),  # noise on the inputs, a regulariser
    "activation": vt.choice(["relu", "gelu", "tanh"]),
}


class Net(nnx.Module):
    def __init__(self, activation, rngs):
        self.first = nnx.Linear(10, 32, rngs=rngs)
        self.last = nnx.Linear(32, 1, rngs=rngs)
        self.activation = getattr(jax.nn, activation)

    def __call__(self, x):
        return self.last(self.activation(self.first(x)))[:, 0]


def model(hp, rngs):
    return Net(hp.activation, rngs)


def optimizer(hp, steps):
    learning_rate = vt.schedules.cosine(hp.learning_rate, steps, warmup=20)
    return optax.adamw(learning_rate, b1=hp.beta1, weight_decay=hp.weight_decay)


def loss(model, batch, hp, key):
    x, y = batch
    return ((model(x + hp.noise * jax.random.normal(key, x.shape)) - y) ** 2).mean()


def metrics(model, batch):
    x, y = batch
    return {"mse": ((model(x) - y) ** 2).mean()}  # of the standardised target: 1 - R²


def data():
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    train, valid, test = np.split(order, [265, 353])
    x = (x - x[train].mean(0)) / x[train].std(0)
    y = (y - y[train].mean()) / y[train].std()
    return vt.Data(train=(x[train], y[train]), valid=(x[valid], y[valid]), test=(x[test], y[test]))


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, metrics=metrics, data=data,
    objective="mse", direction="minimize", batch_size=64, steps=300,
)  # fmt: skip
