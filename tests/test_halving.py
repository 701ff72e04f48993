"""Early stopping: published tables, decisions worked out by hand, and what always holds."""

from __future__ import annotations

import itertools
import math
import random
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmaptune import InputError
from vmaptune.search.halving import (
    Halving,
    MedianStopping,
    Reached,
    bracket,
    hyperband,
    outranks,
    parse_halving,
    rank_key,
    rungs,
    survivors,
)
from vmaptune.study._stopping import Rules, Stopping

NAN, INF = math.nan, math.inf
VALUES = st.one_of(st.floats(-100, 100), st.sampled_from([NAN, INF, -INF, 0.0, 1.0]))


@st.composite
def interleaved(draw, values=VALUES):
    """Reports of some trials, each one's steps increasing, in any order across trials."""
    curves = {}
    for trial in range(draw(st.integers(1, 8))):
        steps = sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=6)))
        curves[trial] = [(trial, step, draw(values)) for step in steps]
    order = draw(st.permutations([t for t, curve in curves.items() for _ in curve]))
    return [curves[trial].pop(0) for trial in order]


# ---- rungs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((1, 81, 3), [1, 3, 9, 27, 81]),
        ((1, 243, 3), [1, 3, 9, 27, 81, 243]),  # log(243) / log(3) is 4.999... in floats
        ((100, 1000, 3), [100, 300, 900, 1000]),
        ((7, 7, 2), [7]),
        ((5, 6, 4), [5, 6]),
        ((1, 1000, 10), [1, 10, 100, 1000]),
    ],
)
def test_rungs_by_hand(args, expected):
    assert rungs(*args) == expected


@given(k=st.integers(1, 30), eta=st.integers(2, 9), least=st.integers(1, 1000))
def test_rungs_are_exact_powers(k, eta, least):
    levels = rungs(least, least * eta**k, eta)
    assert levels == [least * eta**i for i in range(k + 1)]
    assert rungs(least, levels[-1] + 1, eta) == [*levels, levels[-1] + 1]


@given(eta=st.integers(2, 5), least=st.integers(1, 40), most=st.integers(1, 2000), every=st.integers(1, 60))
def test_levels_lie_where_trials_are_evaluated(eta, least, most, every):
    if least > most:
        with pytest.raises(InputError, match=f"min_steps={least}, max_steps={most}"):
            Halving(eta, least).levels(most, every)
        return
    levels = Halving(eta, least).levels(most, every)
    assert levels[-1] == most
    assert levels == sorted(set(levels))
    assert all(level % every == 0 for level in levels[:-1])
    assert levels[0] >= min(least, most)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eta=3,min_steps=100", Halving(3, 100)),
        ("min_steps=5", Halving(3, 5)),
        (" eta = 4 ", Halving(4, 1)),
        ("", Halving()),
    ],
)
def test_a_person_types(text, expected):
    assert parse_halving(text) == expected
    assert parse_halving(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["eta=1", "eta=2.5", "eta", "eta=", "steps=4", "min_steps=0", "eta=3,eta=4", "eta=-3", "eta=²"]
)
def test_what_cannot_be_read_is_said_with_the_way_out(text):
    with pytest.raises(InputError, match=r"--halving must read like eta=3,min_steps=100 .* but got"):
        parse_halving(text)


@pytest.mark.parametrize("wrong", [{"eta": 1}, {"eta": 2.0}, {"min_steps": 0}, {"eta": True}])
def test_numbers_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Halving(**wrong)


# ---- asynchronous successive halving -----------------------------------------------------------------


