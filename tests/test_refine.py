"""The surrogate against scikit-learn and differences, what a finer round draws, and who wins the confirmation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import ndtri

import vmaptune as vt
from vmaptune.search.confirm import Confirmed
from vmaptune.search.decide import seed_spread, settle, shortlist, shrunken
from vmaptune.search.kernel import LEVEL
from vmaptune.search.refine import _thompson, propose
from vmaptune.search.surrogate import Surrogate, columns_of, coordinates, covering, normal_scores
from vmaptune.search.worth import Worth
from vmaptune.search.zoom import Scored
from vmaptune.space import Space

SPACE = Space({"a": vt.uniform(0, 1), "b": vt.loguniform(1e-4, 1.0), "c": vt.reverseloguniform(0.0, 0.99)})
MIXED = Space(
    {
        "act": vt.choice(["relu", "gelu", "tanh"]), "wd": vt.loguniform(1e-6, 1e-1, or_zero=0.3),
        "w": vt.ordinal([16, 32, 64]), "n": vt.randint(1, 9), "slope": vt.uniform(0, 1, when={"act": ["relu"]}),
    }
)  # fmt: skip


def trials(space, n, seed, worth):
    rows = space.rows(space.sample(n, seed))
    return [Scored(i, row, worth(row, i)) for i, row in enumerate(rows)]


def bowl(row, i):
    return (row["a"] - 0.3) ** 2 + (math.log10(row["b"]) + 2) ** 2 / 4


def surrogate(space, scored):
    return Worth(space, scored).value


def at(space, rows):
    return coordinates(space, columns_of(space, rows))


@pytest.mark.parametrize("rough", [False, True])
def test_the_surrogate_predicts_what_scikit_learn_does(rough):
    gp = pytest.importorskip("sklearn.gaussian_process")
    scored = trials(SPACE, 40, 1, bowl)
    fit = surrogate(SPACE, scored)
    if rough:
        fit = Surrogate(SPACE, at(SPACE, [s.params for s in scored]), fit.scores, rough=True)
    kernels = gp.kernels
    kernel = kernels.ConstantKernel(math.exp(fit.theta[-2])) * kernels.Matern(1.0, nu=0.5 if rough else 2.5)
    kernel += kernels.ConstantKernel(LEVEL)
    metric = fit.kernel.metric(fit.theta)
    assert np.diag(metric) == pytest.approx(1 / fit.lengths)
    assert abs(metric - np.diag(np.diag(metric))).max() > 1e-3  # a length alone for each setting would be no test
    oracle = gp.GaussianProcessRegressor(kernel, alpha=fit.noise + 1e-8, optimizer=None)
    oracle.fit(at(SPACE, [s.params for s in scored]) @ metric.T, fit.scores)
    other = at(SPACE, SPACE.rows(SPACE.sample(9, 2)))
    mean, covariance = oracle.predict(other @ metric.T, return_cov=True)
    assert fit.mean(other) == pytest.approx(mean, abs=1e-6)
    assert fit.variance(other) == pytest.approx(np.diag(covariance), abs=1e-6)
    drawn = fit.samples(other, 20_000, np.random.default_rng(0))
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=0.03)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.05 * covariance.max())


@pytest.mark.parametrize("rough", [False, True])
def test_the_gradient_is_that_of_differences(rough):
    twice = Space({**MIXED, "again": vt.choice(["relu", "gelu", "tanh"])})  # shares its likeness with `act`
    scored = trials(twice, 25, 3, lambda row, i: float(row["n"] + (row["act"] == "relu")))
    fit = surrogate(twice, scored)
    if rough:
        fit = Surrogate(twice, at(twice, [s.params for s in scored]), fit.scores, rough=True)
    theta = fit.theta + np.linspace(-0.3, 0.3, len(fit.theta))
    x = fit.kernel.features(at(twice, [s.params for s in scored]))
    found = fit.kernel.loss(theta, x, fit.scores)[1]
    wanted = optimize.approx_fprime(theta, lambda t: fit.kernel.loss(t, x, fit.scores)[0], 1e-6)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def test_between_a_finite_trial_and_a_lost_one_the_edge_may_be_anywhere():
    space = Space({"x": vt.uniform(0.0, 1.0)})
    places = [*np.linspace(0.0, 0.4, 9), *np.linspace(0.8, 1.0, 5)]
    scored = [Scored(i, {"x": x}, 1 - x if x < 0.6 else math.nan) for i, x in enumerate(places)]
    worth = Worth(space, scored)
    between = worth.lost(worth.points({"x": np.linspace(0.4, 0.8, 9)}))
    assert between == pytest.approx(np.linspace(0.0, 1.0, 9), abs=0.06)
    assert (worth.lost(worth.points({"x": np.linspace(0.0, 0.4, 33)})) < 0.05).all()


def test_of_bold_candidates_a_tenth_is_picked():
    functions = np.tile(np.arange(100.0), (8, 1)) + np.random.default_rng(0).normal(0, 1, (8, 100))
    bold = np.arange(100) < 50  # the lowest
    picked = _thompson(functions, 40, bold)
    assert len(set(picked)) == 40
    assert bold[picked].sum() == 4
    assert _thompson(functions, 40, np.zeros(100, bool)).max() < 50
    assert len(set(_thompson(functions, 40, np.ones(100, bool)))) == 40  # where there are no others


def test_scores_by_hand():
    # of four, the first two the same: ranks 1.5, 1.5, 3, 4, less a half, over 4
    found = normal_scores([(0.0, 1.0), (0.0, 1.0), (0.0, 2.0), (math.inf, math.inf)])
    assert found == pytest.approx(ndtri(np.array([0.25, 0.25, 0.625, 0.875])))


def test_coordinates_by_hand():
    rows = [
        {"act": "gelu", "wd": 0.0, "w": 64, "n": 1, "slope": None},
        {"act": "relu", "wd": 1e-1, "w": 16, "n": 5, "slope": 0.25},
    ]
    assert at(MIXED, rows) == pytest.approx(np.array([[0.5, -0.15, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.5, 0.25]]))
    first = Space({"b": vt.loguniform(1e-4, 1.0)})
    assert at(first, [{"b": 10.0}])[0, 0] == pytest.approx(1.25)  # --expand may leave the first space


def test_it_tells_noise_from_worth_and_what_matters_from_what_does_not():
    rng = np.random.default_rng(0)
    quiet = surrogate(SPACE, trials(SPACE, 100, 5, lambda row, i: abs(row["a"] - 0.3)))
    noisy = surrogate(SPACE, trials(SPACE, 100, 5, lambda row, i: abs(row["a"] - 0.3) + rng.normal(0, 0.3)))
    assert noisy.noise > 0.3 > 0.03 > quiet.noise
    assert quiet.lengths[0] < min(quiet.lengths[1:]) / 2


def valley(row, i):
    return min(1.0, 0.02 + 0.25 * (math.log10(row["b"]) + 2.5) ** 2 + 0.1 * (row["a"] - 0.3) ** 2)


@pytest.mark.parametrize("told", [300, 2000])
def test_bad_regions_are_not_forgotten_however_many_trials_there_are(told):
    anywhere = trials(SPACE, 100, 1, valley)
    box = SPACE.replace(b=vt.loguniform(1e-3, 1e-2), a=vt.uniform(0.1, 0.5))
    known = [*anywhere, *(replace(s, trial=100 + s.trial) for s in trials(box, told - 100, 2, valley))]
    worse = np.median([s.value for s in anywhere])
    found = propose(box, SPACE, known, 64, seed=(0, 5), method="sobol")
    assert np.mean([valley(row, 0) > worse for row in found]) <= 0.15


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 60), most=st.integers(2, 40), seed=st.integers(0, 99), ties=st.booleans())
def test_a_covering_holds_the_best_and_the_farthest(n, most, seed, ties):
    rng = np.random.default_rng(seed)
    points, scores = rng.random((n, 2)).round(1 if ties else 9), rng.normal(size=n)
    chosen = list(covering(points, scores, most))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, most)
    assert set(np.argsort(scores)[: min(n, most) // 2]) <= set(chosen)
    if n > most:  # farthest first: no other lies farther from the chosen than these from one another, but for the best

        def gap(i, others):
            return min(float(((points[i] - points[j]) ** 2).sum()) for j in others)

        best = set(np.argsort(scores)[: most // 2])
        added = [i for i in chosen if i not in best]
        widest = max(gap(i, chosen) for i in range(n) if i not in chosen)
        assert min(gap(i, [j for j in chosen if j != i]) for i in added) >= widest - 1e-12 or len(added) == 1


def test_it_learns_which_options_go_together():
    options = ["a1", "b1", "a2", "b2", "a3", "b3"]
    space = Space({"x": vt.choice(options), "y": vt.choice(options)})
    scored = trials(space, 80, 1, lambda row, i: float((row["x"][0] == "b") + (row["y"][0] == "b")))
    fit = surrogate(space, scored)
    metric = fit.kernel.metric(fit.theta)[:6, :6]
    apart = ((metric.T[:, None] - metric.T[None, :]) ** 2).sum(axis=2)
    kind = np.array([o[0] for o in options])
    alike = (kind[:, None] == kind[None, :]) & ~np.eye(6, dtype=bool)
    assert apart[alike].max() < apart[kind[:, None] != kind[None, :]].min()


def test_where_trainings_are_lost_is_learned_beside_what_the_others_are_worth():
    def value(row, i):  # best just before it diverges
        return math.nan if row["a"] > 0.6 else 1 - row["a"]

    scored = trials(SPACE, 80, 2, value)
    worth = Worth(SPACE, scored)
    lost = worth.lost(at(SPACE, [{"a": a, "b": 1e-2, "c": 0.5} for a in (0.2, 0.5, 0.7, 0.9)]))
    assert lost[1] < 0.2
    assert lost[0] < 0.05 < 0.8 < lost[2]
    assert lost[3] > 0.95
    found = propose(SPACE, SPACE, scored, 40, seed=(0, 1), method="sobol")
    assert np.mean([row["a"] > 0.6 for row in found]) <= 0.15
    assert np.mean([row["a"] for row in found]) > 0.4


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 90), told=st.integers(0, 60), seed=st.integers(0, 99), lost=st.integers(0, 60))
def test_a_round_holds_settings_of_the_first_space_and_is_the_same_again(n, told, seed, lost):
    scored = trials(MIXED, 60, 1, lambda row, i: math.nan if i < lost else row["n"] + 0.1 * i)[:told]
    again = [propose(MIXED, MIXED, scored, n, seed=(seed, 1), method="sobol") for _ in range(2)]
    assert again[0] == again[1]
    assert len(again[0]) == n
    for row in again[0]:
        there = MIXED.active(row)
        assert all(MIXED[name].contains(value) if there[name] else value is None for name, value in row.items())


def test_a_first_round_and_a_grid_are_plain_draws():
    scored = trials(SPACE, 30, 1, bowl)
    plain = SPACE.rows(SPACE.sample(8, seed=(4, 1), method="grid"))
    assert propose(SPACE, SPACE, scored, 8, seed=(4, 1), method="grid") == plain
    plain = SPACE.rows(SPACE.sample(8, seed=(4, 0), method="sobol"))
    assert propose(SPACE, SPACE, scored[:7], 8, seed=(4, 0), method="sobol") == plain


def test_a_finer_round_is_better_than_a_draw_from_its_box_and_finds_a_region_outside():
    def value(row, i):  # a broad bowl at a = 0.3, a better narrow one at a = 0.9
        return bowl(row, i) - 2 * math.exp(-(((row["a"] - 0.9) / 0.06) ** 2))

    scored = trials(SPACE, 60, 2, value)
    box = SPACE.replace(a=vt.uniform(0.1, 0.5))
    found = propose(box, SPACE, scored, 32, seed=(0, 1), method="sobol")
    plain = box.rows(box.sample(32, seed=(0, 1), method="sobol"))
    assert np.mean([value(r, 0) for r in found]) < np.mean([value(r, 0) for r in plain])
    assert sum(r["a"] > 0.8 for r in found) >= 3


def test_trials_stopped_early_rank_behind_those_that_went_on():
    scored = trials(SPACE, 30, 1, bowl)
    stopped = [replace(s, rung=5, value=s.value - 100) if i % 2 else s for i, s in enumerate(scored)]
    fit = surrogate(SPACE, stopped)
    assert max(fit.scores[::2]) < min(fit.scores[1::2])


def test_the_shortlist_takes_no_lucky_draw():
    rng = np.random.default_rng(0)

    def value(row, i):
        return bowl(row, i) + rng.normal(0, 0.02)

    scored = trials(SPACE, 80, 3, value)
    worst = max(range(80), key=lambda i: scored[i].value)
    lucky = [replace(s, value=-1.0) if s.trial == worst else s for s in scored]
    assert worst not in {s.trial for s in shortlist(SPACE, lucky, 8)}
    assert all(s.value == lucky[s.trial].value for s in shortlist(SPACE, lucky, 8))


def test_the_seeds_spread_by_hand():
    # deviations of 1 about 2 and of 2 about 7: (2 + 8) / (1 + 1) degrees
    assert seed_spread({0: [1.0, 3.0], 1: [5.0, 9.0], 2: [4.0], 3: [0.0, math.nan]}) == pytest.approx(math.sqrt(5))
    assert math.isnan(seed_spread({0: [1.0]}))


def test_shrinking_by_hand():
    # means 1, 2, 6 with a between-variance of 7; spread 2 (variance 4 over two repeats: error 2): kept 1 - 2/7
    root = math.sqrt(2)
    found = shrunken({i: [m - root, m + root] for i, m in enumerate((1.0, 2.0, 6.0))})
    assert [found[i] for i in range(3)] == pytest.approx([3 + (m - 3) * 5 / 7 for m in (1, 2, 6)])
    assert shrunken({0: [1.0, 3.0], 1: [2.0, 4.0]}) == {0: 2.0, 1: 3.0}  # two say nothing of how far apart settings lie
    assert math.isnan(shrunken({0: [1.0, math.nan]})[0])


def test_settings_that_seeds_cannot_tell_apart_have_even_chances_and_one_that_stands_out_has_all():
    rng = np.random.default_rng(1)
    same = settle({i: list(1 + rng.normal(0, 1, 200)) for i in range(4)})
    assert max(c.chance for c in same) < 0.7
    apart = settle({i: list(i + rng.normal(0, 0.01, 4)) for i in range(4)})
    assert [c.trial for c in apart] == [0, 1, 2, 3]
    assert apart[0].chance > 0.99
    assert sum(c.chance for c in apart) == pytest.approx(1.0)


def test_the_expected_value_has_no_winners_curse():
    rng = np.random.default_rng(0)
    plain, shrunk = [], []
    for _ in range(400):
        true = rng.normal(0, 0.5, 8)
        repeats = {i: list(t + rng.normal(0, 1, 4)) for i, t in enumerate(true)}
        won: Confirmed = settle(repeats)[0]
        plain.append(won.mean - true[won.trial])
        shrunk.append(won.expected - true[won.trial])
    assert np.mean(plain) < -0.3
    assert abs(np.mean(shrunk)) < 0.15


def test_a_finalist_that_failed_comes_last_and_one_of_the_last_wave_first():
    ranked = settle({4: [0.0, math.nan], 5: [0.5, 0.5], 6: [0.1, 0.3]})
    assert [c.trial for c in ranked] == [6, 5, 4]
    assert ranked[2].chance == 0.0
    ranked = settle({4: [0.0, 0.1], 5: [0.5, 0.5, 0.3], 6: [0.6, 0.3, 0.6]})
    assert [c.trial for c in ranked] == [5, 6, 4]


def test_a_surrogate_of_one_point_repeated_does_not_fail():
    points = at(SPACE, [{"a": 0.5, "b": 0.1, "c": 0.5}] * 10)
    fit = Surrogate(SPACE, points, np.linspace(-1, 1, 10))
    assert np.isfinite(fit.samples(points[:3], 2, np.random.default_rng(0))).all()
