"""`--minutes M`: a study by a clock of the test's own, which goes by the work that was done."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import OPTIONS, TASK, content

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.engine.rate import TileRate
from vmaptune.search.confirm import split_budget
from vmaptune.search.minutes import LEAST_ROUND, MOST_TRIALS, expected_steps, fit, fit_confirmation
from vmaptune.store.ledger import LedgerReader
from vmaptune.study import _minutes, resume
from vmaptune.view.summary import check_text

STEP = 0.1  # seconds of a model-step, by the test's clock
COMPILING = 7.0
PINNED = {"plan": OPTIONS["plan"], "lanes": 8}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "task.py"
    path.write_text(TASK)
    return path


class Clock:
    """A listener by whose words time goes on: with each model-step, and while programs compile. At its n-th word
    after the round `crash` began it brings the study down."""

    def __init__(self, monkeypatch, wrong: float = 1.0, crash: str = ""):
        self.now, self.steps, self.crash = 1000.0, 0, crash
        monkeypatch.setattr(_minutes, "clock", lambda: self.now)
        tile = 4 * STEP / wrong  # four lanes
        monkeypatch.setattr(_minutes, "tile_rate", lambda program: TileRate(0.0, tile, 0.0))

    def progress(self, p) -> None:
        if p.phase == "compile":
            self.now += COMPILING / 2
        self.now += STEP * max(0, p.steps_seen - self.steps)
        self.steps = p.steps_seen
        if self.crash and f"{p.phase} {p.round}".startswith(self.crash) and p.alive and p.steps_seen % 7 == 0:
            raise MemoryError("crash")

    def note(self, text) -> None:
        pass


def plans(directory) -> dict:
    with LedgerReader.open(directory) as reader:
        return {d.round: d.data for d in reader.decisions("minutes")}


# ---- the arithmetic --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    seconds=st.floats(-10, 5000), each=st.floats(1e-3, 50), confirm=st.floats(1, 4), rounds=st.integers(1, 8),
    done=st.lists(st.integers(8, 300), max_size=3),
)  # fmt: skip
def test_what_is_cut_fits_and_one_more_would_not(seconds, each, confirm, rounds, done):
    done = done[: rounds - 1]

    def search(n):
        return n * each

    def confirmation(n):
        return n * each * confirm

    def cut(seconds):
        return fit(seconds, search, confirmation, rounds=rounds, done=done)

    def taken(budget):
        # added up as `fit` adds it: 0.001 * 950 is more than 0.95, 0.845 + 0.105 isn't
        return sum(map(search, budget.rounds[len(done) :])) + confirmation(budget.finalists * budget.repeats)

    budget = cut(seconds)
    total = sum(budget.rounds) + budget.finalists * budget.repeats
    assert list(budget.rounds[: len(done)]) == done
    assert 1 <= len(budget.rounds) <= rounds
    assert min(budget.rounds) >= LEAST_ROUND
    assert budget.finalists >= 2
    assert budget.repeats >= 2
    least = cut(-math.inf)
    if taken(budget) > seconds:
        assert budget == least
    if total < MOST_TRIALS and taken(least) <= seconds:  # a whole round more would not fit
        assert taken(budget) + each * (2 * LEAST_ROUND + 8) * confirm + each * confirm * total / 4 > seconds
    if not done and total > 64:
        assert (budget.finalists, budget.repeats) == (
            split_budget(total, len(budget.rounds)).finalists, split_budget(total, len(budget.rounds)).repeats,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "most", "wanted"),
    [(0, 64, (2, 2)), (8, 64, (4, 2)), (32, 64, (8, 4)), (33.9, 64, (8, 4)), (100, 64, (14, 7)), (100, 1, (1, 100))],
)
def test_the_confirmation_takes_what_is_left(seconds, most, wanted):
    assert fit_confirmation(seconds, lambda finalists, repeats: finalists * repeats, most) == wanted


def test_steps_expected_under_halving():
    levels = [15, 45, 135, 400]
    assert expected_steps(levels, 3) == pytest.approx(15 + 30 / 3 + 90 / 9 + 265 / 27)
    assert expected_steps(levels, 3, 45) == pytest.approx(90 + 265 / 3)
    assert expected_steps(levels, 3, 400) == 0


def test_a_tile_that_is_partly_idle_takes_as_long_as_a_full_one():
    from types import SimpleNamespace

    from vmaptune.engine.plan import Plan

    program = SimpleNamespace(plan=Plan(devices=2, tiles=3, lanes=4, every=10))
    rate = TileRate(fill=1.0, step=0.1, evaluate=0.5)
    assert rate.seconds(program, 1, 20) == rate.seconds(program, 8, 20) == 1 + 2 + 1
    assert rate.seconds(program, 9, 20) == 2 * 4
    assert rate.seconds_each(program, 20) == 4 / 8


# ---- whole studies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "more"),
    [(1.0, {}), (0.5, {}), (2.0, {"rounds": 3}), (1.0, {"halving": "eta=3,min_steps=4"}), (1.0, {"method": "pbt"})],
)
def test_a_study_ends_in_time_though_the_timing_was_wrong(file, tmp_path, monkeypatch, wrong, more):
    clock = Clock(monkeypatch, wrong)
    study = vt.run(file, minutes=10, out=tmp_path / "s", listener=clock, **PINNED, **more)
    assert abs(clock.now - 1000 - 600) <= 60
    assert not any("the study took" in warning for warning in study.result["warnings"])
    cuts = plans(tmp_path / "s")
    assert len(study.trials()) == study.meta["options"]["trials"]
    if "method" not in more:
        assert study.best["repeats"] >= 2
        assert cuts[max(cuts)]["final"]
        sizes = [r.trials for r in study.ledger.rounds()]
        assert sizes[:-1] == cuts[max(cuts)]["rounds"]
        assert sizes[-1] == cuts[max(cuts)]["finalists"] * cuts[max(cuts)]["repeats"]


@pytest.mark.parametrize(("crash", "more"), [("confirm", {}), ("search 1", {"halving": "eta=3,min_steps=4"})])
def test_a_study_goes_on_with_the_numbers_that_it_wrote_down(file, tmp_path, monkeypatch, crash, more):
    Clock(monkeypatch)
    vt.run(file, minutes=6, out=tmp_path / "a", listener=(clock := Clock(monkeypatch)), **PINNED, **more)
    ended = clock.now
    clock = Clock(monkeypatch, crash=crash)
    with pytest.raises(MemoryError):
        vt.run(file, minutes=6, out=tmp_path / "b", listener=clock, save_every=0, **PINNED, **more)
    before = plans(tmp_path / "b")
    spent = clock.now - 1000
    done = clock.steps
    clock = Clock(monkeypatch)
    clock.now, clock.steps = 90_000.0, done  # a long pause, which does not count
    resume(tmp_path / "b", listener=clock)
    after = plans(tmp_path / "b")
    assert {number: after[number] for number in before} == before
    if crash.startswith("confirm"):  # all numbers were written down: nothing is different at all
        assert content(tmp_path / "a") == content(tmp_path / "b")
    assert abs((clock.now - 90_000) + spent - (ended - 1000)) <= 40 + 2 * COMPILING


def test_too_short_a_time_is_said(file, tmp_path, monkeypatch):
    study = vt.run(file, minutes=0.1, out=tmp_path / "s", listener=Clock(monkeypatch), **PINNED)
    assert len(study.trials()) == 16
    assert study.best["repeats"] == 2
    (said,) = [w for w in study.result["warnings"] if "the study took" in w]
    assert "more than the 6 s that it had" in said


def test_the_same_command_goes_on_with_it(file, tmp_path, monkeypatch):
    with pytest.raises(MemoryError):
        vt.run(file, minutes=6, rounds=4, out=tmp_path / "s", listener=Clock(monkeypatch, crash="search 0"), **PINNED)
    with pytest.raises(vt.InputError, match=r"minutes 6 \(now 7\)"):
        vt.run(file, minutes=7, out=tmp_path / "s", **PINNED)
    study = vt.run(file, minutes=6, rounds=4, out=tmp_path / "s", listener=Clock(monkeypatch), **PINNED)
    assert study.ledger.finished()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_impossible_times_are_refused(minutes, file, tmp_path, capsys):
    try:
        code = main(["run", str(file), f"--minutes={minutes}", "--out", str(tmp_path / "s")])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    said = capsys.readouterr().err
    assert "minutes" in said
    assert minutes in said
    assert not (tmp_path / "s").exists()


def test_a_time_and_a_number_are_one_too_many(file, tmp_path, capsys):
    for command in ("run", "check"):
        assert main([command, str(file), "--minutes", "2", "--trials", "64"]) == 2
        assert "minutes=2.0 and trials=64; leave one out" in capsys.readouterr().err


def test_check_says_what_would_fit(file, monkeypatch):
    Clock(monkeypatch)
    monkeypatch.setattr("vmaptune.study._api.tile_rate", lambda program: TileRate(0.0, 4 * STEP, 0.0))
    found = vt.check(file, minutes=10, plan=OPTIONS["plan"])
    assert 2.0 < found.seconds_per_trial <= 3.0  # the narrow ones take less
    assert 550 < found.options.trials * found.seconds_per_trial < 590
    text = check_text(found)
    assert f"minutes   10: about {found.options.trials} trials in {found.options.rounds} rounds" in text
    assert f"trials    {found.options.budget().rounds[0]} + " in text
