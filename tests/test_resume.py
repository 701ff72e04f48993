"""A study that is killed, interrupted or damaged goes on to the same bits, or says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import COMMAND, OPTIONS, TASK, Crash, content, finished

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.engine import moments
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Job, Lanes
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.errors import InputError, StudyError
from vmaptune.store.checkpoints import Checkpoints, Snapshot
from vmaptune.store.ledger import CurvePoint, Ledger, LedgerReader, State, TrialResult, TrialRow
from vmaptune.study import resume
from vmaptune.study._groups import Groups
from vmaptune.study._resume import last_moment
from vmaptune.study._saving import Saving
from vmaptune.study._training import Training

HERE = Path(__file__).parent


# ---- lanes -----------------------------------------------------------------------------------------------


def small_program(lanes: int) -> Program:
    def init(hp, key):
        return {"x": jax.random.normal(key, (5,)), "key": key}

    def step(state, hp, key):
        x = state["x"] - hp.rate * jnp.sin(state["x"] + 0.1 * jax.random.normal(key, (5,)))
        return {"x": x, "key": state["key"]}, (x**2).mean()

    traced = {"rate": jax.ShapeDtypeStruct((), jnp.float32)}
    task = vt.Task(init, step, lambda s, hp: {"loss": (s["x"] ** 2).mean()}, has_loss=True)
    return Program(LaneFunctions(task, {}, traced), traced, Plan(devices=1, lanes=lanes, every=4))


JOBS = {i: Job(i, 100 + i, {"rate": 0.05 * (i + 1)}, 12 if i % 3 else 16, keep=True) for i in range(14)}


def trained(lanes_of, snapshot_after: int | None = None):
    """Points and states of all jobs; a rule stops some by what was seen before. Optionally through a snapshot."""
    seen: list = []
    states: dict = {}

    def on_points(points):
        stop = []
        for point in points:
            best = min((p[3] for p in seen), default=9.0)
            seen.append((point.trial, point.step, point.loss, point.metrics["loss"]))
            if point.step == 8 and point.metrics["loss"] > 30 * best:
                stop.append(point.trial)
        return stop

    def make():
        return Lanes(lanes_of(), capacity=8, on_points=on_points, on_state=lambda job, s: states.update({job.trial: s}))

    lanes = make()
    lanes.submit(JOBS.values())
    calls = 0
    while lanes.advance():
        calls += 1
        if calls == snapshot_after:
            plain, arrays = moments.take(lanes)
            lanes = make()
            moments.restore(lanes, json.loads(json.dumps(plain)), arrays, JOBS)
    return seen, {t: [leaf.tobytes() for leaf in jax.tree.leaves(s)] for t, s in sorted(states.items())}, calls


def test_lanes_go_on_from_any_moment_to_the_same_bits_and_decisions():
    program = small_program(4)
    whole, states, calls = trained(lambda: program)
    assert any(step == 8 and (trial, 12) not in {(t, s) for t, s, *_ in whole} for trial, step, *_ in whole)
    assert calls > 8
    for moment in range(1, calls + 1):
        points, again, _ = trained(lambda: program, moment)
        assert points == whole
        assert again == states


def test_lanes_of_another_width_take_the_trials_over():
    whole, *_ = trained(lambda: small_program(4))
    programs = iter([small_program(4), small_program(2)])
    again, *_ = trained(lambda: next(programs), 3)
    assert len({p[:2] for p in again}) == len(again)
    assert {p[0] for p in again if p[1] == 8} == set(JOBS)
    by_key = {p[:2]: p[3] for p in whole}  # a rule that looks at the best so far may stop others, in another order
    both = [p for p in again if p[:2] in by_key]
    assert len(both) > 40
    np.testing.assert_allclose([p[3] for p in both], [by_key[p[:2]] for p in both], rtol=1e-4)


def test_a_snapshot_that_does_not_fit_is_refused():
    lanes = Lanes(small_program(4), capacity=8, on_points=lambda points: [])
    lanes.submit(JOBS.values())
    lanes.advance()
    plain, arrays = moments.take(lanes)
    name = next(n for n, a in arrays.items() if n.startswith("chunk0") and a.ndim == 2)
    with pytest.raises(InputError, match="does not fit the experiment's model"):
        moments.restore(lanes, plain, arrays | {name: arrays[name][:, :-1]}, JOBS)


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_two_checkpoints_are_kept_and_a_damaged_one_is_stepped_over(tmp_path):
    store = Checkpoints(tmp_path)
    for seq in (5, 9, 12):
        store.save(Snapshot(seq, {"round": 0, "x": (1, 0.5)}, {"a.0": np.arange(seq), "b": np.float32([np.nan])}))
    store.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000000000009.ckpt", "000000000012.ckpt"]
    newest, before = store.newest(12, pytest.fail)
    assert (newest.seq, newest.plain, before.seq) == (12, {"round": 0, "x": (1, 0.5)}, 9)
    assert newest.arrays["a.0"].tobytes() == np.arange(12).tobytes()
    assert [s.seq for s in store.newest(11, pytest.fail)] == [9]  # the ledger does not know of the later one
    path = tmp_path / "checkpoints" / "000000000012.ckpt"
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        for bad in (bytes(damaged), whole[: draw.randrange(len(whole))]):
            path.write_bytes(bad)
            said: list[str] = []
            assert [s.seq for s in store.newest(12, said.append)] == [9]
            assert "000000000012.ckpt" in said[0]
            assert "the checkpoint before it is used" in said[0]


def test_checkpoints_stay_inside_the_study(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    victim = tmp_path / "elsewhere" / "000000000003.ckpt"
    victim.write_bytes(b"not ours")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    store = Checkpoints(tmp_path / "study")
    store.clear()
    store.save(Snapshot(7, {"round": 0}, {}))
    with pytest.raises(StudyError, match="is a link"):
        store.wait()
    store.close()
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == [victim.name]


class Time:
    """A clock that stands still but for what a call under way takes, and a save."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("call", "under_way", "apart"), [(1.0, 1, 10.0), (1.0, 6, 15.0), (25.0, 1, 25.0)])
