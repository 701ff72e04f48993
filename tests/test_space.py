"""Scales against their exact laws (SciPy), round trips, and bad bounds."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import vmaptune as vt
from vmaptune.space import Space, distribution_from_json, parse_expression

N = 4096
LAWS = {
    "uniform": (vt.uniform(-2, 3), stats.uniform(-2, 5).cdf),
    "loguniform": (vt.loguniform(1e-4, 1), stats.loguniform(1e-4, 1).cdf),
    "reverseloguniform": (
        vt.reverseloguniform(0.9, 0.9999), lambda x: 1 - stats.loguniform(1e-4, 0.1).cdf(1 - np.asarray(x))
    ),
}  # fmt: skip


def draw(distribution, n=N, seed=0, method="random"):
    return Space({"x": distribution}).sample(n, seed, method)["x"]


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_draws_follow_the_exact_law(name, seed):
    distribution, cdf = LAWS[name]
    assert stats.kstest(draw(distribution, seed=seed), cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("method", ["sobol", "halton"])
def test_low_discrepancy_draws_follow_it_more_closely(name, method):
    distribution, cdf = LAWS[name]
    assert stats.kstest(draw(distribution, method=method), cdf).statistic < 0.005  # random: about 0.013


def test_lograndint_follows_its_law():
    d = vt.lograndint(2, 40)
    k = np.arange(2, 41)
    expected = np.log((k + 0.5) / (k - 0.5)) / np.log(40.5 / 1.5)
    counts = np.bincount(draw(d), minlength=41)[2:]
    assert stats.chisquare(counts, expected * N).pvalue > 1e-3


@pytest.mark.parametrize("high", [10**7, 10**10, 10**15])
def test_a_wide_lograndint_follows_its_law_and_needs_no_list_of_its_values(high):
    d = vt.lograndint(1, high)
    tracemalloc.start()
    values = draw(d)
    assert tracemalloc.get_traced_memory()[1] < 30 * values.nbytes
    tracemalloc.stop()
    cuts = np.log(np.array([0.5, 1.5, 2.5, 10.5, 1e3 + 0.5, 1e6 + 0.5, high + 0.5]))
    counts, _ = np.histogram(values, np.exp(cuts))
    assert stats.chisquare(counts, np.diff(cuts) / (cuts[-1] - cuts[0]) * N).pvalue > 1e-3
    if high <= 10**10:  # a value's share is wider than rounding
        assert list(d.from_unit(d.to_unit(values[:500]))) == list(values[:500])
    assert d.contains(12)
    assert not d.contains(12.5)
    assert not d.contains(high + 1)


def test_the_edges_of_lograndint_are_those_of_its_law():
    d = vt.lograndint(3, 20)
    edges = np.log(np.arange(3, 22) - 0.5)
    edges = (edges - edges[0]) / (edges[-1] - edges[0])
    u = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1), np.linspace(0, 1, 999)]).clip(0, 1)
    wanted = 3 + np.clip(np.searchsorted(edges, u, side="right") - 1, 0, 17)
    assert list(d.from_unit(u)) == list(wanted)


@pytest.mark.parametrize(
    "d",
    [vt.randint(3, 9), vt.randint(0, 20, step=5), vt.uniform(0, 1, step=0.25), vt.choice(["a", "b", None]),
     vt.ordinal([16, 32, 64, 128]), vt.choice([True, False]), vt.choice([(1, 2), (3,)])],
)  # fmt: skip
def test_finite_settings_draw_each_value_as_often(d):
    values = list(draw(d))
    counts = [sum(v == option for v in values) for option in d.values()]
    assert sum(counts) == N
    assert len(counts) == d.n_values
    assert stats.chisquare(counts).pvalue > 1e-3


def test_facts_about_the_scales():
    rates = draw(vt.loguniform(1e-4, 1), n=65536, method="sobol")
    for decade in (1e-4, 1e-3, 1e-2, 1e-1):
        assert np.mean((rates >= decade) & (rates < 10 * decade)) == pytest.approx(0.25, abs=1e-3)
    assert np.mean(draw(vt.reverseloguniform(0.9, 0.999), n=65536, method="sobol") < 0.99) == pytest.approx(
        0.5, abs=1e-3
    )
    betas = draw(vt.reverseloguniform(0.9, 0.9999), n=65536, method="sobol")
    assert np.median(betas) == pytest.approx(0.9968, abs=1e-4)
    assert np.mean(betas > 0.99) == pytest.approx(2 / 3, abs=1e-3)


def test_random_points_try_more_values_of_what_matters_than_a_grid():
    space = Space({"matters": vt.uniform(0, 1), "does_not": vt.uniform(0, 1)})
    assert len(set(space.sample(25, 0, "random")["matters"])) == 25
    grid = space.sample(25, 0, "grid")
    assert len(grid["matters"]) == 25
    assert len(set(grid["matters"])) == 5


@pytest.mark.parametrize("method", ["random", "sobol", "halton", "grid"])
def test_the_same_seed_gives_the_same_bits(method):
    space = Space({"a": vt.loguniform(1e-4, 1), "b": vt.choice(["x", "y"]), "c": vt.randint(1, 9, or_zero=0.2)})
    one, two, other = (space.sample(50, seed, method) for seed in ((3, 1), (3, 1), (3, 2)))
    assert all(list(one[k]) == list(two[k]) for k in space)
    if method != "grid":
        assert list(one["a"]) != list(other["a"])


def test_these_draws_stay_as_they_are():
    """Written down, so that a study's table can be made again with another version."""
    space = Space({"lr": vt.loguniform(1e-4, 1), "n": vt.randint(1, 8), "act": vt.choice(["relu", "gelu", "tanh"])})
    got = space.sample(3, (0, 0), "random")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((0, 0)))).random((3, 3))
    np.testing.assert_allclose(got["lr"], 10 ** (-4 + 4 * rng[:, 0]), rtol=1e-12)
    assert list(got["n"]) == [1 + int(u * 8) for u in rng[:, 1]]
    assert list(got["act"]) == [["relu", "gelu", "tanh"][int(u * 3)] for u in rng[:, 2]]


