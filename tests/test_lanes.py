"""Studies in which lanes are refilled: early stopping, divergence, repeats, populations, ensembles."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import Crash

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Job, Lanes
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.search.zoom import Scored, best
from vmaptune.store.states import State
from vmaptune.task import Task
from vmaptune.view.summary import summary

TRACED = {"rate": jax.ShapeDtypeStruct((), jnp.float32)}


def line_task() -> Task:
    """A line fitted by noisy gradient descent; a large rate diverges."""
    x = jax.random.normal(jax.random.key(1), (32, 3))
    y = x @ jnp.array([1.0, -2.0, 0.5])

    def loss(w, rows):
        return ((x[rows] @ w - y[rows]) ** 2).mean()

    def step(w, hp, key):
        rows = jax.random.randint(key, (4,), 0, 32)
        value, grad = jax.value_and_grad(loss)(w, rows)
        return w - hp.rate * grad, value

    return Task(
        lambda hp, key: jax.random.normal(key, (3,)), step, lambda w, hp: {"loss": loss(w, jnp.arange(32))}, True
    )


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(LaneFunctions(line_task(), {}, TRACED), TRACED, Plan(devices=1, lanes=4, every=5))


def curves(program, jobs, capacity, stop=lambda point: point.bad is not None, **options):
    found: dict[int, list] = {}
    states: dict[int, np.ndarray] = {}

    def on_points(points):
        for p in points:
            found.setdefault(p.trial, []).append((p.step, p.loss, p.metrics["loss"]))
        return [p.trial for p in points if stop(p)]

    lanes = Lanes(
        program, capacity=capacity, on_points=on_points, on_state=lambda job, s: states.__setitem__(job.trial, s),
        **options,
    )  # fmt: skip
    lanes.train(jobs)
    return found, states, lanes


def jobs(rates, steps=20):
    return [Job(i, 100 + i, {"rate": rate}, steps, keep=True) for i, rate in enumerate(rates)]


def test_a_trial_has_the_same_bits_first_or_refilled_moved_or_not_beside_whatever_neighbours(program):
    rates = [0.01 * (i % 7 + 1) for i in range(18)]
    alone, alone_states, _ = curves(program, jobs(rates), 100)
    dropped = {i: 5 * (i % 3 + 1) for i in range(0, 18, 2)}  # every other trial is stopped after 5 to 15 steps
    few, states, lanes = curves(program, jobs(rates), 8, lambda p: p.step >= dropped.get(p.trial, 99), prompt=True)
    assert lanes.refilled >= 10
    assert lanes.moves > 0
    for trial, curve in few.items():
        assert curve == alone[trial][: len(curve)]
        assert (len(curve) == 4) == (trial not in dropped)
    for trial, state in states.items():
        np.testing.assert_array_equal(state, alone_states[trial])
    assert lanes.live_steps == sum(curve[-1][0] for curve in few.values())


def test_a_quarter_of_the_trials_diverges_and_the_others_bits_do_not_change(program):
    good = [0.01 * (i % 7 + 1) for i in range(24)]
    mixed = [rate if i % 4 else 1e20 for i, rate in enumerate(good)]
    clean, clean_states, _ = curves(program, jobs(good), 8)
    found, states, lanes = curves(program, jobs(mixed), 8)
    for trial in range(24):
        if trial % 4:
            assert found[trial] == clean[trial]
            np.testing.assert_array_equal(states[trial], clean_states[trial])
        else:
            assert len(found[trial]) == 1  # one segment: then its lane was refilled
            assert trial not in states
    assert lanes.refilled == 24 - 8


def test_the_lane_of_a_stopped_trial_is_refilled_without_a_segment_lost(program):
    _, _, lanes = curves(program, jobs([0.01] * 32), 8, lambda p: p.trial % 2 == 0, prompt=True)
    assert lanes.live_steps / lanes.lane_steps > 0.9


def test_a_hungry_lane_is_fed(program):
    late = jobs([0.02] * 10)[6:]
    seen = []

    def feed():
        seen.append(lanes.free)
        if late:
            lanes.submit([late.pop(0) for _ in range(min(2, len(late)))])

    found: dict[int, int] = {}
    lanes = Lanes(program, capacity=4, on_points=lambda ps: [found.update({p.trial: p.step}) for p in ps] and [],
                  on_hungry=feed, prompt=True)  # fmt: skip
    lanes.train(jobs([0.02] * 6))
    assert found == dict.fromkeys(range(10), 20)
    assert seen
    assert not late


def test_lanes_go_on_from_others_states(program):
    """After a copy the child is its parent's state with its own keys and settings."""
    points: dict[int, list] = {}
    lanes = Lanes(
        program, capacity=8, on_points=lambda ps: [points.setdefault(p.trial, []).append(p) for p in ps] and []
    )
    lanes.submit(jobs([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], steps=10))
    lanes.segment()
    lanes.copy({1: 4, 5: 0}, {1: {"rate": 0.0}, 5: {"rate": 0.0}})
    lanes.segment()
    # with rate 0 nothing moves: the child stays where its parent was
    assert points[1][1].metrics["loss"] == points[4][0].metrics["loss"]
    assert points[5][1].metrics["loss"] == points[0][0].metrics["loss"]
    alone, _, _ = curves(program, jobs([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], steps=10), 8)
    for trial in (0, 2, 3, 4):
        assert [(p.step, p.loss, p.metrics["loss"]) for p in points[trial]] == alone[trial]


