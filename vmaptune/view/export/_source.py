"""What every export reads: the ledger, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmaptune.space import Space
from vmaptune.store.ledger import CurvePoint, DecisionRow, GroupRow, LedgerReader, RoundRow, TrialRow


@dataclass(frozen=True)
class Source:
    """A study as one consistent look saw it."""

    directory: Path
    name: str
    objective: str
    direction: str
    meta: dict[str, Any]
    space: Space  # of the first round
    trials: list[TrialRow]  # each with the hyperparameters that exist for it
    curves: dict[int, list[CurvePoint]]
    rounds: list[RoundRow]
    groups: list[GroupRow]
    decisions: list[DecisionRow]
    progress: Callable[[int, int], None] | None = None

    @classmethod
    def read(cls, reader: LedgerReader, progress: Callable[[int, int], None] | None = None) -> Source:
        """Reads a whole study. `progress` is told how many of how many trials `each` has handed out."""
        with reader.snapshot():
            meta = reader.meta()
            space = Space.from_json(meta["space"])
            return cls(
                directory=reader.directory,
                name=meta.get("name") or reader.directory.name,
                objective=meta["objective"],
                direction=meta["direction"],
                meta=meta,
                space=space,
                trials=[_as_there(space, row) for row in reader.trials()],
                curves=dict(reader.curves()),
                rounds=reader.rounds(),
                groups=reader.groups(),
                decisions=reader.decisions(),
                progress=progress,
            )

    def each(self) -> Iterator[TrialRow]:
        """The trials, one after another, for what takes its time with each."""
        for done, trial in enumerate(self.trials):
            if self.progress is not None:
                self.progress(done, len(self.trials))
            yield trial

    @property
    def confirmed(self) -> int | None:
        """The trial of the configuration that won, confirmed on fresh seeds; None before the study has ended."""
        best = (self.meta.get("result") or {}).get("best") or {}
        return best.get("trial")

    def curve(self, trial: int) -> list[CurvePoint]:
        """The points of a trial by step; empty when it has none."""
        return self.curves.get(trial, [])

    def metric_names(self) -> list[str]:
        """Every metric of the study, the objective first."""
        found = dict.fromkeys([self.objective])
        for trial in self.trials:
            found.update(dict.fromkeys(trial.metrics))
        return list(found)

    def kind_of(self, trial: TrialRow) -> str:
        """ "search" or "confirm"."""
        return next((r.kind for r in self.rounds if r.round == trial.round), "search")

    def times_of(self, trial: TrialRow) -> tuple[float | None, float | None]:
        """When the trial's round began and ended, in seconds since the epoch."""
        found = next((r for r in self.rounds if r.round == trial.round), None)
        return (found.started, found.finished) if found else (None, None)


def _as_there(space: Space, row: TrialRow) -> TrialRow:
    if not space.conditional:
        return row
    there = space.active(row.params)
    return replace(row, params={name: value for name, value in row.params.items() if there.get(name, True)})


def measured(point: CurvePoint) -> Iterator[tuple[str, float]]:
    """The numbers of one point by name: its metrics, and the mean training loss of its segment as `train_loss`, with a
    number behind it where a metric is called so.

    A task without a loss has none: its loss is NaN at every point.
    """
    for name, value in point.metrics.items():
        yield name, float(value)
    if point.loss is not None and not math.isnan(point.loss):
        yield told_apart("train_loss", point.metrics), point.loss


def told_apart(name: str, others: Container[str], most: int | None = None) -> str:
    """A name that none of the `others` has: a number is added where one has, within `most` characters."""
    found, k = name[:most], 1
    while found in others:
        k += 1
        end = f"_{k}"
        found = name[: None if most is None else most - len(end)] + end
    return found
