"""The rounds of a study: their trials written down, trained on the lanes, and ended; gone on with after a break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vmaptune.search.confirm import repeated
from vmaptune.search.sampler import trial_seed
from vmaptune.search.zoom import Scored
from vmaptune.space import Space
from vmaptune.store.checkpoints import Snapshot
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.study._bound import Bound
from vmaptune.study._outcome import scored
from vmaptune.study._pacing import expected_steps_in_all
from vmaptune.study._progress import Silent
from vmaptune.study._resume import last_moment

if TYPE_CHECKING:
    from vmaptune.study._run import StudyRun

Params = dict[str, Any]


class Rounds:
    """The rounds of one study, in the ledger and on the lanes."""

    def __init__(self, study: StudyRun):
        self.study = study
        self.ended = 0  # rounds that have come to their end
        self.snapshot: Snapshot | None = None  # to go on from, until its round is reached
        self._bound = Bound(not isinstance(study.counts.listener, Silent))

    def go_on(self, keeps_states: bool) -> None:
        """Finds the last whole moment and brings ledger and memory back to it."""
        study = self.study
        found = study.saving.checkpoints.newest(study.ledger.seq, study.counts.warn)
        moment = last_moment(study.ledger.rounds(), found, keeps_states=keeps_states)
        study.ledger.roll_back(moment.seq)
        study.saving.checkpoints.forget(moment.snapshot.seq if moment.snapshot else moment.seq)
        study.training.restore(moment.snapshot)
        self.snapshot = moment.snapshot
        self.ended = sum(row.finished is not None for row in study.ledger.rounds())

    def add(
        self, kind: str, space: Space | None, settings: Sequence[tuple[Params, int | None]], *, alike: int = 1
    ) -> list[TrialRow]:
        """Writes down new trials with these settings (and, for a repeat, the trial that it repeats), unless the
        study, which goes on, has this round already. So many as `alike` says, one after the other, share a seed."""
        study = self.study
        number = study.counts.round
        there = [row for row in study.training.rows.values() if row.round == number]
        if there:
            return there
        study.stop_if_asked()
        study.groups.prepare([params for params, _ in settings], ahead=self._ahead)
        first = len(study.training.rows)
        settings = [(study.first.held(params), of) for params, of in settings]  # a retest's are of an older study
        rows = [
            TrialRow(
                trial=trial, round=number, group=study.groups.of(params).number, state=State.RUNNING, reason=None,
                seed=trial_seed(study.options.seed, trial - (trial - first) % alike), steps=0, value=None,
                params=params, of=of, metrics={},
            )
            for trial, (params, of) in enumerate(settings, first)
        ]  # fmt: skip
        with study.ledger.transaction():
            study.ledger.add_round(
                number, kind, space.to_json() if space else None, len(rows),
                {"method": study.options.method} if space else {},
            )  # fmt: skip
            study.ledger.add_trials(rows)
        self._expect(rows)
        return rows

    def train(self, rows: list[TrialRow], keep: bool) -> list[TrialRow]:
        """Trains a round's trials, and what flows in after them, to the end; a finished round stays as it is."""
        study = self.study
        rounds = study.ledger.rounds()
        if rows[0].round < self.ended:
            if study.options.stopping and study.counts.phase == "search":  # the others had flowed into it
                self._stand_at(max(r.round for r in rounds if r.kind == "search" and r.finished is not None))
            return rows
        snapshot, self.snapshot = self.snapshot, None
        if snapshot is not None and snapshot.plain["ended"] and snapshot.plain["round"] < rows[0].round:
            snapshot = None  # the end of an earlier round: of that one the states are wanted, and this one is to train
        if any(row.state.ended for row in rows) or snapshot is not None:
            self._stand_at(rounds[-1].round)
        open_rounds = [row for row in study.training.rows.values() if row.round >= self.ended]
        study.groups.prepare([row.params for row in open_rounds], ahead=self._ahead)
        study.training.restore_states()
        if snapshot is None or not snapshot.plain["ended"]:
            self._expect(rows)
            rows = study.training.train(rows, keep, snapshot)
        return self.end(rows, keep)

    def end(self, rows: list[TrialRow], keep: bool) -> list[TrialRow]:
        """Ends every round that has been begun; returns the trials as they are now. States that were kept live in
        memory alone, so they are saved first."""
        study = self.study
        if keep or study.training.states:  # those of a round before, too
            study.saving.save(lambda: study.training.snapshot(ended=True), wait=True)
        begun = self.ended
        with study.ledger.transaction():
            for number in range(begun, study.counts.round + 1):
                study.ledger.finish_round(number)
            self.ended = study.counts.round + 1
            study.ledger.add_decision(study.counts.round, "lanes", study.counts.lane_summary())
            if study.options.stopping.synchronous and study.counts.phase == "search":
                for number in range(begun, study.counts.round + 1):
                    study.ledger.add_decision(number, "brackets", study.training.rules.tables(number))
            if study.options.repeats > 1:
                study.ledger.add_decision(study.counts.round, "spread", self._spread(rows))
            # rounds that flowed into one another have one course of the lanes, which began with the first of them
            study.ledger.set_meta(f"occupancy.{begun}", study.training.occupancy.points())
        study.write_views()
        return rows

    def decide(self, kind: str, data: Any) -> None:
        """Records a decision of this round, unless the study, which goes on, has recorded it already."""
        study = self.study
        if all(row.round != study.counts.round for row in study.ledger.decisions(kind)):
            study.ledger.add_decision(study.counts.round, kind, data)

    def standings(self, rows: Sequence[TrialRow]) -> list[Scored]:
        """Each setting as one: its repeats, by their values at the end or where they are now."""
        study = self.study
        settings: dict[int, list[Scored]] = {}
        for row in rows:
            now = self.scored(row) if row.state.ended else study.training.standing(row)
            settings.setdefault(row.trial if row.of is None else row.of, []).append(now)
        return [repeated(repeats, study.options.rank) for repeats in settings.values()]

    def searched(self) -> list[TrialRow]:
        """The trials of the search, in their order; the confirmation's are not among them."""
        study = self.study
        return [row for row in study.training.rows.values() if row.round < len(study.budget.rounds)]

    def scored(self, row: TrialRow) -> Scored:
        return scored(row, self.study.counts.sign)

    @property
    def _ahead(self) -> bool:
        """Whether training begins while programs compile: not where a study by time must know how fast all are."""
        return not (self.study.pace and self.study.options.stopping)

    def _expect(self, rows: Sequence[TrialRow]) -> None:
        """How far there is to go, and how fast it could go with these trials, for those who watch."""
        study = self.study
        study.counts.total_steps = expected_steps_in_all(study)
        study.counts.bound = self._bound.of([study.groups.of(row.params) for row in rows], study.counts.total_steps)
        study.counts.tell()

    def _stand_at(self, number: int) -> None:
        """A study that goes on stands at this round, which has begun."""
        study = self.study
        study.counts.round = number
        space = study.ledger.rounds()[number].space
        if space is not None:
            study.space = Space.from_json(space)

    def _spread(self, rows: Sequence[TrialRow]) -> dict[str, Any]:
        """Mean and standard deviation of each setting's repeats that came to their end, by its first trial."""
        values: dict[int, list[float]] = {}
        for row in rows:
            if row.state == State.COMPLETE and row.value is not None:
                values.setdefault(row.trial if row.of is None else row.of, []).append(row.value)
        return {
            str(trial): {
                "mean": float(np.mean(v)),
                "std": float(np.std(v, ddof=1)) if len(v) > 1 else None,
                "n": len(v),
            }
            for trial, v in values.items()
        }
