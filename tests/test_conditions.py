"""Settings that exist only for some choices of others."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.errors import InputError
from vmaptune.search.zoom import Scored, leaning, zoom
from vmaptune.space import Space, parse_expression

SPACE = Space(
    {
        "optimizer": vt.choice(["sgd", "adam", "none"]),
        "momentum": vt.reverseloguniform(0.5, 0.999, when={"optimizer": "sgd"}),
        "nesterov": vt.choice([True, False], when={"optimizer": ["sgd"]}),
        "beta2": vt.reverseloguniform(0.9, 0.9999, when={"optimizer": ["adam"]}),
        "rate": vt.loguniform(1e-4, 1, when={"optimizer": ["sgd", "adam"]}),
        "lookahead": vt.randint(2, 8, when={"optimizer": ["sgd"], "nesterov": [True]}),
        "width": vt.ordinal([8, 16, 32]),
    }
)


def rows(space, n, seed=0):
    columns = space.sample(n, seed)
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def test_a_setting_exists_for_its_choices_alone():
    found = rows(SPACE, 400)
    for row in found:
        assert (row["momentum"] is not None) == (row["optimizer"] == "sgd")
        assert (row["rate"] is not None) == (row["optimizer"] != "none")
        assert (row["lookahead"] is not None) == (row["optimizer"] == "sgd" and row["nesterov"] is True)
        assert row["width"] in (8, 16, 32)
    drawn = [row["momentum"] for row in found if row["momentum"] is not None]
    assert 90 < len(drawn) < 180
    assert all(0.5 <= v <= 0.999 for v in drawn)


def test_the_law_given_the_choice_is_the_settings_own():
    drawn = np.array([row["rate"] for row in rows(SPACE, 2000) if row["rate"] is not None], float)
    assert abs(np.median(np.log10(drawn)) + 2) < 0.15


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_unit_cube_and_json_round_trip(seed):
    columns = SPACE.sample(8, seed)
    points = SPACE.to_unit(columns)
    again = SPACE.from_unit(points)
    for name, column in columns.items():
        for a, b in zip(column, again[name], strict=True):
            assert a == b or abs(a - b) < 1e-9 * abs(a)
    assert (points[[v is None for v in columns["momentum"]], 1] == 0.5).all()
    read = Space.from_json(json.loads(json.dumps(SPACE.to_json())))
    assert read == SPACE
    assert repr(read) == repr(SPACE)


def test_a_lane_receives_a_number_where_the_setting_does_not_exist():
    row = next(row for row in rows(SPACE, 50) if row["optimizer"] == "none")
    values = SPACE.lane_values(row, ("rate", "momentum", "lookahead", "width"))
    assert values["rate"] == pytest.approx(1e-2)  # the middle of its scale
    assert values["momentum"] == pytest.approx(1 - 10 ** ((np.log10(0.5) + np.log10(0.001)) / 2))
    assert values["lookahead"] in range(2, 9)
    assert values["width"] == row["width"]
    assert vt.loguniform(1e-4, 1, or_zero=0.9).neutral == pytest.approx(1e-2)


def test_a_zoom_looks_at_the_trials_that_have_the_setting():
    scored = [Scored(i, row, float(i)) for i, row in enumerate(rows(SPACE, 200))]
    slice_ = [s for s in scored if s.params["optimizer"] == "sgd" and s.params["momentum"] > 0.99][:12]
    finer = zoom(SPACE, SPACE, slice_)
    assert finer["optimizer"].options == ("sgd",)
    assert finer["momentum"].low > 0.95
    assert finer["momentum"].when == SPACE["momentum"].when
    assert finer["beta2"] == SPACE["beta2"]  # nobody in the slice has it
    for row in rows(finer, 50):
        assert row["beta2"] is None
        assert row["momentum"] >= finer["momentum"].low
    assert {lean.name for lean in leaning(SPACE, slice_)} <= {"momentum", "rate", "lookahead", "width"}
    assert Space.from_json(finer.to_json()) == finer


def test_it_can_be_typed():
    typed = parse_expression('loguniform(1e-4, 1, when={"optimizer": ["sgd", "adam"]})')
    assert typed == SPACE["rate"]
    assert parse_expression(repr(SPACE["lookahead"])) == SPACE["lookahead"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space({"a": vt.uniform(0, 1, when={"b": [1]})}), "'b' is not in the space"),
        (lambda: Space({"a": vt.uniform(0, 1, when={"b": [1]}), "b": vt.choice([1, 2])}), "comes later"),
        (lambda: Space({"b": vt.uniform(0, 1), "a": vt.uniform(0, 1, when={"b": [1]})}), "finitely many"),
        (lambda: Space({"b": vt.choice([1, 2]), "a": vt.uniform(0, 1, when={"b": [3]})}), "3 is none of"),
        (lambda: Space({"b": vt.choice([1, 2]), "a": vt.uniform(0, 1, when={"b": [True]})}), "True is none of"),
        (lambda: vt.uniform(0, 1, when=["b"]), "must name another setting"),
        (lambda: vt.choice([1], when={"b": []}), "at least one value"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(InputError, match=message):
        make()


EXPERIMENT = """
import jax.numpy as jnp, numpy as np, optax
import vmaptune as vt

