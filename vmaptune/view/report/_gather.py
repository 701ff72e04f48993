"""What a report needs, taken from the ledger once, as arrays over the trials of the search rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import StudyError
from vmaptune.search.confirm import repeated
from vmaptune.search.importance import Importance, importance
from vmaptune.search.zoom import Leaning, Scored, inside, leaning, slice_of
from vmaptune.space import Space
from vmaptune.store.reader import Reading
from vmaptune.store.rows import CurvePoint, DecisionRow, GroupRow, RoundRow, TrialRow
from vmaptune.store.states import State
from vmaptune.view.words import existing

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
class FreshCurve:
    """A training of a confirmed configuration on a fresh seed. It was picked by nothing that it came to itself."""

    of: int  # the first trial with its configuration
    step: np.ndarray  # [P]
    value: np.ndarray  # [P] the objective


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
    of: np.ndarray  # [N] the first trial with the same setting, its own id where it is the first
    last: np.ndarray  # [N] the objective where the trial ended
    final: np.ndarray  # [N] the same; NaN for what is not COMPLETE
    best: np.ndarray  # [N] the best objective over training; NaN for infeasible trials and those without points
    params: Sequence[Mapping[str, Any]]  # [N]
    reasons: Sequence[str | None]  # [N]
    curves: Curves
    confirming: Sequence[TrialRow]
    fresh: Sequence[FreshCurve]  # of the complete ones among them

    # ---- which trials --------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        return len(self.trial)

    @property
    def babysat(self) -> bool:
        """Whether a person trained one model and changed its settings on the way: nothing was searched."""
        return "panda" in self.meta

    @property
    def maximize(self) -> bool:
        return self.sign < 0

    @cached_property
    def seen(self) -> list[Mapping[str, Any]]:
        """[N] each trial's configuration without the settings that do not exist in it."""
        return [existing(p, self.first) for p in self.params] if self.first.conditional else list(self.params)

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
    def feasible(self) -> np.ndarray:
        """Complete ones and those that were stopped early: their best value over training is known."""
        return (self.complete | self.stopped) & np.isfinite(self.best)

    @cached_property
    def cost(self) -> np.ndarray:
        """[N] of the end; NaN unless COMPLETE."""
        return self.sign * self.final

    @cached_property
    def rank(self) -> np.ndarray:
        """[N] 0 for the best trial to 1 for the worst: complete ones first, then those that were stopped, the
        longer they lasted the better; 1 for every other."""
        rank = np.ones(self.n)
        keys = [_key(s) for s in self.scored]
        where = sorted((i for i in range(self.n) if math.isfinite(self.scored[i].value)), key=lambda i: keys[i])
        rank[where] = np.arange(len(where)) / max(1, len(where) - 1)
        return rank

    @cached_property
    def scored(self) -> list[Scored]:
        """[N] as the search sees them: lower is better, NaN for what neither ended well nor was stopped."""
        counts = self.complete | (self.stopped & np.isfinite(self.last))
        return [
            Scored(
                int(self.trial[i]), dict(self.params[i]), float(self.sign * self.last[i]) if counts[i] else math.nan,
                float(self.steps[i]) if self.stopped[i] else math.inf,
            )
            for i in range(self.n)
        ]  # fmt: skip

    @cached_property
    def settings(self) -> dict[int, list[int]]:
        """The positions of each setting's trials (more than one where settings are repeated), by its first trial."""
        found: dict[int, list[int]] = {}
        for i in range(self.n):
            found.setdefault(int(self.of[i]), []).append(i)
        return found

    def standings(self, settings: Iterable[list[int]]) -> list[Scored]:
        """Each setting as one, by the study's own rule for repeats."""
        by = str(self.meta.get("options", {}).get("rank", "mean"))
        return [repeated([self.scored[i] for i in positions], by) for positions in settings]

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
    def first_of(self) -> list[int]:
        """For each trial the position of the first one with its configuration."""
        at = {int(trial): i for i, trial in enumerate(self.trial)}
        return [at.get(int(of), i) for i, of in enumerate(self.of)]

    @cached_property
    def confirmed(self) -> dict[int, Mapping[str, Any]]:
        """What the fresh seeds said of each configuration that was confirmed, by its first trial's position, the winner
        first; empty where nothing was, or before the study's end."""
        result = self.result or {}
        best = result.get("best") or {}
        at = {int(trial): i for i, trial in enumerate(self.trial)}
        rows = [best] if best.get("repeats") else []
        found = {row["trial"]: row for row in [*(result.get("finalists") or []), *rows]}
        return {at[trial]: row for trial, row in found.items() if trial in at}

    @property
    def finalists(self) -> list[int]:
        """Positions of the configurations that were confirmed, the winner first."""
        return list(self.confirmed)

    @cached_property
    def places(self) -> dict[int, int]:
        """The same -> 1 for the winner, 2 for the next best, ..."""
        return {i: place for place, i in enumerate(self.confirmed, 1)}

    @property
    def star(self) -> str:
        """What the star in a picture is."""
        return "the winner" if (self.result or {}).get("best") else "the best so far"

    # The three numbers that the objective's name may mean.

    @property
    def last_name(self) -> str:
        """Of one training at its end: what the search ranks."""
        return f"last {self.objective}"

    @property
    def best_name(self) -> str:
        """Of one training, the best on its way."""
        return f"best {self.objective}"

    @property
    def confirmed_name(self) -> str:
        """The mean over fresh seeds, by which the winner is chosen."""
        return f"confirmed {self.objective}"

    @cached_property
    def slice_(self) -> list[Scored]:
        """The settings that a further zoom would be drawn from: the round loop's own rule."""
        keep = float(self.meta.get("options", {}).get("keep", 0.15))
        last = {int(of) for of in self.of[self.round == self.round.max()]}
        return slice_of(self.standings(self.settings.values()), keep * len(last) / len(self.settings))

    @cached_property
    def outside(self) -> list[float]:
        """The share of each round's trials that lie outside its space: the search hoped for something there."""
        rounds = [np.flatnonzero(self.round == row.round) for row in self.rounds]
        return [
            float(1 - inside(space, [self.params[i] for i in where.tolist()]).mean()) if len(where) else 0.0
            for space, where in zip(self.spaces, rounds, strict=True)
        ]

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
        ended = where & (self.state != State.RUNNING) & (self.state != State.FAIL)
        found = self.standings(p for p in self.settings.values() if ended[p].all())
        # Only the order counts, and values of different rungs have none but that of their rungs.
        places = {key: place for place, key in enumerate(sorted({_key(s) for s in found if math.isfinite(s.value)}))}
        values = [places[_key(s)] if math.isfinite(s.value) else math.nan for s in found]
        every = importance(self.first, [s.params for s in found], values, resamples=RESAMPLES)
        return [i for i in every if i.name in self.varied]

    @cached_property
    def varied(self) -> list[str]:
        """The settings with more than one value, in the space's order; all of them where none has."""
        return [name for name, d in self.first.items() if d.n_values != 1] or list(self.first)

    @cached_property
    def by_importance(self) -> list[str]:
        """The same, those that matter most first; in the space's order where nothing is known."""
        known = [i.name for i in self.importance if i.name in self.varied]
        return known + [name for name in self.varied if name not in known]


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
        points = dict(reader.curves())
    curves = _curves(points, trials)
    confirming = [row for row in rows if row.round not in numbers]
    fresh = [
        FreshCurve(row.of, np.array([p.step for p in at]), np.array([_finite(p.value) for p in at]))
        for row in confirming
        if row.of is not None and row.state == State.COMPLETE and (at := points.get(row.trial))
    ]
    state = np.array([str(row.state) for row in trials])
    last = np.array([_finite(row.value) for row in trials])
    final = np.where(state == State.COMPLETE, last, math.nan)
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
        state=state, steps=np.array([row.steps for row in trials]),
        of=np.array([row.trial if row.of is None else row.of for row in trials]), last=last, final=final, best=best,
        params=[row.params for row in trials], reasons=[row.reason for row in trials], curves=curves,
        confirming=confirming, fresh=fresh,
    )  # fmt: skip


def _curves(points: Mapping[int, Sequence[CurvePoint]], trials: Sequence[TrialRow]) -> Curves:
    found = [points.get(row.trial, []) for row in trials]
    flat = [point for curve in found for point in curve]
    return Curves(
        start=np.concatenate([[0], np.cumsum([len(curve) for curve in found])]).astype(int),
        step=np.array([point.step for point in flat], int),
        loss=np.array([_finite(point.loss) for point in flat], float),
        value=np.array([_finite(point.value) for point in flat], float),
        valid_loss=np.array([_finite(point.metrics.get("loss")) for point in flat], float),
    )


def _key(scored: Scored) -> tuple[float, float]:
    """Sorts the better one first; values of different rungs are not compared."""
    return -scored.rung, scored.value


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
