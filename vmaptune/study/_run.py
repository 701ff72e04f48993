"""A study from its first round to its confirmed winner: the only place where search, engine and store meet."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmaptune.experiment import Experiment, LoadedExperiment, find_statics, lane_arguments
from vmaptune.search.confirm import Budget, Confirmed
from vmaptune.search.zoom import Scored, leaning
from vmaptune.space import Space
from vmaptune.store.checkpoints import Checkpoints
from vmaptune.store.files import remove_parts, write_whole
from vmaptune.store.ledger import FINISHED, Ledger
from vmaptune.store.tables import trials_csv
from vmaptune.study._ensemble import check_ensemble, choose_ensemble
from vmaptune.study._groups import Groups
from vmaptune.study._options import Options
from vmaptune.study._outcome import outcome, save_models
from vmaptune.study._pacing import Pace
from vmaptune.study._progress import Counts, Listener, heard
from vmaptune.study._report import RoundReport
from vmaptune.study._resume import COPY, study_meta
from vmaptune.study._rounds import Params, Rounds
from vmaptune.study._saving import SAVE_EVERY, Interrupted, Saving
from vmaptune.study._searching import Search
from vmaptune.study._structure import Structure
from vmaptune.study._training import Training


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
        self.counts = Counts(
            rounds=len(self.budget.rounds), trials=options.trials,
            sign=1.0 if self.experiment.direction == "minimize" else -1.0, listener=heard(listener),
            warnings=list(warnings), name=source.name if source else self.experiment.name, directory=str(directory),
            objective=self.experiment.objective, space=space,
        )  # fmt: skip
        self.rounds, self.search = Rounds(self), Search(self)
        if options.stopping:  # a first rung that no trial reaches is a mistake
            options.stopping.first_rung(self.experiment.total_steps(self.first_params()))
        file = source.path if source else None
        self.saving = Saving(Checkpoints(directory), save_every)
        self.task = task = self.experiment.build()
        options.stopping.check(lockstep=task.shared is not None)
        statics = find_statics(self.experiment, task, file)
        for text in statics.notes:
            self.counts.warn(text)
        if options.ensemble:
            check_ensemble(self.experiment, task, statics, space, self.first_params())
        chooser = Structure(self.experiment, task, statics, options)
        recorded = ledger.meta() if ledger is not None and ledger.rounds() else None
        self.pace = None if options.minutes is None else Pace(self, started, recorded)
        if self.pace:
            self.pace.begin(statics, chooser)
            options = self.options
        if recorded is None:
            statics, structure = chooser.choose(self.search.settings_of(0), options.trials, options.structure)
        else:
            statics, structure = chooser.recorded(recorded["static"]), recorded.get("structure")
        self.structure = structure
        self.ledger = ledger or Ledger.create(directory, {})
        try:
            if recorded is None:  # nothing was trained yet
                self.ledger.renew(study_meta(self.experiment, options, statics.static, source) | self.extra)
                self.saving.checkpoints.clear()
                differs = {name: asdict(found) for name, found in chooser.ruled_out.items()}
                if differs:
                    self.ledger.add_decision(None, "padding", {"differs": differs, "notes": chooser.notes()})
                if structure is not None:
                    self.ledger.set_meta("structure", structure)
                    self.ledger.add_decision(None, "structure", structure)
            for decision in self.ledger.decisions("padding"):
                for text in decision.data["notes"]:
                    self.counts.warn(text)
            self.groups = Groups(
                self.experiment, task, statics, lane_arguments(space, statics.traced), options, self.ledger,
                self.counts, file, chooser, self.stop_if_asked,
            )  # fmt: skip
            self.report = RoundReport(directory, self.counts.listener, wanted=report)
            self.training = Training(
                self.experiment, options, self.groups, self.ledger, self.counts, self.saving, self.search.begin_next
            )
            if recorded is not None:
                self.ledger.set_meta("state", "running")
                remove_parts(directory, directory / "best", self.saving.checkpoints.folder)
                self.rounds.go_on(self.search.keeps)
            if source:
                write_whole(directory / COPY, source.source.encode())
        except BaseException:
            self.ledger.close()
            raise

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
        self.cut(0)
        winner: Scored | None
        ranked: list[Confirmed] = []
        if self.options.method == "pbt":
            winner = self.search.as_populations()
        else:
            slice_ = self.search.in_a_stream() if self.options.stopping else self.search.in_rounds()
            winner, ranked = self.search.confirm()
            for lean in leaning(self.first, slice_):
                self.counts.warn(lean.message)
        return self._conclude(winner, ranked, {})

    def cut(self, number: int) -> bool:
        """Whether there is a round of this number: a study by time finds out now, how long it is too."""
        if self.pace and number < len(self.budget.rounds):
            self.pace.round(number)
        return number < len(self.budget.rounds)

    def _conclude(self, winner: Scored | None, ranked: list[Confirmed], more: Mapping[str, Any]) -> dict[str, Any]:
        """The result, with `more` in it; the models; the end."""
        self.training.restore_states()
        result = outcome(self.training, self.directory, self.rounds.searched(), winner, ranked) | dict(more)
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
        self.write_views(last=True)
        return result

    def stop_if_asked(self) -> None:
        """Stops where somebody asked to and nobody trains, so that there is nothing to save."""
        if not self.counts.lanes:
            self.saving.stop_now_if_asked()

    def _abandon(self, error: BaseException) -> None:
        """The study says why it stopped; its trials are to be gone on with, so they stay as they are."""
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(Exception), self.ledger.transaction():  # the first error is the one to show
            self.ledger.set_meta("state", state)
            self.ledger.set_meta("failure", None if state == "interrupted" else f"{type(error).__name__}: {error}")
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            return  # twice: at once
        with contextlib.suppress(Exception, KeyboardInterrupt):
            self.write_views(last=True)

    def _how_to_go_on(self, saved: bool) -> str:
        kept = "everything is saved" if saved else f"at most the last {self.saving.every:.0f} s of work are lost"
        return (
            f"interrupted: {self.counts.done} of {self.counts.trials} trials have ended, {kept}; go on with: "
            f"python -m vmaptune resume {shlex.quote(str(self.directory))}"
        )

    def write_views(self, *, last: bool = False) -> None:
        """What a person opens, made anew from the ledger."""
        trials_csv(self.ledger, self.directory / "trials.csv")
        self.report.write(last=last, left=self.counts.seconds_left())

    def first_params(self) -> Params:
        """Settings of one trial, to look at before any are drawn."""
        return self.first.rows(self.first.sample(1, seed=(self.options.seed, 0)))[0]
