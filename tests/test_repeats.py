"""How large a confirmation is, who gets its fresh seeds, and that a study goes on inside it."""

from __future__ import annotations

import itertools
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import OPTIONS, TASK, Crash, content
from samplers import follow

import vmaptune as vt
from vmaptune.search.confirm import Budget, split_budget, split_search
from vmaptune.search.decide import last_wave
from vmaptune.search.repeats import first_repeats, more_repeats, resized, wanted_repeats
from vmaptune.search.zoom import Scored
from vmaptune.space import Space

SPACE = Space({"a": vt.uniform(0, 1), "b": vt.loguniform(1e-4, 1.0)})


def searched(n: int, noise: float) -> list[Scored]:
    rng = np.random.default_rng(0)
    rows = SPACE.rows(SPACE.sample(n, 1))
    worth = [(row["a"] - 0.3) ** 2 + (math.log10(row["b"]) + 2) ** 2 / 10 for row in rows]
    return [Scored(i, row, w + rng.normal(0, noise)) for i, (row, w) in enumerate(zip(rows, worth, strict=True))]


# ---- before ----------------------------------------------------------------------------------------------


def test_the_first_round_is_the_largest():
    assert split_search(224, 6) == (59, 33, 33, 33, 33, 33)  # a quarter is 56, and 3 don't divide
    assert split_search(224, 3) == (76, 74, 74)
    assert split_search(50, 6, least=8) == (10, 8, 8, 8, 8, 8)
    assert split_search(12, 6, first_share=0.0) == (2, 2, 2, 2, 2, 2)


@given(trials=st.integers(1, 4000), rounds=st.integers(1, 12), least=st.integers(1, 9), share=st.floats(0, 1))
def test_a_split_spends_all_and_the_first_is_never_the_smallest(trials, rounds, least, share):
    if trials < rounds:
        return
    found = split_search(trials, rounds, least, share)
    assert sum(found) == trials
    assert found[0] == max(found)
    assert len(set(found[1:])) <= 1
    assert min(found) >= min(least, trials // rounds)


def test_the_noise_says_how_many_seeds_a_finalist_needs():
    assert wanted_repeats(SPACE, searched(120, 0.0), 8) == 2
    many = wanted_repeats(SPACE, searched(120, 0.1), 8)
    assert many > 4
    assert wanted_repeats(SPACE, searched(120, 0.1), 8, repeats=3) == pytest.approx(3 * many, abs=3)  # means of three


def test_what_the_noise_does_not_ask_for_the_last_round_gets():
    budget = split_budget(256, 4)
    assert budget == Budget((56, 56, 56, 56), 8, 4)
    assert resized(budget, SPACE, searched(120, 0.0)) == Budget((56, 56, 56, 72), 8, 2)
    assert resized(budget, SPACE, searched(120, 0.3)) == budget
    assert resized(budget, SPACE, searched(7, 0.0)) == budget  # nothing is known yet
    assert resized(split_budget(64, 1), SPACE, searched(120, 0.0)) == split_budget(64, 1)


# ---- afterwards ------------------------------------------------------------------------------------------


def test_the_rule_by_hand():
    # eight settings, two seeds each, with a spread of 1 around 0, 0.1, ... 0.7: of 16 trainings the better four take 2
    # each, which leaves 8 for the better two of those
    half = math.sqrt(0.5)
    values = {t: [t / 10 - half, t / 10 + half] for t in (7, 3, 0, 1, 6, 2, 5, 4)}
    assert first_repeats(Budget((100,), 3, 5)) == 3
    assert first_repeats(Budget((100,), 8, 4)) == 2
    assert more_repeats(values, 16) == {0: 2, 1: 2, 2: 2, 3: 2}
    for t in (0, 1, 2, 3):
        values[t] += [3.0 - t, 3.0 - t]  # now 3 is the best, then 2
    assert more_repeats(values, 8) == {3: 4, 2: 4}
    values[3] += [2.0] * 4
    values[2] += [1.0] * 4
    assert more_repeats(values, 0) == {}


def test_a_wave_without_enough_for_all_goes_to_the_best():
    values = {t: [t / 10 - 1, t / 10 + 1] for t in range(8)}
    assert more_repeats(values, 3) == {0: 1, 1: 1, 2: 1}
    assert more_repeats({t: values[t] for t in range(3)}, 5) == {0: 3, 1: 2}


def test_one_that_is_surely_the_best_gets_nothing_more():
    assert more_repeats({1: [0.0, 0.01], 2: [5.0, 5.01], 3: [6.0, 6.01]}, 20) == {}
    assert more_repeats({1: [0.0, 0.0], 2: [5.0, 5.0]}, 20) == {}  # seeds make no difference
    assert more_repeats({1: [0.0, 1.0], 2: [math.nan, 0.0]}, 20) == {}  # the other one is out
    assert more_repeats({1: [0.0, 1.0], 2: [0.1, 0.9]}, 0) == {}
    assert more_repeats({}, 20) == {}


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=2), min_size=1, max_size=9),
    left=st.integers(0, 90), lost=st.integers(0, 3),
)  # fmt: skip
def test_the_waves_end_and_spend_no_more_than_is_left_nor_on_what_failed(values, left, lost):
    groups = {10 + i: list(v) for i, v in enumerate(values)}
    failed = list(groups)[:lost]
    for t in failed:
        groups[t] = [math.nan, 0.0]
    rng, waves = np.random.default_rng(0), 0
    while found := more_repeats(groups, left):
        assert found == more_repeats(groups, left)
        assert all(n > 0 for n in found.values())
        assert not set(found) & set(failed)
        left -= sum(found.values())
        for t, n in found.items():
            groups[t] += list(rng.normal(size=n))
        waves += 1
    assert left >= 0
    assert waves <= 4


