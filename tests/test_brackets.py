"""Synchronous brackets: the published table, decisions by hand, order does not matter, whole studies."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.search.brackets import BracketRule, bracket_tables
from vmaptune.search.halving import hyperband
from vmaptune.study._stopping import Rules, Stopping

NAN = math.nan


def test_as_many_trials_as_hyperbands_table_has_are_its_brackets():
    found = bracket_tables("hyperband", range(128), 81, 3, 1)
    assert [table for table, _ in found] == hyperband(81, 3)
    assert [len(trials) for _, trials in found] == [81, 27, 9, 6, 5]
    assert sorted(t for _, trials in found for t in trials) == list(range(128))
    assert min(trials[0] for _, trials in found) == 0
    twice = bracket_tables("hyperband", range(256), 81, 3, 1)
    assert [table[0][0] for table, _ in twice] == [162, 54, 18, 12, 10]


@pytest.mark.parametrize(
    ("kind", "trials", "every", "expected"),
    [
        ("sync", 27, 1, [((27, 3), (9, 9), (3, 27), (1, 81))]),
        ("sync", 27, 4, [((27, 4), (9, 12), (3, 28), (1, 81))]),  # rungs where trials are evaluated
        ("sync", 27, 30, [((3, 30), (1, 81))]),  # the first two fall onto the third
        ("hyperband", 10, 1, [((6, 1), (2, 3), (0, 9), (0, 27), (0, 81)), ((2, 3), (0, 9), (0, 27), (0, 81)),
                              ((1, 9), (0, 27), (0, 81)), ((1, 27), (0, 81))]),
    ],
)  # fmt: skip
def test_tables_by_hand(kind, trials, every, expected):
    found = bracket_tables(kind, range(trials), 81, 3, 1, every)
    assert [tuple((max(1, n), r) for n, r in table) for table in expected] == [table for table, _ in found]


def test_decisions_by_hand():
    rule = BracketRule([(((5, 2), (2, 6), (1, 9)), range(5))])
    first = rule.report_all([(0, 2, 0.5), (1, 2, 0.1), (2, 1, 0.9)])
    assert (first.stop, first.wait, first.go) == ({}, (0, 1), ())
    second = rule.report_all([(2, 2, 0.3)])  # 0 is beaten by two: it is out before the rung is full
    assert list(second.stop) == [0]
    assert second.stop[0] == "stopped at step 2: not among the best 2 of the 5 trials of its bracket there"
    assert second.wait == (2,)
    third = rule.report_all(
        [(3, 1, NAN), (4, 2, 0.2)]
    )  # 3 has failed, so all have come: 1 and 4 go on, 4 from its lane
    assert (list(third.stop), third.wait, third.go) == ([2], (), (1,))
    assert rule.report_all([(4, 4, 0.0)]).wait == ()
    assert rule.report_all([(4, 6, 0.4)]).wait == (4,)
    last = rule.report_all([(1, 6, 0.4)])  # a tie: the lower number
    assert (list(last.stop), last.wait, last.go) == ([4], (), ())
    assert rule.report_all([(1, 9, 7.0)]).stop == {}
    assert [rule.standing(t).rung for t in range(5)] == [2, 9, 2, 0, 6]


def test_a_bracket_whose_trials_all_fail_ends():
    rule = BracketRule([(((3, 1), (1, 3)), range(3))])
    assert rule.report_all([(t, 1, NAN) for t in range(3)]) == rule.report_all([])
    assert rule.stopped == {0, 1, 2}
    one = BracketRule([(((2, 1), (1, 3)), range(2))])
    one.report_all([(0, 1, 0.5)])
    assert one.report_all([(1, 1, NAN)]).go == (0,)


def trained(rule, values, rng, jump):
    """A whole bracket's life in an order drawn by `rng`: who is in a lane reports after a step, or at the next rung."""
    done = dict.fromkeys(values, 0)
    running, ends, last = set(values), {}, max(r for table, _ in rule.brackets for _, r in table)
    while running:
        some = rng.sample(sorted(running), rng.randint(1, min(4, len(running))))
        reports = []
        for t in some:
            done[t] += 1 if not jump else next(r for r in range(done[t] + 1, last + 1) if r % jump == 0 or r == last)
            reports.append((t, done[t], values[t][done[t]]))
        verdict = rule.report_all(reports)
        for t in {t for t in some if not math.isfinite(values[t][done[t]])} | set(verdict.stop):
            ends[t] = done[t]
            running.discard(t)
        for t in some:
            if done[t] == last and t in running:
                ends[t] = last
                running.discard(t)
        running -= set(verdict.wait)
        running |= set(verdict.go)
    return ends, set(rule.stopped)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 20), seed=st.integers(0, 10**6), kind=st.sampled_from(["sync", "hyperband"]))
def test_decisions_depend_on_values_alone_and_are_those_of_the_table(n, seed, kind):
    draw = random.Random(seed)
    values = {t: [draw.choice([NAN] + [draw.random()] * 12) for _ in range(28)] for t in range(n)}
    tables = bracket_tables(kind, range(n), 27, 3, 1)
    found = [trained(BracketRule(tables), values, random.Random(s), 0) for s in range(3)]
    assert found[0] == found[1] == found[2]
    ends, _ = found[0]
    assert set(ends) == set(range(n))
    for table, trials in tables:  # level by level, as the papers write it
        left = list(trials)
        for (_, r), (k, _) in itertools.pairwise(table):
            alive = [t for t in left if all(map(math.isfinite, values[t][1 : r + 1]))]
            left = sorted(alive, key=lambda t: (values[t][r], t))[:k]
            assert {t for t in alive if ends[t] == r} >= set(alive) - set(left)
        assert {t for t in trials if ends[t] == 27} <= set(left)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 60))
