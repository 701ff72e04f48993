"""What a model is measured by: the whole part of the data, by the same numbers wherever it is measured."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vmaptune as vt
from vmaptune.engine import tiles
from vmaptune.engine.alone import Alone
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.tiles import at_once
from vmaptune.errors import InputError
from vmaptune.experiment import _measures, find_statics
from vmaptune.rewrite import bytes_at_once
from vmaptune.study._held_out import on_examples

random = np.random.default_rng(0)
X = random.normal(size=(6000, 4)).astype(np.float32)
TARGET = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.3 * random.normal(size=6000)).astype(np.float32)
ORDER = np.concatenate([np.arange(500), 500 + np.argsort(TARGET[500:3500]), np.arange(3500, 6000)])
X, TARGET = X[ORDER], TARGET[ORDER]  # the validation examples lie by their target: no block is like another
DATA = vt.Data(
    train=(X[:500], TARGET[:500]), valid=(X[500:3500], TARGET[500:3500]), test=(X[3500:], TARGET[3500:])
)  # fmt: skip
RARE = 3.0  # positive above it: in the last block alone


def model(hp, rngs):
    return {"w": 0.1 * jax.random.normal(rngs.params(), (4,)), "b": jnp.zeros(())}


def outputs(model, x):
    if callable(model):  # an ensemble's predictions
        return model(x)
    return x @ model["w"] + model["b"]


def loss(model, batch):
    return ((outputs(model, batch[0]) - batch[1]) ** 2).mean()


def whole_metrics(model, batch):
    """R², F1, correlation and the mean squared error, as one writes them."""
    out, y = outputs(model, batch[0]), batch[1]
    true = ((out > RARE) & (y > RARE)).sum()
    return {
        "r2": 1 - ((y - out) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
        "f1": 2 * true / ((out > RARE).sum() + (y > RARE).sum()),
        "correlation": jnp.corrcoef(out, y)[0, 1],
        "mse": ((y - out) ** 2).mean(),
    }


def sums(model, batch):
    out, y = outputs(model, batch[0]), batch[1]
    found = {"n": jnp.float32(len(y)), "y": y.sum(), "yy": (y**2).sum(), "error": ((y - out) ** 2).sum()}
    return found | {"true": ((out > RARE) & (y > RARE)).sum(), "said": (out > RARE).sum() + (y > RARE).sum()}


def combine(sums):
    r2 = 1 - sums["error"] / (sums["yy"] - sums["y"] ** 2 / sums["n"])
    return {"r2": r2, "f1": 2 * sums["true"] / sums["said"], "mse": sums["error"] / sums["n"]}


def experiment(**changes):
    parts = {
        "space": {"rate": vt.loguniform(1e-3, 0.3)}, "model": model, "optimizer": lambda hp: optax.adam(hp.rate),
        "loss": loss, "metrics": whole_metrics, "data": DATA, "objective": "r2", "direction": "maximize",
        "batch_size": 64, "steps": 60, "name": "measures",
    }  # fmt: skip
    return vt.Experiment(**{**parts, **changes})


def scaled(x):
    return 0.5 * x - 1


def scaling(predict):
    """Loss and metrics scale their inputs: a model's predictions are those of scaled inputs."""

    def metrics(model, batch):
        return whole_metrics(model, (scaled(batch[0]), batch[1]))

    return experiment(
        loss=lambda model, batch: loss(model, (scaled(batch[0]), batch[1])), metrics=metrics, predict=predict
    )


def predicted(model, x):
    return outputs(model, scaled(x))


