"""Where a running study stands, and who is told."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Protocol


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


class Listener(Protocol):
    """What watches a study run; called on the host between segments."""

    def progress(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A listener that says nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass
class Counts:
    """What a running study counts. Nothing is decided from it."""

    rounds: int
    trials: int  # planned
    sign: float  # times a value is to be minimised
    listener: Listener
    started: float = field(default_factory=time.perf_counter)
    round: int = 0
    phase: str = "compile"
    done: int = 0  # trials that have ended
    infeasible: int = 0
    best: float = math.inf  # of all values seen, to be minimised
    model_steps: int = 0
    total_steps: int = 0
    compilations: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"compile": 0.0, "train": 0.0, "evaluate": 0.0})
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Keeps a warning for the result, and says it now."""
        self.warnings.append(text)
        self.listener.note(text)

    def total_seconds(self) -> float:
        """Seconds since the study began."""
        return time.perf_counter() - self.started

    def tell(self) -> None:
        """Tells the listener."""
        self.listener.progress(
            Progress(
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
            )
        )
