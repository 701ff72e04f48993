"""A study at one moment, as every live view shows it: made from what the study says, or from its ledger."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmaptune.space import Space
from vmaptune.store.ledger import LedgerReader
from vmaptune.store.live import best_trials, heartbeat, latest_points, values_of
from vmaptune.store.states import State

CURVES = 5  # of the best trials


@dataclass(frozen=True)
class Curve:
    """One trial's objective over training."""

    trial: int
    values: tuple[float | None, ...]
    params: Mapping[str, Any]
    running: bool
    winner: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Where a study stands. What is not known is None, and is not shown."""

    name: str = ""
    directory: str = ""
    objective: str = "objective"
    direction: str = "minimize"
    state: str = "running"  # as the ledger's meta has it
    phase: str = "compile"  # "compile", "search", "confirm"
    round: int = 0
    rounds: int = 1
    rungs: Sequence[tuple[int, int]] = ()  # under early stopping: (steps, the trials of this round that came so far)
    done: int = 0
    trials: int = 0
    alive: int | None = None  # trials in lanes
    waiting: int | None = None  # trials of this round that wait for a lane
    complete: int | None = None
    stopped: int = 0
    infeasible: int = 0
    refilled: int | None = None  # lanes that took in another trial
    model_steps: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    rate: float | None = None  # model-steps a second
    bound: float | None = None  # the same, as the machine's arithmetic alone would allow
    best: float | None = None
    best_params: Mapping[str, Any] = field(default_factory=dict)
    space: Space | None = None
    winner: Mapping[str, Any] | None = None  # of a finished study: the result's `best`
    curves: tuple[Curve, ...] = ()
    silent: float | None = None  # seconds since the study last wrote; for a view from outside
    until: float | None = None  # seconds that the study may take in all, where it was given a time

    @property
    def left(self) -> float | None:
        """Seconds to go: of the time that was given, or at this rate."""
        if self.until is not None and self.state == "running":
            return max(0.0, self.until - self.seconds)
        if not self.rate or self.total_steps <= 0 or self.state != "running":
            return None
        return max(0, self.total_steps - self.model_steps) / self.rate


@dataclass(frozen=True)
class Looked:
    """The slow part of a look into a ledger: what needs more than a row or two."""

    counts: Mapping[State, int]
    best: float | None
    best_params: Mapping[str, Any]
    curves: tuple[Curve, ...]


def look(reader: LedgerReader, direction: str, winner: int | None = None) -> Looked:
    """Counts and the best curves, those of trials that still train among them; that of the trial `winner` first."""
    sign = 1.0 if direction == "minimize" else -1.0
    with reader.snapshot():
        counts = reader.counts()
        done = best_trials(reader, CURVES, direction)
        running = [p for p in latest_points(reader) if p.value is not None]
        shown = [(sign * row.value, row.trial, row, False) for row in done if row.value is not None]
        ahead = sorted((sign * p.value, p.trial) for p in running if p.value is not None and math.isfinite(p.value))
        shown += [(value, trial, reader.trial(trial), True) for value, trial in ahead[:CURVES]]
        if winner is not None and winner not in [one[1] for one in shown]:
            shown.append((-math.inf, winner, reader.trial(winner), False))
        chosen = sorted(shown, key=lambda one: (one[1] != winner, *one[:2]))[:CURVES]
        values = values_of(reader, [trial for _, trial, _, _ in chosen])
    return Looked(
        counts=counts,
        best=done[0].value if done else None,
        best_params=done[0].params if done else {},
        curves=tuple(
            Curve(trial, tuple(values[trial]), row.params, alive, trial == winner) for _, trial, row, alive in chosen
        ),
    )


class Rate:
    """Model-steps a second over the last while, from the moments at which they were counted."""

    WINDOW = 15.0  # seconds

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []
        self._now: float | None = None
        self._worked = 0.0  # seconds in which nothing compiled
        self._compiling = False

    def update(self, now: float, steps: int, compiling: bool = False) -> float | None:
        """Takes in a count, and gives the rate; None until there are two different ones. The time from a count that
        came while programs compile to the next one is left out."""
        if self._now is not None and not self._compiling:
            self._worked += now - self._now
        self._now, self._compiling = now, compiling
        now = self._worked
        if not self._seen or steps != self._seen[-1][1]:
            self._seen.append((now, steps))
        while len(self._seen) > 2 and now - self._seen[1][0] > self.WINDOW:
            self._seen.pop(0)
        (first, before), (_, after) = self._seen[0], self._seen[-1]
        return (after - before) / (now - first) if after > before and now > first else None


def from_ledger(reader: LedgerReader, rate: Rate | None = None) -> Snapshot:
    """The whole picture from the ledger alone, for a view from another terminal that keeps `rate`."""
    meta = reader.meta()
    direction = meta.get("direction", "minimize")
    said = heartbeat(reader)
    rounds = reader.rounds()
    last = rounds[-1] if rounds else None
    winner = (meta.get("result") or {}).get("best")
    looked = look(reader, direction, winner["trial"] if winner else None)
    options = meta.get("options", {})
    counts = looked.counts
    ended = sum(count for state, count in counts.items() if state.ended)
    now = time.time()
    written = said.get("time")
    state = meta.get("state", "running")
    seconds = said.get("seconds", 0.0)
    if state == "running":
        seconds = seconds + now - written if written else now - meta.get("created", now)
    if state != "running" and meta.get("result"):
        seconds = meta["result"]["seconds"]["total"]
    steps = 0
    if state != "running":
        steps = meta["result"]["model_steps"] if meta.get("result") else 0
    return Snapshot(
        name=meta.get("name", ""),
        directory=str(reader.directory),
        objective=meta.get("objective", "objective"),
        direction=direction,
        state=state,
        phase=said.get("phase") or (last.kind if last else "compile"),
        round=last.round if last else 0,
        rounds=options.get("rounds", 1),
        rungs=tuple((steps, count) for steps, count in said.get("rungs") or ()),
        done=ended,
        trials=options.get("trials", last.trials if last else 0),
        alive=said.get("alive", max(0, counts[State.RUNNING] - said.get("waiting", 0))) if state == "running" else None,
        waiting=said.get("waiting"),
        complete=counts[State.COMPLETE],
        stopped=counts[State.STOPPED],
        infeasible=counts[State.INFEASIBLE],
        refilled=said.get("refilled"),
        model_steps=max(said.get("steps_seen", 0), steps),
        total_steps=said.get("total_steps", 0),
        seconds=seconds,
        rate=rate.update(written, said["steps_seen"]) if rate and written and state == "running" else None,
        bound=said.get("bound"),
        until=said.get("until"),
        best=looked.best,
        best_params=looked.best_params,
        space=Space.from_json(meta["space"]) if meta.get("space") else None,
        winner=winner,
        curves=looked.curves,
        silent=now - written if written and state == "running" else None,
    )


def from_progress(p: Any, rate: float | None = None, looked: Looked | None = None) -> Snapshot:
    """What a running study says of itself, with the last look into its ledger."""
    return Snapshot(
        name=p.name,
        directory=p.directory,
        objective=p.objective,
        direction=p.direction,
        phase=p.phase,
        round=p.round,
        rounds=p.rounds,
        rungs=p.rungs,
        done=p.done,
        trials=p.trials,
        alive=p.alive,
        waiting=p.waiting,
        complete=p.done - p.infeasible - p.stopped,
        stopped=p.stopped,
        infeasible=p.infeasible,
        refilled=p.refilled,
        model_steps=p.steps_seen or p.model_steps,
        total_steps=p.total_steps,
        seconds=p.seconds,
        rate=rate,
        bound=p.bound,
        until=p.until,
        best=p.best,
        best_params=p.best_params or {},
        space=p.space,
        curves=looked.curves if looked else (),
    )