def optimizer(hp, steps):
    if hp.kind == "sgd":
        return optax.sgd(hp.rate, momentum=hp.momentum)
    return optax.adam(hp.rate)

def loss(w, batch):
    return ((batch[0] @ w - batch[1]) ** 2).mean()

def data():
    x = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    y = x @ np.array([1, -2, 0.5], np.float32)
    return vt.Data(train=(x[:32], y[:32]), valid=(x[32:], y[32:]))

experiment = vt.Experiment(
    space={"kind": vt.choice(["sgd", "adam"]), "rate": vt.loguniform(1e-3, 1e-1),
           "momentum": vt.uniform(0.1, 0.9, when={"kind": ["sgd"]})},
    model=lambda hp, rngs: jnp.zeros(3), optimizer=optimizer, loss=loss, data=data, batch_size=8, steps=20,
)
"""


def test_a_study_shows_an_absent_setting_as_empty(tmp_path):
    (tmp_path / "e.py").write_text(EXPERIMENT)
    out = tmp_path / "s"
    assert main(["run", str(tmp_path / "e.py"), "--trials", "32", "--rounds", "2", "--out", str(out), "--quiet"]) == 0
    with open(out / "trials.csv", newline="") as lines:
        for row in csv.DictReader(lines):
            assert (row["params.momentum"] == "") == (row["params.kind"] == "adam")
    study = vt.load(out)
    adam = next(t for t in study.trials() if t.params["kind"] == "adam")
    assert adam.params["momentum"] is None
    assert vt.replay(study, adam.trial).agrees
    assert study.best_model().shape == (3,)


def test_check_shows_the_condition(tmp_path, capsys):
    (tmp_path / "e.py").write_text(EXPERIMENT)
    assert main(["check", str(tmp_path / "e.py"), "--trials", "16"]) == 0
    assert "when={'kind': ['sgd']}" in capsys.readouterr().out


SETS = """
import sys
from pathlib import Path
import vmaptune as vt
from interrupted import content

experiment = vt.Experiment(
    space={"kind": vt.choice(["sgd", "adam", "lion", "none"]), "level": vt.choice([0.5, 2, True, None, "x"]),
           "rate": 0.1, "decay": vt.uniform(0, 1, when={"level": frozenset([None, True, "x", 2])})},
    task=vt.Task(lambda hp, key: 1.0, lambda x, hp, key: x - hp.rate * x, lambda x, hp: {"loss": x}), steps=5,
)
changes = {"rate": vt.uniform(0.1, 0.2, when={"kind": {"sgd", "adam", "lion"}})}

class CutOff:
    def progress(self, progress):
        if progress.done > 8:
            raise KeyboardInterrupt

    def note(self, text):
        pass

def run(out, **more):
    return vt.run(experiment, changes=changes, trials=24, rounds=2, out=out, plan="devices=1", report=False, **more)

folder, what = Path(sys.argv[1]), sys.argv[2]
if what == "begin":
    try:
        run(folder / "cut", listener=CutOff())
    except KeyboardInterrupt:
        pass
else:
    run(folder / "cut")
    run(folder / "whole")
    assert content(folder / "cut") == content(folder / "whole")
print(experiment.space["decay"], changes["rate"])
"""


def test_a_set_is_the_same_in_every_process(tmp_path):
    """Begun with one PYTHONHASHSEED and gone on with another, by the same command."""
    (tmp_path / "sets.py").write_text(SETS)
    said = []
    for seed, what in (("1", "begin"), ("2", "go on")):
        paths = f"{Path(__file__).parent.parent}{os.pathsep}{Path(__file__).parent}"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        command = [sys.executable, str(tmp_path / "sets.py"), str(tmp_path), what]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]
    assert "when={'level': [2, None, True, 'x']}" in said[0]
