"""What a study does to keep its time: it cuts its rounds anew, and knows how many steps are still to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vmaptune.engine.functions import LaneFunctions
from vmaptune.experiment import Statics, lane_arguments
from vmaptune.search.confirm import Budget
from vmaptune.search.decide import shortlist
from vmaptune.search.halving import Halving
from vmaptune.search.minutes import LEAST_ROUND, expected_steps
from vmaptune.search.zoom import Scored
from vmaptune.store.ledger import TrialRow
from vmaptune.store.live import HEARTBEAT
from vmaptune.store.states import State
from vmaptune.study import _minutes
from vmaptune.study._groups import Group
from vmaptune.study._minutes import KEY, Timetable, recorded
from vmaptune.study._options import Options
from vmaptune.study._stopping import Stopping, stopping_lanes
from vmaptune.study._structure import Structure

if TYPE_CHECKING:
    from vmaptune.study._run import StudyRun

MOST_FINALISTS = 64
SAMPLE = 256  # settings by which a round's mixture of groups is known
MEDIAN_PASSES = 2  # by the median rule about one in two goes on


def steps_to_come(stopping: Stopping, steps: int, every: int, at: int = 0) -> float:
    """The steps that a trial which has done `at` of `steps` is expected to do still, early stopping considered."""
    if not stopping or stopping.patient or at >= steps:  # how early patience ends is seen, not known
        return max(0, steps - at)
    first = stopping.first_rung(steps)
    if stopping.kind == "median":
        return expected_steps([first, steps], MEDIAN_PASSES, at)
    return expected_steps(Halving(stopping.eta, first).levels(steps, every=every), stopping.eta, at)


def expected_steps_in_all(study: StudyRun) -> int:
    """The model-steps that a study will have done at its end, as far as can be told now."""
    counts, training, stopping = study.counts, study.training, study.options.stopping
    every = max((group.plan.every for group in study.groups), default=1)
    steps = study.experiment.total_steps(study.first_params())
    total = float(counts.steps_seen)
    for row in training.rows.values():
        if row.state == State.RUNNING:
            confirms = row.round >= counts.rounds
            whole = study.groups.of(row.params).steps
            total += whole - row.steps if confirms else steps_to_come(stopping, whole, every, row.steps)
    begun = {row.round for row in training.rows.values()}
    each = steps_to_come(stopping, steps, every)
    total += sum(each * trials for number, trials in enumerate(study.budget.rounds) if number not in begun)
    confirming = sum(row.round >= counts.rounds for row in training.rows.values())
    total += steps * max(0, study.budget.finalists * study.budget.repeats - confirming)
    return round(total)


class Pace:
    """Keeps a study that was given `minutes` to its time."""

    def __init__(self, study: StudyRun, started: float | None, meta: Mapping[str, Any] | None):
        assert study.options.minutes is not None
        kept = recorded(meta or {})
        spent = float(((meta or {}).get(HEARTBEAT) or {}).get("seconds", 0.0)) if kept else 0.0
        self.study = study
        self.asked = kept.get("asked") or {
            "rounds": study.options.rounds
        }  # as the command line or the experiment had it
        self.table = Timetable(
            study.options.minutes, _minutes.clock() if started is None else started, spent, dict(kept.get("plans", {}))
        )
        if study.options.method == "pbt":  # one round: nothing makes up for it
            self.table.factor = 1.0
        self.longer = 1.0  # steps of a trial, to those expected under early stopping
        study.counts.clock = lambda: _minutes.clock()
        study.counts.started = self.table.started - spent
        study.counts.until = self.table.seconds

    def begin(self, statics: Statics, chooser: Structure) -> None:
        """Takes up the last cut of a study that goes on, or guesses a first one from operations alone."""
        budget = self.table.last()
        if budget is not None:
            self._take(budget)
            return
        study, params = self.study, self.study.first_params()
        group = statics.group_of(params)
        try:
            traced = lane_arguments(study.first, statics.traced)
            functions = LaneFunctions(study.task, dict(group), traced, plain=study.options.as_written)
        except Exception:  # the study says what is wrong when it comes to this group
            return
        chooser.built[statics.static, group] = functions, None
        steps = study.experiment.total_steps(params)
        trials = self.table.guess(functions.costs(), steps, study.options.plan.get("devices"))
        trials = max(trials, 2 * self._least)
        study.options = replace(study.options, trials=trials, rounds=min(self.asked["rounds"], trials // self._least))
        self._take(study.options.budget())

    @property
    def _least(self) -> int:
        return max(LEAST_ROUND, self.study.options.repeats)

    def round(self, number: int) -> None:
        """Cuts what is to come anew before round `number`, unless the ledger has that cut."""
        study, table = self.study, self.table
        if str(number) in table.plans:
            self._write_again(number)
            return
        if number == 0:
            study.groups.prepare(self._drawn(number))
        table.measure(study.groups)
        sample = self._sample(number)
        self._correct(number)
        flowing = sum(table.flowing_seconds([(g, self._to_come(g))]) for g in sample) / len(sample) * self.longer

        def search(trials: float) -> float:
            return trials * flowing if study.options.stopping else table.round_seconds(sample, trials)

        done = study.budget.rounds[:number]
        confirmed = study.options.method != "pbt"
        pending = table.flowing_seconds([
            (study.groups.of(row.params), self._to_come(study.groups.of(row.params), row.steps))
            for row in study.training.rows.values() if row.state == State.RUNNING
        ])  # fmt: skip
        rounds = self.asked["rounds"] if number == 0 else len(study.budget.rounds)
        budget = table.cut(
            done, rounds, pending, search, lambda trials: table.round_seconds(sample, trials) if trials else 0.0,
            confirmed=confirmed, least=self._least,
        )  # fmt: skip
        self._keep(number, budget)

    def confirmation(self, standings: Sequence[Scored]) -> None:
        """Cuts the confirmation from all the time that is left, unless the ledger has that cut."""
        study = self.study
        number = len(study.budget.rounds)
        chosen = shortlist(study.first, standings, MOST_FINALISTS)
        if not chosen:
            return
        if str(number) in self.table.plans and self._ends_at(number):
            self._write_again(number)
            return
        self._correct(number)
        groups = [study.groups.of(s.params) for s in chosen]
        self._keep(number, self.table.cut_confirmation(study.budget.rounds, groups), final=True)

    def _write_again(self, number: int) -> None:
        """A study that goes on from a moment before a cut keeps the cut, but its decision was rolled back."""
        ledger = self.study.ledger
        if all(row.round != number for row in ledger.decisions(KEY)):
            ledger.add_decision(number, KEY, self.table.plans[str(number)])

    def _ends_at(self, number: int) -> bool:
        return bool(self.table.plans[str(number)].get("final"))

    def end(self) -> None:
        """Says it when the time was missed."""
        missed = self.table.missed()
        if missed:
            self.study.counts.warn(missed)

    # ---- small things ------------------------------------------------------------------------------------

    def _drawn(self, number: int) -> list[dict[str, Any]]:
        """A sample of what a round would try: from its space alone, which costs nothing and asks nobody."""
        study = self.study
        n = max(1, min(SAMPLE, study.budget.rounds[number] // study.options.repeats))
        columns = study.space.sample(n, seed=(study.options.seed, number), method="sobol")
        return [
            {name: v.item() if isinstance(v, np.generic) else v for name, v in zip(columns, values, strict=True)}
            for values in zip(*columns.values(), strict=True)
        ]

    def _sample(self, number: int) -> list[Group]:
        """The groups of what the round would train."""
        study = self.study
        found = [study.groups.of(params) for params in self._drawn(number)]
        return [group for group in found if group.number in self.table.rates] or list(study.groups)

    def _to_come(self, group: Group, at: int = 0) -> float:
        return steps_to_come(self.study.options.stopping, group.steps, group.plan.every, at)

    def _correct(self, number: int) -> None:
        """Compares what was trained with the timing, and watches from here on if nobody did."""
        study, table = self.study, self.table
        compiling = study.counts.seconds["compile"]
        since = table.watched_from()
        if since is None:
            table.watch(number, compiling)
            return
        rows = [row for row in study.training.rows.values() if since <= row.round < number]
        if not rows:
            return
        factor, table.factor = table.factor, 1.0
        if study.options.stopping:
            wanted = table.flowing_seconds([(study.groups.of(row.params), row.steps) for row in rows])
        else:
            rounds: dict[int, list[Group]] = {}
            for row in rows:
                rounds.setdefault(row.round, []).append(study.groups.of(row.params))
            wanted = sum(table.round_seconds(groups) for groups in rounds.values())
        table.factor = factor
        table.correct(wanted, compiling)
        if study.options.stopping:
            self.longer = self._longer(rows)

    def _longer(self, rows: Sequence[TrialRow]) -> float:
        """What trials do, to what they were expected to do under early stopping."""
        done = expected = 0.0
        for row in rows:
            group = self.study.groups.of(row.params)
            if row.state == State.RUNNING and not row.steps:
                continue
            done += row.steps + (self._to_come(group, row.steps) if row.state == State.RUNNING else 0.0)
            expected += self._to_come(group)
        return done / expected if expected else 1.0

    def _keep(self, number: int, budget: Budget, *, final: bool = False) -> None:
        """Takes a cut and writes it down."""
        study = self.study
        plan = self.table.record(number, budget)
        if final:
            plan["final"] = True
        self._take(budget)
        with study.ledger.transaction():
            study.ledger.set_meta(KEY, {"asked": self.asked, "plans": self.table.plans})
            study.ledger.set_meta("options", asdict(study.options))
            study.ledger.add_decision(number, KEY, plan)

    def _take(self, budget: Budget) -> None:
        """The study's numbers are these from here on."""
        study = self.study
        trials = sum(budget.rounds) + budget.finalists * budget.repeats
        options = replace(study.options, trials=trials, rounds=len(budget.rounds))
        if options.stopping and options.lanes is None and self.table.plans:
            options = replace(options, lanes=stopping_lanes(options))  # fixed: who is in which lane hangs on it
        self.apply(study, options, budget)

    @staticmethod
    def apply(study: StudyRun, options: Options, budget: Budget) -> None:
        study.options, study.budget = options, budget
        for part in ("groups", "training"):
            if hasattr(study, part):
                getattr(study, part).options = options
        study.counts.trials, study.counts.rounds = options.trials, len(budget.rounds)
