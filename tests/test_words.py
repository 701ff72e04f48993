"""What is said of the winner: how sure that is, of which configuration a value is, and what few examples leave open."""

from __future__ import annotations

import csv
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.search.decide import alike, chances, settle
from vmaptune.study._held_out import rate_error
from vmaptune.view.export import export
from vmaptune.view.live._draw import settings as live_settings
from vmaptune.view.summary import best_lines, finalist_lines, retest_lines, summary
from vmaptune.view.words import configuration, single_values

OPTIONS = {"trials": 32, "rounds": 2, "report": False}


def study_of(value, out, *, direction="minimize", **options) -> vt.Study:
    """A study whose trials come to `value(x, key)` at once."""
    task = vt.Task(
        init=lambda hp, key: jax.random.key_data(key),
        step=lambda state, hp, key: state,
        evaluate=lambda state, hp: {"loss": value(hp.x, state)},
    )
    space = {"x": vt.uniform(0.0, 1.0)}
    return vt.run(vt.Experiment(space=space, task=task, steps=1, direction=direction), out=out, **OPTIONS | options)


def noisy(x, key):
    return (x - 0.4) ** 2 + 0.01 * jax.random.normal(jax.random.wrap_key_data(key))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> vt.Study:
    return study_of(noisy, tmp_path_factory.mktemp("words") / "s")


# ---- how sure it is --------------------------------------------------------------------------------------


def test_no_spread_and_ties_give_no_certainty():
    assert all(math.isnan(c) for c in chances({0: [0.1, 0.1], 1: [0.2, 0.2]}).values())
    assert all(math.isnan(c) for c in chances({0: [0.1, 0.1], 1: [0.1, 0.1]}).values())
    assert all(math.isnan(c) for c in chances({0: [0.1], 1: [0.2]}).values())
    assert alike({0: [0.1, 0.1], 1: [0.1, 0.1], 2: [0.2, 0.2]}, 0) == [1]
    first = settle({0: [0.1, 0.1], 1: [0.2, 0.2]})[0]
    assert first.trial == 0
    assert math.isnan(first.low)


values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.integers(0, 9), values, min_size=2, max_size=6))
def test_a_chance_is_never_nought_or_one_and_all_make_one(repeats):
    found = np.array(list(chances(repeats).values()))
    assert np.isnan(found).all() or found.sum() == pytest.approx(1)
    assert not ((found == 0) | (found == 1)).any()


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        true = rng.normal(0, 1, 4)
        for c in settle({i: list(t + rng.normal(0, 1, 3)) for i, t in enumerate(true)}):
            held.append(c.low <= true[c.trial] <= c.high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)
    one = settle({0: [1.0, 2.0, 4.0], 1: [math.nan, 1.0]})[0]  # with one setting it is Student's own
    want = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    assert (one.low, one.high) == pytest.approx(want)


def test_a_study_whose_seeds_make_no_difference_says_no_chance(tmp_path):
    steps = study_of(lambda x, key: jnp.floor(4 * jnp.abs(x - 0.5)), tmp_path / "s")  # two values, and many ties
    (said,) = (w for w in steps.result["warnings"] if "settings" in w)
    assert "came to the same value on each of their fresh seeds; any of them will do" in said
    assert "%" not in said
    assert steps.best["chance"] is None
    smooth = study_of(lambda x, key: (x - 0.4) ** 2, tmp_path / "t")
    assert smooth.best["chance"] is None
    assert not [w for w in smooth.result["warnings"] if "can't be told apart" in w or "100%" in w]
    assert "100%" not in summary(steps.result) + summary(smooth.result)


def test_a_constant_objective_is_named(tmp_path):
    found = study_of(lambda x, key: jnp.float32(0.25), tmp_path / "s")
    (said,) = found.result["warnings"]
    assert said.startswith("every trial came to the same loss, 0.25: it does not depend on the hyperparameters")


# ---- whose value it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_single_value_is_told_with_its_configuration(direction, tmp_path):
    sign = 1 if direction == "minimize" else -1
    found = study_of(lambda x, key: sign * noisy(x, key), tmp_path / "s", direction=direction)
    rows = [row for row in found.trials() if row.round < 2]
    luckiest = min(rows, key=lambda row: sign * row.value)
    best = found.best
    assert (best["best_seen"], best["best_seen_trial"]) == (luckiest.value, luckiest.trial)
    assert best["seen"] == found.best_trial.value
    assert best["low"] < best["value"] < best["high"]
    text = single_values(best)
    if luckiest.trial == best["trial"]:
        assert text.endswith("by this configuration")
    else:
        assert f"by another configuration, trial {luckiest.trial}; this one had" in text
    assert text in "\n".join(best_lines(found.result))


