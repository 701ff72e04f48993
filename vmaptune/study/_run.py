"""The round loop: the only place where search, engine and store meet."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.experiment import Experiment, LoadedExperiment, find_statics, lane_arguments
from vmaptune.search.confirm import Budget, Confirmed, finalists, repeated
from vmaptune.search.decide import settle, shortlist
from vmaptune.search.pbt import PBT
from vmaptune.search.proposer import proposer_for
from vmaptune.search.refine import propose
from vmaptune.search.sampler import trial_seed
from vmaptune.search.zoom import Scored, best, leaning, slice_of, zoom
from vmaptune.space import Space
from vmaptune.store.checkpoints import Checkpoints, Snapshot
from vmaptune.store.files import remove_parts, write_whole
from vmaptune.store.ledger import FINISHED, Ledger, TrialRow
from vmaptune.store.states import State
from vmaptune.store.tables import trials_csv
from vmaptune.study._bound import Bound
from vmaptune.study._ensemble import check_ensemble, choose_ensemble
from vmaptune.study._groups import Groups
from vmaptune.study._options import Options
from vmaptune.study._outcome import outcome, save_models, scored
from vmaptune.study._pacing import Pace, expected_steps_in_all
from vmaptune.study._population import Population
from vmaptune.study._progress import Counts, Listener, Silent
from vmaptune.study._report import RoundReport
from vmaptune.study._resume import COPY, last_moment, study_meta
from vmaptune.study._saving import SAVE_EVERY, Interrupted, Saving
from vmaptune.study._stopping import stopping_lanes
from vmaptune.study._structure import Structure, within_padding
from vmaptune.study._training import Training

Params = dict[str, Any]
ALL_INFEASIBLE = (
    "every trial was infeasible: no setting trained to a finite result. Lower the upper end of the learning rate, "
    "check the loss for log(0) or division by 0, or train for fewer steps"
)


class StudyRun:
    """One study, from its first round to its confirmed winner."""

    def __init__(
        self,
        experiment: Experiment,
        options: Options,
        directory: Path,
        *,
        source: LoadedExperiment | None = None,
        listener: Listener | None = None,
        warnings: Sequence[str] = (),
        report: bool = True,
        ledger: Ledger | None = None,
        save_every: float = SAVE_EVERY,
        budget: Budget | None = None,
        extra: Mapping[str, Any] | None = None,
        started: float | None = None,
    ):
        """`ledger` is that of a study to go on with; without it a new study is begun in `directory`. `budget` is
        another split of the trials than the options', `extra` what the study keeps in its meta besides.
        `started`: when a study that was given minutes began, by their clock."""
        self.options, self.directory = options, directory
        self.budget = budget or options.budget()
        self.extra = dict(extra or {})
        self.experiment = experiment.with_changes(steps=options.steps)
        space = self.experiment.space
        assert isinstance(space, Space)
        self.first: Space = space
        self.space = space  # of the round begun last
        self.proposer = proposer_for(options.method, space, options.seed)
        self._proposed: dict[int, list[Params]] = {}  # by round
        self.counts = Counts(
            rounds=len(self.budget.rounds), trials=options.trials,
            sign=1.0 if self.experiment.direction == "minimize" else -1.0, listener=listener or Silent(),
            warnings=list(warnings), name=source.name if source else self.experiment.name, directory=str(directory),
            objective=self.experiment.objective,
        )  # fmt: skip
        if options.stopping:  # a first rung that no trial reaches is a mistake
            options.stopping.first_rung(self.experiment.total_steps(self._first_params()))
        file = source.path if source else None
        self.saving = Saving(Checkpoints(directory), save_every)
        self.snapshot: Snapshot | None = None  # to go on from, until its round is reached
        self._bound = Bound(not isinstance(self.counts.listener, Silent))
        self._rounds_finished = 0
        self.task = task = self.experiment.build()
        options.stopping.check(lockstep=task.shared is not None)
        statics = find_statics(self.experiment, task, file)
        if options.ensemble:
            check_ensemble(self.experiment, task, statics, space, self._first_params())
        chooser = Structure(self.experiment, task, statics, options.plan)
        recorded = ledger.meta() if ledger is not None and ledger.rounds() else None
        self.pace = None if options.minutes is None else Pace(self, started, recorded)
        if self.pace:
            self.pace.begin(statics, chooser)
            options = self.options
        if recorded is None:
            statics, structure = chooser.choose(self._settings_of(0), options.trials, options.structure)
        else:
            statics, structure = chooser.recorded(recorded["static"]), recorded.get("structure")
        self.structure = structure
        self.ledger = ledger or Ledger.create(directory, {})
        try:
            if recorded is None:  # nothing was trained yet
                self.ledger.renew(study_meta(self.experiment, options, statics.static, source) | self.extra)
                self.saving.checkpoints.clear()
                if structure is not None:
                    self.ledger.set_meta("structure", structure)
                    self.ledger.add_decision(None, "structure", structure)
            self.groups = Groups(
                self.experiment, task, statics, lane_arguments(space, statics.traced), options, self.ledger,
                self.counts, file, chooser,
            )  # fmt: skip
            self.report = RoundReport(directory, self.counts.listener, wanted=report)
            self.training = Training(
                self.experiment, options, self.groups, self.ledger, self.counts, self.saving, self._begin_next
            )
            if recorded is not None:
                self._go_on()
            if source:
                write_whole(directory / COPY, source.source.encode())
        except BaseException:
            self.ledger.close()
            raise

    def _go_on(self) -> None:
        """Finds the last whole moment and brings ledger and memory back to it."""
        self.ledger.set_meta("state", "running")
        remove_parts(self.directory, self.directory / "best", self.saving.checkpoints.folder)
        found = self.saving.checkpoints.newest(self.ledger.seq, self.counts.warn)
        moment = last_moment(self.ledger.rounds(), found, keeps_states=self._keeps)
        self.ledger.roll_back(moment.seq)
        self.saving.checkpoints.forget(moment.snapshot.seq if moment.snapshot else moment.seq)
        self.training.restore(moment.snapshot)
        self.snapshot = moment.snapshot
        self._rounds_finished = sum(row.finished is not None for row in self.ledger.rounds())

    # ---- the story -----------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Runs every round, confirms, saves; returns the result as `run --json` prints it.

        Raises:
          Interrupted: by Ctrl-C or SIGTERM; the study is saved, and `resume` goes on with it.
        """
        try:
            listener = self.counts.listener
            with self.saving.listening(getattr(listener, "say", listener.note)):
                return self._run_rounds()
        except BaseException as error:
            self._abandon(error)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(self._how_to_go_on(saved=isinstance(error, Interrupted))) from None
            raise
        finally:
            self.groups.close()
            self.saving.checkpoints.close()
            self.ledger.close()

    def _run_rounds(self) -> dict[str, Any]:
        self._cut(0)
        winner: Scored | None
        ranked: list[Confirmed] = []
        if self.options.method == "pbt":
            winner = self._evolve()
        else:
            slice_ = self._flow() if self.options.stopping else self._search()
            winner, ranked = self._confirm()
            for lean in leaning(self.first, slice_):
                self.counts.warn(lean.message)
        return self._conclude(winner, ranked, {})

    def _cut(self, number: int) -> bool:
        """Whether there is a round of this number: a study by time finds out now, how long it is too."""
        if self.pace and number < len(self.budget.rounds):
            self.pace.round(number)
        return number < len(self.budget.rounds)

    def _conclude(self, winner: Scored | None, ranked: list[Confirmed], more: Mapping[str, Any]) -> dict[str, Any]:
        """The result, with `more` in it; the models; the end."""
        self.training.restore_states()
        result = outcome(self.training, self.directory, self._searched(), winner, ranked) | dict(more)
        if self.pace:
            self.pace.end()
        if self.structure is not None:
            result["structure"] = self.structure
        if self.options.ensemble:
            result["ensemble"] = choose_ensemble(self.training, self.directory, self.options.ensemble)
            result["compilations"] = self.counts.compilations
        saved = save_models(self.training, self.directory, winner, confirmed=bool(self.budget.finalists))
        with self.ledger.transaction():
            self.ledger.set_meta("weights", saved)
            self.ledger.set_meta("result", result)
            self.ledger.set_meta("saves", self.saving.summary())
            self.ledger.set_meta("state", "finished")
            self.ledger.set_meta(FINISHED, True)
        self.saving.checkpoints.wait()
        self.saving.checkpoints.clear()
        self._write_views(last=True)
        return result

    def _abandon(self, error: BaseException) -> None:
        """The study says why it stopped; its trials are to be gone on with, so they stay as they are."""
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(Exception), self.ledger.transaction():  # the first error is the one to show
            self.ledger.set_meta("state", state)
            self.ledger.set_meta("failure", None if state == "interrupted" else f"{type(error).__name__}: {error}")
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            return  # twice: at once
        with contextlib.suppress(Exception, KeyboardInterrupt):
            self._write_views(last=True)

    def _how_to_go_on(self, saved: bool) -> str:
        kept = "everything is saved" if saved else f"at most the last {self.saving.every:.0f} s of work are lost"
        return (
            f"interrupted: {self.counts.done} of {self.options.trials} trials have ended, {kept}; go on with: "
            f"python -m vmaptune resume {shlex.quote(str(self.directory))}"
        )

    def _write_views(self, *, last: bool = False) -> None:
        """What a person opens, made anew from the ledger."""
        trials_csv(self.ledger, self.directory / "trials.csv")
        self.report.write(last=last)

    def _search(self) -> list[Scored]:
        """The search rounds, one after the other. Returns the last slice."""
        slice_: list[Scored] = []
        number = 0
        while self._cut(number):
            found = self._standings(self._trained(self._begin_round(number), self._keeps))
            slice_ = slice_of([*slice_, *found], self._keep(number, len(slice_) + len(found)))
            number += 1
            if self.proposer is not None:
                self.proposer.tell([(s.params, s.value) for s in found])
            elif number < len(self.budget.rounds):
                self.space = self._zoomed(self.space, slice_)
        return slice_

    def _evolve(self) -> Scored | None:
        """Population-based training, each group a population of its own. Returns the best member, as it ended."""
        rows = self._begin_round(0)
        snapshot, self.snapshot = self.snapshot, None
        params = {row.trial: dict(row.params) for row in rows}
        for decision in self.ledger.decisions("pbt"):  # of a study that goes on
            params |= {copy["trial"]: copy["params"] for copy in decision.data["copies"]}
        if not self._rounds_finished:
            self.groups.prepare([row.params for row in rows])
            self.training.restore_states()
            moment = snapshot.plain.get("population") if snapshot else None
            for group in self.groups:
                if snapshot and (moment is None or group.number < moment["group"]):
                    continue  # it had come to its end
                members = [row for row in rows if row.group == group.number]
                population = Population(self.training, group, members, PBT(), self.first)
                population.train(snapshot if moment and group.number == moment["group"] else None)
                params |= population.params
            self._finished(rows, keep=True)
        (winner,) = best([self._scored(self.training.rows[row.trial]) for row in rows], 1) or (None,)
        if winner is None:
            self.counts.warn(ALL_INFEASIBLE)
            return None
        return replace(winner, params=params[winner.trial])

    def _flow(self) -> list[Scored]:
        """All search rounds in one stream: when the trials of a round have all entered lanes and one is free, the
        next round begins, drawn from the zoom so far. Returns the last slice."""
        self._trained(self._begin_round(0), self._keeps)
        while self.counts.round + 1 < len(self.budget.rounds):  # no lane was free before the last trial ended
            self.space = self._zoomed(self.space, self._slice_so_far())
            if self._cut(self.counts.round + 1):
                self._trained(self._begin_round(self.counts.round + 1), self._keeps)
        return self._slice_so_far()

    def _begin_next(self) -> None:
        """Fills free lanes with the next round's trials: once half of this one's have come to a rung or to their end,
        and few of them still wait for lanes of other groups."""
        number = self.counts.round + 1
        if self.counts.phase != "search" or number >= len(self.budget.rounds):
            return
        rows = [row for row in self.training.rows.values() if row.round == self.counts.round]
        known = sum(row.state.ended or self.training.standing(row).rung > 0 for row in rows)
        if 2 * known >= len(rows) and self.training.waiting() <= stopping_lanes(self.options):
            slice_ = self._slice_so_far()
            if not slice_:  # those known so far went wrong: the others are waited for
                return
            self.space = self._zoomed(self.space, slice_)
            if self._cut(number):
                self.training.add(self._begin_round(number), self._keeps)

    def _slice_so_far(self) -> list[Scored]:
        """The best of all trials so far: those that have ended, and those that train by the rung they reached."""
        found = self._standings(self._searched())
        return slice_of(found, self._keep(self.counts.round, len(found)))

    def _keep(self, number: int, n: int) -> float:
        """Which share of `n` settings is as many as a round's own share."""
        return self.options.keep * (self.budget.rounds[number] // self.options.repeats) / n

    def _standings(self, rows: Sequence[TrialRow]) -> list[Scored]:
        """Each setting as one: its repeats, by their values at the end or where they are now."""
        settings: dict[int, list[Scored]] = {}
        for row in rows:
            now = self._scored(row) if row.state.ended else self.training.standing(row)
            settings.setdefault(row.trial if row.of is None else row.of, []).append(now)
        return [repeated(repeats, self.options.rank) for repeats in settings.values()]

    def _begin_round(self, number: int) -> list[TrialRow]:
        """Draws a search round and writes it down."""
        self.counts.round, self.counts.phase = number, "search"
        there = [row for row in self.training.rows.values() if row.round == number]
        if there and self.proposer is None:  # another library's sampler is to be asked again what it was asked
            return there
        repeats, first = self.options.repeats, len(self.training.rows)
        settings: list[tuple[Params, int | None]] = []
        for i, params in enumerate(self._settings_of(number)):
            settings += [(params, None), *[(params, first + i * repeats)] * (repeats - 1)]
        return self._add_round("search", self.space, settings)

    def _settings_of(self, number: int) -> list[Params]:
        """What a round tries, drawn from the space as it is now."""
        n = self.budget.rounds[number] // self.options.repeats
        if self.proposer is not None:
            if number not in self._proposed:
                self._proposed[number] = self.proposer.ask(n)
            return self._proposed[number]
        known = [row for row in self._searched() if row.round < number] if number else []
        so_far = [s for s in self._standings(known) if s.rung > 0]  # without those that have said nothing yet
        return propose(
            self.space, self.first, so_far, n, seed=(self.options.seed, number), method=self.options.design
        )  # fmt: skip

    @property
    def _ahead(self) -> bool:
        """Whether training begins while programs compile: where a clock cannot change what is decided."""
        return not self.options.stopping and self.options.method != "pbt"

    @property
    def _keeps(self) -> bool:
        """Whether the search's own states are wanted: nothing will be confirmed, so the winner's is the model."""
        return not self.budget.finalists

    def _zoomed(self, space: Space, slice_: list[Scored]) -> Space:
        if not slice_:
            self.counts.warn(
                f"round {self.counts.round}: every trial was infeasible, so the next round draws from the same "
                f"space; lower the upper end of the learning rate, or look for a loss that is never finite"
            )
            return space
        finer = zoom(space, self.first, slice_, margin=self.options.margin, expand=self.options.expand)
        if self.options.expand:
            finer, notes = within_padding(finer, self.first, self.groups.statics)
            for note in notes:
                self.counts.warn(note)
        self._decide("zoom", {"slice": [s.trial for s in slice_], "space": finer.to_json()})
        return finer

    def _confirm(self) -> tuple[Scored | None, list[Confirmed]]:
        standings = self._standings(self._searched())
        if self.pace:
            self.pace.confirmation(standings)
        chosen = (
            shortlist(self.first, standings, self.budget.finalists)
            if self.budget.finalists
            else finalists(standings, 1)
        )
        if not chosen:
            self.counts.warn(ALL_INFEASIBLE)
            return None, []
        if not self.budget.finalists:
            return chosen[0], []
        self.counts.round, self.counts.phase = self.counts.round + 1, "confirm"
        settings = [(s.params, s.trial) for s in chosen for _ in range(self.budget.repeats)]
        values: dict[int, list[float]] = {}
        repeats = self._trained(self._add_round("confirm", None, settings), keep=True)
        for row in repeats:
            assert row.of is not None
            values.setdefault(row.of, []).append(self._scored(row).value)
        ranked = settle(self.first, standings, values)
        self._decide("confirm", {"ranked": [c.trial for c in ranked], "chances": [c.chance for c in ranked]})
        return next(s for s in standings if s.trial == ranked[0].trial), ranked

    def _decide(self, kind: str, data: Any) -> None:
        """Records a decision of this round, unless the study, which goes on, has recorded it already."""
        if all(row.round != self.counts.round for row in self.ledger.decisions(kind)):
            self.ledger.add_decision(self.counts.round, kind, data)

    # ---- one round -----------------------------------------------------------------------------------

    def _add_round(
        self, kind: str, space: Space | None, settings: Sequence[tuple[Params, int | None]]
    ) -> list[TrialRow]:
        """Writes down new trials with these settings (and, for a repeat, the trial that it repeats), unless the
        study, which goes on, has this round already."""
        number = self.counts.round
        there = [row for row in self.training.rows.values() if row.round == number]
        if there:
            return there
        self.saving.stop_now_if_asked()
        self.groups.prepare([params for params, _ in settings], ahead=self._ahead)
        first = len(self.training.rows)
        rows = [
            TrialRow(
                trial=trial, round=number, group=self.groups.of(params).number, state=State.RUNNING, reason=None,
                seed=trial_seed(self.options.seed, trial), steps=0, value=None, params=params, of=of, metrics={},
            )
            for trial, (params, of) in enumerate(settings, first)
        ]  # fmt: skip
        with self.ledger.transaction():
            self.ledger.add_round(
                number, kind, space.to_json() if space else None, len(rows),
                {"method": self.options.method} if space else {},
            )  # fmt: skip
            self.ledger.add_trials(rows)
        self._expect(rows)
        return rows

    def _expect(self, rows: Sequence[TrialRow]) -> None:
        """How far there is to go, and how fast it could go with these trials, for those who watch."""
        self.counts.total_steps = expected_steps_in_all(self)
        self.counts.bound = self._bound.of([self.groups.of(row.params) for row in rows], self.counts.total_steps)
        self.counts.tell()

    def _trained(self, rows: list[TrialRow], keep: bool) -> list[TrialRow]:
        """Trains a round's trials, and what flows in after them, to the end; a finished round stays as it is."""
        rounds = self.ledger.rounds()
        if rows[0].round < self._rounds_finished:
            if self.options.stopping and self.counts.phase == "search":  # the others had flowed into it
                self._stand_at(max(r.round for r in rounds if r.kind == "search" and r.finished is not None))
            return rows
        snapshot, self.snapshot = self.snapshot, None
        if any(row.state.ended for row in rows) or snapshot is not None:
            self._stand_at(rounds[-1].round)
        open_rounds = [row for row in self.training.rows.values() if row.round >= self._rounds_finished]
        self.groups.prepare([row.params for row in open_rounds], ahead=self._ahead)
        self.training.restore_states()
        if snapshot is None or not snapshot.plain["ended"]:
            self._expect(rows)
            rows = self.training.train(rows, keep, snapshot)
        return self._finished(rows, keep)

    def _stand_at(self, number: int) -> None:
        """A study that goes on stands at this round, which has begun."""
        self.counts.round = number
        space = self.ledger.rounds()[number].space
        if space is not None:
            self.space = Space.from_json(space)

    def _finished(self, rows: list[TrialRow], keep: bool) -> list[TrialRow]:
        """Ends every round that has been begun; returns the trials as they are now. States that were kept live in
        memory alone, so they are saved first."""
        if keep:
            self.saving.save(lambda: self.training.snapshot(ended=True), wait=True)
        begun = self._rounds_finished
        with self.ledger.transaction():
            for number in range(begun, self.counts.round + 1):
                self.ledger.finish_round(number)
            self._rounds_finished = self.counts.round + 1
            self.ledger.add_decision(self.counts.round, "lanes", self.counts.lane_summary())
            if self.options.stopping.synchronous and self.counts.phase == "search":
                for number in range(begun, self.counts.round + 1):
                    self.ledger.add_decision(number, "brackets", self.training.rules.tables(number))
            if self.options.repeats > 1:
                self.ledger.add_decision(self.counts.round, "spread", self._spread(rows))
            # rounds that flowed into one another have one course of the lanes, which began with the first of them
            self.ledger.set_meta(f"occupancy.{begun}", self.training.occupancy.points())
        self._write_views()
        return rows

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

    # ---- small things --------------------------------------------------------------------------------

    def _searched(self) -> list[TrialRow]:
        """The trials of the search, in their order; the confirmation's are not among them."""
        return [row for row in self.training.rows.values() if row.round < len(self.budget.rounds)]

    def _scored(self, row: TrialRow) -> Scored:
        return scored(row, self.counts.sign)

    def _first_params(self) -> Params:
        sample = self.first.sample(1, seed=(self.options.seed, 0))
        return {name: _plain(column[0]) for name, column in sample.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
