"""Configurations that a person knows to be good come first; a finished study goes on with more trials."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import OPTIONS, TASK, Crash, content
from samplers import follow

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.errors import InputError
from vmaptune.space import completed
from vmaptune.study._enqueue import MOST, configurations

SPACE = vt.Space(
    {
        "rate": vt.loguniform(1e-4, 1.0),
        "momentum": vt.reverseloguniform(0.5, 0.999),
        "decay": vt.loguniform(1e-6, 0.1, or_zero=0.3),
        "share": vt.uniform(0.0, 1.0, step=0.1),
        "layers": vt.randint(1, 8),
        "units": vt.lograndint(4, 400),
        "width": vt.ordinal([16, 32]),
        "kind": vt.choice(["relu", "=tanh", None, True, 1, (2, 3)]),
        "optimizer": vt.choice(["sgd", "adam"]),
        "nesterov": vt.choice([False, True], when={"optimizer": ["sgd"]}),
    }
)
GOOD = [{"rate": 0.3, "width": 5}, {"rate": 0.1}]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exp") / "exp.py"
    path.write_text(TASK)
    return path


@pytest.fixture(scope="module")
def study(file, tmp_path_factory) -> vt.Study:
    return vt.run(file, out=tmp_path_factory.mktemp("runs") / "s", report=False, enqueue=GOOD, **OPTIONS)


# ---- configurations --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), data=st.data())
def test_what_the_space_draws_is_taken_as_it_is_and_what_is_missing_is_drawn(seed, data):
    rows = SPACE.rows(SPACE.sample(3, seed=seed))
    assert completed(SPACE, rows, 0) == rows
    kept = data.draw(st.sets(st.sampled_from(["rate", "decay", "share", "units", "kind", "optimizer"])))
    some = [{name: row[name] for name in kept} for row in rows]
    found = completed(SPACE, some, seed)
    for row, whole in zip(some, found, strict=True):
        assert {name: whole[name] for name in row} == row
        for name, exists in SPACE.active(whole).items():
            assert SPACE[name].contains(whole[name]) if exists else whole[name] is None
    assert completed(SPACE, some, seed) == found


def test_numbers_become_those_that_lanes_hold():
    (found,) = completed(SPACE, [{"rate": 0.1, "share": 0.3, "layers": 3.0, "width": 32.0, "kind": [2, 3]}], 0)
    assert found["rate"] == 0.10000000149011612
    assert found["share"] == SPACE["share"].values()[3]
    assert (found["layers"], type(found["layers"])) == (3, int)
    assert (found["width"], type(found["width"])) == (32, int)
    assert found["kind"] == (2, 3)
    (top,) = completed(vt.Space({"x": vt.uniform(0.0, 0.7)}), [{"x": 0.7}], 0)  # whose float32 lies above the bound
    assert top["x"] <= 0.7


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"lr": 0.1}, "number 1: the space has no hyperparameter 'lr'; it has: rate"),
        ({"rate": 2.0}, r"rate must be a value of loguniform\(0.0001, 1.0\), but got 2.0; .* leave rate out"),
        ({"rate": math.nan}, "rate must be a value of"),
        ({"rate": "0.1"}, "rate must be a value of .* but got '0.1'"),
        ({"decay": 0.0, "rate": 0.0}, "rate must be a value of"),
        ({"layers": 2.5}, "layers must be a value of randint"),
        ({"share": 0.35}, "share must be a value of uniform"),
        ({"kind": False}, "kind must be a value of choice"),
        ({"nesterov": True}, "nesterov exists for some values of optimizer only, which is not given"),
        ({"optimizer": "adam", "nesterov": True}, r"nesterov exists where optimizer is one of \['sgd'\]"),
        ("rate", "must be a configuration, name -> value, but got 'rate'"),
    ],
)
def test_a_mistake_names_hyperparameter_rule_value_and_way_out(given_, words):
    with pytest.raises(InputError, match=words):
        vt.Sampler(SPACE, trials=64, enqueue=[given_])


def test_what_is_no_list_or_has_no_room_is_told(file, tmp_path):
    for wrong in ({"rate": 0.1}, 3, "nowhere.csv"):
        with pytest.raises(InputError, match=r"enqueue must be a list of configurations|--enqueue nowhere.csv cannot"):
            vt.run(file, out=tmp_path / "s", enqueue=wrong, **OPTIONS)
    with pytest.raises(InputError, match=r"at most as many configurations as the first round tries, 18, but got 40"):
        vt.run(file, out=tmp_path / "s", enqueue=[{}] * 40, **OPTIONS)
    with pytest.raises(InputError, match="at most as many configurations as the first round tries, 4"):
        vt.Sampler(SPACE, trials=8, rounds=2, enqueue=[{}] * 5)
    with pytest.raises(InputError, match="rate must be a value of"):
        vt.run(file, out=tmp_path / "s", enqueue=[{"rate": 0}], **OPTIONS)
    with pytest.raises(InputError, match="leave --enqueue out"):
        vt.run(file, out=tmp_path / "s", enqueue=GOOD, **OPTIONS | {"method": "optuna:tpe"})
    assert not (tmp_path / "s").exists()


# ---- in a study ------------------------------------------------------------------------------------------


def test_they_are_the_first_draws_and_the_sampler_draws_the_same(study):
    rows = study.trials()
    assert dict(rows[0].params) == study.space.held({"rate": 0.3, "width": 5})
    assert rows[1].params["rate"] == study.space.held({"rate": 0.1})["rate"]
    plain = vt.Sampler(study.space, trials=40, rounds=2).ask(16)
    assert [dict(row.params) for row in rows[2:18]] == [asked.params for asked in plain]
    assert study.meta["options"]["enqueue"] == GOOD
    follow(vt.Sampler(study.space, trials=40, rounds=2, enqueue=GOOD), study)


def test_a_study_that_goes_on_has_them_to_the_bit(study, file, tmp_path):
    with pytest.raises(MemoryError):
        vt.run(file, out=tmp_path / "s", listener=Crash(6), save_every=0, report=False, enqueue=GOOD, **OPTIONS)
    with pytest.raises(InputError, match=r"enqueue 2 configurations \(now 1 configurations\)"):
        vt.run(file, out=tmp_path / "s", enqueue=GOOD[:1], **OPTIONS)
    vt.run(file, out=tmp_path / "s", enqueue=GOOD, report=False, **OPTIONS)
    assert content(tmp_path / "s") == content(study.directory)


@pytest.mark.parametrize("more", [{"method": "pbt"}, {"repeats": 2}, {"halving": "eta=2,min_steps=8"}])
def test_other_ways_of_searching_begin_with_them_too(file, tmp_path, more):
    found = vt.run(file, out=tmp_path / "s", enqueue=GOOD, report=False, **OPTIONS | more)
    times = more.get("repeats", 1)
    rows = found.trials()[: 2 * times : times]
    assert [row.params["rate"] for row in rows] == pytest.approx([0.3, 0.1])


# ---- files -----------------------------------------------------------------------------------------------


def test_every_file_that_tells_of_the_finalists_gives_them(study, tmp_path, capsys):
    finalists = [json.loads(json.dumps(f["params"])) for f in study.finalists]
    assert len(finalists) > 1
    assert finalists[0] == study.best_params
    where = str(study.directory)
    main(["export", where, "--to", "csv", "--out", str(tmp_path / "export.csv")])
    main(["export", where, "--to", "json", "--out", str(tmp_path / "export.json")])
    for command in ("best", "trials"):
        for form in ("csv", "json"):
            capsys.readouterr()
            main([command, where, "--format", form])
            (tmp_path / f"{command}.{form}").write_text(capsys.readouterr().out)
    (tmp_path / "run.json").write_text(json.dumps(study.result))
    for path in [study.directory, study.directory / "trials.csv", *tmp_path.iterdir()]:
        found = configurations(path, study.space, "minimize")
        assert completed(study.space, found, 0) == finalists, path


def test_a_table_without_finalists_gives_its_best_and_a_list_all(study, tmp_path):
    lines = (study.directory / "trials.csv").read_text().splitlines()
    places = lines[0].split(",").index("place")
    (tmp_path / "t.csv").write_text("\n".join(",".join(line.split(",")[:places]) for line in lines))
    rows = [row for row in study.trials() if row.state == "COMPLETE"]
    for direction, sign in (("minimize", 1), ("maximize", -1)):
        ranked = sorted(rows, key=lambda row: sign * row.value)
        best = list({tuple(row.params.items()): dict(row.params) for row in ranked}.values())[:MOST]
        assert configurations(tmp_path / "t.csv", study.space, direction) == best
    (tmp_path / "mine.json").write_text('[{"rate": 0.5}, {"width": 3}]')
    assert configurations(tmp_path / "mine.json", study.space, "minimize") == [{"rate": 0.5}, {"width": 3}]
    (tmp_path / "one.json").write_text('{"rate": 0.5}')
    assert configurations(str(tmp_path / "one.json"), study.space, "minimize") == [{"rate": 0.5}]
    (tmp_path / "mine.csv").write_text("rate,width\n0.5,\n,3\n")
    assert configurations(tmp_path / "mine.csv", study.space, "minimize") == [{"rate": 0.5}, {"width": 3}]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_csv_keeps_every_kind_of_value(seed, tmp_path_factory):
    from vmaptune.store.tables import format_rows

    rows = [row for row in SPACE.rows(SPACE.sample(4, seed=seed)) if SPACE.active(row)["nesterov"]]
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text(format_rows(rows, list(SPACE), "csv"))
    if rows:
        assert completed(SPACE, configurations(path, SPACE, "minimize"), 0) == rows


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "[]", "3", "\x00"])
def test_a_file_without_configurations_is_told(text, tmp_path):
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match=r"holds no configuration|JSON must hold configurations"):
        configurations(tmp_path / "f", SPACE, "minimize")


def test_the_command_line_takes_a_study(study, file, tmp_path, capsys):
    command = ["run", str(file), "--trials", "40", "--rounds", "2", "--lanes", "8", "--quiet", "--no-report", "--json"]
    assert (
        main([*command, "--plan", OPTIONS["plan"], "--out", str(tmp_path / "t"), "--enqueue", str(study.directory)])
        == 0
    )
    first = vt.load(tmp_path / "t").trials()[: len(study.finalists)]
    assert [dict(row.params) for row in first] == [f["params"] for f in study.finalists]
    assert main([*command, "--enqueue", str(tmp_path / "no")]) == 2
    assert "--enqueue" in capsys.readouterr().err


# ---- a finished study goes on ----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"halving": "eta=2,min_steps=8"}])
def test_a_finished_study_goes_on_with_more_rounds_and_confirms_anew(file, tmp_path, more):
    out, copy = tmp_path / "s", tmp_path / "copy"
    before = vt.run(file, out=out, report=False, enqueue=GOOD, **OPTIONS | more)
    shutil.copytree(out, copy)
    rounds, rows, was = before.ledger.rounds(), before.trials(), before.best
    searched = sum(row.trials for row in rounds if row.kind == "search")
    before.close()
    with pytest.raises(InputError, match=r"already holds a study \(finished.*--trials N --force"):
        vt.run(file, out=out, trials=90)
    study = vt.run(file, out=out, trials=64, force=True, report=False)
    now = study.ledger.rounds()
    assert [row.kind for row in now[:2]] == ["search"] * 2
    assert [row.trials for row in now[:2]] == [row.trials for row in rounds[:2]]
    kinds = [row.kind for row in now]
    assert kinds.count("search") == 3
    assert kinds == sorted(kinds, reverse=True)  # search, then confirm
    assert [(r.trial, r.params, r.value) for r in study.trials()[:searched]] == [
        (r.trial, r.params, r.value) for r in rows[:searched]
    ]
    assert searched < sum(row.trials for row in now) <= 64
    assert study.result["trials"] == len(study.trials())
    (change,) = study.meta["changes"]
    assert change["trials"] == [40, 64]
    assert change["found"] == was
    assert {path.stem for path in (out / "best").iterdir()} == set(study.meta["weights"])
    assert study.best_model()
    with pytest.raises(MemoryError):
        vt.run(file, out=copy, trials=64, force=True, listener=Crash(8), save_every=0, report=False)
    cut = vt.load(copy)
    assert not cut.ledger.finished()
    with pytest.raises(vt.StudyError, match="not finished"):
        _ = cut.best
    cut.close()
    vt.resume(copy, report=False)
    assert content(copy) == content(out)


def test_what_a_finished_study_cannot_become_is_told(study, file):
    for numbers, words in (
        ({"trials": 40}, "can only go on with more trials than its 40"),
        ({"rounds": 3}, "can only go on with more trials than its 40"),
        ({"trials": 24}, "would leave"),
        ({"trials": 90, "steps": 9}, r"holds a study with other settings: steps None \(now 9\)"),
    ):
        with pytest.raises(InputError, match=words):
            vt.run(file, out=study.directory, force=True, **numbers)
    again = vt.load(study.directory)
    assert again.ledger.finished()
    assert again.best == study.best
    again.close()


def test_populations_and_small_studies_are_refused_and_extended(file, tmp_path):
    vt.run(file, out=tmp_path / "p", report=False, **OPTIONS | {"method": "pbt", "trials": 12})
    with pytest.raises(InputError, match="no rounds to add to"):
        vt.run(file, out=tmp_path / "p", trials=24, force=True)
    small = OPTIONS | {"trials": 8, "rounds": 1}
    vt.run(file, out=tmp_path / "t", report=False, **small)
    grown = vt.run(file, out=tmp_path / "t", trials=14, force=True, report=False)  # nothing to confirm, then or now
    assert [row.trials for row in grown.ledger.rounds()] == [8, 6]
    with pytest.raises(InputError, match="it would confirm its winner in the one case"):
        vt.run(file, out=tmp_path / "t", trials=64, force=True)
