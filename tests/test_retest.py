"""Whether an old best setting is still the best: the verdict's statistics, and whole retests."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.search.verdict import MOVED, STILL_BEST, UNCLEAR, judge
from vmaptune.store.ledger import LedgerReader
from vmaptune.study import retest

# The loss of a setting is its distance from a best rate, which the code names, plus what the seed adds.
CODE = """
import jax, jax.numpy as jnp
import vmaptune as vt

BEST = 0.01

def init(hp, key):
    return {"noise": 0.05 * jax.random.normal(key, ())}

def step(state, hp, key):
    return state

def evaluate(state, hp):
    return {"loss": (jnp.log10(hp.rate) - jnp.log10(BEST)) ** 2 + state["noise"]}

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-4, 1.0)}, task=vt.Task(init, step, evaluate), objective="loss", steps=2
)
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    place = tmp_path_factory.mktemp("old")
    (place / "exp.py").write_text(CODE)
    vt.run(place / "exp.py", out=place / "s", trials=96, rounds=3, report=False)
    return place / "s"


def test_the_verdict_agrees_with_welch():
    draw = np.random.default_rng(0)
    a, b = draw.normal(1.0, 0.1, 8), draw.normal(0.5, 0.3, 8)
    found = judge(a, {7: b})
    expected = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    assert (found.answer, found.rival) == (MOVED, 7)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.gain == pytest.approx(a.mean() - b.mean())
    assert found.low < found.gain < found.high
    assert judge(a, {7: b, 8: b + 5, 9: b + 6}).p == pytest.approx(3 * expected.pvalue)


@pytest.mark.parametrize(
    ("old", "rivals", "answer"),
    [
        ([1.0, 1.1, 0.9, 1.0], {1: [2.0, 2.1, 1.9, 2.0]}, STILL_BEST),
        ([1.0, 1.1, 0.9, 1.0], {1: [1.0, 1.1, 0.9, 1.0]}, UNCLEAR),
        ([1.0, 1.0], {1: [1.0, 1.0]}, STILL_BEST),
        ([1.0, 1.0], {1: [0.9, 0.9]}, MOVED),
        ([1.0, math.nan], {1: [5.0, 6.0]}, MOVED),
        ([1.0, 1.1], {1: [0.0, math.nan]}, STILL_BEST),
        ([1.0, math.inf], {1: [0.0, math.nan]}, UNCLEAR),
        ([1.0, 1.5, 0.5], {1: [0.9, 0.2, 1.3]}, UNCLEAR),
    ],
)
def test_verdicts(old, rivals, answer):
    assert judge(old, rivals).answer == answer


def test_the_same_data_say_still_best(old, tmp_path):
    study = retest(old, out=tmp_path / "again", repeats=24, report=False)
    found = study.result["retest"]
    assert found["verdict"] == STILL_BEST
    assert found["of"] == str(old)
    assert found["old"]["params"] in [t.params for t in vt.load(old).trials(round=3)]  # one of the finalists
    with LedgerReader.open(old) as before:
        seeds = {t.seed for t in before.trials()}
    assert seeds.isdisjoint(t.seed for t in study.trials())


def test_other_data_say_moved_from_and_to(old, tmp_path, capsys):
    (tmp_path / "today.py").write_text(CODE.replace("BEST = 0.01", "BEST = 0.3"))
    out = tmp_path / "moved"
    command = ["retest", str(old), "--exp", str(tmp_path / "today.py"), "--out", str(out), "--quiet", "--no-report"]
    assert main([*command, "--top", "2", "--repeats", "6", "--trials", "32"]) == 0
    said = capsys.readouterr().out
    assert f"verdict on {old}: moved" in said
    assert "rate: 0.01" in said or "rate: 0.00" in said
    found = vt.load(out).result["retest"]
    assert found["new"]["params"]["rate"] == pytest.approx(0.3, rel=0.6)
    assert found["p"] < 0.05
    assert found["gain"] > 0
    assert vt.load(old).meta["result"] == json.loads(json.dumps(vt.load(old).meta["result"]))  # untouched


def test_a_retest_that_was_interrupted_goes_on_as_one(old, tmp_path):
    class Crash:
        left = 2

        def progress(self, progress):
            self.left -= 1
            if not self.left:
                raise MemoryError

        def note(self, text):
            pass

    whole = retest(old, out=tmp_path / "whole", report=False)
    with pytest.raises(MemoryError):
        retest(old, out=tmp_path / "s", listener=Crash(), save_every=0, report=False)
    assert main(["resume", str(tmp_path / "s"), "--quiet", "--no-report"]) == 0
    assert (tmp_path / "s" / "trials.csv").read_bytes() == (tmp_path / "whole" / "trials.csv").read_bytes()
    again = vt.load(tmp_path / "s").result["retest"]
    assert again == whole.result["retest"]


def test_what_cannot_be_retested_is_said(old, tmp_path, capsys):
    assert main(["retest", str(tmp_path / "none")]) == 2
    assert main(["retest", str(old), "--repeats", "1"]) == 2
    assert "--repeats must be at least 2" in capsys.readouterr().err
