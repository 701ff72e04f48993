"""A study computes its convolutions as was measured, and goes on with what it has begun with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import vmaptune as vt
from vmaptune.engine import convolutions
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Plan
from vmaptune.rewrite import default_choice
from vmaptune.rewrite._choose import INNERMOST
from vmaptune.study import _groups
from vmaptune.task import Hyperparameters

X = np.random.default_rng(0).normal(size=(24, 8, 2)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, rngs, channels=4):
        self.a = nnx.Conv(2, channels, (3,), rngs=rngs)
        self.b = nnx.Linear(channels, 1, rngs=rngs)

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)).mean(1))[:, 0]


def loss(model, batch):
    return ((model(batch["x"]) - batch["x"].sum((1, 2))) ** 2).mean()


def experiment(channels=4, batch_size=8):
    return vt.Experiment(
        space={"learning_rate": vt.loguniform(1e-4, 1e-2)},
        model=lambda hp, rngs: Net(rngs, channels),
        optimizer=lambda hp, steps: optax.adam(hp.learning_rate),
        loss=loss,
        data=vt.Data(train={"x": X[:16]}, valid={"x": X[16:]}),
        batch_size=batch_size,
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


@pytest.mark.parametrize("innermost_is_faster", [True, False])
def test_a_model_of_more_channels_is_timed_as_a_whole_and_a_study_keeps_to_it(
    tmp_path, monkeypatch, innermost_is_faster
):
    """Both ways give the same errors to rounding; the ledger says which one it was."""

    def faster(functions, other, plan, *_):
        assert str(functions.step.fitted) != str(other.step.fitted)
        return other if innermost_is_faster else functions

    monkeypatch.setattr(_groups, "worth_timing_models", lambda seconds: True)
    monkeypatch.setattr(convolutions, "faster_functions", faster)
    study = vt.run(experiment(32, 16), trials=4, rounds=1, out=tmp_path / "s")
    monkeypatch.undo()
    (row,) = study.ledger.groups()
    assert set(row.info["convolutions"].values()) == {INNERMOST if innermost_is_faster else "im2col"}
    plain = vt.run(experiment(32, 16), trials=4, rounds=1, out=tmp_path / "plain")
    (row,) = plain.ledger.groups()
    assert set(row.info["convolutions"].values()) == {"im2col"}
    for a, b in zip(study.trials(), plain.trials(), strict=True):
        assert a.params == b.params
        np.testing.assert_allclose(a.value, b.value, rtol=1e-4)

    fresh = experiment(32, 16)
    _groups.Groups(fresh, None, None, {}, None, study.ledger, None, None, SimpleNamespace(built={}, shared={}))
    (shape,) = convolutions_of(experiment(32, 16), 16)
    assert (fresh.convolutions.of_model([shape]) == INNERMOST) == innermost_is_faster


def test_small_models_and_large_ones_are_not_timed(tmp_path, monkeypatch):
    choice = experiment().convolutions
    assert convolutions.faster_as_a_whole(choice, (), "as it is", lambda: pytest.fail("traced"), None) == "as it is"
    monkeypatch.setattr(convolutions, "faster_functions", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(_groups, "worth_timing_models", lambda seconds: True)
    vt.run(experiment(4, 16), trials=2, rounds=1, out=tmp_path / "few")  # innermost in any case
    vt.run(experiment(65, 16), trials=2, rounds=1, out=tmp_path / "many")


def test_two_ways_of_a_step_are_timed_once(tmp_path, monkeypatch):
    assert not convolutions.worth_timing_models(199)
    assert convolutions.worth_timing_models(200)
    monkeypatch.setenv("VMAPTUNE_CACHE", str(tmp_path))
    choice_of = experiment(32, 16)
    task = choice_of.build()
    traced = {"learning_rate": jax.ShapeDtypeStruct((), np.float32)}
    one = LaneFunctions(task, {}, traced)
    other, tried = choice_of.convolutions.trying(lambda: LaneFunctions(task, {}, traced))
    assert len(tried) == 1
    assert not choice_of.convolutions.chosen  # trying chooses nothing
    assert str(one.step.fitted) == str(LaneFunctions(task, {}, traced).step.fitted) != str(other.step.fitted)
    plan, waits = Plan(devices=1, lanes=1, every=1, tiles=1), []
    with monkeypatch.context() as patched:
        times = iter([2.0, 1.5, 2.0, 9.0, 1.8, 1.7])  # in turn; the machine was busy once
        patched.setattr(convolutions, "model_step_seconds", lambda program: next(times))
        for _ in range(2):  # another timing would find no more times
            assert convolutions.faster_functions(one, other, plan, None, lambda: waits.append(1)) is other
    assert waits == [1]
    (kept,) = (tmp_path / "plans").glob("steps-*.json")
    kept.unlink()
    found = convolutions.faster_functions(one, other, plan, None)  # by a stopwatch
    seconds = json.loads(kept.read_text())
    assert all(1e-9 < each < 1 for each in seconds)
    assert found is (one, other)[int(np.argmin(seconds))]


def convolutions_of(experiment_, examples=8):
    task, hp = experiment_.build(), Hyperparameters({"learning_rate": 1e-3})
    state = jax.eval_shape(task.init, hp, jax.random.key(0))
    jax.eval_shape(lambda s: task.step(s, hp, jax.random.key(0), np.arange(examples)), state)
    return list(experiment_.convolutions.asked)