def test_it_finds_the_best_more_often_than_even_repeats_do():
    rng = np.random.default_rng(1)
    worth = np.array([0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0])
    right = {"even": 0, "rule": 0}
    for _ in range(400):
        drawn = {t: list(w + rng.normal(size=32)) for t, w in enumerate(worth)}
        right["even"] += min(drawn, key=lambda t: np.mean(drawn[t][:6])) == 0
        whole, left = {t: v[:2] for t, v in drawn.items()}, 32
        while wave := more_repeats(whole, left):
            left -= sum(wave.values())
            whole |= {t: drawn[t][: len(whole[t]) + n] for t, n in wave.items()}
        right["rule"] += min(last_wave(whole), key=lambda t: np.mean(whole[t])) == 0
    assert right["rule"] > right["even"] + 20  # of 400; the spread of the difference is about 12


# ---- whole studies ---------------------------------------------------------------------------------------

WAVES = OPTIONS | {"trials": 120, "report": False}
LUCK = 'return {"loss": 0.01 * jnp.abs(jnp.log10(hp.rate)) + jnp.tanh(state["x"][0])}'


class CrashInRound(Crash):
    def __init__(self, round_: int, n: int):
        super().__init__(n)
        self.round = round_

    def progress(self, progress) -> None:
        if progress.phase == "confirm" and progress.round == self.round:
            super().progress(progress)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """An experiment in which seeds matter more than settings do."""
    path = tmp_path_factory.mktemp("noisy") / "exp.py"
    path.write_text(TASK.replace('return {"loss": (state["x"] ** 2).mean()}', LUCK))
    return path


@pytest.fixture(scope="module")
def whole(noisy, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "s"
    vt.run(noisy, out=out, **WAVES)
    return out


def test_a_study_confirms_in_waves(whole):
    study = vt.load(whole)
    rounds = study.ledger.rounds()
    waves = [[t.of for t in study.trials(round=r.round)] for r in rounds if r.kind == "confirm"]
    assert len(waves) >= 2
    assert [r.kind for r in rounds] == ["search", "search", *["confirm"] * len(waves)]
    assert sum(map(len, waves)) <= 15
    assert {waves[0].count(of) for of in waves[0]} == {2}
    assert all(set(later) <= set(earlier) for earlier, later in itertools.pairwise(waves))
    assert study.best["repeats"] == [of for wave in waves for of in wave].count(study.best["trial"])
    seeds = [t.seed for t in study.trials()]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_it_goes_on_inside_its_confirmation_to_the_same_bits(noisy, whole, tmp_path, checkpoints):
    out = tmp_path / "s"
    for round_, n in ((2, 2), (3, 1), (3, 3)):
        with pytest.raises(MemoryError):
            vt.run(noisy, out=out, listener=CrashInRound(round_, n), save_every=0, **WAVES)
        if not checkpoints:
            shutil.rmtree(out / "checkpoints")
    vt.run(noisy, out=out, save_every=0, report=False)
    assert content(out) == content(whole)


def test_the_sampler_confirms_as_a_study_does(whole):
    study = vt.load(whole)
    sampler = vt.Sampler(study.space, trials=120, rounds=2)
    follow(sampler, study)
    assert sampler.best["trial"] == study.best["trial"]
    assert sampler.best["repeats"] == study.best["repeats"]