def test_decisions_by_hand():
    rule = Halving(eta=3, min_steps=1).rule(9)  # rungs 1, 3, 9
    table = [
        # trial, step, value -> stop     results at the rung, best first; the best max(1, n // 3) go on
        (0, 1, 0.50, False),  #          .5
        (1, 1, 0.60, True),  #           .5 .6
        (2, 1, 0.40, False),  #          .4 .5 .6                          1 of 3
        (3, 1, 0.45, True),  #           .4 .45 .5 .6                      1 of 4
        (0, 2, 9.00, False),  #          no rung
        (4, 1, NAN, True),  #            .4 .45 .5 .6 nan
        (5, 1, 0.45, False),  #          .4 .45 .45 .5 .6 nan              2 of 6, and ties go on
        (0, 3, 0.30, False),  #          rung 3: .3
        (2, 3, 0.31, True),  #           rung 3: .3 .31
        (5, 3, 0.30, False),  #          rung 3: .3 .3 .31                 a tie with the best
        (6, 1, -INF, True),  #           an infinite value never wins
        (7, 4, 0.20, False),  #          reaches rungs 1 and 3 at once: best at both
        (8, 5, 0.41, True),  #           3rd of 9 at rung 1 (.2 .4 .41 ...), but 5th of 5 at rung 3
        (0, 9, 5.00, False),  #          complete: nothing to decide
        (5, 9, 7.00, False),
        (7, 9, NAN, True),
    ]  # fmt: skip
    for trial, step, value, stop in table:
        assert rule.report(trial, step, value) is stop, (trial, step)
    assert rule.results[1] == [0.20, 0.40, 0.41, 0.45, 0.45, 0.50, 0.60, INF, INF]
    assert [r.trial for r in rule.ranking()] == [0, 5, 2, 8, 3, 1, 7, 4, 6]


def test_a_report_twice_changes_nothing():
    rule = Halving(2, 2).rule(8)
    reports = [(0, 2, 1.0), (1, 2, 2.0)]
    assert rule.replay(reports) == [False, True]
    before = rule.results[2].copy()
    assert rule.replay([*reports, (1, 4, 0.0), (0, 1, 0.0)]) == [False, True, True, False]
    assert rule.results == {2: before}


@settings(max_examples=300, deadline=None)
@given(reports=interleaved(), eta=st.integers(2, 4), least=st.integers(1, 4), cut=st.integers(0, 40))
def test_rebuilt_equals_live(reports, eta, least, cut):
    live = Halving(eta, least).rule(30)
    decisions = live.replay(reports)
    assert Halving(eta, least).rule(30).replay(reports) == decisions
    rebuilt = Halving(eta, least).rule(30, reports=reports[:cut])
    assert rebuilt.replay(reports[cut:]) == decisions[cut:]
    assert (rebuilt.results, rebuilt.stopped) == (live.results, live.stopped)


