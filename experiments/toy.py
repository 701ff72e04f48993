"""A closed-form toy on the Task contract.  python -m vmaptune run experiments/toy.py

Gradient descent with momentum on an ill-conditioned quadratic: the best learning rate and momentum are
known (Polyak 1964): for curvatures from m to M, momentum ((sqrt M - sqrt m) / (sqrt M + sqrt m))^2.
"""

import jax
import jax.numpy as jnp

import vmaptune as vt

CURVATURES = jnp.array([1.0, 10.0, 100.0])  # best: learning_rate 0.033, momentum 0.67

space = {
    "learning_rate": vt.loguniform(1e-4, 1.0),
    "momentum": vt.reverseloguniform(0.0, 0.999),
}


def init(hp, key):
    return {"x": jax.random.normal(key, (3,)), "v": jnp.zeros(3)}


def step(state, hp, key):
    v = hp.momentum * state["v"] - hp.learning_rate * CURVATURES * state["x"]
    return {"x": state["x"] + v, "v": v}


def evaluate(state, hp):
    loss = 0.5 * (CURVATURES * state["x"] ** 2).sum()
    return {"loss": loss, "log10_loss": jnp.log10(loss + 1e-12)}


experiment = vt.Experiment(
    space=space, task=vt.Task(init, step, evaluate), objective="log10_loss", direction="minimize", steps=40
)
