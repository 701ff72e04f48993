"""An experiment that was edited while its study was cut off: what is used of it is said, nothing is mixed up."""

from __future__ import annotations

import pytest
from interrupted import TASK, Crash

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.experiment import load_experiment

OPTIONS = {"trials": 24, "rounds": 2, "plan": "devices=1,tiles=1,lanes=4,every=8", "report": False}
EDITED = TASK.replace("vt.loguniform(1e-2, 1e3)", "vt.loguniform(1e-4, 1e1)")


def cut_off(experiment, out, **more):
    with pytest.raises(MemoryError):
        vt.run(experiment, out=out, listener=Crash(12), save_every=0, **OPTIONS, **more)


class Heard:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)

    def progress(self, progress):
        pass


def about_the_space(texts):
    return [text for text in texts if "the space is the one that the study began with" in text]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(TASK)
    return path


def test_force_says_that_the_edited_space_is_not_used_and_shows_the_difference(file, tmp_path, capsys):
    cut_off(file, tmp_path / "s")
    file.write_text(EDITED)
    assert main(["resume", str(tmp_path / "s"), "--force", "--quiet"]) == 0
    study = vt.load(tmp_path / "s")
    (text,) = about_the_space(study.result["warnings"])
    for word in ("rate: loguniform(0.01, 1000.0)", "now has loguniform(0.0001, 10.0)", "--fresh DIR"):
        assert word in text
    assert "width" not in text
    assert study.space["rate"] == vt.loguniform(1e-2, 1e3)
    assert min(t.params["rate"] for t in study.trials()) >= 1e-2


def test_force_with_a_set_of_the_same_is_no_other_space(file, tmp_path):
    """`--set` is compared by what it sets alone, and the rest of the edited space is told."""
    changes = {"width": 3}
    cut_off(file, tmp_path / "s", changes=changes)
    file.write_text(EDITED)
    heard = Heard()
    vt.run(file, out=tmp_path / "s", changes=changes, force=True, listener=heard, **OPTIONS)
    (text,) = about_the_space(heard.notes)
    assert "rate: " in text
    assert "width" not in text


def test_another_set_is_refused_and_shown(file, tmp_path):
    cut_off(file, tmp_path / "s", changes={"width": 3})
    with pytest.raises(vt.InputError, match=r"\(--set\): width choice\(\[3\]\) \(now choice\(\[5\]\)\)"):
        vt.run(file, out=tmp_path / "s", changes={"width": 5}, force=True, **OPTIONS)
    heard = Heard()
    vt.resume(tmp_path / "s", listener=heard, report=False)
    assert not about_the_space(heard.notes)  # what --set made of it is no edit


def test_from_python_it_is_told_too(file, tmp_path):
    whole = load_experiment(file).experiment
    cut_off(whole, tmp_path / "s")
    edited = whole.with_changes(space=vt.Space({"rate": vt.loguniform(1e-2, 1e3), "width": vt.ordinal([3, 5, 7])}))
    heard = Heard()
    vt.resume(tmp_path / "s", edited, listener=heard, report=False)
    (text,) = about_the_space(heard.notes)
    assert "width: ordinal([3, 5]) (the experiment now has ordinal([3, 5, 7]))" in text


def test_another_objective_is_refused_even_with_force(file, tmp_path):
    cut_off(file, tmp_path / "s")
    edited = TASK.replace("steps=30,", 'steps=30, direction="maximize",')
    assert edited != TASK
    file.write_text(edited)
    with pytest.raises(vt.InputError, match=r"ranked by minimize 'loss'.*now says maximize 'loss'"):
        vt.resume(tmp_path / "s", force=True, report=False)
