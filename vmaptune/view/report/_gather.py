"""What a report needs, taken from the ledger once, as arrays over the trials of the search rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import StudyError
from vmaptune.search.importance import Importance, importance
from vmaptune.search.zoom import Leaning, Scored, leaning, slice_of
from vmaptune.space import Space
from vmaptune.store.reader import Reading
from vmaptune.store.rows import DecisionRow, GroupRow, RoundRow, TrialRow
from vmaptune.store.states import State

MOST_POINTS = 2_000  # of a scatter: more are one blot, and slow to draw
RESAMPLES = 100


@dataclass(frozen=True)
class Curves:
    """The curves of the search trials, one after another."""

    start: np.ndarray  # [N + 1]: where each trial's points begin
    step: np.ndarray  # [P]
    loss: np.ndarray  # [P] training loss; NaN where there is none
    value: np.ndarray  # [P] the objective
    valid_loss: np.ndarray  # [P] the metric "loss"; NaN where there is none

    def of(self, i: int) -> slice:
        """Where the points of trial number `i` (not its id) are."""
        return slice(int(self.start[i]), int(self.start[i + 1]))


@dataclass(frozen=True)
class StudyData:
    """A study as its pictures see it. `N` search trials; `cost` is lower-is-better whatever the direction."""

    name: str
    directory: Path
    meta: Mapping[str, Any]
    objective: str
    sign: float  # cost = sign * value
    first: Space
    rounds: Sequence[RoundRow]  # of search
    spaces: Sequence[Space]  # of these rounds
    groups: Sequence[GroupRow]
    decisions: Sequence[DecisionRow]
    all_rounds: Sequence[RoundRow]
    trial: np.ndarray  # [N] ids
    round: np.ndarray  # [N]
    state: np.ndarray  # [N] strings
    steps: np.ndarray  # [N]
    final: np.ndarray  # [N] the objective at the end; NaN for what is not COMPLETE
    best: np.ndarray  # [N] the best objective over training; NaN for infeasible trials and those without points
    params: Sequence[Mapping[str, Any]]  # [N]
    reasons: Sequence[str | None]  # [N]
    curves: Curves
    confirming: Sequence[TrialRow]

    # ---- which trials --------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        return len(self.trial)

    @property
    def maximize(self) -> bool:
        return self.sign < 0

    @cached_property
    def infeasible(self) -> np.ndarray:
        return self.state == State.INFEASIBLE

    @cached_property
    def stopped(self) -> np.ndarray:
        return self.state == State.STOPPED

    @cached_property
    def complete(self) -> np.ndarray:
        return (self.state == State.COMPLETE) & np.isfinite(self.final)

    @cached_property
    def cost(self) -> np.ndarray:
        """[N] of the end; NaN unless COMPLETE."""
        return self.sign * self.final

    @cached_property
    def rank(self) -> np.ndarray:
        """[N] 0 for the best complete trial to 1 for the worst; 1 for every other."""
        rank = np.ones(self.n)
        order = self.order
        rank[order] = np.arange(len(order)) / max(1, len(order) - 1)
        return rank

    @cached_property
    def order(self) -> np.ndarray:
        """Positions of the complete trials, best first, ties by id."""
        where = np.flatnonzero(self.complete)
        return where[np.lexsort((self.trial[where], self.cost[where]))]

    @cached_property
    def shown(self) -> np.ndarray:
        """Positions that a scatter shows, ascending: all, or the best tenth and an even sample of the rest."""
        if self.n <= MOST_POINTS:
            return np.arange(self.n)
        top = self.order[: MOST_POINTS // 10]
        rest = np.setdiff1d(np.arange(self.n), top)
        even = rest[np.linspace(0, len(rest) - 1, MOST_POINTS - len(top)).astype(int)]
        return np.sort(np.concatenate([top, even]))

    @property
    def thinned(self) -> str:
        """A sentence for captions when not every trial is drawn."""
        if self.n <= MOST_POINTS:
            return ""
        return f" {len(self.shown):,} of {self.n:,} trials are drawn: the best ones and an even sample of the rest."

    # ---- the answer ----------------------------------------------------------------------------------

    @property
    def result(self) -> Mapping[str, Any] | None:
        return self.meta.get("result")

    @cached_property
    def winner(self) -> int | None:
        """The position of the winning trial, or of the best one so far; None when none is complete."""
        best = (self.result or {}).get("best")
        if best is not None:
            found = np.flatnonzero(self.trial == best["trial"])
            if len(found):
                return int(found[0])
        return int(self.order[0]) if len(self.order) else None

    @cached_property
    def slice_(self) -> list[Scored]:
        """The trials that the last zoom would be drawn from: the round loop's own rule, again."""
        keep = float(self.meta.get("options", {}).get("keep", 0.15))
        kept: list[Scored] = []
        for row in self.rounds:
            where = np.flatnonzero(self.round == row.round)
            new = [Scored(int(self.trial[i]), dict(self.params[int(i)]), float(self.cost[i])) for i in where]
            together = [*kept, *new]
            if together:
                kept = slice_of(together, min(1.0, keep * len(new) / len(together)))
        return kept

    @cached_property
    def leanings(self) -> list[Leaning]:
        """The bounds of the first space that the best trials touch."""
        if any(name not in s.params for s in self.slice_ for name in self.first):
            return []  # settings that are off in some trials
        return leaning(self.first, self.slice_)

    @cached_property
    def importance(self) -> list[Importance]:
        """Over the first round, which was drawn from the whole space; over all where that one was small."""
        return self._importance(self.round == self.rounds[0].round) or self.importance_all

    @cached_property
    def importance_all(self) -> list[Importance]:
        """Over all rounds, whose trials lie mostly where the zoom went."""
        return self._importance(self.round >= 0)

    @cached_property
    def importance_near(self) -> list[Importance]:
        """Over the last round: what matters near the best settings. Empty with one round or few trials."""
        if len(self.rounds) < 2:
            return []
        return self._importance(self.round == self.rounds[-1].round)

    def _importance(self, where: np.ndarray) -> list[Importance]:
        where = where & (self.state != State.RUNNING) & (self.state != State.FAIL)
        return importance(
            self.first, [self.params[int(i)] for i in np.flatnonzero(where)], self.cost[where], resamples=RESAMPLES
        )

    @cached_property
    def by_importance(self) -> list[str]:
        """All settings, those that matter most first; in the space's order where nothing is known."""
        known = [i.name for i in self.importance]
        return known + [name for name in self.first if name not in known]