def test_rebuilt_equals_live(seed, cut):
    draw = random.Random(seed)
    values = {t: [draw.random() for _ in range(10)] for t in range(12)}
    tables = bracket_tables("sync", range(12), 9, 3, 1)
    live, reports, running, done = BracketRule(tables), [], set(values), dict.fromkeys(values, 0)
    while running and len(reports) < cut:
        t = draw.choice(sorted(running))
        done[t] += 1
        reports.append((t, done[t], values[t][done[t]]))
        verdict = live.report_all([reports[-1]])
        running = (running | set(verdict.go)) - set(verdict.wait) - set(verdict.stop) - {t for t in done if done[t] > 8}
    stopping = Stopping("sync", 3, 1)
    rules = Rules(stopping, 1, lambda round, steps: list(range(12)))
    for t in draw.sample(range(12), 12):
        rules.restore(0, 9, t, [r[1:] for r in reports if r[0] == t], t in live.stopped)
    rules.settled()
    rebuilt = rules.rule(0, 9)
    assert rebuilt.stopped == live.stopped
    assert [rebuilt.waits(t) for t in range(12)] == [live.waits(t) for t in range(12)]
    for t in sorted(running)[:3]:
        report = [(t, done[t] + 1, values[t][done[t] + 1])]
        assert rebuilt.report_all(report) == live.report_all(report)


# ---- whole studies -----------------------------------------------------------------------------------

TASK = """
import jax, jax.numpy as jnp
import vmaptune as vt

def init(hp, key):
    return {"x": jax.random.normal(key, (3,))}

def step(state, hp, key):
    x = state["x"] - hp.rate * (state["x"] + 0.1 * jax.random.normal(key, state["x"].shape))
    return {"x": x}, (x ** 2).mean()

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-3, 1e2)},
    task=vt.Task(init, step, lambda state, hp: {"loss": (state["x"] ** 2).mean()}, has_loss=True), steps=27,
)
"""


@pytest.mark.parametrize("kind", ["sync", "hyperband"])
def test_a_study_from_the_command_line(file, tmp_path, kind, capsys):
    out = tmp_path / kind
    args = ["run", str(file), "--trials", "128", "--rounds", "2", "--stopping", kind, "--halving", "eta=3,min_steps=1",
            "--lanes", "16", "--plan", "devices=1,lanes=4,every=1", "--out", str(out), "--quiet"]  # fmt: skip
    assert main(args) == 0
    study = vt.load(out)
    assert study.result["compilations"] == 1
    assert study.result["occupancy"] > 0.7
    decided = study.ledger.decisions("brackets")
    assert [d.round for d in decided] == [0, 1]
    for round_ in decided:
        trials = study.trials(round=round_.round)
        assert sorted(t for table in round_.data for t in table["trials"]) == [t.trial for t in trials]
        assert len(round_.data) == (1 if kind == "sync" else 4)
        for table in round_.data:
            mine = [study.ledger.trial(t) for t in table["trials"]]
            curves = {t: {p.step: p.value for p in study.curve(t)} for t in table["trials"]}
            for (_, r), (k, _) in itertools.pairwise(table["rungs"]):
                came = [t.trial for t in mine if t.steps >= r and t.state != "INFEASIBLE"]
                best = sorted(came, key=lambda t: (curves[t][r], t))[:k]
                stopped = {t.trial for t in mine if t.state == "STOPPED" and t.steps == r}
                assert stopped == set(came) - set(best)
            assert all(t.steps == 27 for t in mine if t.state == "COMPLETE")
    confirmed = [t for t in study.trials() if t.of is not None]
    assert confirmed
    assert all(t.steps == 27 for t in confirmed)
    assert study.result["best"]["repeats"] >= 2
    assert vt.replay(study, confirmed[0].trial).agrees


def test_trials_that_wait_have_the_bits_of_trials_that_do_not(file, tmp_path):
    options = {"trials": 30, "rounds": 1, "plan": "devices=1,lanes=4,every=1"}
    vt.run(file, out=tmp_path / "whole", **options)
    vt.run(file, out=tmp_path / "sync", stopping="sync", halving="eta=3,min_steps=3", lanes=8, **options)
    whole, sync = vt.load(tmp_path / "whole"), vt.load(tmp_path / "sync")
    for t in sync.trials(round=0):
        mine, theirs = sync.curve(t.trial), whole.curve(t.trial)
        assert [(p.step, p.loss, p.value) for p in mine] == [(p.step, p.loss, p.value) for p in theirs[: len(mine)]]


def test_lanes_in_lockstep_cannot_wait(file, tmp_path):
    stopping = Stopping("hyperband")
    with pytest.raises(vt.InputError, match="take --stopping asha"):
        stopping.check(lockstep=True)
    Stopping("asha").check(lockstep=True)
