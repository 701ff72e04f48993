"""Ask and tell: to the bit what vt.run draws, from results that come from elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers import follow

import vmaptune as vt

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SPACE = {"x": vt.uniform(-1.0, 1.0), "rate": vt.loguniform(1e-4, 1.0), "n": vt.ordinal([1, 2, 4])}


def value(asked) -> float:
    """A made-up training: best at x = 0.3, rate = 0.01; a large rate diverges."""
    p = asked.params
    if p["rate"] > 0.5:
        return math.nan
    noise = np.random.default_rng(asked.seed).normal(0, 0.01)
    return (p["x"] - 0.3) ** 2 + math.log10(p["rate"] / 0.01) ** 2 + 0.1 * p["n"] + noise


def train_all(sampler: vt.Sampler, n: int) -> list:
    seen = []
    while not sampler.done:
        asked = sampler.ask(n)
        assert asked, "a sampler that is not done and waits for nothing gives something"
        seen += asked
        sampler.tell({a.trial: value(a) for a in asked})
    return seen


def test_it_proposes_what_run_draws_to_the_bit(tmp_path):
    study = vt.run(EXPERIMENTS / "toy.py", trials=96, rounds=3, seed=5, out=tmp_path / "s")
    sampler = vt.Sampler(study.space, trials=96, rounds=3, seed=5)
    follow(sampler, study)
    assert sampler.ask(5) == []
    best = sampler.best
    assert (best["trial"], best["params"], best["value"], best["value_std"], best["repeats"]) == tuple(
        study.best[name] for name in ("trial", "params", "value", "value_std", "repeats")
    )


@settings(max_examples=25, deadline=None)
@given(
    trials=st.integers(1, 90), rounds=st.integers(1, 4), seed=st.integers(0, 99), n=st.integers(1, 40), data=st.data()
)
def test_it_gives_each_trial_once_and_goes_on_from_what_it_was_told(trials, rounds, seed, n, data):
    rounds = min(rounds, trials)
    whole = vt.Sampler(SPACE, trials=trials, rounds=rounds, seed=seed)
    seen = train_all(whole, n)
    assert [a.trial for a in seen] == list(range(len(seen)))
    assert len(seen) <= trials
    again = vt.Sampler(SPACE, trials=trials, rounds=rounds, seed=seed)
    cut = data.draw(st.integers(0, len(seen)))
    again.tell({a.trial: value(a) for a in seen[:cut]})  # a crash, and everything told once more
    assert train_all(again, 7) == seen[cut:]
    assert again.best == whole.best


def test_results_in_any_order_make_no_difference():
    one, other = (vt.Sampler(SPACE, trials=64, rounds=3, seed=1) for _ in range(2))
    seen = train_all(one, 64)
    while not other.done:
        asked = other.ask(64)
        for a in reversed(asked):
            other.tell([(a.trial, value(a))])
    assert other.best == one.best
    assert [s.to_json() for s in other.spaces] == [s.to_json() for s in one.spaces]
    assert len(seen) == 64


def test_a_round_waits_for_the_last_result():
    sampler = vt.Sampler(SPACE, trials=16, rounds=2, seed=0)
    first = sampler.ask(100)
    assert {a.round for a in first} == {0}
    sampler.tell({a.trial: value(a) for a in first[:-1]})
    assert sampler.ask() == []
    assert sampler.waiting == first[-1:]
    sampler.tell({first[-1].trial: value(first[-1])})
    assert sampler.ask()[0].round == 1
    assert sampler.best["value"] == min(value(a) for a in first if not math.isnan(value(a)))


def test_it_finds_the_best_and_zooms():
    sampler = vt.Sampler(SPACE, trials=256, seed=3)
    train_all(sampler, 50)
    assert sampler.best["params"]["x"] == pytest.approx(0.3, abs=0.15)
    assert sampler.best["params"]["n"] == 1
    assert sampler.best["repeats"] == 8  # two in each wave but the last, which takes what is left
    widths = [s["x"].high - s["x"].low for s in sampler.spaces]
    assert widths == sorted(widths, reverse=True)


def test_maximize_is_minimize_upside_down():
    low = vt.Sampler(SPACE, trials=64, seed=2)
    high = vt.Sampler(SPACE, trials=64, seed=2, direction="maximize")
    while not low.done:
        a, b = low.ask(9), high.ask(9)
        assert a == b
        low.tell({t.trial: value(t) for t in a})
        high.tell({t.trial: -value(t) for t in b})
    assert high.best["params"] == low.best["params"]
    assert high.best["value"] == -low.best["value"]


def test_when_all_diverges_it_ends_with_nothing():
    sampler = vt.Sampler(SPACE, trials=32, rounds=2)
    while asked := sampler.ask(8):
        sampler.tell({a.trial: math.inf for a in asked})
    assert sampler.done
    assert sampler.best is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trials": 0}, "`trials` must be a whole number of at least 1, but got 0"),
        ({"trials": 4, "rounds": 8}, "each round needs at least one trial"),
        ({"trials": 4, "seed": -1}, "`seed` must be a whole number"),
        ({"trials": 4, "direction": "up"}, "`direction` must be one of minimize, maximize, but got 'up'"),
        ({"trials": 4, "keep": 0}, "`keep` must be above 0"),
        ({"trials": 4, "method": "best"}, "`method` must be one of"),
    ],
)
def test_mistakes_in_arguments_are_told(arguments, words):
    with pytest.raises(vt.InputError, match=words.replace("(", r"\(")):
        vt.Sampler(SPACE, **arguments)


def test_mistakes_in_results_are_told():
    sampler = vt.Sampler(SPACE, trials=8, rounds=1)
    sampler.tell({0: 1.0})
    sampler.tell({0: 1.0})  # once more the same is no mistake
    for results, words in (
        ({0: 2.0}, "told as 1.0 before"),
        ({8: 1.0}, "0 to 7, but got 8"),
        ({1: "x"}, "must be a number"),
    ):
        with pytest.raises(vt.InputError, match=words):
            sampler.tell(results)
    with pytest.raises(vt.InputError, match="`n` must be a whole number"):
        sampler.ask(0)