def gather(reader: Reading) -> StudyData:
    """All of it, in one consistent look. Raises StudyError when the study has no round or no trial yet."""
    with reader.snapshot():
        meta, rounds = reader.meta(), reader.rounds()
        groups, decisions = reader.groups(), reader.decisions()
        rows = reader.trials()
        search = [row for row in rounds if row.kind == "search"]
        numbers = {row.round for row in search}
        trials = [row for row in rows if row.round in numbers]
        if not trials:
            raise StudyError(f"{reader.directory}: there is no trial yet, so there is nothing to show; wait a moment")
        sign = -1.0 if meta.get("direction") == "maximize" else 1.0
        curves = _curves(reader, trials)
    state = np.array([str(row.state) for row in trials])
    final = np.array([_finite(row.value) if row.state == State.COMPLETE else math.nan for row in trials])
    best = np.full(len(trials), math.nan)
    for i, row in enumerate(trials):
        if row.state != State.INFEASIBLE:
            seen = sign * np.append(curves.value[curves.of(i)], final[i])
            seen = seen[np.isfinite(seen)]
            best[i] = sign * seen.min() if len(seen) else math.nan
    return StudyData(
        name=str(meta.get("name") or reader.directory.name), directory=reader.directory, meta=meta,
        objective=str(meta.get("objective", "value")), sign=sign, first=Space.from_json(meta["space"]),
        rounds=search, spaces=[Space.from_json(row.space) for row in search], groups=groups,
        decisions=decisions, all_rounds=rounds,
        trial=np.array([row.trial for row in trials]), round=np.array([row.round for row in trials]),
        state=state, steps=np.array([row.steps for row in trials]), final=final, best=best,
        params=[row.params for row in trials], reasons=[row.reason for row in trials], curves=curves,
        confirming=[row for row in rows if row.round not in numbers],
    )  # fmt: skip


def _curves(reader: Reading, trials: Sequence[TrialRow]) -> Curves:
    points = dict(reader.curves())
    found = [points.get(row.trial, []) for row in trials]
    flat = [point for curve in found for point in curve]
    return Curves(
        start=np.concatenate([[0], np.cumsum([len(curve) for curve in found])]).astype(int),
        step=np.array([point.step for point in flat], int),
        loss=np.array([_finite(point.loss) for point in flat], float),
        value=np.array([_finite(point.value) for point in flat], float),
        valid_loss=np.array([_finite(point.metrics.get("loss")) for point in flat], float),
    )


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
