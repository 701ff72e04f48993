"""The test that tells an old setting from its rival: boundaries, p-values, intervals, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from vmaptune.search.sequential import boundaries, spent, stagewise_p, to_normal, to_student
from vmaptune.search.verdict import BATCH, LEVEL, MARGIN, MOVED, STILL_BEST, UNCLEAR, compare

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def uncrossed(fractions, bounds):
    """The chance of a Brownian path to stay below all of these deviates, by SciPy."""
    t = np.array(fractions)
    covariance = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    return stats.multivariate_normal(np.zeros(len(t)), covariance).cdf(np.array(bounds))


@pytest.mark.parametrize("level", [0.005, 0.025, 0.05])
@pytest.mark.parametrize("fractions", [(1.0,), (0.5, 1.0), FIFTHS, (0.1, 0.15, 0.7, 0.71)])
def test_boundaries_spend_what_they_may_at_each_look(fractions, level):
    found = boundaries(fractions, level)
    for k in range(1, len(fractions) + 1):
        assert 1 - uncrossed(fractions[:k], found[:k]) == pytest.approx(spent(fractions[k - 1], level), abs=2e-5)


def test_boundaries_agree_with_published_ones():
    assert boundaries(FIFTHS, 0.025) == pytest.approx([2.438, 2.427, 2.410, 2.397, 2.386], abs=6e-4)  # R's gsDesign
    assert stagewise_p(FIFTHS, [2.413] * 5, 2.413) == pytest.approx(0.025, abs=2e-4)  # Pocock (1977)
    falling = [2.040 * math.sqrt(5 / k) for k in range(1, 6)]  # O'Brien and Fleming (1979)
    assert stagewise_p(FIFTHS, falling, falling[-1]) == pytest.approx(0.025, abs=2e-4)


def test_one_look_is_the_paired_t_test():
    draw = np.random.default_rng(0)
    a, b = draw.normal(1.0, 0.1, 16), draw.normal(0.97, 0.1, 16)
    found, expected = compare(a, b, 16), stats.ttest_rel(a, b, alternative="greater")
    assert found.p == pytest.approx(expected.pvalue)
    interval = stats.ttest_rel(a, b).confidence_interval(1 - LEVEL)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.gain == pytest.approx(a.mean() - b.mean())


def rates(gain, most, tries=8000):
    """How often it ends "moved" and "still best", of normal values whose spread is 1, and at how many pairs."""
    draw = np.random.default_rng([int(100 * gain), most])
    values = draw.standard_normal((2, tries, most))
    values[1] -= gain
    sizes = [min(most, n) for n in range(BATCH, most + BATCH, BATCH)]
    critical = boundaries(tuple(n / most for n in sizes), LEVEL / 2)
    answer, pairs = np.full(tries, UNCLEAR, dtype=object), np.full(tries, most)
    for n, bound in zip(sizes, critical, strict=True):
        a, b = values[:, :, :n]
        mean, error = (a - b).mean(1), (a - b).std(1, ddof=1) / math.sqrt(n)
        reach = to_student(bound, n - 1) * error
        margin = MARGIN * np.minimum(a.std(1, ddof=1), b.std(1, ddof=1))
        now = np.where(
            (mean > reach) & (mean >= margin / 2), MOVED, np.where(mean + reach <= margin, STILL_BEST, UNCLEAR)
        ).astype(object)
        for i in (0, 1):  # the same by the function itself
            if answer[i] == UNCLEAR:
                assert compare(a[i], b[i], most).answer == now[i]
        new = (answer == UNCLEAR) & (now != UNCLEAR)
        answer[new], pairs[new] = now[new], n
    return (answer == MOVED).mean(), (answer == STILL_BEST).mean(), pairs.mean()


def test_how_often_it_is_wrong():
    tolerance = 3 * math.sqrt(0.005 * 0.995 / 8000)
    moved, still, _ = rates(0.0, 128)
    assert moved <= LEVEL / 2 + tolerance
    assert still > 0.98
    _, still, _ = rates(MARGIN, 128)
    assert still <= LEVEL / 2 + tolerance + 0.003  # the margin is of an estimated spread
    moved, _, pairs = rates(1.0, 128)
    assert moved > 0.99
    assert pairs < 48


@pytest.mark.parametrize(
    ("old", "rival", "answer"),
    [
        ([1.0, 1.1, 0.9, 1.0] * 4, [2.0, 2.1, 1.9, 2.0] * 4, STILL_BEST),
        ([2.0, 2.1, 1.9, 2.0] * 4, [1.0, 1.1, 0.95, 1.0] * 4, MOVED),
        ([1.0] * 16, [1.0] * 16, STILL_BEST),
        ([1.0] * 16, [0.9] * 16, MOVED),
        ([1.0, 1.5, 0.5, 0.7] * 4, [0.99, 1.49, 0.49, 0.69] * 4, STILL_BEST),  # surely better, and not worth a move
        ([math.nan] * 16, [5.0, 6.0] * 8, MOVED),
        ([1.0, 1.1] * 8, [math.nan] * 16, STILL_BEST),
        ([math.nan] * 16, [math.inf] * 16, UNCLEAR),
        ([math.nan, *[1.0, 1.1, 0.9] * 5], [1.0, 1.1, 0.9, 1.05] * 4, UNCLEAR),  # one failure proves nothing
        ([1.0, 1.5, 0.5], [0.9, 0.2, 1.3], UNCLEAR),
    ],
)
def test_verdicts(old, rival, answer):
    assert compare(old, rival, 16).answer == answer


values = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=32, max_size=32)


@settings(max_examples=60, deadline=None)
@given(values, values, st.sampled_from([16, 24, 32]), st.sampled_from([0.25, 8.0]), st.sampled_from([0.0, 16.0]))
def test_the_unit_does_not_matter_and_the_p_value_says_what_the_interval_says(old, rival, n, scale, shift):
    old, rival = np.array(old[:n]), np.array(rival[:n])
    found = compare(old, rival, 32)
    assume(n == 16 or compare(old[:16], rival[:16], 32).answer == UNCLEAR)
    assume(abs(found.p - LEVEL / 2) > 1e-6)
    assert (found.p < LEVEL / 2) == (found.low > 0)
    other = compare(scale * old + shift, scale * rival + shift, 32)
    assert other.gain == pytest.approx(scale * found.gain, abs=1e-9)
    margin = MARGIN * found.spread
    if min(abs(found.high - margin), abs(found.gain - margin / 2), abs(found.low)) > 1e-6:
        assert other.answer == found.answer


def test_a_deviate_of_student_has_the_tail_of_the_normal_one():
    assert to_student(2.5, 15) == pytest.approx(stats.t.isf(stats.norm.sf(2.5), 15))
    assert to_normal(to_student(2.5, 15), 15) == pytest.approx(2.5)
    assert math.isfinite(to_normal(1e6, 15))
    with pytest.raises(ValueError, match="2 to 16 pairs"):
        compare([1.0], [1.0], 16)
