"""Settings that exist only for some choices of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.search.zoom import Scored, leaning, zoom
from vmaptune.space import Space, parse_expression

SPACE = Space(
    {
        "optimizer": vt.choice(["sgd", "adam", "none"]),
        "momentum": vt.reverseloguniform(0.5, 0.999, when={"optimizer": "sgd"}),
        "nesterov": vt.choice([True, False], when={"optimizer": ["sgd"]}),
        "beta2": vt.reverseloguniform(0.9, 0.9999, when={"optimizer": ["adam"]}),
        "rate": vt.loguniform(1e-4, 1, when={"optimizer": ["sgd", "adam"]}),
        "lookahead": vt.randint(2, 8, when={"optimizer": ["sgd"], "nesterov": [True]}),
        "width": vt.ordinal([8, 16, 32]),
    }
)


def rows(space, n, seed=0):
    columns = space.sample(n, seed)
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def test_a_setting_exists_for_its_choices_alone():
    found = rows(SPACE, 400)
    for row in found:
        assert (row["momentum"] is not None) == (row["optimizer"] == "sgd")
        assert (row["rate"] is not None) == (row["optimizer"] != "none")
        assert (row["lookahead"] is not None) == (row["optimizer"] == "sgd" and row["nesterov"] is True)
        assert row["width"] in (8, 16, 32)
    drawn = [row["momentum"] for row in found if row["momentum"] is not None]
    assert 90 < len(drawn) < 180
    assert all(0.5 <= v <= 0.999 for v in drawn)


def test_the_law_given_the_choice_is_the_settings_own():
    drawn = np.array([row["rate"] for row in rows(SPACE, 2000) if row["rate"] is not None], float)
    assert abs(np.median(np.log10(drawn)) + 2) < 0.15


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_unit_cube_and_json_round_trip(seed):
    columns = SPACE.sample(8, seed)
    points = SPACE.to_unit(columns)
    again = SPACE.from_unit(points)
    for name, column in columns.items():
        for a, b in zip(column, again[name], strict=True):
            assert a == b or abs(a - b) < 1e-9 * abs(a)
    assert (points[[v is None for v in columns["momentum"]], 1] == 0.5).all()
    read = Space.from_json(json.loads(json.dumps(SPACE.to_json())))
    assert read == SPACE
    assert repr(read) == repr(SPACE)


def test_a_lane_receives_a_number_where_the_setting_does_not_exist():
    row = next(row for row in rows(SPACE, 50) if row["optimizer"] == "none")
    values = SPACE.lane_values(row, ("rate", "momentum", "lookahead", "width"))
    assert values["rate"] == pytest.approx(1e-2)  # the middle of its scale
    assert values["momentum"] == pytest.approx(1 - 10 ** ((np.log10(0.5) + np.log10(0.001)) / 2))
    assert values["lookahead"] in range(2, 9)
    assert values["width"] == row["width"]
    assert vt.loguniform(1e-4, 1, or_zero=0.9).neutral == pytest.approx(1e-2)


def test_a_zoom_looks_at_the_trials_that_have_the_setting():
    scored = [Scored(i, row, float(i)) for i, row in enumerate(rows(SPACE, 200))]
    slice_ = [s for s in scored if s.params["optimizer"] == "sgd" and s.params["momentum"] > 0.99][:12]
    finer = zoom(SPACE, SPACE, slice_)
    assert finer["optimizer"].options == ("sgd",)
    assert finer["momentum"].low > 0.95
    assert finer["momentum"].when == SPACE["momentum"].when
    assert finer["beta2"] == SPACE["beta2"]  # nobody in the slice has it
    for row in rows(finer, 50):
        assert row["beta2"] is None
        assert row["momentum"] >= finer["momentum"].low
    assert {lean.name for lean in leaning(SPACE, slice_)} <= {"momentum", "rate", "lookahead", "width"}
    assert Space.from_json(finer.to_json()) == finer


def test_it_can_be_typed():
    typed = parse_expression('loguniform(1e-4, 1, when={"optimizer": ["sgd", "adam"]})')
    assert typed == SPACE["rate"]
    assert parse_expression(repr(SPACE["lookahead"])) == SPACE["lookahead"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space({"a": vt.uniform(0, 1, when={"b": [1]})}), "'b' is not in the space"),
        (lambda: Space({"a": vt.uniform(0, 1, when={"b": [1]}), "b": vt.choice([1, 2])}), "comes later"),
        (lambda: Space({"b": vt.uniform(0, 1), "a": vt.uniform(0, 1, when={"b": [1]})}), "finitely many"),
        (lambda: Space({"b": vt.choice([1, 2]), "a": vt.uniform(0, 1, when={"b": [3]})}), "3 is none of"),
        (lambda: Space({"b": vt.choice([1, 2]), "a": vt.uniform(0, 1, when={"b": [True]})}), "True is none of"),
        (lambda: vt.uniform(0, 1, when=["b"]), "must name another setting"),
        (lambda: vt.choice([1], when={"b": []}), "at least one value"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(InputError, match=message):
        make()