def by_hand(weights, part):
    """The same in NumPy, in float64."""
    x, y = (np.asarray(a, np.float64) for a in part)
    out = x @ np.asarray(weights["w"], np.float64) + float(weights["b"])
    said, true = out > RARE, y > RARE
    return {
        "r2": 1 - ((y - out) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
        "f1": 2 * (said & true).sum() / (said.sum() + true.sum()),
        "correlation": np.corrcoef(out, y)[0, 1],
        "mse": ((y - out) ** 2).mean(),
    }


def initial(one, seed=0):
    """A configuration, an untrained state, and what the task measures of it."""
    task, hp = one.build(), vt.task.Hyperparameters({"rate": np.float32(0.1)})
    state = task.init(hp, jax.random.key(seed))
    return state, jax.jit(lambda s: task.evaluate(s, hp))(state)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Of metrics that are no means, on inputs that loss and metrics scale, with an ensemble."""
    return vt.run(
        scaling(predicted), trials=8, rounds=1, ensemble=3, out=tmp_path_factory.mktemp("m") / "s", report=False
    )


def test_metrics_that_are_no_means_are_those_of_the_whole_part(study):
    assert {str(t.state) for t in study.trials()} == {"COMPLETE"}  # though blocks have no positive
    trial = study.ledger.trial(study.meta["weights"]["best"])
    expected = by_hand(study.best_model(scaling(predicted)), (scaled(DATA.valid[0]), DATA.valid[1]))
    assert expected["r2"] > 0.3
    for name, value in trial.metrics.items():
        assert value == pytest.approx(expected[name], rel=1e-4), name


def test_the_test_part_is_measured_so_too(study):
    """The members' own values on it, by what the ensemble was chosen from, and the winner's."""
    one = scaling(predicted)
    data, arrays = one.loaded_data(), {"rate": jax.ShapeDtypeStruct((), jnp.float32)}
    functions = LaneFunctions(one.build(), {}, arrays)
    params = study.ledger.trial(study.best["trial"]).params
    trained = Alone(functions, params, study.best_trial.seed)
    state, _, _ = trained.segment(trained.start(), 0, 60, trained.settings)
    (found,), _ = on_examples(one, functions, {}, params, [state], resample=False)
    expected = by_hand(study.best_model(one), (scaled(data.test[0]), data.test[1]))["r2"]
    assert found["r2"] == pytest.approx(expected, rel=1e-4)
    assert study.result["ensemble"]["single_test_value"] == pytest.approx(expected, rel=1e-4)


def test_an_ensemble_is_measured_on_what_the_models_were_measured_on(study, tmp_path):
    with pytest.raises(InputError, match=r"by itself its (.|\n)*predict=lambda"):
        vt.run(scaling(outputs), trials=12, rounds=1, ensemble=3, out=tmp_path / "raw", report=False)
    info = study.result["ensemble"]
    assert info["single_value"] == pytest.approx(study.ledger.trial(info["single"]).value, rel=1e-4)
    y = np.asarray(DATA.valid[1], np.float64)
    out = np.asarray(study.ensemble(scaling(predicted)).predict(DATA.valid[0]), np.float64)
    assert info["value"] == pytest.approx(1 - ((y - out) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-4)


def test_replay_compares_the_objective_too(study, monkeypatch):
    one, own = scaling(predicted), study.curve
    assert vt.replay(study, 0, one).agrees
    monkeypatch.setattr(study, "curve", lambda t: [replace(p, value=p.value + 0.01) for p in own(t)])
    found = vt.replay(study, 0, one)
    assert not found.agrees
    assert found.objective[-1] == pytest.approx(found.objective_alone[-1] + 0.01, rel=1e-4)


def test_sums_that_are_combined_are_the_metrics_of_the_whole_part():
    state, found = initial(experiment(metrics=sums, combine=combine))
    expected = by_hand(state["params"], DATA.valid)
    assert {name: float(v) for name, v in found.items()} == pytest.approx({n: expected[n] for n in found}, rel=1e-4)


@pytest.mark.parametrize("rows", [40, 3000])
def test_means_are_no_sums_to_combine(rows):
    """Three blocks of means added up made a root mean square of √3 times its size, and a small part showed nothing."""
    means = experiment(
        metrics=lambda model, batch: {"mse": loss(model, batch)}, combine=lambda s: {"rmse": jnp.sqrt(s["mse"])},
        objective="rmse", data=vt.Data(train=DATA.train, valid=tuple(a[:rows] for a in DATA.valid)),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"'mse' must be a sum over the batch's examples(.|\n)*divide in combine"):
        find_statics(means)


def test_where_memory_does_not_allow_the_whole_a_metric_that_is_no_mean_is_refused(monkeypatch):
    monkeypatch.setattr(_measures, "WHOLE_BYTES", 1000)
    with pytest.raises(InputError, match=r"must be a mean over examples(.|\n)*combine"):
        find_statics(experiment())
    means = experiment(metrics=lambda m, b: {"r2": loss(m, b)})
    find_statics(means)
    assert means.block_bytes > 1000
    state, found = initial(means)
    assert float(found["r2"]) == pytest.approx(by_hand(state["params"], DATA.valid)["mse"], rel=1e-5)
    added = experiment(metrics=sums, combine=combine)
    find_statics(added)
    state, found = initial(added)
    assert float(found["r2"]) == pytest.approx(by_hand(state["params"], DATA.valid)["r2"], rel=1e-4)


def test_a_loss_that_is_measured_is_that_of_the_whole_part_too():
    """All pairs of examples, as contrastive losses have them."""

    def spread(model, batch):
        out = outputs(model, batch[0])
        return jnp.abs(out[:, None] - out[None]).mean()

    state, found = initial(experiment(metrics=None, loss=spread, objective="loss"))
    out = np.asarray(DATA.valid[0] @ np.asarray(state["params"]["w"]))
    assert float(found["loss"]) == pytest.approx(np.abs(out[:, None] - out[None]).mean(), rel=1e-5)


def test_what_grows_by_the_square_of_the_examples_counts_so(monkeypatch):
    def pairs(model, batch):
        out = outputs(model, batch[0])
        return {"r2": jnp.abs(out[:, None] - out[None]).sum() / len(out) ** 2}

    monkeypatch.setattr(_measures, "WHOLE_BYTES", 4 * 3000 * 3000 // 2)
    with pytest.raises(InputError, match="'r2' must be a mean over examples"):
        find_statics(experiment(metrics=pairs))


def test_the_bytes_of_a_computation_by_hand():
    def three(x):  # [10] float32: a and b are kept together, then c beside b
        a = x + 1
        b = a * 2
        c = jnp.sin(a)
        return b * c

    jaxpr = jax.make_jaxpr(three)(jnp.zeros(10)).jaxpr
    assert bytes_at_once(jaxpr) == 3 * 40
    assert bytes_at_once(jax.make_jaxpr(jax.jit(three))(jnp.zeros(10)).jaxpr) == 4 * 40  # and its result
    unused = jax.make_jaxpr(lambda x: (jnp.outer(x, x), x + 1)[1])(jnp.zeros(10)).jaxpr
    assert bytes_at_once(unused) == 80  # the two operands of the product, which is not kept


def test_lanes_that_are_measured_in_turn_measure_the_same():
    assert [at_once(tiles.MEASURE_BYTES // k, 12) for k in (100, 12, 11, 5, 1)] == [12, 12, 6, 4, 1]
    assert at_once(100 * tiles.MEASURE_BYTES, 12) == 1

    def one(alike, x, y):
        return {"sum": (alike * x).sum(), "y": y}

    x, y = random.normal(size=(12, 5)).astype(np.float32), np.arange(12)
    for some in (1, 3, 4, 6, 12):
        found = jax.jit(tiles.over_lanes_in_turn(one, some))(jnp.float32(2), x, y)
        np.testing.assert_allclose(found["sum"], 2 * x.sum(1), rtol=1e-5)
        np.testing.assert_array_equal(found["y"], y)


# ---- 64 bits, long sums, replay -----------------------------------------------------------------------


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_with_64_bits_data_weights_and_curves_keep_their_own_precision(x64, tmp_path):
    """A target of which float32 keeps nothing but its mean, a million."""
    x = random.normal(size=(96, 2))
    y = 1e6 + 0.01 * x[:, 0]
    data = vt.Data(train=(x[:64], y[:64]), valid=(x[64:], y[64:]))
    assert data.train[1].dtype == np.float64

    def loss(model, batch):
        return ((batch[0] @ model["w"] + model["b"] - batch[1]) ** 2).mean()

    def model(hp):
        return {"w": jnp.zeros(2, jnp.float64), "b": jnp.asarray(1e6, jnp.float64)}

    one = vt.Experiment(
        space={"rate": vt.uniform(0.1, 0.4)}, model=model, optimizer=lambda hp: optax.sgd(hp.rate), loss=loss,
        data=data, batch_size=64, steps=20, name="x64",
    )  # fmt: skip
    study = vt.run(one, trials=8, rounds=1, out=tmp_path / "s", report=False)
    trial = study.ledger.trial(study.meta["weights"]["best"])
    rate, w, b = float(np.float32(trial.params["rate"])), np.zeros(2), 1e6
    for _ in range(20):
        error = x[:64] @ w + b - y[:64]
        w, b = w - rate * 2 * x[:64].T @ error / 64, b - rate * 2 * error.mean()
    assert trial.value == pytest.approx(((x[64:] @ w + b - y[64:]) ** 2).mean(), rel=1e-6)
    assert trial.value < 1e-6
    kept = study.best_model(one)
    np.testing.assert_allclose(kept["w"], w, rtol=1e-9, atol=1e-15)
    assert vt.replay(study, trial.trial, one).agrees
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(InputError, match="jax_enable_x64"):
        study.best_model(one)


def test_the_mean_loss_of_a_long_segment_is_its_mean(tmp_path):
    task = vt.Task(
        lambda hp, key: jnp.zeros(()), lambda s, hp, key: (s, 0.1 + 0 * hp.a), lambda s, hp: {"loss": s}, has_loss=True
    )
    one = vt.Experiment(space={"a": vt.uniform(0.0, 1.0)}, task=task, steps=60000, name="long")
    study = vt.run(one, trials=8, rounds=1, plan="every=60000", out=tmp_path / "s", report=False)
    (point,) = study.curve(0)
    assert point.loss == pytest.approx(0.1, rel=1e-6)


def chaotic(tmp_path, seed=0):
    """A logistic map: a change of one part in a million decides where it is after some tens of steps."""
    task = vt.Task(
        lambda hp, key: 0.2 + 0.6 * jax.random.uniform(key),
        lambda x, hp, key: (hp.r * x * (1 - x), x),
        lambda x, hp: {"loss": x},
        has_loss=True,
    )
    one = vt.Experiment(space={"r": vt.uniform(3.7, 4.0)}, task=task, steps=160, name="map")
    return one, vt.run(one, trials=8, rounds=1, seed=seed, plan="every=40,lanes=1", out=tmp_path / "s", report=False)


def test_replay_says_chaotic_of_differences_only_and_never_agrees_with_nothing(tmp_path):
    one, study = chaotic(tmp_path)
    own = study.curve
    trial = next(t.trial for t in study.trials() if t.state == "COMPLETE")
    found = vt.replay(study, trial, one)
    if found.difference == 0.0 and found.compared == 4:  # the same bits: chaotic as it is, there is nothing to excuse
        assert found.agrees
        assert found.chaotic_from is None
    study.curve = lambda t: [replace(p, loss=1.01 * p.loss, value=1.01 * p.value) for p in own(t)]
    found = vt.replay(study, trial, one)
    assert found.chaotic_from == 40
    assert found.compared == 0
    assert not found.agrees


def test_chaos_excuses_no_more_than_rounding_can_do(tmp_path):
    """A number that loses three digits: runs nudged by a millionth are half a percent apart, no half."""
    task = vt.Task(
        lambda hp, key: jnp.float32(0.5), lambda x, hp, key: x, lambda x, hp: {"loss": x - 0.4999}
    )  # fmt: skip
    one = vt.Experiment(space={"r": vt.uniform(0.0, 1.0)}, task=task, steps=40, name="digits")
    study = vt.run(one, trials=4, rounds=1, plan="every=10", out=tmp_path / "s", report=False)
    own = study.curve
    assert vt.replay(study, 0, one).agrees
    for factor, from_step in ((1.01, 20), (1.5, None)):
        study.curve = lambda t, by=factor: [replace(p, value=p.value * (by if p.step > 10 else 1)) for p in own(t)]
        found = vt.replay(study, 0, one)
        assert found.chaotic_from == from_step
        assert found.agrees == (from_step is not None)
