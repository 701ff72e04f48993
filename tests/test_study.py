"""Whole studies through the real commands, on tasks that take a second."""

from __future__ import annotations

import csv
import json
import math
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import vmaptune as vt
from vmaptune.cli import main

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

SPIRALS = """
import jax, numpy as np, optax
from flax import nnx
import vmaptune as vt

class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.a, self.b = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)
    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))

def loss(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()

def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2)); y = (x[:, 0] * x[:, 1] > 0).astype(int)
    return vt.Data(train=(x[:64], y[:64]), valid=(x[64:96], y[64:96]), test=(x[96:], y[96:]))

experiment = vt.Experiment(
    space={"learning_rate": vt.loguniform(1e-3, 1e3), "width": vt.ordinal([4, 8]), "momentum": vt.uniform(0, 0.9)},
    model=lambda hp, rngs: Net(hp.width, rngs),
    optimizer=lambda hp, steps: optax.sgd(hp.learning_rate, momentum=hp.momentum),
    loss=loss, metrics=lambda m, b: {"error": (m(b[0]).argmax(-1) != b[1]).mean(), "loss": loss(m, b)},
    data=data, objective="loss", batch_size=16, steps=40,
)
"""


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory) -> Path:
    """A finished study of 96 trials in 3 rounds."""
    root = tmp_path_factory.mktemp("study")
    (root / "spirals.py").write_text(SPIRALS)
    out = root / "s"
    assert main(["run", str(root / "spirals.py"), "--trials", "96", "--rounds", "3", "--out", str(out), "--quiet"]) == 0
    return out


