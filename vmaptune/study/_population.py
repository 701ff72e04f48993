"""`--method pbt`: a population that trains side by side, the worst taking over from the best as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from vmaptune.engine import moments
from vmaptune.engine.lanes import Job, Lanes, Point
from vmaptune.search.pbt import PBT, Copy, generation
from vmaptune.space import Space
from vmaptune.store.checkpoints import Snapshot
from vmaptune.store.ledger import CurvePoint, TrialResult, TrialRow
from vmaptune.store.live import HEARTBEAT
from vmaptune.store.states import State
from vmaptune.study._groups import Group
from vmaptune.study._training import Training, arrays_of, infeasible


class Population:
    """The members of one group: only they can take over one another's states."""

    def __init__(self, training: Training, group: Group, rows: Sequence[TrialRow], options: PBT, first: Space):
        self.training, self.group, self.options, self.space = training, group, options, first
        self.trials = [row.trial for row in rows]
        self.params = {row.trial: dict(row.params) for row in rows}  # as they are now
        self.values = dict.fromkeys(self.trials, math.nan)  # to be minimised
        self.steps = training.experiment.total_steps(rows[0].params)
        self.done = 0  # steps of each
        training.rows.update({row.trial: row for row in rows})
        training.counts.submitted = len(training.rows)

    def train(self, moment: Snapshot | None = None) -> list[Copy]:
        """Trains the population to its last step, from a `moment` of it if there is one; returns who took over from
        whom meanwhile.

        Raises:
          Interrupted: somebody asked to stop; the moment was saved.
        """
        training, group = self.training, self.group
        lanes = Lanes(
            group.program, capacity=len(self.trials) + group.plan.width, on_points=self._record,
            on_state=lambda job, state: training.states.__setitem__(job.trial, state),
        )  # fmt: skip
        training.lanes = {group.number: lanes}
        started = time.perf_counter()
        copies: list[Copy] = []
        self.done = 0
        if moment is None:
            lanes.submit(self._jobs().values())
        else:
            self._restore(lanes, moment)
        while self.done < self.steps:
            lanes.segment()
            self.done = min(self.steps, self.done + group.plan.every)
            if self.done < self.steps:
                copies += self._take_over(lanes, self.done)
                training.saving.between_calls(self.snapshot)
        training.lanes = {}
        training.counts.count_lanes(lanes)
        training.counts.seconds["train"] += time.perf_counter() - started
        return copies

    def snapshot(self) -> Snapshot:
        """This moment after a generation's takings-over."""
        whole = self.training.snapshot()
        own = {
            "group": self.group.number,
            "done": self.done,
            "members": [[t, self.values[t], self.params[t]] for t in self.trials],
        }
        return replace(whole, plain={**whole.plain, "population": own})

    def _restore(self, lanes: Lanes, moment: Snapshot) -> None:
        own = moment.plain["population"]
        self.done = own["done"]
        for trial, value, params in own["members"]:
            self.values[trial], self.params[trial] = value, dict(params)
        ((number, plain),) = moment.plain["lanes"]
        moments.restore(lanes, plain, arrays_of(moment.arrays, f"lanes{number}."), self._jobs())

    def _jobs(self) -> dict[int, Job]:
        """The members with their settings as they are now."""
        rows = self.training.rows
        return {t: self.training.job(replace(rows[t], params=self.params[t]), keep=True) for t in self.trials}

    def _take_over(self, lanes: Lanes, step: int) -> list[Copy]:
        training, statics = self.training, self.training.groups.statics
        free = [name for name in statics.traced if name not in statics.structure]  # a masked width comes with its state
        copies = generation(
            self.space, free, self.trials, [self.values[t] for t in self.trials],
            [self.params[t] for t in self.trials], self.options, training.options.seed, step,
        )  # fmt: skip
        if not copies:
            return []
        self.params.update({copy.trial: copy.params for copy in copies})
        lanes.copy(
            {copy.trial: copy.parent for copy in copies},
            {copy.trial: training.groups.lane_values(copy.params) for copy in copies},
        )
        with training.ledger.transaction():
            training.ledger.add_decision(
                training.counts.round, "pbt",
                {"group": self.group.number, "step": step, "copies": [asdict(copy) for copy in copies]},
            )  # fmt: skip
        return copies

    def _record(self, points: list[Point]) -> list[int]:
        """A segment into the ledger. A member that went wrong is not ended: it takes over from another one."""
        training = self.training
        curve, ended = [], []
        for point in points:
            value = point.metrics[training.experiment.objective]
            reason = infeasible(point, value)
            self.values[point.trial] = math.nan if reason else training.counts.sign * value
            curve.append(CurvePoint(point.trial, point.step, point.loss, value, point.metrics))
            training.counts.steps_seen += point.step - training.rows[point.trial].steps
            row = replace(training.rows[point.trial], steps=point.step)
            if point.step >= self.steps:
                state = State.COMPLETE if reason is None else State.INFEASIBLE
                row = replace(row, state=state, reason=reason, value=value, metrics=point.metrics)
                training._count(row)
                ended.append(TrialResult(row.trial, state, reason, point.step, value, point.metrics))
            training.rows[row.trial] = row
        with training.ledger.transaction():
            training.ledger.add_curve_points(curve)
            training.ledger.finish_trials(ended)
            beat = training.counts.heartbeat()
            if beat is not None:
                training.ledger.set_meta(HEARTBEAT, beat)
        training.counts.tell()
        return []


def copies_of(decisions: Sequence[Any]) -> list[Copy]:
    """The copies that a ledger's decisions hold, in their order."""
    return [Copy(**copy) for decision in decisions for copy in decision.data["copies"]]
