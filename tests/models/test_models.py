"""Models of every framework and family, each against a plain loop of its own framework over the trial's batches."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loops import IN_A_HURRY, measured, train
from zoo import MODELS, N

import vmaptune as vt
from vmaptune.engine.functions import pack
from vmaptune.experiment import model_arrays
from vmaptune.store.rows import TrialRow
from vmaptune.store.states import State
from vmaptune.store.weights import save_weights
from vmaptune.study._models import rebuild
from vmaptune.study._outcome import plain_tree
from vmaptune.task import Hyperparameters

STEPS = 3
RATE = float(np.float32(0.05))
IN_LANES = ["nnx batch norm", "linen batch norm and dropout", "neural ODE", "Equinox convolutions", "haiku MLP"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def experiment_of(case):
    parts = jax.tree.map(lambda a: a[:12], case.data), jax.tree.map(lambda a: a[12:], case.data)
    return vt.Experiment(
        space={"rate": vt.loguniform(1e-3, 0.1)}, model=case.model, optimizer=lambda hp: optax.sgd(hp.rate, 0.9),
        loss=case.loss, metrics=case.metrics, data=vt.Data(train=parts[0], valid=parts[1]), batch_size=5, steps=STEPS,
    )  # fmt: skip


def case_of(name):
    for module in MODELS[name].needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        importlib.import_module(module)
    return MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_and_is_loaded_as_by_a_plain_loop(name, tmp_path):
    case = case_of(name)
    experiment = experiment_of(case)
    row = TrialRow(0, 0, 0, State.RUNNING, None, 4321, STEPS, None, {"rate": RATE}, None, {})
    losses, metrics = train(case, experiment, row)
    task = experiment.build()

    def trained(rate, seed):
        hp, root = Hyperparameters({"rate": rate}), jax.random.key(seed)

        def step(state, i):
            return task.step(state, hp, jax.random.fold_in(root, i + 1), *task.taken(state, hp, i))

        state, found = jax.lax.scan(step, task.init(hp, jax.random.fold_in(root, 0)), jnp.arange(STEPS))
        return pack(model_arrays(state)), found, task.evaluate(state, hp)

    compiled = jax.jit(trained, compiler_options=IN_A_HURRY)
    arrays, found, ours = jax.device_get(compiled(np.float32(RATE), np.uint32(row.seed)))
    np.testing.assert_allclose(found, losses, rtol=case.tolerance, atol=1e-6)
    ours = {key: float(value) for key, value in ours.items()}
    assert ours == pytest.approx(metrics, rel=case.tolerance, abs=1e-6)
    assert losses[0] != losses[-1]
    save_weights(tmp_path / "w", plain_tree(arrays))
    loaded = rebuild(experiment, row, tmp_path / "w", ())
    assert measured(case, loaded, experiment.loaded_data().valid) == pytest.approx(ours, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", IN_LANES)
def test_a_study_trains_it_in_lanes(name, tmp_path):
    case = case_of(name)
    experiment = experiment_of(case)
    study = vt.run(experiment, trials=4, rounds=1, out=tmp_path / "s", report=False)
    for row in study.trials()[:2]:
        losses, metrics = train(case, experiment, row)
        np.testing.assert_allclose(study.curve(row.trial)[-1].loss, np.mean(losses), rtol=5e-5)
        assert dict(row.metrics) == pytest.approx(metrics, rel=5e-5, abs=1e-6)
    best = study.ledger.trial(study.meta["weights"]["best"])
    loaded = measured(case, study.best_model(experiment), experiment.loaded_data().valid)
    assert loaded == pytest.approx(dict(best.metrics), rel=1e-5, abs=1e-6)


def test_there_are_enough_of_them():
    assert len(MODELS) >= 30
    assert set(IN_LANES) <= set(MODELS)
    assert all(len(jax.tree.leaves(case.data)[0]) == N for case in MODELS.values())
