"""The report and its pictures, made from ledgers that were never trained. In a browser: test_report_browser.py."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_studies import HOSTILE, make_study
from scipy import stats

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.store.encoding import to_json
from vmaptune.store.ledger import Ledger
from vmaptune.store.reader import LedgerReader
from vmaptune.store.schema import COLUMNS, row_sum
from vmaptune.study._occupancy import Occupancy
from vmaptune.view.report import Plots, gather, write_report
from vmaptune.view.report._advice import advice, warnings
from vmaptune.view.report._answer import best_table
from vmaptune.view.report._budget import progress
from vmaptune.view.report._course import occupancy, wilson
from vmaptune.view.report._luck import on_fresh_seeds
from vmaptune.view.report._marks import why_not_lowest
from vmaptune.view.report._pack import Pool
from vmaptune.view.report._page import page, pictures
from vmaptune.view.report._picture import DARK, LIGHT, resolve
from vmaptune.view.report._scales import linear_ticks, log_ticks, reverse_ticks, setting_axis, value_axis

ALWAYS = ["zoom", "curves", "train-valid", "importance", "parallel", "pair", "budget"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("report") / "made")


@pytest.fixture(scope="module")
def data(study):
    with LedgerReader.open(study) as reader:
        return gather(reader)


# ---- what is there -----------------------------------------------------------------------------------


def test_every_picture_of_the_specification_is_there(data):
    names = [p.name for p in pictures(data)]
    for setting in data.first:
        assert {f"axis-{setting}", f"isolation-{setting}"} <= set(names)
    assert {*ALWAYS, "infeasible", "seconds"} <= set(names)
    assert len(set(names)) == len(names)
    assert "rungs" not in names  # nobody was stopped
    assert "occupancy" not in names  # the ledger does not say


def test_every_picture_has_a_sentence_for_those_who_do_not_see_it(data):
    for picture in pictures(data):
        assert len(picture.spoken) > 40, picture.name
        assert picture.spoken.rstrip().endswith("."), picture.name
        if picture.name != "parallel":  # the trials that are chosen there are its table
            assert picture.table is not None, picture.name
            assert all(len(row) == len(picture.table.headers) for row in picture.table.rows), picture.name


def test_stopped_trials_make_a_picture_of_the_rungs(tmp_path):
    with LedgerReader.open(make_study(tmp_path / "s", trials=90, stop=True, maximize=True)) as reader:
        data = gather(reader)
    assert data.stopped.any()
    rungs = next(p for p in pictures(data) if p.name == "rungs")
    reached, stopped, on = map(int, rungs.table.rows[0][1:])
    assert stopped == int(data.stopped.sum())
    assert reached == stopped + on
    # Maximised: the best is the largest, everywhere.
    assert data.final[data.order[0]] == np.nanmax(data.final)


def test_occupancy_is_drawn_where_the_ledger_has_it(tmp_path):
    path = make_study(tmp_path / "s", trials=24, confirm=0)
    with Ledger.open(path) as ledger:
        ledger.set_meta("occupancy.0", [[0.0, 1.0], [2.0, 0.5], [3.0, 0.5]])
    with LedgerReader.open(path) as reader:
        picture = occupancy(gather(reader))
    assert picture is not None
    assert "83% of the lane-steps" in picture.spoken  # (1 + 1 + 0.5) / 3 of the three seconds


def test_occupancy_keeps_its_sums_however_long_a_round_is():
    found = Occupancy()
    for call in range(1, 5001):
        found.note(call / 10, call * 3, call * 4)
    points = found.points()
    assert len(points) <= 401
    assert {share for _, share in points} == {0.75}
    assert points[0][0] == 0.0
    assert [at for at, _ in points] == sorted(at for at, _ in points)


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": 1, "rounds": 1, "confirm": 0},
        {"trials": 8, "rounds": 1, "confirm": 0, "finish": False},
        {"space": vt.Space({"learning_rate": vt.loguniform(1e-3, 1e-2)}), "infeasible": False},
        {"space": vt.Space({"learning_rate": vt.uniform(0.5, 0.9), "only": vt.choice(["one"])})},  # all diverge
        {"space": vt.Space({"learning_rate": vt.loguniform(1e-3, 1e-2), "flat": vt.uniform(2.0, 2.0)})},
        {"space": vt.Space({"learning_rate": vt.loguniform(1e-3, 1e-2), "many": vt.ordinal(list(range(40)))})},
        {"space": vt.Space({"learning_rate": vt.loguniform(1e-3, 1e-2), "b": vt.choice([True, False, None])})},
        {"space": vt.Space({"learning_rate": vt.loguniform(1e-3, 2e-3), "k": vt.randint(-3, 3, or_zero=0.5)})},
        {"points": 1, "steps": 5},
    ],
)
def test_odd_studies_have_a_report_too(tmp_path, changes):
    path = make_study(tmp_path / "s", **{"trials": 40, **changes})
    assert write_report(path).read_text("utf-8").startswith("<!doctype html>")


def change_trial(ledger: Ledger, trial: int, **columns) -> None:
    """Sets columns of a trial's row as they stand in the file, and the row's checksum with them."""
    for name, value in columns.items():
        ledger._run(f"UPDATE trials SET {name} = ? WHERE trial = ?", value, trial)
    query = f"SELECT {', '.join(COLUMNS['trials'])} FROM trials WHERE trial = ?"
    (row,) = ledger._query(query, trial)
    ledger._run("UPDATE trials SET sum = ? WHERE trial = ?", row_sum("trials", row), trial)


def test_a_setting_that_is_off_in_some_trials(tmp_path):
    path = make_study(tmp_path / "s", trials=40, finish=False, confirm=0)
    with Ledger.open(path) as ledger:  # as a conditional setting is
        for trial in range(0, 40, 3):
            params = dict(ledger.trial(trial).params)
            del params["momentum"]
            change_trial(ledger, trial, params=json.dumps(params))
    with LedgerReader.open(path) as reader:
        data = gather(reader)
    names = [p.name for p in pictures(data)]
    assert "axis-momentum" in names
    page(data)


def test_isolation_leaves_out_trials_in_which_the_setting_does_not_exist_and_counts_the_rest(tmp_path):
    space = vt.Space(
        {
            "optimizer": vt.choice(["sgd", "adam"]),
            "momentum": vt.reverseloguniform(0.5, 0.999, when={"optimizer": "sgd"}),
            "learning_rate": vt.loguniform(1e-4, 1.0),
        }
    )
    path = make_study(tmp_path / "s", trials=60, space=space)
    with LedgerReader.open(path) as reader:
        data = gather(reader)
    there = sum(p["optimizer"] == "sgd" for p in data.params)
    picture = next(p for p in pictures(data) if p.name == "isolation-momentum")
    assert 0 < sum(int(row[1]) for row in picture.table.rows) == there < data.n
    assert [note["text"] for note in picture.layout["annotations"]] == [row[1] for row in picture.table.rows]


def test_trials_that_ended_between_two_evaluations_are_on_no_rung(tmp_path):
    path = make_study(tmp_path / "s", trials=20, finish=False, confirm=0, stop=False, infeasible=False)
    with Ledger.open(path) as ledger:
        change_trial(ledger, 3, state="STOPPED", steps=7)
    with LedgerReader.open(path) as reader:
        data = gather(reader)
    assert data.stopped.any()
    assert "rungs" not in [p.name for p in pictures(data)]


def test_a_babysat_model_has_a_page_of_what_was_changed(tmp_path):
    path = make_study(tmp_path / "s", trials=1, rounds=1, finish=False, confirm=0, infeasible=False)
    with Ledger.open(path) as ledger:
        ledger.set_meta("panda", {"from": None})
        ledger.add_decision(0, "adjust", {"trial": 0, "step": 20, "name": "learning_rate", "from": 0.5, "to": 0.25})
        ledger.add_decision(0, "rollback", {"trial": 1, "from": 60, "step": 40})
    with LedgerReader.open(path) as reader:
        data = gather(reader)
    assert {p.name for p in pictures(data)} <= {"curves", "train-valid", "seconds"}
    text = page(data)
    assert "learning_rate: 0.5 → 0.25" in text
    assert "back to step 40" in text
    assert "#s-relations" not in text


# ---- what it says ------------------------------------------------------------------------------------


def test_the_numbers_are_the_ledgers(study, data):
    with LedgerReader.open(study) as reader:
        rows = [r for r in reader.trials() if r.round < 3]
        curve = reader.curve(int(data.trial[data.order[0]]))
    complete = [r for r in rows if r.state == "COMPLETE"]
    assert data.n == len(rows) == 80
    assert data.order[0] == min(complete, key=lambda r: r.value).trial
    assert data.best[data.order[0]] == min(p.value for p in curve)
    assert int(data.infeasible.sum()) == sum(r.state == "INFEASIBLE" for r in rows)


def test_the_answer_comes_first_and_needs_no_script(study):
    text = write_report(study).read_text("utf-8")
    answer = text.index("The setting to use")
    assert answer < text.index("What to do next") < text.index("<main>") < text.index("<script")
    assert "0.003" in text[answer : answer + 400]  # the spread
    assert "One &lt;i&gt;warning&lt;/i&gt;." in text


def test_names_from_outside_are_text(study):
    text = write_report(study).read_text("utf-8")
    assert HOSTILE not in text
    assert "made <b>" not in text
    assert "made &lt;b&gt;up&lt;/b&gt; &amp; {{body}}" in text  # our own marks in it are text too
    assert "owned" in text


def test_nothing_in_the_page_asks_for_a_network(study):
    text = write_report(study).read_text("utf-8")
    outside = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.S)
    assert re.findall(r"(?:src|href)\s*=\s*[\"'](?!#|data:)[^\"']*", outside) == []
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", outside)


def test_advice_follows_from_the_numbers(tmp_path):
    space = vt.Space({"learning_rate": vt.loguniform(0.05, 0.5), "idle": vt.uniform(0.0, 1.0)})
    with LedgerReader.open(make_study(tmp_path / "s", trials=200, rounds=1, space=space, infeasible=False)) as reader:
        data = gather(reader)
    texts = {a.text: a.command for a in advice(data)}
    widen = next(t for t in texts if "learning_rate" in t)
    assert "lower bound 0.05" in widen
    wider = "vmaptune run experiments/made.py --set 'learning_rate=loguniform(0.005, 0.5)'"
    assert texts[widen] == f"{wider} --out {tmp_path / 's-next'}"
    assert any("idle" in t and "fixed" in t for t in texts)
    assert any("Train for longer" in t for t in texts)
    assert any("luck" in w for w in warnings(data))
    axis = next(p for p in pictures(data) if p.name == "axis-learning_rate")
    assert "widen" in json.dumps(axis.layout["annotations"])


def confirmed_by(tmp_path, curves, *, maximize=False, name="s"):
    """A made study whose configurations' trainings on fresh seeds have these curves, `[n, P]`."""
    with LedgerReader.open(make_study(tmp_path / name, confirm=len(curves) // 2, maximize=maximize)) as reader:
        data = gather(reader)
    assert len(data.fresh) == len(curves)
    fresh = [replace(one, step=np.arange(1, len(c) + 1), value=c) for one, c in zip(data.fresh, curves, strict=True)]
    return replace(data, fresh=fresh)


def said_of_steps(data):
    return [a.text for a in advice(data) if a.text.startswith(("Train for longer", "Fewer steps"))]


@pytest.mark.parametrize("maximize", [False, True])
def test_train_longer_is_said_by_the_fresh_trainings_with_its_uncertainty(tmp_path, maximize):
    sign = -1.0 if maximize else 1.0
    rng = np.random.default_rng(0)
    flat = sign * (0.5 + 0.01 * rng.standard_normal((8, 10)))
    assert said_of_steps(confirmed_by(tmp_path, flat, maximize=maximize, name="flat")) == []
    falling = flat + sign * np.linspace(0.9, -0.9, 10)  # passes 0 just before its end: no ratio of values is told
    (text,) = said_of_steps(confirmed_by(tmp_path, falling, maximize=maximize, name="falling"))
    gain = sign * (falling[:, -3] - falling[:, -1])
    low, high = stats.t.interval(0.95, 7, gain.mean(), stats.sem(gain))
    assert f"8 trainings on fresh seeds still improved {'accuracy' if maximize else 'error'} by" in text
    assert f"{gain.mean():.4g} ({low:.4g} to {high:.4g} at 95 %)" in text
    rising = flat + sign * np.abs(np.linspace(-0.3, 0.7, 10))
    (text,) = said_of_steps(confirmed_by(tmp_path, rising, maximize=maximize, name="rising"))
    assert "were best after 33% of training" in text
    assert "%" not in text.split("worsened by")[1].replace("95 %", "")


def test_noise_alone_rarely_says_that_training_was_too_short_or_too_long(tmp_path):
    data = confirmed_by(tmp_path, np.zeros((8, 10)))
    said = 0
    for seed in range(300):
        values = np.random.default_rng(seed).standard_normal((8, 10))
        said += bool(said_of_steps(replace(data, fresh=[
            replace(one, value=c) for one, c in zip(data.fresh, values, strict=True)
        ])))  # fmt: skip
    assert said <= 25  # one-sided 2.5 % each, so 15 of 300; the seeds are fixed


def test_a_study_whose_trials_all_diverged_says_so(tmp_path):
    space = vt.Space({"learning_rate": vt.uniform(0.5, 0.9)})
    text = write_report(make_study(tmp_path / "s", space=space, confirm=0)).read_text("utf-8")
    assert "No setting trained to a finite result" in text
    assert text.count("lower the upper end of the learning rate") == 1


def test_advice_names_a_directory_of_its_own_and_what_to_fix_at_which_value(tmp_path):
    space = vt.Space(
        {
            "optimizer": vt.choice(["sgd", "adam"]),
            "learning_rate": vt.loguniform(1e-4, 1.0),
            "momentum": vt.reverseloguniform(0.5, 0.999, when={"optimizer": "sgd"}),
            "beta2": vt.reverseloguniform(0.9, 0.9999, when={"optimizer": ["adam"]}),
            "warmup": vt.randint(1, 9),
        }
    )
    path = make_study(tmp_path / "s", trials=200, space=space)
    with LedgerReader.open(path) as reader:
        data = gather(reader)
    best = data.params[data.winner]
    off = "momentum" if best["optimizer"] == "adam" else "beta2"
    (found,) = [a for a in advice(data) if a.text.startswith("No effect of")]
    named = [name for name in space if name in found.text]
    assert named
    assert [f"{name}={best[name]!r}" for name in named] == shlex.split(found.command)[4:-2:2]
    assert off not in found.text + found.command
    for each in advice(data):
        if each.command and each.command.startswith("vmaptune run"):
            assert each.command.endswith(f" --out {path}-next")


def test_the_winner_and_the_others_that_were_confirmed_are_marked_in_every_figure_and_table(study, data):
    first, second = data.finalists
    assert first == data.winner
    ids = {i: int(data.trial[i]) for i in (first, second)}
    names = [f"{ids[first]} ★ the winner", f"{ids[second]} ◇ place 2"]
    for picture in pictures(data):
        if picture.name.startswith(("axis-", "pair", "isolation-", "train-valid")):
            star = next(t for t in picture.data if t.get("name") == "the winner")
            diamond = next(t for t in picture.data if t.get("name") == "confirmed too")
            assert (star["marker"]["symbol"], diamond["marker"]["symbol"]) == ("star", "diamond-open"), picture.name
            assert f"trial {names[0]}" in star["text"][0], picture.name
            assert f"trial {names[1]}" in diamond["text"][0], picture.name
        if picture.name.startswith("axis-") or picture.name == "pair":
            assert [row[0] for row in picture.table.rows[:2]] == names, picture.name
    figures = {p.name: p for p in pictures(data)}
    assert [t["name"] for t in figures["curves"].data if set("★◇") & set(t.get("name", ""))] == [
        f"trial {n}" for n in reversed(names)
    ]
    lines = figures["parallel"].data[0]
    colours = dict(zip(lines["customdata"].tolist(), lines["line"]["color"].tolist(), strict=True))
    assert sorted(colours, key=colours.get)[-2:] == [ids[second], ids[first]]  # Plotly draws larger ones over smaller
    assert page(data).count(names[0]) >= 5


def test_the_three_numbers_that_the_objective_may_mean_have_a_name_each(data):
    text = re.sub(r"<.*?>", "", page(data))
    assert "Three numbers are called error here. Last error: of one training at its end" in text
    winner = (data.result or {})["best"]
    assert f"confirmed error {winner['value']:.4g}" in text.replace("error  ", "error ")
    for picture in pictures(data):
        if picture.name.startswith(("axis-", "isolation-")):
            assert picture.layout["yaxis"]["title"]["text"] == "best error", picture.name
        if picture.table:  # nowhere the name alone
            assert "error" not in picture.table.headers, picture.name
    row = best_table(data).rows[0]
    assert row[2:5] == [
        f"{v:.4g}" for v in (data.final[data.winner], data.best[data.winner], winner["value"])
    ]  # fmt: skip


@pytest.mark.parametrize("maximize", [False, True])
def test_why_the_star_is_not_the_best_dot_is_said_where_it_is_not(maximize, tmp_path):
    with LedgerReader.open(make_study(tmp_path / "s", maximize=maximize)) as reader:
        data = gather(reader)
    seen = data.sign * np.where(data.feasible, data.best, data.sign * np.inf)
    first = int(seen.argmin())
    said = why_not_lowest(data)
    if first == data.winner:
        assert said == ""
        data.best[data.winner] += 0.5 * data.sign
        said = why_not_lowest(data)
        first = int((data.sign * np.where(data.feasible, data.best, data.sign * np.inf)).argmin())
    assert said.startswith(f"Trial {data.trial[first]}'s dot is {'higher' if maximize else 'lower'} than the star's")


@pytest.mark.parametrize("draw", ["near", "spread", "two"])
def test_what_the_best_of_many_is_worth_on_fresh_seeds(draw):
    """Against means that are known: the single value is far too good, what is expected of it is not, and the band holds
    it as often as it says."""
    held, single, expected = [], [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        means = {
            "near": 0.3 * rng.standard_normal(48), "spread": rng.gamma(2, 1, 48),
            "two": np.where(rng.random(48) < 0.5, 0, 5) + 0.2 * rng.standard_normal(48),
        }[draw]  # fmt: skip
        values = 7 + 2 * (means + rng.standard_normal(48))  # the seeds' spread is 2
        i = int(values.argmin())
        mean, low, high = on_fresh_seeds(values, values[i], 2.0)
        true = 7 + 2 * means[i]
        held.append(low <= true <= high)
        single.append((values[i] - true) / 2)
        expected.append((mean - true) / 2)
    assert np.mean(held) >= 0.8
    assert np.mean(single) < -1.5
    assert abs(np.mean(expected)) < 0.6
    assert on_fresh_seeds(values, values[i], 0.0) == (values[i],) * 3


@pytest.mark.parametrize("maximize", [False, True])
def test_the_band_of_best_against_budget_may_lie_on_the_worse_side_of_the_single_value(tmp_path, maximize):
    with LedgerReader.open(make_study(tmp_path / "s", maximize=maximize, rounds=1, trials=90)) as reader:
        data = gather(reader)
    found = progress(data)
    done = np.isfinite(found.single)
    assert found.single[-1] == data.final[data.order[0]]
    assert (data.sign * np.diff(found.single[done]) <= 0).all()
    assert (found.low[done] <= found.expected[done]).all()
    assert (found.expected[done] <= found.high[done]).all()
    assert data.sign * found.expected[-1] > data.sign * found.single[-1]
    (picture,) = (p for p in pictures(data) if p.name == "budget")
    assert picture.table.rows[-1][2:4] == [f"{v[-1]:.4g}" for v in (found.single, found.expected)]


def test_without_repeats_the_best_against_budget_is_called_single_values(tmp_path):
    with LedgerReader.open(make_study(tmp_path / "s", confirm=0)) as reader:
        (picture,) = (p for p in pictures(gather(reader)) if p.name == "budget")
    assert "Single values" in picture.caption
    assert len(picture.data) == 1


def test_the_page_of_a_retest_says_its_verdict(tmp_path):
    path = make_study(tmp_path / "s")
    with Ledger.open(path) as ledger:
        result = ledger.meta()["result"]
        one = {"params": result["best"]["params"], "then": {"value": 0.5},
               "now": {"mean": 0.5, "std": 0.1, "n": 32, "failed": 0}}  # fmt: skip
        result["retest"] = {"verdict": "unclear", "of": "runs/a", "old": one, "new": one, "gain": -0.1, "p": 0.7,
                            "interval": [-0.2, 0.1], "level": 0.002, "margin": 0.3, "repeats": 32,
                            "most": 32}  # fmt: skip
        ledger.set_meta("result", result)
    text = write_report(path).read_text("utf-8")
    assert text.index("Retest of runs/a: unclear: run again with more than 32 --repeats") < text.index(
        'id="answer-title"'
    )
    assert "worse by 0.1 (99.8 % from worse by 0.2 to better by 0.1; p = 0.7)" in text


def test_none_the_option_and_a_setting_that_does_not_exist_look_different(tmp_path):
    space = vt.Space(
        {
            "optimizer": vt.choice(["sgd", "adam"]),
            "clip": vt.choice([None, 1.0], when={"optimizer": "sgd"}),
            "learning_rate": vt.loguniform(1e-4, 1.0),
        }
    )
    with LedgerReader.open(make_study(tmp_path / "s", trials=60, space=space)) as reader:
        data = gather(reader)
    assert all("clip" in p for p in data.params)
    there = [p["optimizer"] == "sgd" for p in data.params]
    (picture,) = (p for p in pictures(data) if p.name == "isolation-clip")
    assert sum(int(row[1]) for row in picture.table.rows) == sum(there)
    table = best_table(data)
    column = [row[table.headers.index("clip")] for row in table.rows]
    assert set(column) == {"off", "None", "1"}


# ---- axes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "labels"),
    [
        (vt.loguniform(1e-4, 1.0), ["0.0001", "0.001", "0.01", "0.1", "1"]),
        (vt.loguniform(1e-7, 1e-2), ["1e-7", "1e-6", "1e-5", "0.0001", "0.001", "0.01"]),
        (vt.loguniform(0.01, 0.1), ["0.01", "0.02", "0.05", "0.1"]),
        (vt.reverseloguniform(0.9, 0.9999), ["0.9", "0.99", "0.999", "0.9999"]),
        (vt.reverseloguniform(0.9, 0.99), ["0.9", "0.95", "0.98", "0.99"]),
        (vt.loguniform(1e-3, 1e-1, or_zero=0.1), ["0", "0.001", "0.003", "0.01", "0.03", "0.1"]),
        (vt.uniform(0.0, 0.6), ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]),
        (vt.randint(1, 4), ["1", "2", "3", "4"]),
        (vt.lograndint(1, 100), ["1", "3", "10", "30", "100"]),
        (vt.choice(["a<b", "c"]), ["a&lt;b", "c"]),
    ],
)
def test_axes_are_labelled_as_a_person_would(distribution, labels):
    assert setting_axis("x", vt.Space({"x": distribution})).ticks[1] == labels


@given(low=st.floats(-8, 4), width=st.floats(0.01, 9))
def test_ticks_lie_on_their_axis_and_mean_what_they_say(low, width):
    for function, back in ((log_ticks, lambda c: 10.0**c), (linear_ticks, lambda c: c)):
        at, texts = function(low, low + width)
        assert len(at) == len(texts) >= 1
        assert all(low - 1e-6 <= c <= low + width + 1e-6 for c in at)
        for c, text in zip(at, texts, strict=True):
            assert float(text.replace(",", "")) == pytest.approx(back(c), rel=0.02, abs=0.02 * width)


@given(low=st.floats(0, 4), width=st.floats(0.02, 4))
def test_reverse_ticks_mean_what_they_say(low, width):
    at, texts = reverse_ticks(low, low + width)
    assert at == sorted(at)
    for c, text in zip(at, texts, strict=True):
        assert 1 - float(text) == pytest.approx(10.0**-c, rel=0.01)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.booleans())
