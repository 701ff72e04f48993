"""Programs compile while others train; neither that nor how long it takes changes a bit of a study."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from interrupted import TASK, content

import vmaptune as vt
from vmaptune.study import _training
from vmaptune.study._groups import Groups
from vmaptune.study._structure import COMPILERS

WIDTHS = [2, 3, 4, 5, 6]
OPTIONS = {"trials": 60, "rounds": 2, "plan": "devices=1,tiles=1,lanes=4,every=3", "lanes": 12}
HOW = {
    "plain": {},
    "asha": {"halving": "eta=3,min_steps=3"},
    "sync": {"stopping": "sync", "halving": "eta=3,min_steps=3"},
    "hyperband": {"stopping": "hyperband", "halving": "eta=3,min_steps=3"},
    "median": {"stopping": "median", "halving": "min_steps=6"},
    "patience": {"stopping": "patience=2"},
    "pbt": {"method": "pbt", "trials": 40, "rounds": 1},
}


class Told:
    """A listener that keeps what it was told."""

    def __init__(self, heard):
        self.heard = heard

    def progress(self, progress):
        self.heard(progress)

    def note(self, text):
        pass


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("code") / "task.py"
    path.write_text(TASK.replace("vt.ordinal([3, 5])", f"vt.ordinal({WIDTHS})"))
    return path


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    """Each kind of study, as it is when nothing happens to it."""
    made: dict[str, Path] = {}

    def study(how: str) -> Path:
        if how not in made:
            made[how] = tmp_path_factory.mktemp(how) / "s"
            vt.run(file, out=made[how], **OPTIONS | HOW[how])
        return made[how]

    return study


def compile_late(patch, of: int, *, wait: float = 60) -> tuple[threading.Event, list[int]]:
    """Programs of groups from the `of`-th on compile only once the event that is returned is set, and then slowly;
    the list holds the groups whose programs were there before they were let go."""
    compile_, go, early = Groups._compile, threading.Event(), []

    def late(self, group, plain):
        if group.number >= of:
            assert go.wait(wait), "nothing was trained before this program"
            time.sleep(0.05 * (group.number % 3))
        elif not go.is_set():
            early.append(group.number)
        return compile_(self, group, plain)

    patch.setattr(Groups, "_compile", late)
    return go, early


@pytest.mark.parametrize("how", HOW)
def test_others_train_while_programs_compile_and_no_bit_hangs_on_how_long(file, whole, how, tmp_path, monkeypatch):
    go, early = compile_late(monkeypatch, COMPILERS)

    def heard(progress):
        if progress.steps_seen > 3:
            go.set()

    vt.run(file, out=tmp_path / "s", listener=Told(heard), **OPTIONS | HOW[how])
    assert sorted(early) == list(range(COMPILERS))
    assert content(tmp_path / "s") == content(whole(how))
    study = vt.load(tmp_path / "s")
    groups, programs = study.ledger.groups(), study.result["programs"]
    assert len(groups) == len(WIDTHS)
    assert all(group.compile_seconds > 0 for group in groups)
    assert sorted(program["static"]["width"] for program in programs) == WIDTHS
    assert all(program["compile_seconds"] > 0 for program in programs)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("save_every", [0, 60])
def test_a_study_that_stops_while_programs_compile_goes_on_to_the_same_bits(
    file, whole, how, save_every, tmp_path, monkeypatch
):
    def crash(progress):
        if progress.steps_seen > 20:
            go.set()
            raise MemoryError("crash")

    with monkeypatch.context() as patch:
        go, _ = compile_late(patch, COMPILERS)
        with pytest.raises(MemoryError):
            vt.run(file, out=tmp_path / "s", listener=Told(crash), save_every=save_every, **OPTIONS | HOW[how])
    vt.resume(tmp_path / "s")
    assert content(tmp_path / "s") == content(whole(how))


@pytest.mark.parametrize("how", ["asha", "sync"])
def test_it_goes_on_to_the_same_bits_from_any_moment(file, whole, how, tmp_path):
    in_all = vt.load(whole(how)).result["model_steps"]
    for share in (0.1, 0.25, 0.4, 0.6, 0.9):

        def crash(progress, most=share * in_all):
            if progress.steps_seen > most:
                raise MemoryError("crash")

        out = tmp_path / f"{share}"
        with pytest.raises(MemoryError):
            vt.run(file, out=out, listener=Told(crash), save_every=0, **OPTIONS | HOW[how])
        vt.resume(out)
        assert content(out) == content(whole(how)), share


def test_groups_get_lanes_by_what_was_trained(file, whole, tmp_path, monkeypatch):
    """With so little between the groups that all but the first two begin early in the round's training, other trials
    are compared with one another, and the same command still gives the same bits however slowly they compile."""
    monkeypatch.setattr(_training, "BESIDE", 4e-6)
    vt.run(file, out=tmp_path / "soon", **OPTIONS | HOW["asha"])
    assert content(tmp_path / "soon") != content(whole("asha"))
    go, _ = compile_late(monkeypatch, COMPILERS)
    vt.run(file, out=tmp_path / "late", listener=Told(lambda p: p.steps_seen > 3 and go.set()), **OPTIONS | HOW["asha"])
    assert content(tmp_path / "soon") == content(tmp_path / "late")


@pytest.mark.parametrize("how", ["plain", "asha", "pbt"])
def test_a_program_that_cannot_be_compiled_ends_the_study_with_its_own_error(file, how, tmp_path, monkeypatch):
    compile_ = Groups._compile

    def fails(self, group, plain):
        if group.number == COMPILERS:
            raise RuntimeError("no such instruction")
        return compile_(self, group, plain)

    monkeypatch.setattr(Groups, "_compile", fails)
    with pytest.raises(RuntimeError, match="no such instruction"):
        vt.run(file, out=tmp_path / "s", **OPTIONS | HOW[how])
    assert vt.load(tmp_path / "s").meta["state"] == "failed"