def test_words_for_each_case():
    best = {"trial": 3, "best_seen": 0.1, "best_seen_trial": 3, "seen": 0.1}
    assert single_values(best) == "best single value seen while searching: 0.1, by this configuration"
    best["best_seen_trial"] = 5
    assert single_values(best).endswith("0.1, by another configuration, trial 5; this one had 0.1")
    assert single_values({"trial": 3, "best_seen": 0.1}).endswith("searching: 0.1")  # an older study


# ---- settings in words -----------------------------------------------------------------------------------

CONDITIONAL = vt.Space(
    {
        "optimizer": vt.choice(["sgd", "adam", None]),
        "momentum": vt.reverseloguniform(0.5, 0.9999, when={"optimizer": "sgd"}),
        "dropout": vt.uniform(0.0, 1.0),
        "clip": vt.choice([None, 1.0], when={"optimizer": "sgd"}),
    }
)


def test_a_distance_from_1_is_for_its_scale_alone_and_what_does_not_exist_is_not_printed():
    sgd = {"optimizer": "sgd", "momentum": 0.99965415, "dropout": 0.99965415, "clip": None}
    assert configuration(sgd, CONDITIONAL) == {
        "optimizer": "sgd", "momentum": "1 - 3.458e-4  (0.99965415)", "dropout": "0.9997", "clip": "None",
    }  # fmt: skip
    assert configuration({**sgd, "dropout": 0.99999}, CONDITIONAL)["dropout"] == "0.99999"
    adam = {"optimizer": None, "momentum": None, "dropout": 0.5, "clip": None}
    assert configuration(adam, CONDITIONAL) == {"optimizer": "None", "dropout": "0.5"}
    assert live_settings(adam, CONDITIONAL) == "optimizer=None  dropout=0.5"
    assert live_settings(sgd, CONDITIONAL) == "optimizer=sgd  momentum=1-3.46e-4  dropout=0.99965415  clip=None"
    best = {"trial": 0, "value": 1.0, "value_std": None, "repeats": 0, "best_seen": 1.0, "params": adam}
    result = {
        "best": best,
        "objective": "error",
        "finalists": [{**best, "low": None, "high": None, "chance": None}] * 2,
    }
    said = "\n".join(best_lines(result, CONDITIONAL))
    assert "momentum" not in said
    assert "clip" not in said
    assert "optimizer = None" in said
    assert finalist_lines(result, CONDITIONAL)[-1].split()[-2:] == ["None", "0.5"]


def test_a_retest_is_told_with_its_interval_and_worse_is_called_worse():
    one = {
        "params": {"optimizer": "sgd"},
        "then": {"value": 0.5},
        "now": {"mean": 0.5, "std": 0.1, "n": 32, "failed": 0},
    }
    found = {
        "verdict": "still best", "of": "runs/a", "old": one, "new": one, "gain": -5.583e-4, "interval": [-0.002, 0.001],
        "level": 0.002, "p": 0.7, "margin": 0.05, "repeats": 32, "most": 192,
    }  # fmt: skip
    said = "\n".join(retest_lines(found, "error"))
    assert "worse by 5.583e-4 (99.8 % from worse by 0.002 to better by 0.001; p = 0.7)" in said
    assert "100" not in said


# ---- the finalists ---------------------------------------------------------------------------------------


