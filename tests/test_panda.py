"""One model, babysat: the same training as a trial's, changes that compile nothing, every change in the ledger."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from test_study import SPIRALS

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.cli._panda import Adjustment, Hands, parse_adjustments
from vmaptune.experiment import load_experiment
from vmaptune.store.ledger import LedgerReader
from vmaptune.study._panda import Panda, panda

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SET = {"learning_rate": 0.05, "momentum": 0.5, "width": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("panda") / "spirals.py"
    path.write_text(SPIRALS)
    return path


@pytest.fixture(scope="module")
def caviar(file) -> vt.Study:
    """A study to take a setting from."""
    return vt.run(file, trials=8, rounds=1, out=file.parent / "caviar")


def begun(file: Path, out: Path, **changes) -> Panda:
    model = panda(load_experiment(file), params={**SET, **changes.pop("params", {})}, out=out, **changes)
    model.begin()
    return model


def to_the_end(model: Panda, until: int | None = None) -> None:
    while model.step < (until or model.steps) and model.bad is None:
        model.advance(until)


def test_without_a_hand_on_it_the_model_trains_as_a_trial_does(file, caviar, tmp_path):
    """A study's ledger, trained in lanes, is the oracle."""
    row = caviar.ledger.trial(3)
    model = panda(load_experiment(file), origin=f"{caviar.directory}:3", out=tmp_path / "p")
    assert (model.params, model.seed, model.steps) == (dict(row.params), row.seed, 40)
    model.begin()
    to_the_end(model)
    model.finish()
    mine = {p.step: p for p in vt.load(tmp_path / "p").curve(0)}
    for point in caviar.curve(3):
        assert mine[point.step].value == pytest.approx(point.value, rel=1e-4)


def test_the_winner_is_taken_up_by_default(file, caviar, tmp_path):
    assert panda(load_experiment(file), origin=str(caviar.directory)).params == caviar.best_params


def test_changes_compile_nothing_and_are_in_the_ledger(file, tmp_path):
    model = begun(file, tmp_path / "p")
    model.advance(7)
    assert model.step < 7  # a first burst is short, so that a slow model answers its first key
    to_the_end(model, 7)
    model.adjust("learning_rate", 0.2)
    model.adjust("momentum", 0.75)
    to_the_end(model)
    assert (model.alone._segment._cache_size(), model.alone._evaluate._cache_size()) == (1, 1)
    model.finish()
    with LedgerReader.open(tmp_path / "p") as reader:
        changes = [d.data for d in reader.decisions("adjust")]
    assert changes == [
        {"trial": 0, "step": 7, "name": "learning_rate", "from": 0.05, "to": 0.2},
        {"trial": 0, "step": 7, "name": "momentum", "from": 0.5, "to": 0.75},
    ]


def test_a_stop_that_lies_behind_holds_nothing_up(tmp_path):
    model = panda(load_experiment(EXPERIMENTS / "toy.py"), out=tmp_path / "p")
    model.begin()
    for _ in range(200):
        if model.step < model.steps:
            model.advance(until=10)
    assert model.step == model.steps
    model.finish()


def test_a_change_acts_from_the_next_step_on(file, tmp_path):
    """With momentum 0, training k steps at a rate and then at rate 0 leaves the weights as they were at step k."""
    frozen = begun(file, tmp_path / "a", params={"momentum": 0.0})
    to_the_end(frozen, 8)
    at_8 = {k: np.asarray(v) for k, v in _flat(frozen._state["params"]).items()}
    frozen.adjust("learning_rate", 0.0)
    to_the_end(frozen)
    for name, value in _flat(frozen._state["params"]).items():
        np.testing.assert_array_equal(np.asarray(value), at_8[name])
    frozen.finish()


def _flat(tree):
    import jax

    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_a_rollback_goes_on_to_the_same_bits(file, tmp_path):
    model = begun(file, tmp_path / "p")
    to_the_end(model, 14)
    model.snapshot()
    to_the_end(model)
    model.rollback()
    model.adjust("learning_rate", 1e4)
    to_the_end(model)
    model.rollback()
    assert (model.step, model.settings["learning_rate"], model.bad) == (14, 0.05, None)
    to_the_end(model)
    study = model.finish()
    first, wild, last = ([(p.step, p.value) for p in study.curve(trial)] for trial in range(3))
    assert first == last != wild
    rows = study.trials()
    assert [str(row.state) for row in rows][::2] == ["STOPPED", "COMPLETE"]
    assert rows[0].reason == rows[1].reason == "rolled back to step 14"
    assert [d.kind for d in study.ledger.decisions()] == ["snapshot", "rollback", "adjust", "rollback"]


def test_a_replay_follows_what_was_changed(file, tmp_path):
    model = begun(file, tmp_path / "p")
    to_the_end(model, 7)
    model.adjust("learning_rate", 0.2)
    to_the_end(model, 14)
    model.snapshot()
    to_the_end(model, 21)
    model.adjust("learning_rate", 0.4)
    to_the_end(model)
    model.rollback()
    model.adjust("learning_rate", 0.01)
    to_the_end(model)
    study = model.finish()
    for trial in (0, 1):
        found = vt.replay(study, trial)
        assert found.agrees
        assert found.compared == len(found.steps)
    assert study.curve(0)[-1].value != study.curve(1)[-1].value


