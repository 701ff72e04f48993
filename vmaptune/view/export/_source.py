"""What every export reads: the ledger, once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vmaptune.space import Space
from vmaptune.store.ledger import CurvePoint, DecisionRow, GroupRow, LedgerReader, RoundRow, TrialRow


@dataclass(frozen=True)
class Source:
    """A study as one consistent look saw it."""

    name: str
    objective: str
    direction: str
    meta: dict[str, Any]
    space: Space  # of the first round
    trials: list[TrialRow]
    curves: dict[int, list[CurvePoint]]
    rounds: list[RoundRow]
    groups: list[GroupRow]
    decisions: list[DecisionRow]

    @classmethod
    def read(cls, reader: LedgerReader) -> Source:
        """Reads a whole study."""
        with reader.snapshot():
            meta = reader.meta()
            return cls(
                name=meta.get("name") or reader.directory.name,
                objective=meta["objective"],
                direction=meta["direction"],
                meta=meta,
                space=Space.from_json(meta["space"]),
                trials=reader.trials(),
                curves=dict(reader.curves()),
                rounds=reader.rounds(),
                groups=reader.groups(),
                decisions=reader.decisions(),
            )

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


def measured(point: CurvePoint) -> Iterator[tuple[str, float]]:
    """The numbers of one point by name: its metrics, and as `train_loss` the mean training loss of its segment.

    A task without a loss has none: its loss is NaN at every point.
    """
    for name, value in point.metrics.items():
        yield name, float(value)
    if point.loss is not None and not math.isnan(point.loss):
        yield "train_loss", point.loss
