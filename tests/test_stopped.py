"""A study that is stopped from outside: Ctrl-C once and twice, SIGTERM, a full disk, a read-only directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interrupted import OPTIONS, Crash, content

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.errors import InputError, StudyError
from vmaptune.store.checkpoints import Checkpoints
from vmaptune.store.files import remove_parts
from vmaptune.store.ledger import Ledger
from vmaptune.study import resume
from vmaptune.study._groups import Groups
from vmaptune.study._population import Population
from vmaptune.study._saving import Saving
from vmaptune.study._training import Training

POPULATION = OPTIONS | {"method": "pbt", "trials": 12}


class At:
    """A listener that does something at the study's n-th word."""

    def __init__(self, n: int, act: Callable[[], None]):
        self.left, self.act = n, act
        self.notes: list[str] = []

    def progress(self, progress) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def population(file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("population") / "s"
    vt.run(file, out=out, **POPULATION)
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_once_it_saves_and_says_how_to_go_on(file, reference, tmp_path, number):
    out = tmp_path / "s"
    listener = At(12, lambda: signal.raise_signal(number))
    ignored = signal.signal(number, signal.default_int_handler)  # a hangup may be ignored here
    try:
        with pytest.raises(KeyboardInterrupt, match=r"everything is saved; go on with: python -m vmaptune resume .*/s"):
            vt.run(file, out=out, listener=listener, **OPTIONS)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, ignored)
    assert "stopping after this segment; once more stops at once" in listener.notes
    assert vt.load(out).meta["state"] == "interrupted"
    assert len(list((out / "checkpoints").glob("*.ckpt"))) == 1
    resume(out)
    assert content(out) == content(reference)