def rows_of(directory: Path) -> list[dict[str, str]]:
    with open(directory / "trials.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def test_trials_csv_has_every_trial_once(study_dir):
    rows = rows_of(study_dir)
    assert list(rows[0]) == ["trial", "round", "state", "reason", "seed", "steps", "value",
                             "params.learning_rate", "params.width", "params.momentum", "place",
                             "confirmed_mean", "confirmed_std", "confirmed_low", "confirmed_high", "confirmed_seeds",
                             "confirmed_chance"]  # fmt: skip
    assert [int(r["trial"]) for r in rows] == list(range(96))
    assert {r["state"] for r in rows} <= {"COMPLETE", "INFEASIBLE"}
    assert [sum(r["round"] == str(k) for r in rows) for k in range(4)] == [30, 28, 28, 10]
    assert all(r["reason"] == "" for r in rows if r["state"] == "COMPLETE")


def test_diverged_trials_say_so_and_never_win(study_dir):
    bad = [r for r in rows_of(study_dir) if r["state"] == "INFEASIBLE"]
    assert bad  # a learning rate of 1000 diverges
    assert all("not finite at step" in r["reason"] for r in bad)
    assert math.isfinite(vt.load(study_dir).best_value)


def test_the_result_is_the_confirmed_mean(study_dir):
    study = vt.load(study_dir)
    best = study.best
    repeats = [t for t in study.trials(round=3) if t.of == best["trial"]]
    values = [t.value for t in repeats]
    assert len(values) == best["repeats"] == 2
    assert best["value"] == pytest.approx(np.mean(values))
    assert best["value_std"] == pytest.approx(np.std(values, ddof=1))
    assert len({t.seed for t in repeats} | {study.best_trial.seed}) == 3  # fresh seeds
    assert all(t.params == study.best_params for t in repeats)
    assert best["best_seen"] <= study.best_trial.value
    assert math.isfinite(best["test_value"])
    assert study.result["compilations"] == 3  # two widths, and the test part


def test_later_rounds_are_drawn_from_finer_spaces(study_dir):
    study = vt.load(study_dir)
    spaces = [vt.Space.from_json(r.space) for r in study.ledger.rounds() if r.kind == "search"]
    widths = [s["learning_rate"].scaled_bounds for s in spaces]
    spans = [hi - lo for lo, hi in widths]
    assert spans[0] == pytest.approx(6)
    assert spans[2] < spans[0]

    def share(space, rows):
        return np.mean([all(space[n].contains(v) for n, v in row.items()) for row in rows])

    anywhere = [t.params for t in study.trials(round=0)]
    for r, space in enumerate(spaces):
        rows = [t.params for t in study.trials(round=r)]
        assert share(spaces[0], rows) == 1
        # some are from the first space, where the surrogate hopes for something there
        assert share(space, rows) > share(space, anywhere) or r == 0


def test_the_best_model_loads_and_measures_as_the_ledger_says(study_dir):
    study = vt.load(study_dir)
    model = study.best_model()
    trial = study.ledger.trial(study.meta["weights"]["best"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    logits = np.asarray(model(x[64:96]))
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(32), y[64:96]]
    assert losses.mean() == pytest.approx(trial.value, rel=1e-5)


def test_replay_agrees_with_the_ledger(study_dir):
    for trial in (0, 13, 95):
        found = vt.replay(study_dir, trial)
        assert found.agrees
        assert len(found.steps) == len(found.ledger)
    assert main(["replay", str(study_dir), "5", "--json"]) == 0


@pytest.mark.parametrize("form", ["table", "csv", "json"])
@pytest.mark.parametrize("command", ["status", "best", "trials"])
def test_readers(study_dir, command, form, capsys):
    assert main([command, str(study_dir), "--format", form]) == 0
    text = capsys.readouterr().out
    if form == "json":
        found = json.loads(text)
        assert found
    elif command == "trials":
        assert len(text.strip().splitlines()) >= 97
    else:
        assert text.strip()


def test_the_same_command_gives_the_same_table_twice(study_dir, tmp_path):
    root = study_dir.parent
    out = tmp_path / "again"
    assert main(["run", str(root / "spirals.py"), "--trials", "96", "--rounds", "3", "--out", str(out), "--quiet"]) == 0
    assert (out / "trials.csv").read_bytes() == (study_dir / "trials.csv").read_bytes()
    assert (out / "best" / "best.weights").read_bytes() == (study_dir / "best" / "best.weights").read_bytes()
    # `seq` is left out: in which order groups write depends on when their programs were compiled
    what = "select trial, step, loss, value, metrics from curves order by trial, step"
    curves = [sqlite3.connect(d / "study.db").execute(what).fetchall() for d in (out, study_dir)]
    assert curves[0] == curves[1]


def test_few_lanes_and_a_queue_give_the_same_bits(study_dir, tmp_path):
    plan = vt.load(study_dir).ledger.groups()[0].plan
    root = study_dir.parent
    out = tmp_path / "few"
    args = [
        "--trials",
        "96",
        "--rounds",
        "3",
        "--out",
        str(out),
        "--quiet",
        "--lanes",
        str(plan["devices"] * plan["lanes"]),
    ]
    assert main(["run", str(root / "spirals.py"), *args]) == 0
    assert (out / "trials.csv").read_bytes() == (study_dir / "trials.csv").read_bytes()


def test_json_output_has_the_promised_fields(tmp_path):
    command = [sys.executable, "-m", "vmaptune", "run", str(EXPERIMENTS / "toy.py"), "--trials", "64", "--rounds", "2",
               "--out", str(tmp_path / "t"), "--json", "--seed", "3"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    for key in (
        "study",
        "trials",
        "rounds",
        "best",
        "seconds",
        "model_steps",
        "compilations",
        "infeasible",
        "warnings",
    ):
        assert key in result
    assert set(result["seconds"]) == {"total", "compile", "train", "evaluate"}
    assert {"trial", "value", "value_std", "repeats", "best_seen", "params"} <= set(result["best"])
    assert result["trials"] == 64
    assert result["rounds"] == 2
    assert result["compilations"] == 1
    assert "round 1/2" in done.stderr  # plain progress lines


def test_the_toy_finds_what_theory_says(tmp_path):
    study = vt.run(EXPERIMENTS / "toy.py", trials=512, rounds=4, out=tmp_path / "toy")
    # Polyak (1964): momentum ((10 - 1) / (10 + 1))^2 = 0.669, rate (2 / (10 + 1))^2 = 0.0331
    assert study.best_params["learning_rate"] == pytest.approx(0.0331, rel=0.4)
    assert study.best_params["momentum"] == pytest.approx(0.669, abs=0.12)
    assert study.best_value < -3


def test_a_round_in_which_everything_diverges_is_a_result_with_advice(tmp_path):
    (tmp_path / "bad.py").write_text(SPIRALS.replace("vt.loguniform(1e-3, 1e3)", "vt.loguniform(1e30, 1e35)"))
    study = vt.run(tmp_path / "bad.py", trials=32, rounds=2, out=tmp_path / "b")
    assert study.result["best"] is None
    assert study.result["infeasible"] == 28
    assert any("every trial was infeasible" in w for w in study.result["warnings"])
    assert main(["best", str(tmp_path / "b")]) == 0
    with pytest.raises(vt.StudyError, match="infeasible"):
        _ = study.best_params


def test_set_replaces_settings_and_batch_size_and_steps_may_be_settings(tmp_path):
    text = SPIRALS.replace("batch_size=16, steps=40", 'batch_size="batch", steps="length"').replace(
        '"momentum"', '"batch": vt.ordinal([8, 16]), "length": vt.ordinal([10, 20]), "momentum"'
    )
    (tmp_path / "e.py").write_text(text)
    args = ["run", str(tmp_path / "e.py"), "--trials", "24", "--rounds", "1", "--out", str(tmp_path / "e"), "--quiet"]
    assert main([*args, "--set", "learning_rate=0.1", "--set", "width=ordinal([4])"]) == 0
    rows = rows_of(tmp_path / "e")
    assert {r["params.learning_rate"] for r in rows} == {"0.1"}
    assert {r["params.width"] for r in rows} == {"4"}
    assert all(r["steps"] == r["params.length"] for r in rows)


def test_another_process_reads_while_the_study_runs(tmp_path):
    command = [sys.executable, "-m", "vmaptune", "run", str(EXPERIMENTS / "toy.py"), "--trials", "4000",
               "--rounds", "4", "--out", str(tmp_path / "t"), "--steps", "3000", "--quiet"]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        seen = []
        while running.poll() is None and len(seen) < 3:
            try:
                counts = vt.load(tmp_path / "t").ledger.counts()
            except vt.VmaptuneError:
                continue  # not there yet
            if sum(counts.values()) > sum(seen[-1].values() if seen else [0]):
                seen.append(counts)
        assert seen
    finally:
        running.kill()
        running.wait()
    assert vt.load(tmp_path / "t").trials()  # a killed study is still a readable one


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_study_is_saved_and_says_how_to_go_on(tmp_path, signal_name, capsys):
    (tmp_path / "spirals.py").write_text(SPIRALS)
    out = tmp_path / "s"
    command = [sys.executable, "-m", "vmaptune", "run", str(tmp_path / "spirals.py"), "--out", str(out),
               "--trials", "20000", "--rounds", "2"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # plain progress lines, since this is no terminal
            if "best" in line:
                break
        process.send_signal(getattr(signal, signal_name))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"everything is saved; go on with: python -m vmaptune resume {out}" in errors
    assert "stopping after this segment; once more stops at once" in errors
    assert "Traceback" not in errors
    study = vt.load(out)
    states = study.ledger.counts()
    assert states["FAIL"] == 0
    assert states["RUNNING"] > 0  # to be gone on with
    assert states["COMPLETE"] > 0
    assert study.meta["state"] == "interrupted"
    assert "interrupted" in (out / "report.html").read_text("utf-8")
    assert list((out / "checkpoints").glob("*.ckpt"))
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"resume {out}" in said


def test_a_listener_that_fails_ends_the_study_and_is_told_why(tmp_path):
    class Bad:
        def progress(self, progress):
            if progress.done > 4:
                raise OSError("no space left on device")

        def note(self, text):
            pass

    (tmp_path / "spirals.py").write_text(SPIRALS)
    with pytest.raises(OSError, match="no space"):
        vt.run(tmp_path / "spirals.py", trials=24, rounds=1, out=tmp_path / "s", listener=Bad())
    study = vt.load(tmp_path / "s")
    assert study.meta["state"] == "failed"
    assert study.meta["failure"] == "OSError: no space left on device"
    assert vt.run(tmp_path / "spirals.py", out=tmp_path / "s").ledger.counts()["RUNNING"] == 0


def test_trials_that_diverge_at_once_do_not_begin_the_next_round_before_another_was_seen(tmp_path):
    """Under halving the next round begins when half of this one's trials are known. Where those are all infeasible
    nothing is known of where to go on: others are waited for, and nobody is told that all were infeasible."""

    def step(state, hp, key):
        return state * (1 - 0.1 * hp.rate), jax.numpy.where(hp.rate > 1, jax.numpy.nan, state)

    experiment = vt.Experiment(
        space={"rate": vt.loguniform(1e-2, 1e2)}, steps=30,
        task=vt.Task(lambda hp, key: jax.numpy.float32(1.0), step, lambda state, hp: {"loss": state}, has_loss=True),
    )  # fmt: skip
    study = vt.run(
        experiment, trials=64, rounds=3, halving="eta=3,min_steps=24", plan="devices=1,lanes=4,every=3", lanes=32,
        out=tmp_path / "s",
    )  # fmt: skip
    assert study.result["infeasible"] >= 10
    assert not any("infeasible" in warning for warning in study.result["warnings"])
    assert [d.round for d in study.ledger.decisions("zoom")] == [0, 1]
    assert all(d.data["slice"] for d in study.ledger.decisions("zoom"))