def test_moments_lie_a_save_interval_or_a_call_apart(tmp_path, monkeypatch, call, under_way, apart):
    """Calls are dispatched ahead, so a moment waits for those under way; it is begun that much before it is due."""
    clock = Time(monkeypatch)
    saving = Saving(Checkpoints(tmp_path), every=10.0)
    monkeypatch.setattr(saving.checkpoints, "save", lambda snapshot: moments.append(clock.now))
    moments: list[float] = []
    waiting = 0
    for _ in range(200):
        waiting += 1
        if waiting > under_way:  # the oldest call is read before another one is dispatched
            clock.passes(call)
            waiting -= 1
        before = len(moments)
        saving.between_calls(lambda: Snapshot(0, {}, {}), partial(clock.passes, waiting * call))
        waiting = 0 if len(moments) > before else waiting
    between = np.diff(moments)
    assert between.max() <= apart
    assert between.mean() >= min(5.0, call)


def test_what_is_trained_is_saved_before_a_wait_for_a_program_which_can_be_stopped(file, reference, tmp_path):
    released = threading.Event()
    compile_, wait_, out, seen = Groups._compile, Groups.wait_for_any, tmp_path / "s", []

    def slowly(self, group, plain):
        if group.number:
            released.wait()
        return compile_(self, group, plain)

    def waits(self, most=None):
        saved = [s.seq for s in Checkpoints(out).newest(self.ledger.seq, pytest.fail)]
        if saved:  # the first group's trials have ended
            seen.append([self.ledger.seq, saved[0]])
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)
        return wait_(self, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Groups, "_compile", slowly)
        patch.setattr(Groups, "wait_for_any", waits)
        try:
            with pytest.raises(KeyboardInterrupt, match="everything is saved"):
                vt.run(file, out=out, save_every=1e6, **OPTIONS)
        finally:
            released.set()
    assert seen[-1][0] == seen[-1][1]  # the newest checkpoint holds all that the ledger has
    assert len(seen) == 3
    resume(out)
    assert content(out) == content(reference)


def test_a_round_that_was_begun_is_not_drawn_again(file, reference, tmp_path, monkeypatch):
    out = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(Training, "train", crash_in_round(1))
        with pytest.raises(MemoryError):
            vt.run(file, out=out, **OPTIONS)
    monkeypatch.setattr("vmaptune.search.coarse_to_fine.propose", lambda *_, **__: pytest.fail("it was drawn again"))
    resume(out)
    assert content(out) == content(reference)


def crash_in_round(number: int):
    train = Training.train

    def trained(self, *args):
        if self.counts.round == number:
            raise MemoryError
        return train(self, *args)

    return trained


# ---- the ledger ------------------------------------------------------------------------------------------