def test_a_trial_stopped_early_never_comes_before_one_that_went_further():
    scored = [Scored(0, {}, 0.1, 10), Scored(1, {}, 0.5, 30), Scored(2, {}, 0.9), Scored(3, {}, 0.4, 30),
              Scored(4, {}, math.nan)]  # fmt: skip
    assert [s.trial for s in best(scored, 5)] == [2, 3, 1, 0]


# ---- whole studies -----------------------------------------------------------------------------------

BLOBS = """
import jax.numpy as jnp, numpy as np, optax
from flax import nnx
import vmaptune as vt

class Net(nnx.Module):
    def __init__(self, hp, rngs):
        width = vt.nn.size(hp, "width")
        self.a, self.b = vt.nn.Linear(2, width, rngs=rngs), vt.nn.Linear(width, 2, rngs=rngs)
        self.activation = vt.nn.activation(hp, "activation")
    def __call__(self, x):
        return self.b(self.activation(self.a(x)))

def loss(model, batch):
    return vt.nn.batch_mean(optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]))

def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2)); y = (x[:, 0] * x[:, 1] > 0).astype(int)
    return vt.Data(train=(x[:64], y[:64]), valid=(x[64:96], y[64:96]), test=(x[96:], y[96:]))

experiment = vt.Experiment(
    space={"learning_rate": vt.loguniform(1e-3, 1e3), "width": vt.ordinal([4, 8]),
           "activation": vt.choice(["tanh", "relu"]), "momentum": vt.uniform(0, 0.9)},
    model=Net, optimizer=lambda hp, steps: optax.sgd(hp.learning_rate, momentum=hp.momentum),
    loss=loss, metrics=lambda m, b: {"error": (m(b[0]).argmax(-1) != b[1]).mean(), "loss": loss(m, b)},
    data=data, objective="loss", batch_size=16, steps=36,
)
"""


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    path = tmp_path_factory.mktemp("blobs") / "blobs.py"
    path.write_text(BLOBS)
    return path


@pytest.fixture(scope="module")
def halved(blobs):
    """A study with halving, of 96 trials on 16 lanes."""
    out = blobs.parent / "halved"
    args = ["run", str(blobs), "--trials", "96", "--rounds", "2", "--halving", "eta=3,min_steps=4", "--lanes", "16",
            "--structure", "masks", "--ensemble", "4", "--out", str(out), "--quiet"]  # fmt: skip
    assert main(args) == 0
    return vt.load(out)


def test_halving_stops_most_trials_early_and_confirms_on_full_budgets(halved):
    trials = halved.trials()
    assert [t.trial for t in trials] == list(range(96))
    search = [t for t in trials if t.of is None]
    stopped = [t for t in search if t.state == State.STOPPED]
    assert len(stopped) > len(search) / 3
    assert {t.steps for t in stopped} <= {4, 12}  # 36 is the end
    assert all(f"stopped at step {t.steps}: not among the best 1 in 3" in t.reason for t in stopped)
    assert all(t.steps == 36 for t in trials if t.state == State.COMPLETE)
    repeats = [t for t in trials if t.of is not None]
    assert all(t.state in (State.COMPLETE, State.INFEASIBLE) and t.steps == 36 for t in repeats)
    result = halved.result
    assert result["stopped"] == len(stopped)
    assert result["compilations"] <= 5
    assert 0.5 < result["occupancy"] <= 1
    assert halved.ledger.decisions("lanes")[-1].data["occupancy"] == result["occupancy"]
    assert result["model_steps"] == sum(t.steps for t in trials)
    assert result["moved"] > 0  # at the end, trials that were left moved together into fewer calls
    assert halved.best_trial.state == State.COMPLETE


def test_decisions_are_those_of_the_rule_on_what_the_ledger_holds(halved):
    """No trial that was stopped is better than one of its round that went on from the same rung at the same time or
    later: of the values recorded at the rung by then, it was not among the best third."""
    for number in (0, 1):
        curves = {t.trial: {p.step: p.value for p in halved.curve(t.trial)} for t in halved.trials(round=number)}
        for rung in (4, 12):
            values = sorted(c[rung] for c in curves.values() if rung in c)
            for t in halved.trials(round=number, state="STOPPED"):
                if t.steps == rung:
                    assert values.index(t.value) >= 1


