"""Averaged weights, epochs, scalars beside the loss, the whole test part, the optimizer's state, weights for others."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vmaptune as vt
from vmaptune.errors import InputError, StudyError
from vmaptune.experiment import find_statics
from vmaptune.task import Hyperparameters
from vmaptune.view.export import export

random = np.random.default_rng(0)
X = random.normal(size=(44, 4)).astype(np.float32)
Y = (X[:, 0] + 0.5 * random.normal(size=44) > 0).astype(np.int32)
DATA = vt.Data(train=(X[:20], Y[:20]), valid=(X[20:32], Y[20:32]), test=(X[32:], Y[32:]))
SPACE = {"rate": vt.loguniform(1e-3, 0.1), "decay": vt.reverseloguniform(0.5, 0.99), "scale": vt.uniform(0.5, 2.0)}


def model(hp, key):
    return {"w": 0.5 * jax.random.normal(key, (4, 2))}


def error(logits, batch):
    return (logits.argmax(-1) != batch[1]).mean()


def loss(params, batch, hp):
    logits = hp.scale * (batch[0] @ params["w"])
    value = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
    return value, {"error": error(logits, batch)}


def experiment_with(**more):
    given = {
        "space": SPACE, "model": model, "optimizer": lambda hp: optax.adam(hp.rate), "loss": loss,
        "data": DATA, "batch_size": 8, "epochs": 2.3, "ema": "decay",
        "predict": lambda params, x, hp: hp.scale * (x @ params["w"]),
    }  # fmt: skip
    return vt.Experiment(**(given | more))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return vt.run(experiment_with(), trials=32, rounds=1, out=tmp_path_factory.mktemp("s") / "s", report=False)


def by_a_plain_loop(experiment, row):
    """Weights averaged by Optax, the optimizer's state, and what loss says of each step."""
    hp = Hyperparameters(row.params)
    params = model(hp, jax.random.fold_in(jax.random.key(row.seed), 0))
    optimizer, ema = optax.adam(row.params["rate"]), optax.ema(row.params["decay"], debias=True)
    opt, averages, said = optimizer.init(params), ema.init(params), []
    step = jax.jit(jax.value_and_grad(lambda p, batch: loss(p, batch, hp), has_aux=True))
    for batch in vt.batches(experiment, row):
        (value, more), grads = step(params, batch)
        said.append((float(value), float(more["error"])))
        updates, opt = optimizer.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        averaged, averages = ema.update(params, averages)
    return averaged, params, opt, said


def test_averaged_weights_are_measured_and_saved_and_epochs_make_steps(study):
    experiment = experiment_with()
    rows = [study.trials(round=0)[0], study.ledger.trial(study.meta["weights"]["best"])]
    for row in rows:
        assert row.steps == 6  # 2.3 times 20 examples in batches of 8, rounded up
        averaged, params, opt, said = by_a_plain_loop(experiment, row)
        value, more = loss(averaged, DATA.valid, Hyperparameters(row.params))
        np.testing.assert_allclose(row.value, value, rtol=2e-5)
        np.testing.assert_allclose(row.metrics["error"], more["error"], rtol=1e-6)  # without metrics= both are measured
        np.testing.assert_allclose(row.metrics["train_error"], said[-1][1], rtol=1e-6)
        np.testing.assert_allclose(study.curve(row.trial)[-1].loss, np.mean([v for v, _ in said]), rtol=2e-5)
        assert abs(value - loss(params, DATA.valid, Hyperparameters(row.params))[0]) > 1e-4
    np.testing.assert_allclose(study.best_model(experiment)["w"], averaged["w"], rtol=2e-5)
    state = study.best_optimizer_state(experiment)
    assert jax.tree.structure(state) == jax.tree.structure(opt)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), state, opt)


def test_all_metrics_are_measured_on_the_test_part(study):
    best = study.best
    repeats = [row for row in study.trials() if row.of == best["trial"]]
    found = [
        loss(by_a_plain_loop(experiment_with(), row)[0], DATA.test, Hyperparameters(row.params)) for row in repeats
    ]
    values = {"loss": [float(v) for v, _ in found], "error": [float(m["error"]) for _, m in found]}
    assert set(best["test"]) == {"loss", "error"}
    for name, each in values.items():
        np.testing.assert_allclose(best["test"][name]["value"], np.mean(each), rtol=2e-5)
        np.testing.assert_allclose(best["test"][name]["std"], np.std(each, ddof=1), rtol=1e-3, atol=1e-7)
    assert best["test_value"] == best["test"]["loss"]["value"]


