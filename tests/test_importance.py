"""PED-ANOVA: Optuna as the oracle, a case by hand, and what must always hold."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import vmaptune as vt
from vmaptune.search.importance import divergences, importance

SPACE = vt.Space(
    {
        "a": vt.uniform(-2.0, 3.0),
        "b": vt.loguniform(1e-4, 1.0),
        "c": vt.choice(["x", "y", "z"]),
        "d": vt.randint(1, 9),
        "e": vt.uniform(0.0, 1.0, step=0.25),
    }
)
DISTRIBUTIONS = {
    "a": FloatDistribution(-2.0, 3.0),
    "b": FloatDistribution(1e-4, 1.0, log=True),
    "c": CategoricalDistribution(["x", "y", "z"]),
    "d": IntDistribution(1, 9),
    "e": FloatDistribution(0.0, 1.0, step=0.25),
}


def rows(space: vt.Space, n: int, seed: int) -> list[dict]:
    columns = space.sample(n, seed=seed, method="random")
    return [{k: v[i].item() if hasattr(v[i], "item") else v[i] for k, v in columns.items()} for i in range(n)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_numbers_are_optunas(seed):
    settings = rows(SPACE, 150, seed)
    rng = np.random.default_rng(seed)
    values = [(np.log10(s["b"]) + 2) ** 2 + 0.3 * s["a"] + (s["c"] == "x") + 0.1 * rng.normal() for s in settings]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=s, distributions=DISTRIBUTIONS, value=v)
            for s, v in zip(settings, values, strict=True)
        ]
    )
    theirs = optuna.importance.PedAnovaImportanceEvaluator().evaluate(study)
    ours = divergences(SPACE, settings, values)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-7), name


def test_what_matters_is_found_and_what_does_not_is_below_the_floor():
    space = vt.Space({"lr": vt.loguniform(1e-4, 1.0), "idle": vt.uniform(0, 1), "wd": vt.uniform(0, 1, or_zero=0.3)})
    settings = rows(space, 256, 3)
    values = [(np.log10(s["lr"]) + 2) ** 2 + 0.5 * (s["wd"] == 0) for s in settings]
    found = {i.name: i for i in importance(space, settings, values)}
    assert next(iter(found)) == "lr"
    assert found["lr"].matters
    assert found["wd"].matters
    assert not found["idle"].matters
    assert found["lr"].low > found["idle"].high
    assert sum(i.share for i in found.values()) == pytest.approx(1.0)


def test_infeasible_trials_are_the_worst_ones():
    space = vt.Space({"lr": vt.loguniform(1e-4, 1.0), "idle": vt.uniform(0, 1)})
    settings = rows(space, 128, 5)
    values = [np.nan if s["lr"] > 1e-3 else 1.0 for s in settings]
    found = importance(space, settings, values)
    assert found[0].name == "lr"
    assert found[0].matters
    assert importance(space, settings, np.full(128, np.nan)) == []


def test_the_same_seed_gives_the_same_bits():
    settings = rows(SPACE, 60, 1)
    values = [s["a"] for s in settings]
    assert importance(SPACE, settings, values) == importance(SPACE, settings, values)


def test_a_setting_that_is_off_is_a_value_of_its_own():
    space = vt.Space({"which": vt.choice(["sgd", "adam"]), "beta1": vt.uniform(0.5, 0.99)})
    settings = rows(space, 80, 7)
    settings = [s if s["which"] == "adam" else {"which": "sgd"} for s in settings]
    values = [0.0 if s["which"] == "adam" else 1.0 for s in settings]
    found = {i.name: i for i in importance(space, settings, values, target=0.4)}
    assert found["which"].matters
    assert found["beta1"].matters  # being on is what matters


@given(
    n=st.integers(20, 60), seed=st.integers(0, 2**31), shift=st.sampled_from([1.0, -3.0, 100.0]),
    scale=st.sampled_from([0.5, 4.0]),
)  # fmt: skip
def test_only_the_order_of_the_values_counts(n, seed, shift, scale):
    settings = rows(SPACE, n, seed)
    values = np.random.default_rng(seed).integers(0, 9, n).astype(float)
    first = divergences(SPACE, settings, values)
    assert first == divergences(SPACE, settings, shift + scale * values)
    assert all(v >= 0 for v in first.values())


def test_bad_input_is_named():
    with pytest.raises(vt.InputError, match="target"):
        importance(SPACE, [], [], target=1.5)
    with pytest.raises(vt.InputError, match="as many"):
        importance(SPACE, rows(SPACE, 30, 0), [1.0] * 29)


def test_each_row_of_counts_has_the_density_that_it_has_alone_and_nothing_counted_is_even():
    from vmaptune.search.importance import _categorical, _parzen

    rows = np.random.default_rng(0).integers(0, 4, (6, 12)).astype(float)
    rows[2], rows[3] = 0, np.eye(12)[5]
    for density in (_parzen, _categorical):
        found = density(rows)
        assert np.array_equal(found, np.concatenate([density(row[None]) for row in rows]))
        assert np.allclose(found.sum(axis=1), 1)
        assert np.allclose(found[2], 1 / 12)