def test_the_model_is_kept_as_a_studys_best(file, tmp_path):
    model = begun(file, tmp_path / "p")
    to_the_end(model)
    study = model.finish()
    assert study.best_params == SET
    assert study.best_value == study.curve(0)[-1].value
    x, y = load_experiment(file).experiment.loaded_data().valid
    logits = np.asarray(study.best_model()(x))
    assert float((logits.argmax(-1) != y).mean()) == pytest.approx(study.curve(0)[-1].metrics["error"])
    assert main(["best", str(tmp_path / "p")]) == 0
    assert main(["export", str(tmp_path / "p"), "--to", "json"]) == 0


def test_a_loss_that_is_not_finite_ends_it_with_a_reason(file, tmp_path, capsys):
    words = ["panda", str(file), "--set", "learning_rate=1e30", "--set", "width=4", "--out", str(tmp_path / "p")]
    assert main([*words, "--quiet"]) == 3
    assert "not finite" in capsys.readouterr().out
    row = vt.load(tmp_path / "p").trials()[0]
    assert str(row.state) == "INFEASIBLE"
    assert "diverged: the loss is not finite at step" in (row.reason or "")


def test_adjust_without_a_keyboard(file, tmp_path, capsys):
    words = ["panda", str(file), "--set", "learning_rate=0.1", "--steps", "30", "--out", str(tmp_path / "p"),
             "--adjust", "10: learning_rate*=0.1; 20: momentum=0.25", "--json"]  # fmt: skip
    assert main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["best"]["params"]["learning_rate"] == pytest.approx(0.01)
    assert result["best"]["params"]["momentum"] == 0.25
    with LedgerReader.open(tmp_path / "p") as reader:
        assert [(d.data["step"], d.data["name"]) for d in reader.decisions("adjust")] == [
            (10, "learning_rate"), (20, "momentum"),
        ]  # fmt: skip
    assert "step 10: learning_rate 0.1 → 0.01" in captured.err
    assert "\x1b" not in captured.err


@pytest.mark.parametrize(
    ("text", "wanted", "of_8"),
    [
        ("500: learning_rate*=0.1", Adjustment(500, "learning_rate", "*", 0.1), 0.8),
        ("0:x/=4", Adjustment(0, "x", "/", 4.0), 2.0),
        ("7 : x += 1e-3", Adjustment(7, "x", "+", 1e-3), 8.001),
        ("7: x-=1", Adjustment(7, "x", "-", 1.0), 7.0),
        ("7: x=3", Adjustment(7, "x", "", 3.0), 3.0),
    ],
)
def test_adjustments_are_read(text, wanted, of_8):
    (found,) = parse_adjustments([text])
    assert found == wanted
    assert found.of(8.0) == pytest.approx(of_8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adjust", "x*=2"], "--adjust must read 'STEP: NAME*=NUMBER'"),
        (["--adjust", "5: learning_rate/=0"], "--adjust must read"),
        (["--adjust", "5: learning_rate*=nan"], "--adjust must read"),
        (["--adjust", "5: width*=2"], "must name one of learning_rate, momentum"),
        (["--adjust", "99: momentum*=2"], "a step from 0 to 39"),
        (["--set", "nothing=1"], "the space has no setting 'nothing'"),
        (["--set", "momentum=uniform(0,1)"], "must be a value"),
        (["--from", "nowhere"], "nowhere holds no study"),
        (["--from", "nowhere:x"], "--from must read DIR or DIR:TRIAL"),
        (["--steps", "0"], "steps must be a whole number of at least 1"),
        (["--seed", "-1"], "seed must be a whole number from 0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(file, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["panda", str(file), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_keys_change_the_chosen_setting_along_its_scale(tmp_path):
    model = panda(load_experiment(EXPERIMENTS / "toy.py"), params={"learning_rate": 0.01, "momentum": 0.9},
                  out=tmp_path / "p")  # fmt: skip
    model.begin()
    hands = Hands(model)
    for key in "+*/":
        hands.press(key)
    assert model.settings["learning_rate"] == pytest.approx(0.02)
    hands.press("\t")
    hands.press("+")  # towards 1: half of what is missing
    assert model.settings["momentum"] == pytest.approx(0.95)
    hands.press("-")
    assert model.settings["momentum"] == pytest.approx(0.9)
    model.adjust("momentum", 0.0)
    hands.press("p")
    assert hands.paused
    hands.press("s")
    hands.press("r")
    assert hands.paused
    assert [m.kind for m in model.marks][-2:] == ["snapshot", "rollback"]
    hands.press("q")
    assert hands.over
    model.finish()


def test_in_a_real_terminal_keys_do_what_they_say(file, tmp_path):
    import pexpect

    words = ["-m", "vmaptune", "panda", str(file), "--steps", "100000000", "--out", str(tmp_path / "p")]
    child = pexpect.spawn(sys.executable, [*words, "--set", "learning_rate=0.01"], encoding="utf-8", timeout=120,
                          dimensions=(30, 100), env={**os.environ, "TERM": "xterm-256color"})  # fmt: skip
    child.expect("steps/s")
    for key, seen in (
        ("s", "snapshot"),
        ("+", "0.01 → 0.02"),
        ("p", "paused"),
        ("r", "back from"),
        ("q", "everything is in"),
    ):
        child.send(key)
        child.expect(seen)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    study = vt.load(tmp_path / "p")
    assert [d.kind for d in study.ledger.decisions()] == ["snapshot", "adjust", "rollback"]
    assert study.meta["state"] == "finished"
    assert study.best_params["learning_rate"] == 0.01  # rolled back