def everything(ledger: LedgerReader | Ledger) -> tuple:
    rounds = [(r.round, r.kind, r.trials, r.finished is None) for r in ledger.rounds()]
    decisions = [(d.id, d.round, d.kind, d.data) for d in ledger.decisions()]
    return ledger.trials(), list(ledger.curves()), rounds, decisions, [ledger.reports(r) for r in range(3)]


def test_the_ledger_rolls_back_to_any_moment(tmp_path):
    draw = random.Random(3)
    with Ledger.create(tmp_path / "s", {"name": "x"}) as ledger:
        moments = [(ledger.seq, everything(ledger))]
        for number in range(3):
            with ledger.transaction():
                ledger.add_round(number, "search", {}, 4)
                ledger.add_trials(
                    TrialRow(4 * number + i, number, 0, State.RUNNING, None, i, 0, None, {"a": i}) for i in range(4)
                )
            for step in (1, 2, 3):
                moments.append((ledger.seq, everything(ledger)))
                with ledger.transaction():
                    trials = draw.sample(range(4 * number, 4 * number + 4), 4)
                    ledger.add_curve_points(CurvePoint(t, step, 0.5, draw.random()) for t in trials)
                    if step == 3:
                        ledger.finish_trials(TrialResult(t, State.COMPLETE, None, 3, draw.random()) for t in trials)
            ledger.add_decision(number, "zoom", {"n": number})
            ledger.finish_round(number)
        moments.append((ledger.seq, everything(ledger)))
        for seq, then in reversed(moments):
            ledger.roll_back(seq)
            assert everything(ledger) == then
            LedgerReader.open(tmp_path / "s").close()  # the tally is right
        assert ledger.trials() == []


def test_points_are_reported_in_the_order_in_which_they_came(tmp_path):
    with Ledger.create(tmp_path / "s", {}) as ledger:
        ledger.add_trials(TrialRow(i, 0, 0, State.RUNNING, None, i, 0, None, {}) for i in range(3))
        order = [(2, 1), (0, 1), (1, 1), (2, 2), (0, 2)]
        for trial, step in order:
            ledger.add_curve_points([CurvePoint(trial, step, None, 0.0)])
        assert [(p.trial, p.step) for p in ledger.reports(0)] == order


def test_a_study_of_the_first_schema_loads_and_can_be_written(tmp_path):
    old = HERE / "studies" / "schema1"
    with sqlite3.connect(f"file:{old / 'study.db'}?mode=ro", uri=True) as plain:
        assert plain.execute("PRAGMA user_version").fetchone() == (1,)
        trials = plain.execute("SELECT trial, state, seed, value FROM trials ORDER BY trial").fetchall()
        points = plain.execute("SELECT trial, step, loss, value FROM curves ORDER BY trial, step").fetchall()
    plain.close()
    before = (old / "study.db").read_bytes()
    study = vt.load(old)
    assert [(t.trial, t.state, t.seed, t.value) for t in study.trials()] == trials
    read = [(p.trial, p.step, p.value) for _, curve in study.ledger.curves() for p in curve]
    assert read == [(trial, step, value) for trial, step, _, value in points]
    assert study.ledger.finished()
    assert study.best["repeats"] == 2
    assert (old / "study.db").read_bytes() == before
    shutil.copytree(old, tmp_path / "s")
    with Ledger.open(tmp_path / "s") as ledger:
        assert everything(ledger) == everything(study.ledger)
        ledger.roll_back(ledger.rounds()[-1].seq - 1)
        assert {t.round for t in ledger.trials()} == {0, 1}
    study.close()


def test_a_number_is_never_silently_another(reference, tmp_path):
    """Flipped bits and cuts of study.db: the same content, or a named error."""
    whole = (reference / "study.db").read_bytes()
    place = tmp_path / "s"
    shutil.copytree(reference, place)
    draw = random.Random(1)
    with LedgerReader.open(reference) as reader:
        true = (everything(reader), reader.meta(), reader.groups(), reader.counts())
    errors = 0
    for i in range(80):
        if i % 4:
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        else:
            damaged = whole[: draw.randrange(len(whole))]
        (place / "study.db").write_bytes(damaged)
        try:
            with LedgerReader.open(place) as reader:
                found = (everything(reader), reader.meta(), reader.groups(), reader.counts())
            assert repr(found) == repr(true)
        except StudyError:
            errors += 1
    assert errors > 30