def test_a_hangup_that_is_ignored_stays_ignored(file, reference, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        vt.run(file, out=tmp_path / "s", listener=At(12, lambda: signal.raise_signal(signal.SIGHUP)), **OPTIONS)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert content(tmp_path / "s") == content(reference)


def test_asked_while_the_first_program_compiles_it_stops_at_once(file, reference, tmp_path, monkeypatch):
    out, released = tmp_path / "s", threading.Event()
    compile_, wait_ = Groups._compile, Groups.wait_for_any

    def waits(self, most=None):
        signal.raise_signal(signal.SIGINT)
        return wait_(self, most)

    with monkeypatch.context() as patch:
        patch.setattr(Groups, "_compile", lambda *args: released.wait() and compile_(*args))
        patch.setattr(Groups, "wait_for_any", waits)
        try:
            with pytest.raises(KeyboardInterrupt, match="everything is saved"):
                vt.run(file, out=out, **OPTIONS)
        finally:
            released.set()
    vt.run(file, out=out, **OPTIONS)
    assert content(out) == content(reference)


def test_asked_before_there_is_a_study_it_says_so(file, tmp_path, monkeypatch, capsys):
    def ask(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmaptune.study._api.resolve_experiment", ask)
    assert main(["run", str(file), "--out", str(tmp_path / "s")]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_nobody_needs_to_listen(file, reference, tmp_path):
    """A terminal that was closed, a pipe that nobody reads: the study goes on."""
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    view = vt.live(stream)
    listener = At(9, lambda: os.close(read))
    listener.progress, act = view.progress, listener.progress
    view.progress = lambda progress: (act(progress), listener.progress(progress))
    view.every = 0.0
    vt.run(file, out=tmp_path / "s", listener=view, **OPTIONS)
    assert content(tmp_path / "s") == content(reference)
    assert listener.left == 0  # and was told nothing after that
    with pytest.raises(BrokenPipeError):
        stream.close()


@pytest.fixture
def no_waits(monkeypatch) -> None:
    """Nothing is saved before a wait for a program: whether there is one is up to the clock."""
    monkeypatch.setattr(Saving, "before_a_wait", lambda *_: None)


@pytest.mark.usefixtures("no_waits")
@pytest.mark.parametrize("save_every", [0, 60])
def test_asked_twice_it_stops_now_and_can_be_gone_on_with(file, reference, tmp_path, save_every):
    out = tmp_path / "s"
    points: list[int] = []

    def twice() -> None:
        points.append(sum(len(curve) for _, curve in vt.load(out).ledger.curves()))
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"at most the last {save_every} s of work are lost"):
        vt.run(file, out=out, listener=At(30, twice), save_every=save_every, **OPTIONS)
    study = vt.load(out)
    assert study.meta["state"] == "interrupted"
    assert sum(len(curve) for _, curve in study.ledger.curves()) == points[0]  # nothing was done after it
    assert (out / "checkpoints").exists() == (save_every == 0)
    resume(out)
    assert content(out) == content(reference)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights over others' files."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def seen_by_all() -> Iterator[Path]:
    """A folder that others may look into, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_directory_that_turns_read_only(file, reference, seen_by_all):
    out = seen_by_all / "s"

    with contextlib.ExitStack() as rights:

        def turn() -> None:
            for folder in (out, out / "checkpoints"):
                folder.chmod(0o555)
            rights.enter_context(nobody())

        with pytest.raises(StudyError, match=r"checkpoints.*cannot be written: .*; what was there before is kept"):
            vt.run(file, out=out, listener=At(20, turn), save_every=0, **OPTIONS)
        with pytest.raises((InputError, StudyError), match=r"cannot be (used|written|read)|cannot look into"):
            resume(out)
    for folder in (out, out / "checkpoints"):
        folder.chmod(0o755)
    resume(out)
    assert content(out) == content(reference)


@contextlib.contextmanager
def little_space(place: Path, size: int) -> Iterator[Callable[[], None]]:
    """`place` has room for `size` bytes until the function is called: a file system in memory where one may be
    mounted, else no file may be longer."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True).returncode:
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, before[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", f"remount,size={32 << 20}", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("size", [80, 160, 280])
def test_a_disk_that_is_full(file, reference, tmp_path, size):
    with little_space(tmp_path / "disk", size * 1024) as make_space:
        out = tmp_path / "disk" / "s"
        with pytest.raises((StudyError, InputError), match=r"cannot be (written|used)"):
            vt.run(file, out=out, save_every=0, **OPTIONS)
        make_space()
        vt.run(file, out=out, **OPTIONS).close()
        assert content(out) == content(reference)


def test_what_a_killed_process_had_begun_to_write_is_removed(file, reference, tmp_path):
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Crash(30), save_every=0, **OPTIONS)
    gone = subprocess.Popen(["true"])
    gone.wait()
    mine = [out / f".trials.csv.{gone.pid}.part", out / "checkpoints" / f".000000000009.ckpt.{gone.pid}.part"]
    others = [out / f".report.html.{os.getppid()}.part", out / ".notes.part"]
    for path in (*mine, *others):
        path.write_bytes(b"half of it")
    resume(out)
    assert content(out) == content(reference)
    assert [path.exists() for path in (*mine, *others)] == [False, False, True, True]
    assert not (out / "checkpoints").exists()
    (tmp_path / "elsewhere").mkdir()
    victim = tmp_path / "elsewhere" / f".x.{gone.pid}.part"
    victim.touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    remove_parts(tmp_path / "link", tmp_path / "none")
    assert victim.exists()


# ---- populations -----------------------------------------------------------------------------------------


class Midway:
    """A listener that brings the study down in the middle of its first population."""

    def progress(self, progress) -> None:
        if progress.steps_seen > 90:
            raise MemoryError("crash")

    def note(self, text: str) -> None:
        pass


def test_a_population_goes_on_inside_its_round(file, population, tmp_path, monkeypatch):
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Midway(), save_every=0, **POPULATION)
    (newest, *_) = Checkpoints(out).newest(2**62, pytest.fail)
    done = newest.plain["population"]["done"]
    assert done > 4  # some generations
    taken_up: list[int] = []
    restore = Population._restore

    def spy(self, lanes, moment):
        restore(self, lanes, moment)
        taken_up.append(self.done)

    monkeypatch.setattr(Population, "_restore", spy)
    resume(out)
    assert taken_up == [done]
    assert content(out) == content(population)


@pytest.mark.usefixtures("no_waits")
def test_a_population_without_a_checkpoint_begins_its_round_again_with_the_same_bits(file, population, tmp_path):
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Midway(), **POPULATION)
    assert not (out / "checkpoints").exists()
    resume(out)
    assert content(out) == content(population)


def test_a_population_that_had_ended_when_it_was_killed_is_not_trained_again(file, population, tmp_path, monkeypatch):
    out = tmp_path / "s"

    def crash(self, round: int) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish_round", crash)
        with pytest.raises(MemoryError):
            vt.run(file, out=out, save_every=0, **POPULATION)
    monkeypatch.setattr(Population, "train", lambda *_: pytest.fail("it was trained again"))
    monkeypatch.setattr(Training, "train", lambda *_: pytest.fail("it was trained again"))
    resume(out)
    assert content(out) == content(population)
    assert vt.load(out).ledger.counts() == vt.load(population).ledger.counts()