def test_weights_go_out_as_safetensors(study, tmp_path):
    path = export(study.directory, "weights", tmp_path / "w.safetensors")
    tensors = pytest.importorskip("safetensors.numpy").load_file(path)
    np.testing.assert_array_equal(tensors["params.w"], study.best_model(experiment_with())["w"])
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert size % 8 == 0
    header = json.loads(raw[8 : 8 + size])
    assert header["params.w"] == {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}
    assert header["__metadata__"]["trial"] == str(study.meta["weights"]["best"])


def test_predictions_may_hang_on_settings(tmp_path):
    def called(params, batch, hp):  # what an ensemble measures are predictions
        out = params(batch[0]) if callable(params) else hp.scale * (batch[0] @ params["w"])
        return optax.softmax_cross_entropy_with_integer_labels(out, batch[1]).mean()

    experiment = experiment_with(loss=called)
    study = vt.run(experiment, trials=12, rounds=1, out=tmp_path / "s", ensemble=2, report=False)
    ensemble = study.ensemble(experiment)
    rows = [study.ledger.trial(t) for t in ensemble.members]
    outs = [row.params["scale"] * (X @ model["w"]) for row, model in zip(rows, ensemble.models, strict=True)]
    expected = sum(w * out for w, out in zip(ensemble.weights, outs, strict=True))
    np.testing.assert_allclose(ensemble.predict(X), expected, rtol=1e-5)


REFUSED = {
    "both": ({"steps": 3}, r"`steps` and `epochs` both say how long a trial trains.*\(3 and 2\.3\); leave one out"),
    "no epochs": ({"epochs": 0}, r"`epochs` must be a number above 0, but got 0"),
    "epochs without end": ({"epochs": float("inf")}, r"`epochs` must be a number above 0, but got inf"),
    "epochs of no setting": ({"epochs": "n"}, r"`epochs`.*the space has no setting 'n'"),
    "continuous epochs": ({"epochs": "scale"}, r"'scale' that gives `epochs` must have a finite set of values above 0"),
    "no average": ({"ema": 1.0}, r"`ema` must be a number from 0 to below 1, but got 1\.0"),
    "wide average": (
        {"ema": "scale"},
        r"'scale' that gives `ema` must have values from 0 to below 1.*reverseloguniform",
    ),
}


@pytest.mark.parametrize(("more", "words"), REFUSED.values(), ids=REFUSED)
def test_epochs_and_averages_that_are_none_are_refused(more, words):
    with pytest.raises(InputError, match=words):
        experiment_with(**more)


def test_a_task_has_neither():
    task = vt.Task(lambda hp, key: 0.0, lambda s, hp, key: s, lambda s, hp: {"loss": s})
    with pytest.raises(InputError, match="with `task=` leave out `ema`"):
        vt.Experiment(space=SPACE, task=task, ema=0.9)


def test_epochs_may_be_a_setting_and_steps_take_their_place():
    space = {**SPACE, "epochs": vt.ordinal([1, 2]), "size": vt.ordinal([4, 8])}
    experiment = experiment_with(space=space, epochs="epochs", batch_size="size")
    assert {"epochs", "size"} <= set(find_statics(experiment).static)
    assert experiment.total_steps({"epochs": 2, "size": 8}) == 5
    assert experiment.total_steps({"epochs": 1, "size": 4}) == 5
    assert experiment.with_changes(steps=3).total_steps({"epochs": 2, "size": 8}) == 3


MORE = {
    "a vector": ({"each": jnp.ones(3)}, r"loss\(\): 'each' must be a real scalar, but its shape is \(3,\)"),
    "the loss again": ({"loss": 1.0}, "the loss itself is called 'loss'"),
    "a long name": ({"x" * 200: 1.0}, "each metric's name must be a text"),
}


@pytest.mark.parametrize(("more", "words"), MORE.values(), ids=MORE)
def test_what_is_no_scalar_beside_the_loss_is_told(more, words):
    with pytest.raises(InputError, match=words):
        find_statics(experiment_with(loss=lambda params, batch, hp: (loss(params, batch, hp)[0], more)))


def test_a_study_of_a_task_has_no_optimizers_state(tmp_path):
    task = vt.Task(lambda hp, key: hp.rate * 1.0, lambda s, hp, key: s, lambda s, hp: {"loss": s})
    experiment = vt.Experiment(space={"rate": vt.uniform(0, 1)}, task=task, steps=2)
    study = vt.run(experiment, trials=4, rounds=1, out=tmp_path / "s", report=False)
    with pytest.raises(StudyError, match="no optimizer's state of its winner"):
        study.best_optimizer_state(experiment)