def test_the_same_halving_command_gives_the_same_table_twice(halved, blobs, tmp_path):
    args = ["run", str(blobs), "--trials", "96", "--rounds", "2", "--halving", "eta=3,min_steps=4", "--lanes", "16",
            "--structure", "masks", "--out", str(tmp_path / "s"), "--quiet"]  # fmt: skip
    assert main(args) == 0
    assert (tmp_path / "s" / "trials.csv").read_bytes() == (halved.directory / "trials.csv").read_bytes()


def test_the_ensemble_is_no_worse_than_its_best_model_and_predicts_what_was_measured(halved):
    info = halved.result["ensemble"]
    assert info["value"] <= info["single_value"] + 1e-9
    assert sum(info["weights"]) == pytest.approx(1)
    ensemble = halved.ensemble()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    for rows, value in ((slice(64, 96), info["value"]), (slice(96, 120), info["test_value"])):
        logits = np.asarray(ensemble.predict(jnp.asarray(x[rows], jnp.float32)))
        losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(logits)), y[rows]]
        assert losses.mean() == pytest.approx(value, rel=1e-4)
    model = halved.best_model()
    assert np.isfinite(np.asarray(model(jnp.asarray(x, jnp.float32)))).all()
    other = vt.load(halved.directory)
    other._meta["result"].pop("ensemble")
    with pytest.raises(vt.StudyError, match="no ensemble"):
        other.ensemble()


def test_an_ensemble_needs_predictions(blobs, tmp_path, capsys):
    toy = Path(__file__).parent.parent / "experiments" / "toy.py"
    mute = blobs.read_text().replace("data=data,", "data=data, predict=lambda m, x: None,")
    (tmp_path / "mute.py").write_text(mute)
    for experiment, message in ((toy, "has no predictions"), (tmp_path / "mute.py", "must return one array")):
        args = ["run", str(experiment), "--trials", "24", "--ensemble", "4", "--out", str(tmp_path / "x"), "--quiet"]
        assert main(args) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_median_stopping_and_repeats(blobs, tmp_path):
    args = ["run", str(blobs), "--trials", "60", "--rounds", "2", "--stopping", "median", "--halving", "min_steps=8",
            "--repeats", "2", "--rank", "median", "--set", "width=8", "--set", "activation=tanh", "--out",
            str(tmp_path / "m"), "--json"]  # fmt: skip
    assert main(args) == 0
    study = vt.load(tmp_path / "m")
    assert any("worse than the median" in (t.reason or "") for t in study.trials(state="STOPPED"))
    for t in study.trials(round=0):
        if t.of is not None:
            first = study.ledger.trial(t.of)
            assert t.params == first.params
            assert t.seed != first.seed
    spread = study.ledger.decisions("spread")
    assert spread
    assert all({"mean", "std", "n"} <= set(v) for d in spread for v in d.data.values())
    chosen = study.ledger.decisions("zoom")[0].data["slice"]
    assert all(study.ledger.trial(t).of is None for t in chosen)  # settings, not repeats


def test_every_trial_diverging_under_halving_is_a_result_with_advice(blobs, tmp_path):
    args = ["run", str(blobs), "--trials", "32", "--rounds", "2", "--halving", "min_steps=4", "--out",
            str(tmp_path / "b"), "--quiet",
            "--set", "learning_rate=loguniform(1e37,1e38)", "--set", "activation=relu"]  # fmt: skip
    assert main(args) == 3
    result = vt.load(tmp_path / "b").result
    assert result["best"] is None
    assert any("every trial was infeasible" in w for w in result["warnings"])


def defined_from(step: int) -> vt.Experiment:
    """An objective that is not a number before this step."""
    task = vt.Task(
        init=lambda hp, key: jnp.float32(0),
        step=lambda state, hp, key: state + 1,
        evaluate=lambda state, hp: {"error": jnp.where(state < step, jnp.nan, (hp.x - 0.3) ** 2 + 1 / state)},
    )
    space = {"x": vt.uniform(0.0, 1.0)}
    return vt.Experiment(space=space, task=task, steps=40, objective="error", name="late")


