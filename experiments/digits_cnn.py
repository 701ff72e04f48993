"""Handwritten digits with a small CNN: batch norm, dropout.  python -m vmaptune run experiments/digits_cnn.py"""

import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import vmaptune as vt

space = {
    "learning_rate": vt.loguniform(1e-4, 1.0),
    "momentum": vt.reverseloguniform(0.5, 0.999),
    "weight_decay": vt.loguniform(1e-6, 1e-2, or_zero=0.2),
    "dropout": vt.uniform(0.0, 0.6),
}


class CNN(nn.Module):
    dropout: float

    @nn.compact
    def __call__(self, x, train):
        for channels in (8, 16):
            x = nn.Conv(channels, (3, 3), strides=2 if channels == 16 else 1)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = x.reshape(len(x), -1)
        x = vt.nn.LinenDropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(10)(x)


def model(hp, rngs):
    return CNN(hp.dropout)


def optimizer(hp, steps):
    return optax.chain(
        optax.add_decayed_weights(hp.weight_decay),
        optax.sgd(vt.schedules.cosine(hp.learning_rate, steps), momentum=hp.momentum, nesterov=True),
    )


def loss(model, batch, hp):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x, train=True), y).mean()


def metrics(model, batch):
    x, y = batch
    logits = model(x, train=False)
    return {
        "error": (logits.argmax(-1) != y).mean(),
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
    }


def predict(model, x):  # what an ensemble averages
    return model(x, train=False)


def data():
    digits = load_digits()
    x, y = (digits.images[..., None] / 16).astype(np.float32), digits.target
    order = np.random.default_rng(0).permutation(len(x))
    train, valid, test = np.split(order, [1077, 1437])
    return vt.Data(train=(x[train], y[train]), valid=(x[valid], y[valid]), test=(x[test], y[test]))


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, metrics=metrics, data=data, predict=predict,
    objective="error", direction="minimize", batch_size=32, steps=200, trials=128, rounds=3,
)  # fmt: skip
