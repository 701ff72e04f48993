"""The zoom: boxes worked out by hand, what must always hold, and how a budget is split."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmaptune as vt
from vmaptune.search.confirm import Budget, finalists, rank, split_budget
from vmaptune.search.zoom import Scored, _tail, best, inside, leaning, slice_of, zoom
from vmaptune.space import Space


def scored(name, values, worth=None):
    return [Scored(i, {name: v}, float(i) if worth is None else worth[i]) for i, v in enumerate(values)]


def test_nan_and_infinities_never_win():
    values = [math.nan, -math.inf, 3.0, math.inf, 1.0, 1.0]
    assert [s.trial for s in best(scored("x", range(6), values), 9)] == [4, 5, 2]


def test_the_slice_counts_infeasible_trials_but_never_holds_them():
    values = [math.nan] * 50 + list(range(50, 100))
    assert [s.trial for s in slice_of(scored("x", range(100), values), 0.15)] == list(range(50, 65))
    assert len(slice_of(scored("x", range(10)), 0.15)) == 5  # at least five


def test_a_box_by_hand():
    # five points span 1..2 decades; 5 even points span 4/6 of their interval, so the span is stretched by 1.5,
    # then by a tenth on each side: half-width 0.5 * 1.5 * 1.2 = 0.9 about 1.5
    first = Space({"x": vt.loguniform(1e-4, 1e4)})
    finer = zoom(first, first, scored("x", [10.0, 100.0, 30.0, 40.0, 50.0]))
    assert (finer["x"].low, finer["x"].high) == pytest.approx((10**0.6, 10**2.4))


def test_a_reverse_log_box_is_made_in_one_minus_x():
    first = Space({"beta": vt.reverseloguniform(0.0, 0.99999)})
    finer = zoom(first, first, scored("beta", [0.9, 0.99, 0.95, 0.97, 0.98]))
    assert 1 - finer["beta"].low == pytest.approx(10**-0.6)
    assert 1 - finer["beta"].high == pytest.approx(10**-2.4)


def test_an_unimportant_setting_keeps_about_its_width():
    first = Space({"x": vt.uniform(0, 1)})
    widths = []
    for seed in range(200):
        draws = first.sample(20, seed)["x"]
        finer = zoom(first, first, scored("x", list(draws)), margin=0.0)
        widths.append(finer["x"].high - finer["x"].low)
    assert np.mean(widths) > 0.93


@settings(max_examples=200, deadline=None)
@given(data=st.data(), k=st.integers(3, 30), seed=st.integers(0, 10_000))
def test_a_box_covers_its_slice_and_stays_in_the_first_space(data, k, seed):
    first = Space(
        {
            "lr": vt.loguniform(1e-5, 1.0), "beta": vt.reverseloguniform(0.5, 0.9999), "n": vt.randint(1, 40),
            "m": vt.lograndint(1, 500), "w": vt.ordinal([16, 32, 64, 128]), "act": vt.choice(["a", "b", "c"]),
            "wd": vt.loguniform(1e-6, 1e-1, or_zero=0.3), "u": vt.uniform(-1, 1), "s": vt.uniform(0, 1, step=0.125),
        }
    )  # fmt: skip
    space = first
    for round_ in range(3):
        samples = space.sample(k, (seed, round_))
        rows = [
            {n: c[i].item() if isinstance(c[i], np.generic) else c[i] for n, c in samples.items()} for i in range(k)
        ]
        slice_ = [Scored(i, row, float(i)) for i, row in enumerate(rows)]
        finer = zoom(space, first, slice_)
        for name in first:
            for row in rows:
                if not (name == "wd" and row[name] == 0):
                    tiny = 1e-9 * abs(row[name]) if isinstance(row[name], float) else 0
                    near = (row[name], row[name] + tiny, row[name] - tiny) if tiny else (row[name],)
                    assert any(finer[name].contains(v) for v in near), (name, row[name], finer[name])
            if first[name].options is None:
                assert first[name].low <= finer[name].low <= finer[name].high <= first[name].high
            else:
                assert set(finer[name].options) <= set(first[name].options)
        space = finer


def test_a_choice_keeps_what_the_slice_holds_and_an_ordinal_a_run():
    first = Space({"act": vt.choice(["relu", "gelu", "tanh"]), "w": vt.ordinal([8, 16, 32, 64, 128])})
    rows = [("relu", 16), ("tanh", 64), ("relu", 64), ("tanh", 64), ("relu", 16)]
    finer = zoom(first, first, [Scored(i, {"act": a, "w": w}, i) for i, (a, w) in enumerate(rows)])
    assert finer["act"].options == ("relu", "tanh")
    assert {16, 32, 64} <= set(finer["w"].options)


@pytest.mark.parametrize(
    ("values", "p"),
    [([1e-3] * 14, 0.0), ([1e-3] * 13, 0.2), ([0.0] * 2 + [1e-3] * 12, 0.2), ([0.0] * 14, 1.0)],
)  # 0.8^14 = 0.044 is unlikely, 0.8^13 = 0.055 is not
def test_a_zero_is_dropped_kept_or_chosen(values, p):
    first = Space({"wd": vt.loguniform(1e-6, 1e-1, or_zero=0.2)})
    finer = zoom(first, first, scored("wd", values))
    assert finer["wd"].or_zero == p


def test_a_zero_never_stretches_the_box():
    first = Space({"dropout": vt.uniform(0.2, 0.8, or_zero=0.3)})
    finer = zoom(first, first, scored("dropout", [0.0, 0.0, 0.5, 0.51, 0.52, 0.49, 0.5]))
    assert finer["dropout"].low > 0.4


def test_fewer_than_three_leave_the_space_as_it_is():
    first = Space({"x": vt.uniform(0, 1)})
    assert zoom(first, first, scored("x", [0.1, 0.2])) is first


def test_leaning_is_told_in_plain_words():
    first = Space(
        {"learning_rate": vt.loguniform(1e-4, 1.0), "width": vt.ordinal([16, 32, 64]), "two": vt.ordinal([1, 2])}
    )
    rows = [Scored(i, {"learning_rate": 0.9, "width": 32, "two": 2}, i) for i in range(8)]
    assert [lean.message for lean in leaning(first, rows)] == [
        "learning_rate: the best trials touch the upper bound 1.0: widen it"
    ]
    rows = [Scored(i, {"learning_rate": 1e-4, "width": 16, "two": 1}, i) for i in range(8)]
    assert [(lean.name, lean.side) for lean in leaning(first, rows)] == [("learning_rate", "lower"), ("width", "lower")]


def test_leaning_is_rarely_seen_in_random_draws():
    first = Space({"x": vt.uniform(0, 1), "n": vt.randint(1, 10)})
    seen = 0
    for seed in range(300):
        s = first.sample(15, seed)
        seen += bool(leaning(first, [Scored(i, {"x": s["x"][i], "n": s["n"][i]}, i) for i in range(15)]))
    assert seen <= 12  # four bounds at a level of 1 %


@pytest.mark.parametrize(
    ("d", "values", "low", "high"),
    [
        (vt.loguniform(1e-4, 1.0), [0.8, 0.9, 1.0, 0.95, 0.85], None, (1.0, 2.0)),
        (vt.uniform(0.0, 1.0), [0.01, 0.02, 0.03, 0.0, 0.05], 0.0, None),
        (vt.randint(1, 10), [10, 10, 9, 10, 10], None, (10, 13)),
        (vt.reverseloguniform(0.5, 0.999), [0.999, 0.9988, 0.9989, 0.9987, 0.999], None, (0.999, 0.9999)),
    ],
)  # fmt: skip
def test_expand_leaves_the_first_space_only_where_the_slice_leans(d, values, low, high):
    first = Space({"x": d})
    inside, outside = (zoom(first, first, scored("x", values), expand=e)["x"] for e in (False, True))
    assert inside.high <= d.high
    assert inside.low >= d.low
    if low is not None:
        assert outside.low == low  # 0 is a natural limit
    if high is not None:
        assert high[0] < outside.high <= high[1]
    for value in outside.from_unit(np.linspace(0, 1, 9)):
        assert outside.contains(value.item())


@pytest.mark.parametrize(
    ("trials", "rounds", "expected"),
    [
        (256, 4, Budget((56, 56, 56, 56), 8, 4)),
        (768, 3, Budget((228, 228, 228), 14, 6)),
        (16, 1, Budget((12,), 2, 2)),
        (15, 2, Budget((8, 7), 0, 0)),
        (1, 1, Budget((1,), 0, 0)),
        (10, 3, Budget((4, 3, 3), 0, 0)),
    ],
)
def test_budgets_by_hand(trials, rounds, expected):
    assert split_budget(trials, rounds) == expected


@given(trials=st.integers(1, 5000), rounds=st.integers(1, 20))
def test_a_budget_spends_exactly_its_trials(trials, rounds):
    if rounds > trials:
        with pytest.raises(vt.InputError, match=f"trials={trials}, rounds={rounds}"):
            split_budget(trials, rounds)
        return
    b = split_budget(trials, rounds)
    assert sum(b.rounds) + b.finalists * b.repeats == trials
    assert min(b.rounds) >= 1
    assert (b.finalists >= 2 and b.repeats >= 2) or b.finalists == b.repeats == 0


def test_finalists_differ_and_ranking_puts_failures_last():
    rows = [Scored(0, {"x": 1}, 0.1), Scored(1, {"x": 1}, 0.2), Scored(2, {"x": 2}, 0.3), Scored(3, {"x": 3}, math.nan)]
    assert [s.trial for s in finalists(rows, 3)] == [0, 2]
    ranked = rank({7: [1.0, 3.0], 8: [0.0, math.nan], 9: [1.5, 1.5]})
    assert [(c.trial, c.mean, c.repeats, c.infeasible) for c in ranked] == [
        (9, 1.5, 2, 0),
        (7, 2.0, 2, 0),
        (8, 0.0, 2, 1),
    ]
    assert ranked[1].std == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("at_least", "n", "p"), [(0, 5, 0.1), (3, 10, 0.1), (700, 5000, 0.1), (5000, 9000, 0.5)])
def test_the_binomial_tail_is_that_of_whole_numbers(at_least, n, p):
    p = Fraction(p).limit_denominator(10)
    exact = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(at_least, min(n, at_least + 400) + 1))
    assert _tail(at_least, n, float(p)) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


def test_a_hundred_thousand_trials_lean_on_a_bound():
    first = Space({"x": vt.uniform(0, 1), "n": vt.ordinal([1, 2, 3])})
    slice_ = [Scored(i, {"x": 0.95 + 0.05 * (i % 2), "n": 3}, 0.0) for i in range(15_000)]
    assert [(lean.name, lean.side) for lean in leaning(first, slice_)] == [("x", "upper"), ("n", "upper")]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), round_=st.integers(0, 1))
def test_inside_is_what_every_range_contains(seed, round_):
    first = Space(
        {
            "act": vt.choice(["a", "b", True, 1]), "wd": vt.loguniform(1e-6, 1e-1, or_zero=0.3), "n": vt.randint(1, 40),
            "slope": vt.uniform(0, 1, when={"act": ["a"]}),
        }
    )  # fmt: skip
    rows = first.rows(first.sample(40, seed))
    box = zoom(first, first, [Scored(i, row, float(i)) for i, row in enumerate(rows[: 4 + 20 * round_])])
    wanted = [all(v is None or box[name].contains(v) for name, v in row.items()) for row in rows]
    assert list(inside(box, rows)) == wanted