def test_the_objectives_axis_shows_the_best_and_cuts_only_the_worst(values, maximize):
    values = np.array(values)
    axis = value_axis(values, maximize)
    best = values.max() if maximize else values.min()
    assert axis.low <= best <= axis.high
    clipped, outside = axis.clip(values)
    assert np.isfinite(clipped).all()
    assert outside.sum() <= math.ceil(0.1 * len(values))
    assert not outside[values == best].any()


# ---- parts -------------------------------------------------------------------------------------------


def test_arrays_are_stored_once_and_come_back():
    pool = Pool()
    x = np.linspace(0, 1, 100)
    pairs = np.column_stack([np.arange(100), x])
    node = pool.encode({"a": x, "b": [x.copy()], "c": pairs, "d": [math.nan, 1.0], "e": np.arange(3)})
    assert node["a"] == node["b"][0] == {"$a": 0}
    assert node["c"] == {"$c": [{"$a": 1}, {"$a": 0}]}
    assert node["d"] == [None, 1.0]
    assert node["e"] == [0, 1, 2]
    (kind, at, n), (whole, _, _) = pool.table()
    assert (kind, whole) == ("f4", "i4")
    np.testing.assert_array_equal(np.frombuffer(pool.bytes(), "<f4", n, at), x.astype("f4"))