@pytest.mark.parametrize("stopping", ["asha", "sync", "hyperband", "median"])
def test_an_objective_that_is_not_defined_before_the_first_rung_does_not_count_there(stopping, tmp_path):
    options = {"trials": 24, "rounds": 2, "stopping": stopping, "halving": "min_steps=20", "report": False,
               "plan": "every=5", "save_every": 0}  # fmt: skip
    study = vt.run(defined_from(12), out=tmp_path / "s", **options)
    assert study.result["infeasible"] == 0
    assert study.best_params["x"] == pytest.approx(0.3, abs=0.1)
    early = [p.value for p in study.curve(0) if p.step < 12]
    assert early
    assert all(math.isnan(v) for v in early)
    for n in (4, 8):
        with pytest.raises(MemoryError):
            vt.run(defined_from(12), out=tmp_path / f"k{n}", listener=Crash(n), **options)
        vt.run(defined_from(12), out=tmp_path / f"k{n}", **options)
        assert (tmp_path / f"k{n}" / "trials.csv").read_text() == (tmp_path / "s" / "trials.csv").read_text()


def test_an_objective_that_is_never_defined_at_the_first_rung_is_told_with_the_way_out(tmp_path):
    study = vt.run(defined_from(30), out=tmp_path / "s", trials=8, rounds=1, halving="min_steps=20", report=False,
                   plan="every=5")  # fmt: skip
    assert study.result["best"] is None
    (said,) = (w for w in study.result["warnings"] if w.startswith("every trial was infeasible"))
    assert "at step 20, its first evaluation that counts, the objective was not finite" in said
    assert "--halving min_steps=M" in said
    assert "learning rate" not in summary(study.result)
    assert summary(study.result).count("return a finite number there") == 1


@pytest.fixture(scope="module")
def population(blobs):
    out = blobs.parent / "pbt"
    args = ["run", str(blobs), "--trials", "16", "--method", "pbt", "--plan", "every=4", "--set", "width=8", "--set",
            "activation=tanh", "--out", str(out), "--quiet"]  # fmt: skip
    assert main(args) == 0
    return vt.load(out)


def test_a_population_copies_from_its_best_and_replay_follows_the_lineage(population):
    generations = population.ledger.decisions("pbt")
    assert generations
    for generation in generations:
        for copy in generation.data["copies"]:
            mine, parents = ({p.step: p.value for p in population.curve(copy[k])} for k in ("trial", "parent"))
            assert not mine[copy["step"]] < parents[copy["step"]]
    copied = [copy["trial"] for g in generations for copy in g.data["copies"]]
    trial = copied[-1]
    found = vt.replay(population, trial)
    assert found.agrees
    assert found.compared >= 3
    assert found.steps == [4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert population.best_value == min(t.value for t in population.trials(state="COMPLETE"))
    assert math.isfinite(population.result["best"]["test_value"])


def test_structure_is_chosen_by_measured_time_or_as_said(blobs, tmp_path):
    programs = {}
    for how in ("auto", "groups", "masks"):
        out = tmp_path / how
        args = ["run", str(blobs), "--trials", "20", "--rounds", "1", "--structure", how, "--out", str(out), "--quiet"]
        assert main(args) == 0
        study = vt.load(out)
        programs[how] = len(study.ledger.groups())
        decided = study.ledger.decisions("structure")
        assert len(decided) == (how == "auto")
        if decided:
            data = decided[0].data
            assert data["static"] in [c["static"] for c in data["candidates"] if c["measured"]]
            assert data["padded_to_true"] >= 1
    assert vt.replay(tmp_path / "masks", 3).agrees
    assert programs["groups"] == 4
    assert programs["masks"] == 1
    values = {how: {t.trial: t.value for t in vt.load(tmp_path / how).trials(round=0)} for how in ("groups", "masks")}
    finite = [t for t, v in values["groups"].items() if v is not None and v < 5 and values["masks"][t] is not None]
    assert len(finite) > 5
    close = [math.isclose(values["groups"][t], values["masks"][t], rel_tol=1e-3) for t in finite]
    assert np.mean(close) > 0.8  # the same models, but for trainings that rounding decides


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--halving", "eta=1"], "eta at least 2"),
        (["--halving", "eta=3", "--stopping", "none"], "leave one of them out"),
        (["--stopping", "perhaps"], "must be one of"),
        (["--halving", "min_steps=99"], "at most the 36 steps"),
        (["--rank", "best"], "rank must be one of"),
        (["--repeats", "0"], "repeats must be"),
        (["--method", "pbt", "--stopping", "asha"], "leave --stopping"),
        (["--stopping", "hyperband", "--halving", "min_steps=99"], "at most the 36 steps"),
        (["--structure", "both"], "structure must be one of"),
        (["--ensemble", "0"], "ensemble must be"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(blobs, tmp_path, args, message, capsys):
    out = tmp_path / "x"
    assert main(["run", str(blobs), "--trials", "32", "--out", str(out), "--quiet", *args]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_result_is_json(halved):
    json.dumps(halved.result, allow_nan=False)
