"""`retest`: an old study's best settings on today's code and data, against fresh draws around them and elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import InputError, StudyError
from vmaptune.search.confirm import Budget, rank
from vmaptune.search.verdict import judge
from vmaptune.search.zoom import best
from vmaptune.space import Space
from vmaptune.store.ledger import LedgerReader
from vmaptune.study._rounds import Params
from vmaptune.study._run import StudyRun

TOP, REPEATS, DRAWS = 3, 8, 64
RIVALS = 3


def plan_retest(directory: Path, top: int, repeats: int, draws: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """What a retest keeps of the old study, and that study's meta.

    Raises:
      InputError: the study is not finished, or a number is out of range. StudyError: it found nothing to retest.
    """
    for name, value, least in (("top", top, 1), ("repeats", repeats, 2), ("trials", draws, 8)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, but got {value}")
    with LedgerReader.open(directory) as reader:
        if not reader.finished():
            raise InputError(f"{directory}: only a finished study can be retested; `resume` goes on with this one")
        meta = reader.meta()
        result = meta["result"]
        if result["best"] is None:
            raise StudyError(f"{directory}: every trial was infeasible, so there is nothing to retest")
        first = result["best"]["trial"]
        ranked = [t for d in reader.decisions("confirm") for t in d.data["ranked"]]
        chosen = list(dict.fromkeys([first, *ranked]))[:top]
        spaces = [row.space for row in reader.rounds() if row.kind == "search"]
        return {
            "of": str(directory),
            "settings": [dict(reader.trial(trial).params) for trial in chosen],
            "trials": chosen,
            "around": spaces[-1],
            "then": {"value": result["best"]["value"], "std": result["best"]["value_std"]},
            "repeats": repeats,
            "draws": draws,
        }, meta


def budget_of(retest: Mapping[str, Any]) -> Budget:
    """A round of everything, then a confirmation of old and new side by side."""
    search = len(retest["settings"]) * retest["repeats"] + retest["draws"]
    return Budget((search,), len(retest["settings"]) + RIVALS, retest["repeats"])


class Retest(StudyRun):
    """A study that asks whether an older one's best setting still is the best."""

    def _run_rounds(self) -> dict[str, Any]:
        retest = self.extra["retest"]
        repeats, olds = retest["repeats"], len(retest["settings"])
        self.counts.round, self.counts.phase = 0, "search"
        settings: list[tuple[Params, int | None]] = []
        for i, params in enumerate(retest["settings"]):
            settings += [(dict(params), None), *[(dict(params), i * repeats)] * (repeats - 1)]
        around, half = Space.from_json(retest["around"]), retest["draws"] // 2
        settings += [(params, None) for params in self._drawn(around, half, 0)]
        settings += [(params, None) for params in self._drawn(self.first, retest["draws"] - half, 1)]
        rows = self.rounds.train(self.rounds.add("search", self.first, settings), keep=False)
        standings = self.rounds.standings(rows)
        old = best(standings[:olds], olds) or standings[:1]
        rivals = best([s for s in standings[olds:] if all(s.params != o.params for o in old)], RIVALS)
        self.counts.round, self.counts.phase = 1, "confirm"
        again = [(s.params, s.trial) for s in (*old, *rivals) for _ in range(repeats)]
        values: dict[int, list[float]] = {}
        trained = self.rounds.train(self.rounds.add("confirm", None, again), keep=True)
        for (_, of), row in zip(again, trained, strict=True):
            values.setdefault(of, []).append(self.rounds.scored(row).value)
        ranked = rank(values)
        champion = old[0]  # the best of the old by the first round: the second one judges it, unseen
        verdict = judge(values[champion.trial], {s.trial: values[s.trial] for s in (*old[1:], *rivals)})
        by_trial = {s.trial: s for s in (*old, *rivals)}
        moved_to = by_trial[verdict.rival] if verdict.rival is not None else champion
        evidence = {
            "verdict": verdict.answer,
            "of": retest["of"],
            "old": {"params": champion.params, "then": retest["then"], "now": self._summary(values[champion.trial])},
            "new": {"params": moved_to.params, "now": self._summary(values[moved_to.trial])},
            "gain": verdict.gain,
            "interval": [verdict.low, verdict.high],
            "p": verdict.p,
            "repeats": repeats,
        }
        self.rounds.decide("retest", evidence)
        winner = next(by_trial[c.trial] for c in ranked)
        return self._conclude(winner if math.isfinite(ranked[0].mean) else None, ranked, {"retest": evidence})

    def _drawn(self, space: Space, n: int, stream: int) -> list[Params]:
        samples = space.sample(n, seed=(self.options.seed, stream), method="sobol")
        columns = {name: [v.item() if isinstance(v, np.generic) else v for v in c] for name, c in samples.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _summary(self, values: list[float]) -> dict[str, Any]:
        """Mean and spread over seeds, in the objective's own sign."""
        if not np.isfinite(values).all():
            return {"mean": math.nan, "std": math.nan, "n": len(values)}
        return {
            "mean": self.counts.sign * float(np.mean(values)),
            "std": float(np.std(values, ddof=1)),
            "n": len(values),
        }