# ---- another number of trials ----------------------------------------------------------------------------


def test_trials_and_rounds_can_be_changed_on_the_way(file, tmp_path, capsys):
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Crash(40), save_every=0, **OPTIONS)
    before = vt.load(out).ledger
    begun, points = before.rounds(), dict(before.curves())
    assert [row.kind for row in begun] == ["search", "search"]
    assert before.meta()["options"]["trials"] == 40
    before.close()
    more = ["run", str(file), "--out", str(out), "--trials", "80", "--rounds", "4"]
    assert main(more) == 2
    assert "--force changes trials and rounds" in capsys.readouterr().err
    assert main([*more, "--force", "--steps", "4"]) == 2
    assert "steps None (now 4)" in capsys.readouterr().err
    assert main([*more[:-4], "--trials", "24", "--force"]) == 2
    assert "would leave" in capsys.readouterr().err
    with pytest.raises(MemoryError):
        vt.run(file, out=out, trials=80, rounds=4, force=True, listener=Crash(25), save_every=0)
    shutil.copytree(out, tmp_path / "copy")
    study = resume(out)  # the change is kept
    rounds = study.ledger.rounds()
    assert [row.kind for row in rounds] == ["search"] * 4 + ["confirm"]
    assert [row.trials for row in rounds[:2]] == [row.trials for row in begun]
    assert [row.space for row in rounds[:2]] == [row.space for row in begun]
    assert sum(row.trials for row in rounds) == 80 == sum(study.ledger.counts().values())
    after = dict(study.ledger.curves())
    assert all(after[trial][: len(curve)] == curve for trial, curve in points.items())
    assert study.meta["options"]["trials"] == 80
    assert [(c["trials"], c["rounds"]) for c in study.meta["changes"]] == [([40, 80], [2, 4])]
    resume(tmp_path / "copy")
    assert content(out) == content(tmp_path / "copy")


@pytest.mark.parametrize(
    ("stopping", "n", "trials", "rounds"),
    [("asha", 14, 80, 4), ("sync", 20, 64, 3), ("hyperband", 9, 80, 3), ("hyperband", 26, 64, 4)],
)
def test_they_can_be_changed_where_trials_are_stopped_early_too(file, tmp_path, stopping, n, trials, rounds):
    """Rounds flow into one another there, and trials wait for others at the rungs."""
    out, copy = tmp_path / "s", tmp_path / "copy"
    options = OPTIONS | {"stopping": stopping, "halving": "eta=2,min_steps=4", "report": False, "save_every": 0}
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Crash(n), **options)
    before = vt.load(out).ledger
    begun, points = before.rounds(), points_of(before)
    settings = {row.trial: row.params for row in before.trials()}
    before.close()
    shutil.copytree(out, copy)
    changed = {"trials": trials, "rounds": rounds, "force": True, "report": False}
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Crash(n), save_every=0, **changed)
    study, whole = resume(out, report=False), vt.run(file, out=copy, **changed)
    assert content(out) == content(copy)
    rows = study.ledger.rounds()
    assert [row.kind for row in rows[:rounds]] == ["search"] * rounds
    assert {row.kind for row in rows[rounds:]} == {"confirm"}
    assert [row.trials for row in rows[: len(begun)]] == [row.trials for row in begun]
    assert rows[0].space == begun[0].space
    after = {row.trial: row.params for row in study.trials()}
    first = [trial for trial in settings if trial < begun[0].trials]
    assert [after[trial] for trial in first] == [settings[trial] for trial in first]
    now = points_of(study.ledger)
    common = [key for key in points if key in now and key[0] in first]
    assert len(common) > len(points) / 2 > 4
    assert [now[key] for key in common] == [points[key] for key in common]
    assert not study.ledger.counts()["RUNNING"]
    assert len(after) == sum(row.trials for row in rows) <= trials
    assert whole.result["trials"] == study.result["trials"]


def points_of(ledger) -> dict:
    return {(trial, p.step): (p.loss, p.value) for trial, curve in ledger.curves() for p in curve}


def test_too_late_for_other_numbers(file, tmp_path):
    out = tmp_path / "s"

    def crash(*_) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmaptune.study._run.StudyRun._conclude", crash)  # the confirmation has been trained
        with pytest.raises(MemoryError):
            vt.run(file, out=out, **OPTIONS)
    with pytest.raises(InputError, match="trials cannot become 80: all of its rounds have begun"):
        vt.run(file, out=out, trials=80, force=True)