def test_or_zero_is_exactly_zero_with_its_probability():
    values = draw(vt.loguniform(1e-6, 1e-1, or_zero=0.2))
    assert stats.binomtest(int((values == 0).sum()), N, 0.2).pvalue > 1e-3
    assert values[values != 0].min() >= 1e-6
    assert (draw(vt.uniform(1, 2, or_zero=1.0)) == 0).all()


bounds = st.tuples(st.floats(1e-8, 1e3), st.floats(1.001, 1e6)).map(lambda t: (t[0], t[0] * t[1]))
zeros = st.sampled_from([0.0, 0.3])
ranged = st.one_of(
    st.builds(lambda b, z: vt.loguniform(*b, or_zero=z), bounds, zeros),
    st.builds(lambda b, z: vt.uniform(-b[0], b[1], or_zero=z), bounds, zeros),
    st.builds(lambda lo, hi: vt.reverseloguniform(1 - hi, 1 - lo), st.floats(1e-6, 1e-3), st.floats(1e-2, 1)),
    st.builds(lambda a, b, z: vt.randint(a, a + b, or_zero=z), st.integers(-50, 50), st.integers(0, 60), zeros),
    st.builds(lambda a, b: vt.lograndint(a, a + b), st.integers(1, 50), st.integers(0, 500)),
    st.builds(lambda a, n: vt.uniform(a, a + n * 0.125, step=0.125), st.integers(-5, 5), st.integers(1, 40)),
    st.builds(lambda n: vt.ordinal(list(range(n))), st.integers(1, 9)),
    st.just(vt.choice(["a", None, True, 2.5, ("x", 1)])),
)