def test_the_same_study_gives_the_same_page(data):
    def clean(text):
        return re.sub(r"Written .*? from", "", text)

    with LedgerReader.open(data.directory) as reader:
        assert clean(page(data)) == clean(page(gather(reader)))


def test_wilsons_interval_against_a_table():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20, at 95 %.
    assert wilson(81, 263, 1.96) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20, 1.96) == pytest.approx((0.0, 0.1611), abs=1e-4)


def _contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_lines_stand_out_from_the_page(theme):
    for name in ("ink", "muted", "warn"):  # text: WCAG AA
        assert _contrast(theme[name], theme["surface"]) >= 4.5, name
    for name in ("accent", "star", "line0", "line1", "line2", "line3", "line4"):  # graphics
        assert _contrast(theme[name], theme["surface"]) >= 3, name
    assert LIGHT.keys() == DARK.keys()


def test_every_colour_is_in_the_palette(data):
    from vmaptune.view.report._picture import themes

    for colours in themes(len(data.rounds)).values():
        for picture in pictures(data):
            text = repr(resolve([dict(t) for t in picture.data] + [dict(picture.layout)], colours))
            left = set(re.findall(r"color(?:scale)?': '@", text))
            assert left == set(), picture.name


# ---- the ways to it ----------------------------------------------------------------------------------


