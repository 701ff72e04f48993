"""Patience: the rule by hand and by a plain reading, and what a study makes of it against one without it."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import Crash, content

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.search.patience import PatienceRule
from vmaptune.store.weights import load_weights

NAN = math.nan
VALUES = st.one_of(st.integers(0, 6).map(float), st.sampled_from([NAN, math.inf, -math.inf]))

# The state counts its steps, so that a saved one tells when it was taken; the loss falls to a floor and rises again.
TASK = """
import jax, jax.numpy as jnp
import vmaptune as vt

def init(hp, key):
    return {"x": 1 + 0.1 * jax.random.normal(key, (hp.width,)), "n": jnp.int32(0)}

def step(state, hp, key):
    x = state["x"] - hp.rate * (state["x"] + 0.3 * jax.random.normal(key, state["x"].shape))
    return {"x": x, "n": state["n"] + 1}, (x ** 2).mean()

def evaluate(state, hp):
    return {"loss": (state["x"] ** 2).mean() + 1e-4 * state["n"], "n": state["n"].astype(float)}

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-2, 1e3), "width": vt.ordinal([3, 5])},
    task=vt.Task(init, step, evaluate, has_loss=True), steps=60, objective="loss",
)
"""
OPTIONS = {"trials": 40, "rounds": 2, "plan": "devices=1,tiles=1,lanes=4,every=2", "lanes": 8, "report": False}


@pytest.fixture(scope="module")
def patient(file, tmp_path_factory) -> vt.Study:
    return vt.run(file, out=tmp_path_factory.mktemp("p") / "s", stopping="patience=4", **OPTIONS)


def plain_reading(curve, k, least=0):
    """(step, value) reports -> how many of them are seen, and which of them is the best."""
    best, since = None, 0
    for i, (step, value) in enumerate(curve):
        if not math.isfinite(value):
            return i + 1, best
        better = best is None or value < curve[best][1]
        best, since = (i, 0) if better else (best, since + 1)
        if since >= k and step >= least:
            return i + 1, best
    return len(curve), best


# ---- the rule ----------------------------------------------------------------------------------------


def test_decisions_by_hand():
    rule = PatienceRule(2, min_steps=4)
    table = [
        # trial, step, value -> end
        (0, 1, 5.0, False),
        (1, 1, 9.0, False),  #   trials are not compared
        (0, 2, 5.0, False),  #   as good is no better: 1
        (0, 3, 6.0, False),  #   2, but before min_steps
        (0, 4, 4.0, False),  #   better: from the beginning again
        (1, 5, 9.5, False),
        (0, 5, 4.5, False),
        (0, 5, 1.0, False),  #   a report twice is none
        (0, 6, 4.5, True),
        (0, 7, 0.0, True),  #    for good
        (1, 6, NAN, True),
        (2, 8, -math.inf, True),
    ]  # fmt: skip
    for trial, step, value, end in table:
        assert rule.report(trial, step, value) is end, (trial, step)
    assert [rule.best_step(t) for t in (0, 1, 2, 3)] == [4, 1, 0, 0]
    assert (rule.standing(0).rung, rule.standing(0).value) == (6, 4.0)
    assert rule.standing(2).rung == 0


@settings(max_examples=300, deadline=None)
@given(
    curves=st.lists(st.lists(VALUES, min_size=1, max_size=12), min_size=1, max_size=4),
    k=st.integers(1, 4), least=st.integers(0, 8), cut=st.integers(0, 30), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_decisions_agree_with_a_plain_reading_and_hang_on_no_other_trial(curves, k, least, cut, order):
    which = [t for t, curve in enumerate(curves) for _ in curve]
    order.shuffle(which)
    left = [list(enumerate(curve, 1)) for curve in curves]
    reports = [(t, *left[t].pop(0)) for t in which]
    rule = PatienceRule(k, least)
    decisions = rule.replay(reports)
    for t, curve in enumerate(curves):
        seen, best = plain_reading(list(enumerate(curve, 1)), k, least)
        ended = [step for (trial, step, _), end in zip(reports, decisions, strict=True) if trial == t and end]
        all_seen = seen == len(curve) and t not in rule.stopped
        assert ended == ([] if all_seen else list(range(seen, len(curve) + 1)))
        assert rule.best_step(t) == (0 if best is None else best + 1)
    again = PatienceRule(k, least)
    again.replay(reports[:cut])
    assert again.replay(reports[cut:]) == decisions[cut:]


# ---- in a study --------------------------------------------------------------------------------------


def test_trials_end_where_a_plain_reading_of_the_same_trainings_ends_them(patient, file, tmp_path):
    whole = vt.run(file, out=tmp_path / "s", **OPTIONS)
    full, rows = dict(whole.ledger.curves()), {t.trial: t for t in patient.trials(round=0)}
    assert len(rows) > 10
    early = 0
    for trial, points in patient.ledger.curves():
        if trial not in rows:
            continue
        row, curve = rows[trial], [(p.step, NAN if p.value is None else p.value) for p in full[trial]]
        seen, best = plain_reading(curve, 4)
        assert [(p.step, p.value) for p in points] == [(p.step, p.value) for p in full[trial][:seen]]
        assert row.steps == curve[seen - 1][0]
        if row.state == "COMPLETE":
            assert row.value == curve[best][1]
            assert row.metrics["n"] == curve[best][0]
            early += row.steps < 60
            assert (row.reason is None) == (row.steps == 60 and seen == len(curve))
            if row.steps < 60:
                assert (
                    row.reason == f"ended at step {row.steps}: no better for 4 evaluations than at step {best * 2 + 2}"
                )
    assert early >= 5
    assert any(row.state == "INFEASIBLE" for row in rows.values())
    assert not patient.trials(state="STOPPED")


def test_the_confirmation_is_patient_too_and_the_model_is_the_best_state(patient):
    confirmed = [t for t in patient.trials() if t.of is not None]
    assert any(t.steps < 60 for t in confirmed)
    saved = load_weights(patient.directory / "best" / "best.weights")
    n = int(next(v for k, v in saved.items() if "n" in k))
    best = [t for t in confirmed if t.of == patient.result["best"]["trial"] and t.state == "COMPLETE"]
    least = min(best, key=lambda t: (t.value, t.trial))
    assert n == least.metrics["n"] < least.steps
    x = np.asarray(next(v for k, v in saved.items() if "x" in k))
    assert (x**2).mean() + 1e-4 * n == pytest.approx(least.value, rel=1e-5)


@pytest.mark.parametrize("words", [3, 17, 31, 45])
def test_it_goes_on_to_the_same_bits(patient, file, tmp_path, words):
    with pytest.raises(MemoryError):
        vt.run(file, out=tmp_path / "s", stopping="patience=4", listener=Crash(words), save_every=0, **OPTIONS)
    vt.resume(tmp_path / "s")
    assert content(tmp_path / "s") == content(patient.directory)


def test_a_lane_that_ends_is_refilled_and_segments_leave_time_for_patience(file, tmp_path):
    options = OPTIONS | {"plan": "devices=1,lanes=4", "lanes": 8, "trials": 24}
    study = vt.run(file, out=tmp_path / "s", stopping="patience=5", **options)
    every = {b.step - a.step for _, curve in study.ledger.curves() for a, b in itertools.pairwise(curve)}
    assert every == {60 // 20}
    assert study.result["refilled"] >= 5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stopping", "patience=0"], "K, the evaluations .* at least 1, but got '0'; leave =K out for 16"),
        (["--stopping", "patience=many"], "but got 'many'"),
        (["--stopping", "patience", "--halving", "eta=3"], "has no eta, but got --halving eta=3"),
        (["--stopping", "patience", "--halving", "min_steps=99"], "at most the 60 steps"),
        (["--stopping", "patience", "--method", "pbt"], "leave --stopping"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_written(file, tmp_path, capsys, args, message):
    assert main(["run", str(file), "--trials", "24", "--out", str(tmp_path / "x"), "--quiet", *args]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x").exists()