def test_pages_of_two_moments_are_told(tmp_path):
    """A log that was cut below what was copied out of it leaves newer pages beside older ones: the tally tells."""
    with Ledger.create(tmp_path / "s", {}) as ledger:
        ledger.add_trials(TrialRow(i, 0, 0, State.RUNNING, None, i, 0, None, {}) for i in range(3))
        (tally,) = ledger._rows("tally")
        ledger.finish_trials([TrialResult(1, State.COMPLETE, None, 3, 0.5)])
        ledger._put("tally", [tally], replace=True)  # as it was before: the same numbers of rows
    with pytest.raises(StudyError, match="its table trials has rows from after its last transaction"):
        LedgerReader.open(tmp_path / "s")


# ---- whole studies ---------------------------------------------------------------------------------------


def test_crashes_at_any_moment_change_no_bit(file, reference, tmp_path):
    out = tmp_path / "s"
    crashes = 0
    for n in (3, 11, 25, 40):
        try:
            vt.run(file, out=out, listener=Crash(n), save_every=0, **OPTIONS)
            break
        except MemoryError:
            crashes += 1
            assert vt.load(out).meta["state"] == "failed"
    vt.run(file, out=out, save_every=0)
    assert crashes >= 3
    assert content(out) == content(reference)
    assert not (out / "checkpoints").exists()


def test_without_any_checkpoint_the_round_begins_again_with_the_same_bits(file, reference, tmp_path):
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Crash(60), save_every=0, **OPTIONS)
    shutil.rmtree(out / "checkpoints")
    resume(out)
    assert content(out) == content(reference)


def test_the_copy_goes_on_when_the_file_is_gone_and_says_so(file, reference, tmp_path, capsys):
    moved = tmp_path / "task.py"
    shutil.copy(file, moved)
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(moved, out=out, listener=Crash(30), save_every=0, **OPTIONS)
    moved.unlink()
    assert main(["resume", str(out), "--quiet"]) == 0
    assert f"runs the code of {out / 'experiment.py'}, the study's own copy" in capsys.readouterr().err
    assert content(out) == content(reference)


def test_a_changed_experiment_is_refused_with_the_difference(file, tmp_path, capsys):
    changed = tmp_path / "task.py"
    shutil.copy(file, changed)
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(changed, out=out, listener=Crash(8), save_every=0, **OPTIONS)
    proof = tmp_path / "ran"
    changed.write_text(f"open({str(proof)!r}, 'w')\n" + TASK.replace("0.1 *", "0.2 *"))
    assert main(["resume", str(out)]) == 2
    said = capsys.readouterr().err
    assert "the experiment has changed" in said
    assert "+    x = state" in said
    assert "--force" in said
    assert not proof.exists()  # refused before it ran
    assert main(["run", str(changed), "--out", str(out), *COMMAND]) == 2
    assert main(["resume", str(out), "--force", "--quiet"]) == 0
    assert "CHANGED since the study began" in capsys.readouterr().err
    assert vt.load(out).ledger.counts()["RUNNING"] == 0


def test_other_options_are_refused_and_fresh_begins_another(file, reference, tmp_path, capsys):
    out = tmp_path / "s"
    with pytest.raises(MemoryError):
        vt.run(file, out=out, listener=Crash(8), **OPTIONS)
    assert main(["run", str(file), "--out", str(out), "--trials", "64"]) == 2
    assert "trials 40 (now 64)" in capsys.readouterr().err
    assert main(["run", str(file), "--out", str(out), "--set", "width=3"]) == 2
    assert "the space" in capsys.readouterr().err
    assert main(["run", str(file), "--fresh", str(out)]) == 2
    assert main(["run", str(file), "--out", str(tmp_path / "none"), "--resume"]) == 2
    assert main(["resume", str(reference)]) == 2
    assert "finished" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "none")]) == 2
    assert main(["run", str(file), "--out", str(out), "--resume", "--save-every", "-1"]) == 2


def test_a_killed_study_is_the_same_to_the_bit(file, reference, tmp_path):
    """SIGKILL, several times, through the real command."""
    sys.path.insert(0, str(HERE.parent / "benchmarks" / "reliability"))
    try:
        from _processes import Command
    finally:
        sys.path.pop(0)
    out = tmp_path / "s"
    draw = random.Random(5)
    kills = 0
    with Command(tmp_path / "cache") as command:
        arguments = ["run", str(file), "--out", str(out), "--save-every", "0", *COMMAND]
        for name in ("first", "second"):  # the second finds its programs compiled
            whole = command.run(["run", str(file), "--out", str(tmp_path / name), *COMMAND])
            assert whole.code == 0, whole.errors
        seconds = whole.seconds
        for _ in range(6):
            ended = command.run(arguments, kill_after=draw.uniform(0.3, 1.0) * seconds)
            kills += ended.code is None
            if finished(out):  # the last kill may fall behind the end
                if kills:
                    break
                shutil.rmtree(out)  # the machine has become faster
                seconds /= 2
        if not finished(out):
            ended = command.run(arguments)
            assert ended.code == 0, ended.errors
    assert kills >= 1
    assert content(out) == content(reference)