def test_the_command(study, tmp_path, capsys):
    assert main(["report", str(study)]) == 0
    assert str(study / "report.html") in capsys.readouterr().out
    assert main(["report", str(study), "--out", str(tmp_path / "deep" / "r.html")]) == 0
    assert (tmp_path / "deep" / "r.html").stat().st_size < 10_000_000
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err


def test_a_study_without_trials_is_a_clear_message(tmp_path, capsys):
    Ledger.create(tmp_path / "s", {"space": []}).close()
    assert main(["report", str(tmp_path / "s")]) == 1
    assert "no trial yet" in capsys.readouterr().err


def test_the_report_needs_no_jax(study):
    code = (
        "import sys; from vmaptune.view.report import write_report; "
        f"write_report({str(study)!r}); assert 'jax' not in sys.modules and 'plotly.graph_objects' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONWARNINGS": "error"})


def test_without_plotly_the_message_says_what_to_install(study, monkeypatch, capsys):
    from vmaptune.view.report import _plotly

    monkeypatch.setattr(_plotly, "available", lambda: False)
    _plotly.packed_javascript.cache_clear()
    assert main(["report", str(study)]) == 2
    assert "pip install 'vmaptune[report]'" in capsys.readouterr().err


def test_figures_from_python(study):
    plot = vt.load(study).plot
    figures = [
        plot.axis("learning_rate"), plot.isolation("momentum"), plot.zoom(), plot.curves(), plot.train_valid(),
        plot.parallel(), plot.pair(), plot.pair("momentum", "width"), plot.importance(), plot.infeasible(),
        plot.budget(), plot.random_not_grid(), plot.seconds(),
    ]  # fmt: skip
    for figure in figures:
        assert figure.layout.title.text
        assert not re.search(r'color(scale)?":\s*\[?\s*"@', figure.to_json())
    assert "axis" in repr(plot)
    with pytest.raises(vt.InputError, match="no setting 'nope'"):
        plot.axis("nope")
    with pytest.raises(vt.InputError, match="nothing to show"):
        plot.rungs()


