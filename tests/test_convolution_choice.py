"""A study computes its convolutions as was measured, and goes on with what it has begun with."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import optax
from flax import nnx

import vmaptune as vt
from vmaptune.engine import convolutions
from vmaptune.rewrite import default_choice
from vmaptune.study import _groups
from vmaptune.task import Hyperparameters

X = np.random.default_rng(0).normal(size=(24, 8, 2)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Conv(2, 4, (3,), rngs=rngs)
        self.b = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)).mean(1))[:, 0]


def loss(model, batch):
    return ((model(batch["x"]) - batch["x"].sum((1, 2))) ** 2).mean()


def experiment():
    return vt.Experiment(
        space={"learning_rate": vt.loguniform(1e-4, 1e-2)},
        model=lambda hp, rngs: Net(rngs),
        optimizer=lambda hp, steps: optax.adam(hp.learning_rate),
        loss=loss,
        data=vt.Data(train={"x": X[:16]}, valid={"x": X[16:]}),
        batch_size=8,
        steps=8,
    )


def test_what_is_measured_is_kept_and_costs_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAPTUNE_CACHE", str(tmp_path))
    (shape,) = convolutions_of(experiment())
    calls = []

    def fastest(shapes, lanes):
        calls.append((list(shapes), lanes))
        return dict.fromkeys(shapes, "shifted")

    monkeypatch.setattr(convolutions, "fastest", fastest)
    assert convolutions.fastest_convolutions([shape], 4, run_seconds=1.0) == {}  # too short a run to measure for
    assert convolutions.fastest_convolutions([shape], 4, run_seconds=1e4) == {str(shape): "shifted"}
    assert convolutions.fastest_convolutions([shape], 4, run_seconds=1.0) == {str(shape): "shifted"}
    assert calls == [([shape], 4)]


def test_the_ledger_says_how_convolutions_are_computed_and_a_study_keeps_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_groups, "fastest_convolutions", lambda shapes, *_: {str(shape): "xla" for shape in shapes})
    study = vt.run(experiment(), trials=4, rounds=1, out=tmp_path / "s")
    (row,) = study.ledger.groups()
    assert set(row.info["convolutions"].values()) == {"xla"}

    monkeypatch.undo()
    fresh = experiment()
    chooser = SimpleNamespace(built={}, shared={})
    _groups.Groups(fresh, None, None, {}, None, study.ledger, None, None, chooser)
    (shape,) = convolutions_of(experiment())
    assert fresh.convolutions(shape) == "xla"
    assert default_choice(shape) != "xla"


def convolutions_of(experiment_):
    task, hp = experiment_.build(), Hyperparameters({"learning_rate": 1e-3})
    state = jax.eval_shape(task.init, hp, jax.random.key(0))
    jax.eval_shape(lambda s: task.step(s, hp, jax.random.key(0), np.arange(8)), state)
    return list(experiment_.convolutions.asked)
