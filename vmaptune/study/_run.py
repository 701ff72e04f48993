"""The round loop: the only place where search, engine and store meet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.engine.devices import machine
from vmaptune.experiment import Experiment, LoadedExperiment, find_statics, lane_arguments
from vmaptune.search.confirm import Confirmed, finalists, rank
from vmaptune.search.sampler import trial_seed
from vmaptune.search.zoom import Scored, leaning, slice_of, zoom
from vmaptune.space import Space
from vmaptune.store.ledger import Ledger, TrialResult, TrialRow
from vmaptune.store.states import State
from vmaptune.store.tables import trials_csv
from vmaptune.study._groups import Groups
from vmaptune.study._options import Options
from vmaptune.study._outcome import outcome, save_models, scored
from vmaptune.study._progress import Counts, Listener, Silent
from vmaptune.study._report import RoundReport
from vmaptune.study._training import Training

Params = dict[str, Any]


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
    ):
        self.options, self.directory = options, directory
        self.budget = options.budget()
        self.experiment = experiment.with_changes(steps=options.steps)
        space = self.experiment.space
        assert isinstance(space, Space)
        self.first: Space = space
        self.counts = Counts(
            rounds=len(self.budget.rounds), trials=options.trials,
            sign=1.0 if self.experiment.direction == "minimize" else -1.0, listener=listener or Silent(),
            warnings=list(warnings), name=source.name if source else self.experiment.name, directory=str(directory),
            objective=self.experiment.objective,
        )  # fmt: skip
        file = source.path if source else None
        task = self.experiment.build()
        statics = find_statics(self.experiment, task, file)
        self.ledger = Ledger.create(directory, self._meta(source, statics.static))
        self.groups = Groups(
            self.experiment, task, statics, lane_arguments(space, statics.traced), options, self.ledger,
            self.counts, file,
        )  # fmt: skip
        self.training = Training(self.experiment, options, self.groups, self.ledger, self.counts)
        self.report = RoundReport(directory, self.counts.listener, wanted=report)

    # ---- the story -----------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Runs every round, confirms, saves; returns the result as `run --json` prints it."""
        try:
            return self._run_rounds()
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self.ledger.close()

    def _run_rounds(self) -> dict[str, Any]:
        self.counts.total_steps = self.options.trials * self.experiment.total_steps(self._first_params())
        space = self.first
        slice_: list[Scored] = []
        for number, trials in enumerate(self.budget.rounds):
            self.counts.round, self.counts.phase = number, "search"
            found = self._search_round(space, trials)
            slice_ = slice_of([*slice_, *found], self.options.keep * trials / (len(slice_) + len(found)))
            if number + 1 < len(self.budget.rounds):
                space = self._zoomed(space, slice_)
        leanings = leaning(self.first, slice_)
        winner, ranked = self._confirm()
        for lean in leanings:
            self.counts.warn(lean.message)
        result = outcome(self.training, self.directory, self._searched(), winner, ranked)
        saved = save_models(self.training, self.directory, winner, confirmed=bool(self.budget.finalists))
        with self.ledger.transaction():
            self.ledger.set_meta("weights", saved)
            self.ledger.set_meta("result", result)
            self.ledger.set_meta("state", "finished")
        self._write_views(last=True)
        return result

    def _abandon(self, error: BaseException) -> None:
        """No trial stays `RUNNING` in the ledger of a study that has ended before its time."""
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else f"the study failed: {type(error).__name__}"
        running = [row for row in self.training.rows.values() if row.state == State.RUNNING]
        with contextlib.suppress(Exception), self.ledger.transaction():  # the first error is the one to show
            self.ledger.finish_trials(
                [TrialResult(row.trial, State.FAIL, reason, row.steps, None, {}) for row in running]
            )
            self.ledger.set_meta("state", "interrupted" if interrupted else "failed")
        with contextlib.suppress(Exception):
            trials_csv(self.ledger, self.directory / "trials.csv")
            self.report.correct()

    def _write_views(self, *, last: bool = False) -> None:
        """What a person opens, made anew from the ledger."""
        trials_csv(self.ledger, self.directory / "trials.csv")
        self.report.write(last=last)

    def _search_round(self, space: Space, trials: int) -> list[Scored]:
        samples = space.sample(trials, seed=(self.options.seed, self.counts.round), method=self.options.method)
        settings = [
            {name: _plain(column[i]) for name, column in samples.items()}
            for i in range(len(next(iter(samples.values()))))
        ]
        keep = not self.budget.finalists  # nothing will be confirmed: the winner's own state is the model
        return self._train_round("search", space, [(params, None) for params in settings], keep=keep)

    def _zoomed(self, space: Space, slice_: list[Scored]) -> Space:
        if not slice_:
            self.counts.warn(
                f"round {self.counts.round}: every trial was infeasible, so the next round draws from the same "
                f"space; lower the upper end of the learning rate, or look for a loss that is never finite"
            )
            return space
        finer = zoom(space, self.first, slice_, margin=self.options.margin, expand=self.options.expand)
        with self.ledger.transaction():
            self.ledger.add_decision(
                self.counts.round, "zoom", {"slice": [s.trial for s in slice_], "space": finer.to_json()}
            )
        return finer

    def _confirm(self) -> tuple[Scored | None, list[Confirmed]]:
        chosen = finalists([self._scored(row) for row in self._searched()], max(1, self.budget.finalists))
        if not chosen:
            self.counts.warn(
                "every trial was infeasible: no setting trained to a finite result. Lower the upper end of "
                "the learning rate, check the loss for log(0) or division by 0, or train for fewer steps"
            )
            return None, []
        if not self.budget.finalists:
            return chosen[0], []
        self.counts.round, self.counts.phase = self.counts.round + 1, "confirm"
        settings = [(s.params, s.trial) for s in chosen for _ in range(self.budget.repeats)]
        values: dict[int, list[float]] = {}
        for (_, of), repeat in zip(settings, self._train_round("confirm", None, settings, keep=True), strict=True):
            values.setdefault(of, []).append(repeat.value)
        ranked = rank(values)
        with self.ledger.transaction():
            self.ledger.add_decision(self.counts.round, "confirm", {"ranked": [c.trial for c in ranked]})
        return next(s for s in chosen if s.trial == ranked[0].trial), ranked

    # ---- one round -----------------------------------------------------------------------------------

    def _train_round(
        self, kind: str, space: Space | None, settings: Sequence[tuple[Params, int | None]], keep: bool = False
    ) -> list[Scored]:
        """Trains new trials with these settings (and, for a repeat, the trial that it repeats)."""
        self.groups.prepare([params for params, _ in settings])
        first, number = len(self.training.rows), self.counts.round
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
        done = self.training.train(rows, keep)
        with self.ledger.transaction():
            self.ledger.finish_round(number)
            self.ledger.set_meta(f"occupancy.{number}", self.training.occupancy.points())
        self._write_views()
        return [self._scored(row) for row in done]

    # ---- small things --------------------------------------------------------------------------------

    def _searched(self) -> list[TrialRow]:
        """The trials of the search, in their order; repeats are not among them."""
        return [row for row in self.training.rows.values() if row.of is None]

    def _scored(self, row: TrialRow) -> Scored:
        return scored(row, self.counts.sign)

    def _first_params(self) -> Params:
        sample = self.first.sample(1, seed=(self.options.seed, 0))
        return {name: _plain(column[0]) for name, column in sample.items()}

    def _meta(self, source: LoadedExperiment | None, static: Sequence[str]) -> dict[str, Any]:
        return {
            "state": "running",
            "name": source.name if source else self.experiment.name,
            "experiment": {
                "path": source.path if source else None,
                "sha256": source.sha256 if source else None,
                "source": source.source if source else None,
            },
            "options": asdict(self.options),
            "space": self.first.to_json(),
            "static": list(static),
            "objective": self.experiment.objective,
            "direction": self.experiment.direction,
            "machine": machine(),
            "created": time.time(),
        }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
