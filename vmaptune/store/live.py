"""What a view of a running study asks for, again and again: few rows, and none of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmaptune.store.reader import Reading
from vmaptune.store.rows import TrialRow
from vmaptune.store.states import State

HEARTBEAT = "live"  # the meta key under which a running study says how its lanes stand


@dataclass(frozen=True)
class LatestPoint:
    """The last that a trial which still trains has shown."""

    trial: int
    step: int
    value: float | None


def best_trials(reader: Reading, count: int, direction: str) -> list[TrialRow]:
    """The `count` best complete trials, ties by id. Words (nan, inf) are no REAL, so they are left out."""
    order = "ASC" if direction == "minimize" else "DESC"
    found = reader._query(
        f"SELECT trial FROM trials WHERE state = ? AND typeof(value) = 'real' ORDER BY value {order}, trial LIMIT ?",
        str(State.COMPLETE),
        count,
    )
    return [reader.trial(trial) for (trial,) in found]


def latest_points(reader: Reading) -> list[LatestPoint]:
    """The last point of every trial that is running and has one."""
    found = reader._query(
        "SELECT c.trial, max(c.step), c.value FROM trials t JOIN curves c ON c.trial = t.trial "
        "WHERE t.state = ? GROUP BY c.trial",
        str(State.RUNNING),
    )
    return [LatestPoint(trial, step, reader._float(value)) for trial, step, value in found]


def values_of(reader: Reading, trials: Sequence[int]) -> dict[int, list[float | None]]:
    """The curves of a few trials: the objective at the end of each segment."""
    return {
        trial: [
            reader._float(value)
            for (value,) in reader._query("SELECT value FROM curves WHERE trial = ? ORDER BY step", trial)
        ]
        for trial in trials
    }


def heartbeat(reader: Reading) -> dict[str, Any]:
    """What the running study last said of its lanes; empty when it has said nothing."""
    found = reader._query("SELECT value FROM meta WHERE key = ?", HEARTBEAT)
    said = reader._json(found[0][0]) if found else {}
    return said if isinstance(said, dict) else {}
