"""The records that go into the ledger and come out of it. One class a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vmaptune.store.states import State


@dataclass(frozen=True)
class TrialRow:
    """One trial: a sample of the hyperparameters with one seed."""

    trial: int
    round: int
    group: int
    state: State
    reason: str | None  # why it ended so; None while RUNNING, and after all of its steps
    seed: int
    steps: int  # training steps taken
    value: float | None  # the objective; None before the end
    params: Mapping[str, Any]  # in the space's order
    of: int | None = None  # the trial that this one re-trains
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended: what `Ledger.finish_trials` writes into its row."""

    trial: int
    state: State
    reason: str | None
    steps: int
    value: float | None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CurvePoint:
    """What one trial showed after `step` training steps."""

    trial: int
    step: int
    loss: float | None
    value: float | None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRow:
    """One batch of trials drawn from one space."""

    round: int
    kind: str  # "search" or "confirm"
    space: Any
    trials: int  # how many were planned
    started: float  # seconds since the epoch
    finished: float | None
    info: Any
    seq: int = 0  # when it began, in the ledger's own order


@dataclass(frozen=True)
class GroupRow:
    """The trials that share all static hyperparameters, and the plan by which they run."""

    group: int
    static: Any
    plan: Any
    compile_seconds: float | None
    info: Any


@dataclass(frozen=True)
class DecisionRow:
    id: int
    round: int | None
    kind: str
    data: Any
    time: float  # seconds since the epoch


@dataclass(frozen=True)
class Progress:
    """How far a study is, in one consistent look."""

    finished: bool  # the whole study
    rounds: int  # begun
    rounds_finished: int
    round: int | None  # the last one begun; None before the first
    kind: str | None  # of that round
    trials: int  # planned in that round
    ended: int  # of these
    steps: int  # training steps recorded, over all trials of all rounds
    counts: Mapping[State, int]  # over all rounds
    started: float | None  # the first round, seconds since the epoch
