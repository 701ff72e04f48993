"""The estimators: scikit-learn's own checks, and what people with tables do.

The checks fit some 80 times each, so they are run by `pytest -m estimators`, as .ci/run does.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.sklearn import TunedMLPClassifier, TunedMLPRegressor
from vmaptune.tables import Columns, merged, read_columns, validation_rows

PLAIN = {"width": 16, "depth": 1, "block": "plain", "norm": "none", "activation": "relu", "scaling": "standard"}
SPACE = PLAIN | {"dropout": 0.0, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999,
                 "learning_rate": vt.loguniform(3e-3, 3e-2)}  # fmt: skip
QUICK = {"trials": 2, "ensemble": 1, "steps": 100, "space": SPACE}


def frame(n: int = 160, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({
        "size": rng.normal(size=n) * 50, "colour": rng.choice(["red", "green", "blue"], n),
        "shop": [f"s{k}" for k in rng.integers(0, 20, n)], "new": rng.random(n) > 0.5, "empty": np.nan, "same": 1.0,
    })  # fmt: skip
    y = np.where(table["size"] / 50 + (table["colour"] == "red") + table["new"] > 0.8, "dear", "cheap")
    table.loc[::9, "size"], table.loc[::11, "colour"] = np.nan, None
    return table, y


@pytest.fixture(scope="module")
def fitted() -> TunedMLPClassifier:
    space = SPACE | {"width": vt.ordinal([8, 16]), "norm": "layer", "block": "residual", "activation": "gelu"}
    table, y = frame()
    return TunedMLPClassifier(trials=16, ensemble=4, steps=60, space=space).fit(table, y)


@pytest.mark.estimators
@pytest.mark.parametrize("kind", [TunedMLPClassifier, TunedMLPRegressor])
def test_scikit_learns_own_checks_pass(kind):
    found = check_estimator(kind(**QUICK), on_skip=None)  # raises where one fails
    others = {each["check_name"] for each in found if each["status"] != "passed"}
    assert others <= {"check_array_api_input"}  # which asks for SCIPY_ARRAY_API=1
    assert len(found) > 50


def test_a_frame_with_everything_is_learnt_and_networks_are_those_of_the_study(fitted):
    table, y = frame()
    assert fitted.score(table, y) > 0.85  # by the commoner class alone: 0.55
    assert set(fitted.classes_) == {"cheap", "dear"}
    assert np.allclose(fitted.predict_proba(table).sum(1), 1)
    inputs = fitted.columns_(read_columns(table, fitted.kinds_)[0])
    x = {name: jnp.asarray(a, jnp.int32 if name == "codes" else jnp.float32) for name, a in inputs.items()}
    assert np.abs(np.asarray(fitted.study_.ensemble().predict(x)) - fitted.predict_proba(table)).max() < 1e-4
    assert len(fitted.study_.ledger.groups()) == 1  # one masked program
    assert len(fitted.cv_results_["params"]) == len(fitted.cv_results_["param_width"])
    assert fitted.best_params_ in fitted.cv_results_["params"]


def test_it_predicts_the_same_bits_in_another_process(fitted, tmp_path):
    table, _ = frame(seed=1)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps((fitted, table)))
    code = (
        "import pickle, sys; m, x = pickle.load(open('m.pkl', 'rb'))\n"
        "sys.stdout.buffer.write(m.predict_proba(x).tobytes())"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True).stdout
    assert found == fitted.predict_proba(table).tobytes()
    with pytest.raises(AttributeError, match="directory=DIR"):
        pickle.loads(pickle.dumps(fitted)).study_  # noqa: B018


def test_rows_that_are_new_or_strange(fitted):
    table, _ = frame(seed=2)
    table.loc[0, "colour"], table.loc[1, "shop"], table.loc[2, "size"] = "violet", "s99", 1e300
    assert np.isfinite(fitted.predict_proba(table)).all()
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(table.drop(columns="shop"))
    with pytest.raises(ValueError, match="column 'size' held numbers"):
        fitted.predict(table.assign(size="large"))
    with pytest.raises(ValueError, match="infinity"):
        fitted.predict(table.assign(size=np.inf))
    with pytest.raises(ValueError, match="must be one now"):
        fitted.predict(np.zeros((3, 6)))


def test_equal_rows_alone_are_one_row_which_is_all_there_is():
    fitted = TunedMLPRegressor(**QUICK).fit(np.ones((5, 2)), np.full(5, 7.0))
    assert fitted.predict(np.ones((1, 2))) == pytest.approx(7.0, abs=0.1)


def test_a_pipeline_and_its_clones_and_cross_validation():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3))
    y = X[:, 0] * 3 + 1
    pipeline = make_pipeline(StandardScaler(), TunedMLPRegressor(**QUICK))
    assert (cross_val_score(clone(pipeline), X, y, cv=2) > 0.5).all()


X3 = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("estimator", "X", "y", "more", "message"),
    [
        (TunedMLPRegressor(), X3[:1], [1.0], {}, "1 sample"),
        (TunedMLPRegressor(), X3, ["a", "b", "c"], {}, "could not convert string to float"),
        (TunedMLPClassifier(), X3, [1, 1, 1], {}, "1 class"),
        (TunedMLPClassifier(), X3, [0.1, 0.2, 0.3], {}, "Unknown label type"),
        (TunedMLPClassifier(), X3 + np.inf, [0, 1, 0], {}, "infinity"),
        (TunedMLPRegressor(), X3, [0.0, np.nan, 1.0], {}, "NaN"),
        (TunedMLPRegressor(), X3, [0.0, 1.0], {}, "inconsistent numbers of samples"),
        (TunedMLPRegressor(), X3, [0.0, 1.0, 2.0], {"sample_weight": [1, -1, 1]}, "[Nn]egative"),
        (TunedMLPRegressor(), X3, [0.0, 1.0, 2.0], {"groups": [1, 1, 1]}, "at least 2 groups"),
        (TunedMLPRegressor(ensemble=0), X3, [0.0, 1.0, 2.0], {}, "ensemble must be"),
        (TunedMLPRegressor(minutes=None), X3, [0.0, 1.0, 2.0], {}, "one of minutes and trials"),
        (TunedMLPRegressor(validation_fraction=1), X3, [0.0, 1.0, 2.0], {}, "0.2 is the default"),
        (
            TunedMLPRegressor(space={"widht": 8}, trials=2),
            X3,
            [0.0, 1.0, 2.0],
            {},
            "no hyperparameter 'widht'; it has: learning_rate",
        ),
    ],
)
def test_errors_that_users_know(estimator, X, y, more, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(X, y, **more)
    with pytest.raises(NotFittedError):
        estimator.predict(X3)


# ---- columns and rows --------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_weight_is_a_repetition_and_order_means_nothing(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 20))
    rows, y = rng.choice([0.0, 1.0, np.nan, -0.0], (n, 3)), rng.choice([0.0, 1.0], n)
    weights = rng.integers(0, 4, n)
    weights[0] += 1
    kept, found = merged(rows, y, weights=weights.astype(float))
    again = rng.permutation(np.repeat(np.arange(n), weights))
    kept2, found2 = merged(rows[again], y[again], weights=np.ones(len(again)))
    assert np.array_equal(rows[kept], rows[again][kept2], equal_nan=True)
    assert np.array_equal(found, found2)
    assert found.sum() == pytest.approx(len(found))
    assert len(np.unique(np.nan_to_num(rows[kept], nan=9) @ [1, 10, 100] + 1000 * y[kept])) == len(kept)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(2, 40), classes=st.integers(1, 5), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 10**6))
def test_every_split_trains_on_each_class_and_validates_on_something(n, classes, fraction, seed):
    rng = np.random.default_rng(seed)
    y, groups = rng.integers(0, classes, n), rng.integers(0, 5, n)
    valid = validation_rows(rng, fraction, y, n=n)
    assert valid.any()
    if len(np.unique(y)) < n:
        assert set(y[~valid]) == set(y)
    if len(np.unique(groups)) == 1:
        with pytest.raises(vt.InputError, match="at least 2 groups"):
            validation_rows(rng, fraction, y, groups, n=n)
    else:
        valid = validation_rows(rng, fraction, y, groups, n=n)
        assert valid.any()
        assert not set(groups[valid]) & set(groups[~valid])
    time = rng.normal(size=n)
    valid = validation_rows(rng, fraction, y, time=time, n=n)
    assert time[~valid].max() <= time[valid].min()


def test_columns_by_hand():
    rows = np.array([[0.0, 5.0, 0.0, 1.0], [4.0, 5.0, 1.0, np.nan], [np.nan, 5.0, 2.0, 3.0]])
    columns = Columns(rows, np.array([3.0, 1.0, 1.0]), [None, None, 3, 20])
    assert columns.numbers == [0]  # the second never changes
    assert columns.missing == [0, 3]
    found = columns(rows)
    assert np.allclose(found["standard"][:, 0], np.array([-1, 3, 0]) / np.sqrt(3))  # mean 1, variance 3
    assert np.allclose(found["quantile"][:, 0], [-0.3186, 1.1503, 0], atol=1e-3)  # of shares 3/8 and 7/8
    assert found["rest"].tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert found["codes"][:, 0].tolist() == [2, 0, 4]
    assert Columns(np.full((4, 2), np.nan), np.ones(4), [None, None])(np.ones((3, 2)))["rest"].shape == (3, 1)


# ---- the commands ------------------------------------------------------------------------------------


def test_from_a_file_to_predictions(tmp_path, capsys):
    table, y = frame(120)
    table.assign(price=y).to_csv(tmp_path / "d.csv", index=False)
    table.head(9).to_csv(tmp_path / "new.csv", index=False)
    args = ["table", str(tmp_path / "d.csv"), "--target", "price", "--trials", "4", "--out", str(tmp_path / "m")]
    assert main([*args, "--ensemble", "1", "--group", "shop"]) == 0
    said = capsys.readouterr().out
    assert "classification of 'price': 120 rows, 5 columns" in said
    assert "whole groups of shop" in said
    assert main(["predict", str(tmp_path / "m"), str(tmp_path / "new.csv")]) == 0
    found = pd.read_csv(tmp_path / "new-predicted.csv")
    assert set(found["predicted_price"]) <= {"dear", "cheap"}
    assert np.allclose(found["probability_dear"] + found["probability_cheap"], 1)
    assert (Path(tmp_path) / "m" / "model" / "study.db").exists()
    table.head(9).drop(columns="size").to_csv(tmp_path / "less.csv", index=False)
    capsys.readouterr()
    for wrong, message in (
        (args, "is there already"),
        (["predict", str(tmp_path / "m"), str(tmp_path / "less.csv")], "lacks columns .* size"),
        (["predict", str(tmp_path), str(tmp_path / "new.csv")], "`vmaptune table` did not make it"),
        (["table", str(tmp_path / "d.csv"), "--target", "prize"], "no column 'prize'; it has: size"),
        (["table", str(tmp_path / "no.csv"), "--target", "price"], "no such file"),
    ):
        assert main(wrong) == 2
        with pytest.raises(ValueError, match=message):
            raise ValueError(capsys.readouterr().err)
