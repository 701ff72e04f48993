"""`--method pbt`: a population that trains side by side, the worst taking over from the best as it goes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from vmaptune.engine.lanes import Lanes, Point
from vmaptune.search.pbt import PBT, Copy, generation
from vmaptune.space import Space
from vmaptune.store.ledger import CurvePoint, TrialResult, TrialRow
from vmaptune.store.states import State
from vmaptune.study._groups import Group
from vmaptune.study._training import Training, infeasible


class Population:
    """The members of one group: only they can take over one another's states."""

    def __init__(self, training: Training, group: Group, rows: Sequence[TrialRow], options: PBT, first: Space):
        self.training, self.group, self.options, self.space = training, group, options, first
        self.trials = [row.trial for row in rows]
        self.params = {row.trial: dict(row.params) for row in rows}  # as they are now
        self.values = dict.fromkeys(self.trials, math.nan)  # to be minimised
        self.steps = training.experiment.total_steps(rows[0].params)
        training.rows.update({row.trial: row for row in rows})

    def train(self) -> list[Copy]:
        """Trains the population to its last step; returns who took over from whom."""
        training, group = self.training, self.group
        lanes = Lanes(
            group.program, capacity=len(self.trials) + group.plan.width, on_points=self._record,
            on_state=lambda job, state: training.states.__setitem__(job.trial, state),
        )  # fmt: skip
        started = time.perf_counter()
        lanes.submit(training._job(training.rows[trial], keep=True) for trial in self.trials)
        copies: list[Copy] = []
        done = 0
        while done < self.steps:
            training.saving.stop_now_if_asked()  # its round begins again: takings-over need all members side by side
            lanes.segment()
            done = min(self.steps, done + group.plan.every)
            if done < self.steps:
                copies += self._take_over(lanes, done)
        training.counts.count_lanes(lanes)
        training.counts.seconds["train"] += time.perf_counter() - started
        return copies

    def _take_over(self, lanes: Lanes, step: int) -> list[Copy]:
        training = self.training
        copies = generation(
            self.space, training.groups.statics.traced, self.trials, [self.values[t] for t in self.trials],
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
        training.counts.tell()
        return []


def copies_of(decisions: Sequence[Any]) -> list[Copy]:
    """The copies that a ledger's decisions hold, in their order."""
    return [Copy(**copy) for decision in decisions for copy in decision.data["copies"]]