def test_a_study_shows_itself_in_a_notebook(study, tmp_path):
    shown = vt.load(study)._repr_html_()
    assert "0.003" in shown
    assert "<b>up</b>" not in shown
    Ledger.create(tmp_path / "s", {"space": []}).close()
    assert "no trial yet" in vt.load(tmp_path / "s")._repr_html_()


def test_a_run_writes_its_report_and_a_failing_report_harms_nothing(tmp_path, monkeypatch):
    def task(out, **more):
        return vt.run("experiments/toy.py", trials=16, rounds=2, steps=5, out=tmp_path / out, **more)

    study = task("a")
    assert (tmp_path / "a" / "report.html").exists()
    task("b", report=False)
    assert not (tmp_path / "b" / "report.html").exists()

    def broken(*_):
        raise RuntimeError("on purpose")

    import vmaptune.view.report as report

    monkeypatch.setattr(report, "write_report", broken)
    notes = []

    class Listener:
        def progress(self, progress):
            pass

        def note(self, text):
            notes.append(text)

    assert task("c", listener=Listener()).best_params == study.best_params
    assert any("on purpose" in n and "the study goes on" in n for n in notes)


def test_a_report_after_a_round_takes_its_share_of_the_time_and_one_at_the_end_always(tmp_path, monkeypatch):
    from vmaptune.study import _report

    now, written = [0.0], []

    def write(directory):
        written.append(now[0])
        now[0] += 1.0  # what it costs

    monkeypatch.setattr(_report, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("vmaptune.view.report.write_report", write)
    report = _report.RoundReport(tmp_path, SimpleNamespace(note=pytest.fail))
    for seconds, last, left in (
        (12, False, 99), (1, False, 12), (1, False, 13), (49, False, 99),
        (2, False, 40), (1, False, 60), (1, True, 0), (1, True, 0),
    ):  # fmt: skip
        now[0] += seconds
        report.write(last=last, left=left)
    # 12.5 s are the guess of a quarter, so 12 s are too few, and so are 12 s until the last one; 50 s are the second's
    assert written == [14.0, 67.0, 69.0, 71.0]


# ---- what is written about it ------------------------------------------------------------------------

DOCS = (Path(__file__).parent.parent / "docs" / "report.md").read_text("utf-8")


def test_the_documents_snippets_run(study, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits_mlp").symlink_to(study)
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", DOCS, flags=re.S):
        exec(block, {})
    assert (tmp_path / "importance.html").exists()
    (commands,) = re.findall(r"```bash\n(.*?)```", DOCS, flags=re.S)
    for line in commands.splitlines():
        words = line.split("#")[0].split()
        assert words[:3] == ["python", "-m", "vmaptune"]
        if "--png" not in words:  # in the browser's tests
            assert main(words[3:]) == 0
    assert (tmp_path / "digits.html").exists()


def test_every_figure_and_option_is_documented():
    for name in (n for n in vars(Plots) if not n.startswith("_") and n not in ("again", "report")):
        assert f"`{name}(" in DOCS, name
    for option in ("--out", "--png", "--no-report"):
        assert option in DOCS


def test_repeats_of_a_setting_count_as_one_setting(tmp_path):
    path = make_study(tmp_path / "s", trials=60, rounds=1, confirm=0, infeasible=False, finish=False)
    with Ledger.open(path) as ledger:  # each setting three times, as --repeats 3 writes them
        for trial in range(60):
            first = ledger.trial(trial - trial % 3)
            of = None if trial % 3 == 0 else first.trial
            change_trial(ledger, trial, params=to_json(dict(first.params)), of=of)
    with LedgerReader.open(path) as reader:
        data = gather(reader)
    assert list(data.settings) == list(range(0, 60, 3))
    means = {of: data.final[positions].mean() for of, positions in data.settings.items()}
    assert [s.trial for s in data.slice_] == sorted(means, key=means.get)[:5]
    assert len(data.importance) == len(data.first)  # of 20 settings, the least that it takes


def test_stopped_trials_rank_behind_complete_ones_by_how_long_they_lasted(tmp_path):
    with LedgerReader.open(make_study(tmp_path / "s", trials=90, stop=True)) as reader:
        data = gather(reader)
    assert data.stopped.any()
    assert data.rank[data.complete].max() < data.rank[data.stopped].min()
    assert data.rank[data.order[0]] == 0


def test_a_population_whose_settings_changed_is_said_to_be_one(tmp_path):
    path = make_study(tmp_path / "s", trials=24, rounds=1, confirm=0)
    words = "changed settings while the models trained"
    assert words not in write_report(path).read_text("utf-8")
    with Ledger.open(path) as ledger:
        ledger.add_decision(0, "pbt", {"group": 0, "step": 2, "copies": []})
    assert words in write_report(path).read_text("utf-8")


def test_conditional_settings(tmp_path):
    space = vt.Space(
        {
            "learning_rate": vt.loguniform(1e-4, 1.0),
            "optimizer": vt.choice(["sgd", "adam"]),
            "momentum": vt.reverseloguniform(0.5, 0.999, when={"optimizer": "sgd"}),
            "nesterov": vt.choice([True, False], when={"optimizer": ["sgd"]}),
            "beta2": vt.reverseloguniform(0.9, 0.9999, when={"optimizer": ["adam"]}),
        }
    )
    only = space.replace(optimizer=vt.choice(["sgd"]))  # as --set optimizer=sgd makes it
    for name, each in (("both", space), ("one", only)):
        path = make_study(tmp_path / name, trials=120, space=each)
        text = write_report(path).read_text("utf-8")
        assert 'id="axis-momentum"' in text
        assert ('id="axis-optimizer"' in text) == (name == "both")
        with LedgerReader.open(path) as reader:
            data = gather(reader)
        figure = next(p for p in pictures(data) if p.name == "parallel")
        off = next(d for d in figure.data[0]["dimensions"] if d["label"] == "momentum")
        assert any(text.startswith("off") for text in off["ticktext"]) == (name == "both")


def test_png_without_its_means_says_what_to_install(study, tmp_path, monkeypatch, capsys):
    import kaleido

    def nothing(**_):
        raise RuntimeError("no browser")

    monkeypatch.setattr(kaleido, "start_sync_server", nothing)
    out = str(tmp_path / "r.html")
    assert main(["report", str(study), "--out", out, "--png"]) == 2
    assert "no browser" in (said := capsys.readouterr().err)
    assert "apt-get install chromium" in said
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert main(["report", str(study), "--out", out, "--png"]) == 2
    assert "pip install 'vmaptune[png]'" in capsys.readouterr().err