def test_finalists_are_listed_with_means_intervals_and_numbers(study, capsys, tmp_path):
    found = study.finalists
    assert len(found) > 1
    for i, one in enumerate(found):
        values = [row.value for row in study.trials() if row.of == one["trial"]]
        assert one["value"] == pytest.approx(np.mean(values))
        assert one["repeats"] == len(values)
        assert one["low"] < one["value"] < one["high"]
        assert one["params"] == study.ledger.trial(one["trial"]).params
        line = finalist_lines(study.result)[3 + i]
        assert line.split()[:2] == [f"{i + 1}.", str(one["trial"])]
    assert {n: found[0][n] for n in ("trial", "value", "low", "high", "repeats", "chance")} == {
        n: study.best[n] for n in ("trial", "value", "low", "high", "repeats", "chance")
    }
    where = str(study.directory)
    assert main(["best", where]) == 0
    assert "\n".join(finalist_lines(study.result)) in capsys.readouterr().out
    tables = {"trials.csv": (study.directory / "trials.csv").read_text()}
    assert main(["trials", where, "--format", "csv"]) == 0
    tables["trials"] = capsys.readouterr().out
    tables["export"] = export(where, "csv", tmp_path / "e.csv").read_text()
    for name, text in tables.items():
        rows = [row for row in csv.DictReader(text.splitlines()) if row["place"]]
        rows.sort(key=lambda row: int(row["place"]))
        assert [int(row["trial"]) for row in rows] == [one["trial"] for one in found], name
        for row, one in zip(rows, found, strict=True):
            assert float(row["confirmed_mean"]) == one["value"]
            assert (float(row["confirmed_low"]), float(row["confirmed_high"])) == (one["low"], one["high"])
            assert int(row["confirmed_seeds"]) == one["repeats"]
    frame = study.trials_dataframe()
    assert frame.sort_values("place")["trial"].head(len(found)).tolist() == [one["trial"] for one in found]


def test_the_page_lists_them(study):
    from vmaptune.view.report._answer import answer, finalists_table
    from vmaptune.view.report._gather import gather

    data = gather(study.ledger)
    table = finalists_table(data)
    assert [row[1] for row in table.rows] == [str(one["trial"]) for one in study.finalists]
    assert "100%" not in "".join(map(str, table.rows))
    page = answer(data)
    assert "the mean over all seeds lies in" in page
    assert "configuration" in page


# ---- few validation examples -----------------------------------------------------------------------------


def test_the_error_of_a_rate_is_binomial():
    n, share = 200, 0.1
    rng = np.random.default_rng(0)
    seen = rng.binomial(n, share, 20_000) / n
    assert np.mean([rate_error([v], n) for v in seen[:500]]) == pytest.approx(seen.std(), rel=0.05)
    assert rate_error([0.0, 0.0], 50) > 0.01  # none of 50 is not none at all
    assert rate_error([0.123], 50) is None
    assert rate_error([-0.5], 50) is None
    assert rate_error([float(np.float32(7 / 360))], 360) is not None


def regression(n: int, **more) -> vt.Experiment:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 1)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=n)).astype(np.float32)
    part = {"test": (x, y)} if more.pop("test", False) else {}
    return vt.Experiment(
        space={"rate": vt.loguniform(1e-3, 1e-1)},
        model=lambda hp, rngs: {"w": jnp.zeros(1)},
        optimizer=lambda hp, steps: optax.sgd(hp.rate),
        loss=lambda model, batch: jnp.mean((batch[0] @ model["w"] - batch[1]) ** 2),
        data=vt.Data(train=(x, y), valid=(x, y), **part),
        batch_size=16, steps=40, **more,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "test"), [(80, False), (80, True), (1500, True)])
def test_the_error_of_another_metric_is_measured_by_resampling(n, test, tmp_path):
    experiment = regression(n, test=test)
    study = vt.run(experiment, out=tmp_path / "s", **OPTIONS | {"trials": 16})
    w = np.asarray(study.best_model()["w"])
    x, y = experiment.loaded_data().valid
    losses = (x @ w - y) ** 2
    assert study.best["valid_examples"] == n
    assert study.best["valid_error"] == pytest.approx(losses.std() / math.sqrt(n), rel=0.45)
    assert f"{n:,} validation examples leave ±" in "\n".join(best_lines(study.result))
    if test:
        assert study.best["test_value"] == pytest.approx(study.best["value"], rel=1e-5)


def test_metrics_that_take_the_whole_part_alone_are_no_end_of_a_study(tmp_path):
    def metrics(model, batch):
        assert len(batch[1]) >= 1000
        return {"loss": jnp.mean((batch[0] @ model["w"] - batch[1]) ** 2)}

    study = vt.run(regression(1500, test=True, metrics=metrics), out=tmp_path / "s", **OPTIONS | {"trials": 16})
    assert study.best["valid_error"] is None
    assert math.isfinite(study.best["test_value"])
