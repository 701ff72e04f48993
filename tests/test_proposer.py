"""Optuna's samplers drive the lanes, and a study with one goes on to the same bits."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

import vmaptune as vt
from tests.test_resume import TASK, Crash, content
from vmaptune.errors import InputError
from vmaptune.search.proposer import METHODS, OptunaProposer
from vmaptune.space import Space
from vmaptune.study import resume

optuna = pytest.importorskip("optuna")
SPACE = Space(
    {
        "rate": vt.loguniform(1e-4, 1.0), "beta": vt.reverseloguniform(0.0, 0.999), "act": vt.choice(["a", None, True]),
        "wd": vt.uniform(0.0, 1.0, or_zero=0.5), "width": vt.ordinal([16, 32]),
        "slope": vt.uniform(0, 1, when={"act": ["a"]}),
    }
)  # fmt: skip
OPTIONS = {
    "trials": 60, "rounds": 6, "plan": "devices=1,tiles=1,lanes=4,every=10", "lanes": 8, "method": "optuna:tpe",
    "report": False,
}  # fmt: skip


def search(proposer, value, rounds, n):
    rows = []
    for _ in range(rounds):
        asked = proposer.ask(n)
        proposer.tell([(row, value(row)) for row in asked])
        rows += asked
    return rows


def bowl(row):
    return math.log10(row["rate"] / 0.01) ** 2 + (row["act"] is not True) if row["rate"] < 0.5 else math.nan


@pytest.mark.parametrize("name", ["tpe", "cmaes", "qmc", "random"])
def test_a_sampler_proposes_settings_of_the_space_and_the_same_again(name):
    runs = [search(OptunaProposer(SPACE, name, 3), bowl, 3, 5) for _ in range(2)]
    assert runs[0] == runs[1]
    for row in runs[0]:
        there = SPACE.active(row)
        assert all(SPACE[n].contains(v) if there[n] else v is None for n, v in row.items())
    assert runs[0] != search(OptunaProposer(SPACE, name, 4), bowl, 3, 5)


def test_it_learns():
    rows = search(OptunaProposer(SPACE, "tpe", 0), bowl, 10, 8)
    off = [abs(math.log10(row["rate"]) + 2) for row in rows]
    assert np.mean(off[-24:]) < np.mean(off[:24])


def test_other_settings_than_it_proposed_are_refused():
    proposer = OptunaProposer(SPACE, "random", 0)
    row = proposer.ask(1)[0]
    with pytest.raises(InputError, match=r"must be those that Optuna .* proposes"):
        proposer.tell([(row | {"rate": 0.123}, 1.0)])


@pytest.mark.parametrize("method", ["optuna:tpe", "optuna:cmaes"])
def test_a_sampler_drives_the_lanes_and_a_crash_changes_no_bit(tmp_path, method):
    file = tmp_path / "task.py"
    file.write_text(TASK)
    options = OPTIONS | {"method": method}
    whole = vt.run(file, out=tmp_path / "whole", **options)
    assert whole.meta["options"]["method"] == method
    rows = [row for row in whole.trials() if row.round < 6]
    last = [abs(math.log10(row.params["rate"])) for row in rows if row.round >= 4]
    assert np.mean(last) < np.mean([abs(math.log10(row.params["rate"])) for row in rows if row.round == 0])
    for word in (12, 30):
        with pytest.raises(MemoryError):
            vt.run(file, out=tmp_path / f"cut{word}", listener=Crash(word), save_every=0, **options)
        resume(tmp_path / f"cut{word}", report=False)
        assert content(tmp_path / f"cut{word}") == content(tmp_path / "whole")


def test_a_choice_that_a_sampler_has_no_place_for_is_told_once(capfd):
    for name in ("cmaes", "qmc"):
        proposer = OptunaProposer(SPACE, name, 3)
        search(proposer, bowl, 3, 5)
        assert proposer.note.startswith("act is drawn at random: ")
    assert OptunaProposer(SPACE, "tpe", 3).note is None
    assert OptunaProposer(Space({"rate": SPACE["rate"]}), "cmaes", 3).note is None
    assert "independent" not in "".join(capfd.readouterr()).lower()


def test_mistakes_say_the_way_out(tmp_path, monkeypatch):
    file = tmp_path / "task.py"
    file.write_text(TASK)
    with pytest.raises(InputError, match=r"method must be one of .*optuna:tpe"):
        vt.run(file, out=tmp_path / "s", method="optuna:none")
    with pytest.raises(InputError, match="leave --stopping and --halving out"):
        vt.run(file, out=tmp_path / "s", method="optuna:tpe", stopping="asha")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'vmaptune\[optuna\]'"):
        vt.run(file, out=tmp_path / "s", method="optuna:tpe")
    assert not (tmp_path / "s").exists()
    assert "optuna:gp" in METHODS