@settings(max_examples=200, deadline=None)
@given(d=ranged, u=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_round_trip_and_inclusive_bounds(d, u):
    values = d.from_unit(np.array(u))
    again = d.from_unit(d.to_unit(values))
    for v, w in zip(values, again, strict=True):
        assert d.contains(v.item() if isinstance(v, np.generic) else v)
        if isinstance(v, (float, np.floating)):
            scale = 1 - v if d.kind == "reverseloguniform" else max(abs(v), abs(d.low or 0) * 1e-6)
            assert abs(v - w) <= 1e-9 * abs(scale) + 1e-300 or math.isclose(v, w, rel_tol=1e-9)
        else:
            assert v == w
    assert distribution_from_json(d.to_json()) == d


@given(d=ranged)
@settings(max_examples=50, deadline=None)
def test_both_bounds_can_be_drawn(d):
    ends = d.with_zero(0.0).from_unit(np.array([0.0, 1.0]))
    listed = d.with_zero(0.0).values()
    expected = (listed[0], listed[-1]) if listed is not None else (d.low, d.high)
    if isinstance(expected[0], float):
        np.testing.assert_allclose(np.array(ends, float), expected, rtol=1e-12, atol=1e-12)
    else:
        assert tuple(ends) == expected


def test_a_space_round_trips_and_reads_like_its_calls():
    space = Space({"lr": vt.loguniform(1e-4, 1.0, or_zero=0.2), "w": vt.ordinal([16, 32], static=True), "k": 3})
    again = Space.from_json(space.to_json())
    assert dict(again) == dict(space)
    assert repr(space["lr"]) == "loguniform(0.0001, 1.0, or_zero=0.2)"
    assert repr(space["w"]) == "ordinal([16, 32], static=True)"
    assert repr(space["k"]) == "choice([3])"
    samples = space.sample(64, 1)
    back = space.from_unit(space.to_unit(samples))
    np.testing.assert_allclose(back["lr"], samples["lr"], rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.01", 0.01), ("64", 64), ("relu", "relu"), ("True", True), ("None", None), ("-1e-3", -1e-3),
        ("loguniform(1e-4, 1)", vt.loguniform(1e-4, 1)), ("vt.choice(['a', 'b'])", vt.choice(["a", "b"])),
        ("uniform(0, 1, step=0.5)", vt.uniform(0, 1, step=0.5)), ("ordinal([1,2])", vt.ordinal([1, 2])),
    ],
)  # fmt: skip
def test_expressions(text, expected):
    assert parse_expression(text) == expected


@pytest.mark.parametrize(
    "text", ["__import__('os').system('true')", "loguniform(1e-4)", "f(1)", "1 +", "a.b(1)", "uniform(*[1, 2])",
             "uniform(low=x, high=2)", "loguniform(0, 1)"],
)  # fmt: skip
def test_bad_expressions(text):
    with pytest.raises(vt.InputError):
        parse_expression(text)


BAD = [
    (lambda: vt.loguniform(0, 1), ["loguniform(0, 1)", "`low`", "above 0", "or_zero"]),
    (lambda: vt.reverseloguniform(0.9, 1.0), ["reverseloguniform(0.9, 1.0)", "below 1", "0.999"]),
    (lambda: vt.uniform(2, 1), ["low <= high", "low=2.0, high=1.0"]),
    (lambda: vt.uniform(float("nan"), 1), ["`low`", "finite", "nan"]),
    (lambda: vt.uniform(0, float("inf")), ["`high`", "finite", "inf"]),
    (lambda: vt.uniform("0", 1), ["`low`", "number", "'0'"]),
    (lambda: vt.uniform(True, 1), ["`low`", "number", "True"]),
    (lambda: vt.randint(0.5, 3), ["`low`", "whole number", "0.5", "vt.uniform"]),
    (lambda: vt.lograndint(0, 3), ["`low`", "above 0"]),
    (lambda: vt.uniform(0, 1, step=0.3), ["`step`", "divide", "0.3"]),
    (lambda: vt.uniform(0, 1, step=0), ["`step`", "above 0", "0"]),
    (lambda: vt.uniform(0, 1, or_zero=1.5), ["`or_zero`", "0 to 1", "1.5"]),
    (lambda: vt.uniform(0, 1, static=True), ["static", "finitely many", "vt.ordinal"]),
    (lambda: vt.choice([]), ["choice", "at least one", "empty"]),
    (lambda: vt.choice("abc"), ["list of values", "'abc'"]),
    (lambda: vt.choice(["a", "a"]), ["once", "'a'"]),
    (lambda: vt.choice([math.tanh]), ["string, a number", "model()"]),
    (lambda: vt.ordinal([2, 1]), ["increase", "vt.choice"]),
    (lambda: Space({}), ["at least one setting"]),
    (lambda: Space({"learning rate": 1}), ["'learning rate'", "spell", "learning_rate"]),
    (lambda: Space({"class": 1}), ["'class'", "class_"]),
    (lambda: Space({"_x": 1}), ["'_x'"]),
    (lambda: Space({"items": 1}), ["'items'"]),
    (lambda: Space([("a", 1), ("a", 2)]), ["'a'", "twice"]),
    (lambda: Space({"a": [1, 2]}), ["'a'", "[1, 2]"]),
    (lambda: Space({"a": 1}).sample(0, 0), ["`n`", "at least 1", "0"]),
    (lambda: Space({"a": 1}).sample(5, 0, "lhs"), ["`method`", "sobol", "'lhs'"]),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_input_names_the_rule_the_value_and_the_way_out(case):
    make, words = BAD[case]
    with pytest.raises(vt.InputError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)