@settings(max_examples=300, deadline=None)
@given(reports=interleaved(), eta=st.integers(2, 4), least=st.integers(1, 4))
def test_decisions_agree_with_a_plain_reading_of_the_rule(reports, eta, least):
    rule = Halving(eta, least).rule(30)
    seen, at, gone = {}, {}, set()
    for trial, step, value in reports:
        stop = rule.report(trial, step, value)
        if trial in gone:
            assert stop
            continue
        crossed = [level for level in rungs(least, 30, eta) if at.get(trial, 0) < level <= step]
        at[trial] = step
        worse = False
        for level in crossed:
            seen.setdefault(level, []).append(value if math.isfinite(value) else INF)
            better = sum(v < value for v in seen[level])
            worse |= level < 30 and better >= max(1, len(seen[level]) // eta)
        expected = worse or not math.isfinite(value)
        assert stop is expected
        gone |= {trial} if stop else set()


@given(reports=interleaved())
def test_what_is_not_finite_never_survives(reports):
    rules = [Halving(2).rule(30), MedianStopping().rule()]
    for report in reports:
        for rule in rules:
            assert rule.report(*report) or math.isfinite(report[2])


@given(values=st.lists(st.integers(-1000, 1000), min_size=1, max_size=60, unique=True), eta=st.integers(2, 5))
def test_the_best_so_far_always_goes_on_and_the_worst_hardly_ever(values, eta):
    rule = Halving(eta).rule(eta**3)
    for trial, value in enumerate(values):
        stop = rule.report(trial, 1, value)
        assert not (stop and value == min(values[: trial + 1]))
    improving, worsening = Halving(eta).rule(eta**3), Halving(eta).rule(eta**3)
    assert not any(improving.report(t, 1, v) for t, v in enumerate(sorted(values, reverse=True)))
    assert [worsening.report(t, 1, v) for t, v in enumerate(sorted(values))].count(False) == 1


@pytest.mark.parametrize("eta", [2, 3, 4])
def test_about_one_in_eta_goes_on(eta):
    # In a random order the n-th result is as likely to have any rank, so it goes on with max(1, n // eta) / n.
    n, seeds = 240, 60
    expected = sum(max(1, i // eta) / i for i in range(1, n + 1)) / n
    shares = []
    for seed in range(seeds):
        values = random.Random(seed).sample(range(10_000), n)
        rule = Halving(eta).rule(eta**4)
        shares.append(mean(not rule.report(t, 1, v) for t, v in enumerate(values)))
    assert mean(shares) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(n * seeds))
    assert abs(expected - 1 / eta) < 0.02


# ---- who outranks whom -------------------------------------------------------------------------------


def test_ranking_by_hand():
    best_first = [
        Reached(3, 81, 0.9),  # complete: before any trial that was stopped early
        Reached(1, 27, 0.1),
        Reached(4, 27, 0.2),
        Reached(9, 27, 0.2),  # ties by trial id
        Reached(0, 3, 0.0),
        Reached(7, 81, NAN),
        Reached(2, 1, -INF),
    ]
    shuffled = random.Random(0).sample(best_first, len(best_first))
    assert sorted(shuffled, key=rank_key) == best_first
    assert outranks(best_first[0], best_first[4])
    assert not outranks(best_first[2], best_first[3])
    assert not outranks(best_first[3], best_first[2])


@given(st.lists(st.tuples(st.integers(0, 4), VALUES), min_size=2, max_size=2))
def test_a_trial_that_went_further_is_never_outranked(pair):
    a, b = (Reached(i, rung, value) for i, (rung, value) in enumerate(pair))
    assert not (outranks(a, b) and outranks(b, a))
    if math.isfinite(a.value) and math.isfinite(b.value) and a.rung > b.rung:
        assert outranks(a, b)
    if math.isfinite(a.value) and not math.isfinite(b.value):
        assert outranks(a, b)


@given(reports=interleaved(st.floats(-10, 10)))
def test_the_ranking_compares_like_with_like(reports):
    rule = Halving(2).rule(30)
    rule.replay(reports)
    ranking = rule.ranking()
    assert [r.rung for r in ranking] == sorted((r.rung for r in ranking), reverse=True)
    for rung in {r.rung for r in ranking}:
        values = [r.value for r in ranking if r.rung == rung]
        assert values == sorted(values)


# ---- synchronous successive halving and Hyperband ----------------------------------------------------


def test_hyperbands_published_table():
    assert hyperband(81, 3) == [
        ((81, 1), (27, 3), (9, 9), (3, 27), (1, 81)),
        ((27, 3), (9, 9), (3, 27), (1, 81)),
        ((9, 9), (3, 27), (1, 81)),
        ((6, 27), (2, 81)),
        ((5, 81),),
    ]


def test_hyperband_counts_in_whole_numbers():
    assert hyperband(243, 3)[0] == ((243, 1), (81, 3), (27, 9), (9, 27), (3, 81), (1, 243))
    assert hyperband(1000, 10)[0] == ((1000, 1), (100, 10), (10, 100), (1, 1000))
    assert hyperband(1000, 3, min_steps=100) == [
        ((9, 111), (3, 333), (1, 1000)),
        ((3, 333), (1, 1000)),
        ((3, 1000),),
    ]


@given(eta=st.integers(2, 6), most=st.integers(1, 5000), least=st.integers(1, 50))
def test_what_every_hyperband_holds_to(eta, most, least):
    if least > most:
        return
    brackets = hyperband(most, eta, min_steps=least)
    s_max = len(brackets) - 1
    assert least * eta**s_max <= most < least * eta ** (s_max + 1)
    for s, rows in zip(range(s_max, -1, -1), brackets, strict=True):
        assert len(rows) == s + 1
        assert rows[-1][1] == most
        assert rows[0][1] >= least
        assert rows[-1][0] >= 1
        for (n, r), (fewer, further) in itertools.pairwise(rows):
            assert fewer == n // eta
            assert r * eta <= further < (r + 1) * eta
            assert n * r <= most * (s_max + 1)  # a rung costs at most B / (s + 1), as the paper has it


@pytest.mark.parametrize(
    ("args", "least", "expected"),
    [
        ((10, 100, 3), 1, ((10, 11), (3, 33), (1, 100))),
        ((9, 9, 3), 1, ((9, 1), (3, 3), (1, 9))),
        ((100, 9, 3), 2, ((100, 3), (33, 9))),
        ((2, 81, 3), 1, ((2, 81),)),
        ((1, 1, 2), 1, ((1, 1),)),
    ],
)
def test_brackets_by_hand(args, least, expected):
    assert bracket(*args, min_steps=least) == expected


def test_survivors_of_a_rung():
    values = {4: 0.2, 1: NAN, 2: 0.2, 7: -INF, 3: 0.1, 9: 0.5}
    assert survivors(values, 3) == [3, 2, 4]
    assert survivors(values, 9) == [3, 2, 4, 9]
    assert survivors({1: NAN}, 1) == []


# ---- median stopping ---------------------------------------------------------------------------------


def test_median_decisions_by_hand():
    rule = MedianStopping(grace_steps=2, least_trials=2).rule()
    table = [
        # trial, step, value -> stop     best so far against the median of the others' running averages
        (0, 1, 4.0, False),
        (0, 2, 2.0, False),  #           average 3
        (1, 1, 9.0, False),  #           in the grace period
        (1, 2, 1.0, False),  #           only one other; average 5
        (2, 1, 5.0, False),
        (2, 2, 4.5, True),  #            4.5 against the median of 3 and 5
        (3, 1, 4.0, False),
        (3, 2, 9.0, False),  #           4 against 3, 4.75, 5: its best counts, at 4 < 4.75
        (0, 3, 9.0, False),  #           no other has reached step 3
        (4, 2, NAN, True),
        (5, 2, 5.0, False),  #           3 4.75 5 6.5 inf: not worse than the median
        (6, 2, 5.1, True),  #            3 4.75 5 5 6.5 inf
        (6, 3, 0.0, True),  #            stopped for good
    ]  # fmt: skip
    for trial, step, value, stop in table:
        assert rule.report(trial, step, value) is stop, (trial, step)


@settings(max_examples=300, deadline=None)
@given(reports=interleaved(), grace=st.integers(0, 10), least=st.integers(1, 4), cut=st.integers(0, 40))
def test_median_decisions_agree_with_a_plain_reading_and_with_a_rebuilt_rule(reports, grace, least, cut):
    rule = MedianStopping(grace, least).rule()
    curves, gone, decisions = {}, set(), []
    for trial, step, value in reports:
        stop = rule.report(trial, step, value)
        decisions.append(stop)
        if trial in gone:
            assert stop
            continue
        curves.setdefault(trial, []).append((step, value if math.isfinite(value) else INF))
        others = [
            mean(v for s, v in curve if s <= step) if all(v < INF for s, v in curve if s <= step) else INF
            for t, curve in curves.items()
            if t != trial and curve[0][0] <= step <= curve[-1][0]
        ]
        if not math.isfinite(value):
            expected = True
        elif step < grace or len(others) < least:
            expected = False
        else:
            margin = min(v for _, v in curves[trial]) - median(others)
            expected = stop if abs(margin) < 1e-9 else margin > 0  # equal up to rounding: either
        assert stop is expected
        gone |= {trial} if stop else set()
    rebuilt = MedianStopping(grace, least).rule(reports[:cut])
    assert rebuilt.replay(reports[cut:]) == decisions[cut:]
    assert rebuilt.stopped == rule.stopped


@pytest.mark.parametrize("kind", ["asha", "median", "patience"])
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rules_rebuilt_from_the_ledger_in_any_order_decide_as_before(kind, seed):
    rng = np.random.default_rng(seed)
    stopping = Stopping(kind, eta=2, min_steps=2, patience=2)
    rules = Rules(stopping, 2)
    curves: dict[int, list[tuple[int, float]]] = {t: [] for t in range(9)}
    stopped: set[int] = set()

    def segment(rules, step, trials):
        return rules.decide(0, 16, [(t, step, curves[t][-1][1]) for t in trials])

    cut = int(rng.integers(1, 6)) * 2
    for step in range(2, cut + 1, 2):
        alive = [t for t in curves if t not in stopped]
        for t in alive:
            curves[t].append((step, float(rng.choice([rng.normal(), math.nan], p=[0.95, 0.05]))))
        stopped |= set(segment(rules, step, alive).stop)
    again = Rules(stopping, 2)
    for t in rng.permutation(9):
        again.restore(0, 16, int(t), curves[int(t)], int(t) in stopped)
    alive = [t for t in curves if t not in stopped]
    for t in alive:
        curves[t].append((cut + 2, float(rng.normal())))
    assert segment(again, cut + 2, alive) == segment(rules, cut + 2, alive)
