"""Where a running study stands, and who is told."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vmaptune.engine.lanes import Lanes
from vmaptune.space import Space

BEAT = 1.0  # seconds
GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal


@dataclass(frozen=True)
class Progress:
    """Where a running study stands; what a live view shows."""

    round: int
    rounds: int
    phase: str  # "compile", "search", "confirm"
    done: int  # trials finished, of all rounds
    trials: int
    model_steps: int
    total_steps: int
    seconds: float
    best: float | None
    infeasible: int
    name: str = ""
    directory: str = ""
    objective: str = "objective"
    direction: str = "minimize"
    best_params: Mapping[str, Any] | None = None
    stopped: int = 0
    steps_seen: int = 0  # model-steps, those of trials that still train among them
    alive: int = 0  # trials in lanes
    waiting: int = 0  # trials of this round that wait for a lane
    refilled: int = 0  # times that a lane took in another trial
    rungs: Sequence[tuple[int, int]] = ()  # with early stopping: (steps, trials of this round that came so far)
    bound: float | None = None  # model-steps a second that the machine's arithmetic alone allows, where known
    until: float | None = None  # the seconds that the study was given, where it was given some
    space: Space | None = None  # the first round's


class Listener(Protocol):
    """What watches a study run; called on the host between segments. Where it writes to a terminal or a pipe that is
    gone, that is the end of its watching; any other error of it ends the study."""

    def progress(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A listener that says nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Heard:
    """A listener that may go away: a terminal that was closed, a pipe that nobody reads. It is told nothing
    more then, and the study goes on."""

    def __init__(self, listener: Listener):
        self._listener, self._gone = listener, False

    def progress(self, progress: Progress) -> None:
        """Passes it on."""
        self._pass_on(self._listener.progress, progress)

    def note(self, text: str) -> None:
        """Passes it on."""
        self._pass_on(self._listener.note, text)

    def say(self, text: str) -> None:
        """Passes it on, as a note where the listener knows nothing else."""
        self._pass_on(getattr(self._listener, "say", self._listener.note), text)

    def close(self) -> None:
        """Passes it on where the listener wants to know."""
        self._pass_on(getattr(self._listener, "close", lambda: None))

    def _pass_on(self, method: Callable[..., None], *what: Any) -> None:
        if self._gone:
            return
        try:
            method(*what)
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._gone = True


def heard(listener: Listener | None) -> Listener:
    """The listener, so that a study does not depend on its being there; a silent one for None."""
    return listener if isinstance(listener, (Silent, Heard)) else Heard(listener) if listener else Silent()


@dataclass
class Counts:
    """What a running study counts. Nothing is decided from it."""

    rounds: int
    trials: int  # planned
    sign: float  # times a value is to be minimised
    listener: Listener
    clock: Callable[[], float] = time.perf_counter
    started: float = field(default_factory=time.perf_counter)  # by the clock
    round: int = 0
    phase: str = "compile"
    name: str = ""
    directory: str = ""
    objective: str = "objective"
    space: Space | None = None
    lanes: Sequence[Any] = ()  # of the groups that train now
    submitted: int = 0  # trials that have begun, or wait for a lane
    done: int = 0  # trials that have ended
    infeasible: int = 0
    stopped: int = 0  # early
    lane_steps: int = 0  # of all lanes, idle ones too
    live_steps: int = 0  # of these, on trials that were going well
    steps_seen: int = 0
    refilled: int = 0  # of the rounds before
    moved: int = 0  # trials that moved into another call, so that fewer calls hold what is left
    rungs: Sequence[tuple[int, int]] = ()
    bound: float | None = None
    until: float | None = None
    best_params: Mapping[str, Any] | None = None
    best: float = math.inf  # of all values seen, to be minimised
    model_steps: int = 0
    total_steps: int = 0
    compilations: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "evaluate": 0.0})
    warnings: list[str] = field(default_factory=list)
    last_beat: float = 0.0

    def warn(self, text: str) -> None:
        """Keeps a warning for the result, and says it now."""
        self.warnings.append(text)
        self.listener.note(text)

    def count_lanes(self, lanes: Lanes) -> None:
        """Adds what a group's lanes did."""
        self.lane_steps += lanes.lane_steps
        self.live_steps += lanes.live_steps
        self.refilled += lanes.refilled
        self.moved += lanes.moves

    def lane_summary(self) -> dict[str, Any]:
        """What the lanes have done so far, as it stands in the ledger."""
        return {"lane_steps": self.lane_steps, "live_steps": self.live_steps, "occupancy": self.occupancy,
                "refilled": self.refilled, "moved": self.moved, "stopped": self.stopped}  # fmt: skip

    @property
    def occupancy(self) -> float | None:
        """The share of lane-steps spent on live trials, so far."""
        return self.live_steps / self.lane_steps if self.lane_steps else None

    def total_seconds(self) -> float:
        """Seconds since the study began."""
        return self.clock() - self.started

    def seconds_left(self) -> float:
        """How long the study will go on, at its speed so far, compilation included."""
        left = max(0, self.total_steps - self.steps_seen)
        return self.total_seconds() * left / self.steps_seen if self.steps_seen else math.inf

    def progress(self) -> Progress:
        """Where the study stands now."""
        waiting = sum(lanes.waiting for lanes in self.lanes)
        return Progress(
            round=self.round,
            rounds=self.rounds,
            phase=self.phase,
            done=self.done,
            trials=self.trials,
            model_steps=self.model_steps,
            total_steps=self.total_steps,
            seconds=self.total_seconds(),
            best=self.sign * self.best if math.isfinite(self.best) else None,
            infeasible=self.infeasible,
            name=self.name,
            directory=self.directory,
            objective=self.objective,
            direction="minimize" if self.sign > 0 else "maximize",
            best_params=self.best_params,
            stopped=self.stopped,
            steps_seen=self.steps_seen,
            alive=max(0, self.submitted - self.done - waiting),
            waiting=waiting,
            refilled=self.refilled + sum(lanes.refilled for lanes in self.lanes),
            rungs=self.rungs,
            bound=self.bound,
            until=self.until,
            space=self.space,
        )

    def tell(self) -> None:
        """Tells the listener."""
        self.listener.progress(self.progress())

    def heartbeat(self) -> dict[str, Any] | None:
        """What the ledger keeps of this for a view from outside, once a second; None in between."""
        now = time.time()
        if now - self.last_beat < BEAT:
            return None
        self.last_beat = now
        p = self.progress()
        said = (
            "phase",
            "seconds",
            "steps_seen",
            "total_steps",
            "alive",
            "waiting",
            "refilled",
            "rungs",
            "bound",
            "until",
        )
        return {"time": now, **{name: getattr(p, name) for name in said}}
