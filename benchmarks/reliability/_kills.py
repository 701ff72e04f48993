"""SIGKILL at random moments, several times in one study, until it finishes; then every bit is compared.

A fifth of the kills fall anywhere into a process's start (imports, tracing, reading the ledger, taking rows back);
the others into its training, and half of those wait for the next save to begin. Every other study saves whenever it
can. Of ten studies one is with Hyperband's brackets, one with asynchronous halving, and one with each of Optuna's TPE,
Gaussian process and CMA-ES.

What a kill costs is counted from the moment that a resume goes on from: the newest checkpoint, or a later beginning or
end of a round, or the kill itself where the newest checkpoint holds all that was trained (a wait for a program).
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

from _report import row
from _studies import KINDS, Bench, digest, fresh, is_finished, run

from vmaptune.engine.moments import trials_of
from vmaptune.errors import StudyError
from vmaptune.store.checkpoints import Checkpoints
from vmaptune.store.ledger import LedgerReader, State

SAVE_EVERY = ("0", "0.5")  # of every other study
IN_TRAINING = {"0": 0.4, "0.5": 1.0}  # seconds of training after which a process has been killed at the latest
# by the last digit of the study's number
OTHER_KINDS = {1: "hyperband", 3: "optuna:cmaes", 4: "optuna:tpe", 7: "asha", 9: "optuna:gp"}


class Clock:
    """Tells how long this machine, or this process, was not running at all: a wait that came back late."""

    def __init__(self) -> None:
        self.gaps: list[tuple[float, float]] = []

    def sleep(self, seconds: float) -> None:
        before = time.time()
        time.sleep(seconds)
        if time.time() - before > seconds + 0.3:
            self.gaps.append((before + seconds, time.time()))

    def between(self, start: float, end: float) -> float:
        """Seconds from start to end in which the machine ran."""
        return end - start - sum(max(0.0, min(end, b) - max(start, a)) for a, b in self.gaps)


def kills(bench: Bench, wanted: int) -> None:
    """Kills studies until `wanted` kills have been counted."""
    tally = bench.tally("kills")
    while tally["kills"] < wanted and not bench.over:
        number = tally["studies"]
        kind = OTHER_KINDS.get(number % 10, "plain")
        reference = bench.reference_of(kind)
        with LedgerReader.open(reference) as reader:
            expected = [t.trial for t in reader.trials()]
        draw = random.Random(f"kills {number}")
        study = fresh(bench.place / "killed")
        every = SAVE_EVERY[number % 2]
        counts = tally | {}
        errors, lost = [], []
        while True:
            pid, started = bench.command.start(run(study, *KINDS[kind], "--save-every", every))
            clock = Clock()
            if draw.random() < 0.2:
                limit, in_training = draw.uniform(0.1, 1.1) * tally.get("start", 4.0), 0.0
            else:
                limit, in_training = 600.0, draw.uniform(0.0, IN_TRAINING[every])
            before, begun = newest(study), time.time()
            while time.time() - begun < limit and newest(study) in (before, None) and alive(pid):
                clock.sleep(0.005)
            if limit == 600.0 and alive(pid):
                tally["start"] = clock.between(begun, time.time())
            until = time.time() + in_training
            while time.time() < until and alive(pid):
                clock.sleep(0.005)
            if limit == 600.0 and draw.random() < 0.5:  # within a save: while its file has its first name
                until, delay = time.time() + 2, draw.uniform(0, 0.004)
                while time.time() < until and alive(pid) and not any((study / "checkpoints").glob(f".*.{pid}.part")):
                    time.sleep(0.0005)
                time.sleep(delay)
            bench.command.kill(pid)
            now = time.time()
            ended = bench.command.end(started)
            if ended.code is not None:  # it came to its end, or failed
                if ended.code != 0:
                    errors.append(ended.errors[-400:])
                break
            counts["kills"] = counts.get("kills", 0) + 1
            counts[f"kills of {kind}"] = counts.get(f"kills of {kind}", 0) + 1
            counts["in_start"] = counts.get("in_start", 0) + (newest(study) == before)
            in_save = any((study / "checkpoints").glob(f".*.{pid}.part"))
            counts["in_save"] = counts.get("in_save", 0) + in_save
            try:
                if is_finished(study):
                    break
                if every != "0" and limit == 600.0:
                    lost.append(clock.between(min(now, saved_at(study, now)), now))
            except StudyError as error:
                errors.append(f"after a kill: {error}"[:400])
                break
        tally.update(counts)
        tally.add(studies=1)
        if errors:
            tally.note("errors", errors)
        else:
            with LedgerReader.open(study) as reader:
                ids = [t.trial for t in reader.trials()]
                running = reader.counts()[State.RUNNING]
            tally.add(
                lost=len(set(expected) - set(ids)), twice=len(ids) - len(set(ids)), running=running,
                same=digest(study) == digest(reference),
                left_over=any(study.rglob("*.part")) or (study / "checkpoints").exists(),
            )  # fmt: skip
        tally["seconds_lost"] = tally.get("seconds_lost", []) + lost
        tally.keep()
        print(f"kills {tally['kills']} ({tally['in_save']} in a save, {tally['in_start']} in a start), "
              f"{tally['same']} of {tally['studies']} the same", flush=True)  # fmt: skip


def newest(study: Path) -> str | None:
    """The newest checkpoint's name."""
    return max((p.name for p in (study / "checkpoints").glob("*.ckpt")), default=None)


def alive(pid: int) -> bool:
    """Whether a child of another process still runs; one that has ended is a zombie until it is reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def saved_at(study: Path, now: float) -> float:
    """When the moment was that a resume goes on from."""
    with LedgerReader.open(study) as reader:
        seq, rounds = reader._rows("tally")[0][1], reader.rounds()
    found = Checkpoints(study).newest(seq, lambda text: None)
    if found and found[0].seq == seq and not any(trials_of(lanes) for _, lanes in found[0].plain["lanes"]):
        return now
    ends = [r.finished for r in rounds if r.finished is not None]
    return max([s.plain["time"] for s in found] + [r.started for r in rounds] + ends)


def rows(bench: Bench, wanted: int) -> list[dict]:
    found = bench.tally("kills")
    if not found:
        return []
    studies, times = found["studies"], found.get("seconds_lost", [])
    limit = float(SAVE_EVERY[1])
    return [
        row(f"SIGKILLs at random moments, of {wanted}", found["kills"], f"{wanted}", found["kills"] >= wanted,
            within_a_save=found["in_save"], before_training=found["in_start"], studies=studies,
            of_kind={kind: found[f"kills of {kind}"] for kind in KINDS}),
        row(f"killed studies with identical table, curves and weights, of {studies}", found["same"], "all",
            found["same"] == studies > 0, errors=found.get("errors", [])[:3]),
        row("trials lost", found["lost"], "0", found["lost"] == 0),
        row("trials twice", found["twice"], "0", found["twice"] == 0),
        row("trials left running", found["running"], "0", found["running"] == 0),
        row("studies with a left-over file", found["left_over"], "0", found["left_over"] == 0),
        *([row(f"seconds of work lost by a kill with --save-every {limit}, at most, of {len(times)}", max(times),
               f"at most {limit} and a call and a save: 1", max(times) <= 1,
               median=statistics.median(times))] if times else []),
    ]  # fmt: skip
