"""`retest`: an old study's best settings on today's code and data, against the best that a fresh search finds.

Four steps: the old best settings on several seeds beside fresh draws, half of them around the old ones; as many draws
again where the surrogate of all that expects the best; the best of both on fresh seeds, from which one old setting and
one rival are chosen; and these two alone, on pairs of fresh seeds, as many as it takes to tell (`search.verdict`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import InputError, StudyError
from vmaptune.search.confirm import Budget, rank
from vmaptune.search.decide import shortlist, smoothed
from vmaptune.search.refine import propose
from vmaptune.search.verdict import BATCH, LEVEL, MARGIN, MOVED, STILL_BEST, UNCLEAR, Comparison, compare
from vmaptune.search.zoom import Scored, slice_of, zoom
from vmaptune.space import Space
from vmaptune.store.ledger import LedgerReader
from vmaptune.study._rounds import Params
from vmaptune.study._run import StudyRun

TOP, REPEATS, DRAWS = 3, 192, 96
SEEDS = 8  # of each setting, before the two are chosen that are compared
RIVALS = 6  # that these seeds are spent on


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
            "seeds": min(SEEDS, repeats),
            "most": repeats,
            "draws": draws,
        }, meta


def budget_of(retest: Mapping[str, Any]) -> Budget:
    """Two rounds of search, and seeds to choose by; how many pairs are compared after that is seen then.

    Raises:
      InputError: the retest was begun by an earlier version, which compared otherwise.
    """
    if "most" not in retest:
        raise InputError(
            f"this retest of {retest['of']} was begun by an earlier version, which can't be gone on with; "
            f"retest again with another --out"
        )
    seeds, olds = retest["seeds"], len(retest["settings"])
    later = retest["draws"] // 2
    return Budget((olds * seeds + retest["draws"] - later, later), olds + RIVALS, seeds)


class Retest(StudyRun):
    """A study that asks whether an older one's best setting still is the best."""

    def _run_rounds(self) -> dict[str, Any]:
        retest = self.extra["retest"]
        old, rival, values = self._contenders()
        self.rounds.decide("contenders", {"old": old.trial, "rival": rival.trial if rival else None})
        found: Comparison | None = None
        if rival is not None:
            found, values = self._compared(old, rival)
            answer = found.answer
        else:
            answer = STILL_BEST if np.isfinite(values[old.trial]).all() else UNCLEAR
        new = rival or old
        evidence = {
            "verdict": answer,
            "of": retest["of"],
            "old": {"params": old.params, "then": retest["then"], "now": self._summary(values[old.trial])},
            "new": {"params": new.params, "now": self._summary(values[new.trial])},
            "gain": found.gain if found else None,
            "interval": [found.low, found.high] if found else None,
            "p": found.p if found else None,
            "level": LEVEL,
            "margin": MARGIN * found.spread if found else None,
            "repeats": len(values[old.trial]),
            "looks": found.looks if found else 0,
            "most": retest["most"],
        }
        self.rounds.decide("retest", evidence)
        winner = new if answer == MOVED else old
        (confirmed,) = rank({winner.trial: values[winner.trial]})
        return self._conclude(
            winner if math.isfinite(confirmed.mean) else None, [replace(confirmed, expected=confirmed.mean)],
            {"retest": evidence},
        )  # fmt: skip

    def _contenders(self) -> tuple[Scored, Scored | None, dict[int, list[float]]]:
        """The old setting that does best today, the best of the new ones, and the seeds by which they were chosen."""
        retest, rounds = self.extra["retest"], self.rounds
        seeds, draws = retest["seeds"], self.budget.rounds
        olds = len(retest["settings"])
        settings: list[tuple[Params, int | None]] = []
        for i, params in enumerate(retest["settings"]):
            settings += [(dict(params), None), *[(dict(params), i * seeds)] * (seeds - 1)]
        near = (draws[0] - olds * seeds) // 2
        settings += [(params, None) for params in self._drawn(Space.from_json(retest["around"]), near, 0)]
        settings += [(params, None) for params in self._drawn(self.first, draws[0] - len(settings), 1)]
        self.counts.round, self.counts.phase = 0, "search"
        standings = rounds.standings(rounds.train(rounds.add("search", self.first, settings), keep=False))
        self.counts.round = 1
        slice_ = slice_of(standings, self.options.keep)
        space = zoom(self.first, self.first, slice_, margin=self.options.margin) if slice_ else self.first
        more = propose(space, self.first, standings, draws[1], seed=(self.options.seed, 2), method="sobol")
        rounds.train(rounds.add("search", space, [(params, None) for params in more]), keep=False)
        standings = rounds.standings(rounds.searched())
        old = standings[:olds]
        known = [s.params for s in old]
        chosen = [s for s in shortlist(self.first, standings, len(standings)) if s.params not in known][:RIVALS]
        self.counts.round, self.counts.phase = 2, "confirm"
        again = [(s.params, s.trial) for s in (*old, *chosen) for _ in range(seeds)]
        values: dict[int, list[float]] = {
            s.trial: [rounds.scored(row).value for row in rounds.searched() if s.trial in (row.trial, row.of)]
            for s in old
        }
        for row in rounds.train(rounds.add("confirm", None, again), keep=True):
            assert row.of is not None
            values.setdefault(row.of, []).append(rounds.scored(row).value)
        ranked = smoothed(self.first, standings, values)
        by_trial = {s.trial: s for s in (*old, *chosen)}
        champion = next(by_trial[t] for t in ranked if by_trial[t] in old)
        rival = next((by_trial[t] for t in ranked if by_trial[t] not in old), None)
        if rival is not None and not np.isfinite(values[rival.trial]).any():
            rival = None
        return champion, rival, values

    def _compared(self, old: Scored, rival: Scored) -> tuple[Comparison, dict[int, list[float]]]:
        """Batches of pairs of fresh seeds, until they tell the two apart or there may be no more of them."""
        most: int = self.extra["retest"]["most"]
        pair: list[tuple[Params, int | None]] = [(s.params, s.trial) for s in (old, rival)]
        values: dict[int, list[float]] = {old.trial: [], rival.trial: []}
        while True:
            pairs = min(BATCH, most - len(values[old.trial]))
            self.counts.round += 1
            self.counts.trials += 2 * pairs
            rows = self.rounds.add("confirm", None, pair * pairs, alike=2)
            for row in self.rounds.train(rows, keep=False):
                assert row.of is not None
                values[row.of].append(self.rounds.scored(row).value)
            found = compare(values[old.trial], values[rival.trial], most)
            if found.answer != UNCLEAR or found.pairs == most:
                return found, values

    def _drawn(self, space: Space, n: int, stream: int) -> list[Params]:
        return space.rows(space.sample(n, seed=(self.options.seed, stream), method="sobol")) if n else []

    def _summary(self, values: list[float]) -> dict[str, Any]:
        """Mean and spread over the seeds that came to a value, in the objective's own sign."""
        finite = [value for value in values if math.isfinite(value)]
        return {
            "mean": self.counts.sign * float(np.mean(finite)) if finite else math.nan,
            "std": float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan,
            "n": len(values),
            "failed": len(values) - len(finite),
        }