def test_a_second_process_is_told_who_writes(file, tmp_path):
    code = "import sys\nfrom vmaptune.store.ledger import Ledger\n"
    code += "ledger = Ledger.create(sys.argv[1], {})\nprint('ready', flush=True)\nsys.stdin.read()"
    out = tmp_path / "s"
    other = subprocess.Popen(
        [sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match=rf"written by another run \(process {other.pid} on .*, since 20"):
            vt.run(file, out=out, **OPTIONS)
    finally:
        other.kill()
        other.communicate()
    study = vt.run(file, out=out, trials=8, rounds=1)  # its lock is taken over, and it had trained nothing
    assert study.ledger.counts()["COMPLETE"] > 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_study_without_confirmation_is_gone_on_with_in_its_second_round(file, tmp_path, n):
    """What the round before kept is in a checkpoint of its end, which is not the end of this round."""

    class CrashInRound(Crash):
        def progress(self, progress):
            if progress.round == 1 and progress.phase == "search":
                super().progress(progress)

    options = OPTIONS | {"trials": 8, "report": False}
    vt.run(file, out=tmp_path / "whole", **options)
    with pytest.raises(MemoryError):
        vt.run(file, out=tmp_path / "s", listener=CrashInRound(n), save_every=60, **options)
    study = resume(tmp_path / "s", report=False)
    assert not study.ledger.counts()["RUNNING"]
    assert content(tmp_path / "s") == content(tmp_path / "whole")


def test_the_moment_to_go_on_from():
    from vmaptune.store.rows import RoundRow

    def row(number, finished, kind="search"):
        return RoundRow(number, kind, {}, 1, 0.0, 1.0 if finished else None, {}, 100 * number + 1)

    def snap(seq, number, ended=False):
        return Snapshot(seq, {"round": number, "ended": ended}, {})

    def moment(rounds, *snapshots, keeps=False):
        found = last_moment(rounds, snapshots, keeps_states=keeps)
        return found.seq, found.snapshot.seq if found.snapshot else None

    assert moment([row(0, False)]) == (2, None)  # the round and its trial are written
    assert moment([row(0, True), row(1, False)], snap(90, 0)) == (102, None)
    assert moment([row(0, True), row(1, False)], snap(150, 1), snap(130, 1)) == (150, 150)
    assert moment([row(0, True)], snap(90, 0))[1] is None
    assert moment([row(0, True)], snap(90, 0))[0] > 10**9  # all of it
    assert moment([row(0, True), row(1, True, "confirm")]) == (102, None)  # the repeats' states are gone
    assert moment([row(0, True), row(1, True, "confirm")], snap(190, 1, True)) == (190, 190)
    waves = [row(0, True), row(1, True, "confirm"), row(2, False, "confirm")]
    assert moment(waves, snap(250, 2), snap(190, 1, True)) == (250, 250)
    assert moment(waves, snap(190, 1, True)) == (202, 190)
    assert moment(waves, snap(150, 1)) == (102, None)  # the states of the first repeats are gone
    assert moment([row(0, True), row(1, False)], snap(90, 0, True), keeps=True) == (102, 90)
    assert moment([row(0, True), row(1, False)], snap(90, 0), keeps=True) == (2, None)


@pytest.mark.parametrize(
    "more",
    [
        {"stopping": "asha", "halving": "eta=2,min_steps=4"},
        {"stopping": "sync", "halving": "eta=2,min_steps=4"},
        {"stopping": "hyperband", "halving": "eta=2,min_steps=4"},
        {"stopping": "patience=2"},
        {"repeats": 2},
        {"method": "pbt", "trials": 12},
    ],
    ids=["stopped early", "brackets", "hyperband", "patience", "repeats", "population"],
)
def test_other_ways_to_search_go_on_to_the_same_bits_too(file, tmp_path, more):
    options = OPTIONS | more
    vt.run(file, out=tmp_path / "whole", **options)
    out = tmp_path / "s"
    crashes = 0
    for n in (9, 26):
        try:
            vt.run(file, out=out, listener=Crash(n), save_every=0, **options)
        except MemoryError:
            crashes += 1
    assert crashes
    resume(out)
    assert content(out) == content(tmp_path / "whole")
