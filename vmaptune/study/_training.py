"""Trains the trials of a round on their groups' lanes; every segment goes into the ledger in one transaction."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vmaptune.engine.lanes import Job, Lanes, Point
from vmaptune.experiment import Experiment
from vmaptune.store.ledger import CurvePoint, Ledger, TrialResult, TrialRow
from vmaptune.store.live import HEARTBEAT
from vmaptune.store.states import State
from vmaptune.study._groups import Group, Groups
from vmaptune.study._occupancy import Occupancy
from vmaptune.study._options import Options
from vmaptune.study._progress import Counts


class Training:
    """The trials that are or were on lanes: their rows as the ledger has them, and the states that were kept."""

    def __init__(self, experiment: Experiment, options: Options, groups: Groups, ledger: Ledger, counts: Counts):
        self.experiment, self.options, self.groups = experiment, options, groups
        self.ledger, self.counts = ledger, counts
        self.rows: dict[int, TrialRow] = {}  # of all rounds
        self.occupancy = Occupancy()  # of the last round
        self.states: dict[int, Any] = {}  # final states of trials with `keep`

    def train(self, rows: Sequence[TrialRow], keep: bool = False) -> list[TrialRow]:
        """Trains each of these trials to its end and returns its row then. All of their groups live at once:
        the calls of their programs take turns, in the order of the groups."""
        self.rows.update({row.trial: row for row in rows})
        by_group: dict[int, tuple[Group, list[Job]]] = {}
        for row in rows:
            group = self.groups.of(row.params)
            by_group.setdefault(group.number, (group, []))[1].append(self._job(row, keep))
        lanes = []
        for group, jobs in by_group.values():
            lanes.append(self._lanes(group, share=len(by_group)))
            lanes[-1].submit(jobs)
        self.counts.lanes = lanes
        self.counts.submitted += len(rows)
        self.occupancy = Occupancy()
        started = time.perf_counter()
        going = list(lanes)
        while going:
            going = [each for each in going if each.advance()]
            self.occupancy.note(
                time.perf_counter() - started,
                sum(each.live_steps for each in lanes), sum(each.lane_steps for each in lanes),
            )  # fmt: skip
        self.counts.refilled += sum(each.refilled for each in lanes)
        self.counts.lanes = ()
        spent = time.perf_counter() - started
        evaluating = sum(
            each.calls * group.evaluate_seconds for each, (group, _) in zip(lanes, by_group.values(), strict=True)
        )
        self.counts.seconds["train"] += spent - min(spent, evaluating)
        self.counts.seconds["evaluate"] += min(spent, evaluating)
        return [self.rows[row.trial] for row in rows]

    def _job(self, row: TrialRow, keep: bool) -> Job:
        settings = self.groups.lane_values(row.params)
        return Job(row.trial, row.seed, settings, self.experiment.total_steps(row.params), keep)

    def _lanes(self, group: Group, share: int) -> Lanes:
        capacity = self.options.lanes or group.lanes_in_memory() // share
        return Lanes(
            group.program,
            capacity=max(capacity, group.plan.width),
            on_points=self._record,
            on_state=lambda job, state: self.states.__setitem__(job.trial, state),
        )

    def _record(self, points: list[Point]) -> list[int]:
        """One segment of one call into the ledger, in one transaction; returns the trials to stop."""
        curve, ended, stop = [], [], []
        for point in points:
            value = point.metrics[self.experiment.objective]
            reason = infeasible(point, value)
            curve.append(CurvePoint(point.trial, point.step, point.loss, value, point.metrics))
            row = self.rows[point.trial]
            self.counts.steps_seen += point.step - row.steps
            steps = self.experiment.total_steps(row.params)
            if reason is None and point.step < steps:
                self.rows[row.trial] = replace(row, steps=point.step)
                continue
            state = State.COMPLETE if reason is None else State.INFEASIBLE
            row = replace(row, state=state, reason=reason, steps=point.step, value=value, metrics=point.metrics)
            self.rows[row.trial] = row
            self._count(row)
            ended.append(TrialResult(row.trial, state, reason, point.step, value, point.metrics))
            if point.step < steps:
                stop.append(point.trial)
        with self.ledger.transaction():
            self.ledger.add_curve_points(curve)
            self.ledger.finish_trials(ended)
            beat = self.counts.heartbeat()
            if beat is not None:
                self.ledger.set_meta(HEARTBEAT, beat)
        self.counts.tell()
        return stop

    def _count(self, row: TrialRow) -> None:
        counts = self.counts
        counts.done += 1
        counts.infeasible += row.state == State.INFEASIBLE
        counts.stopped += row.state == State.STOPPED
        counts.model_steps += row.steps
        if row.state == State.COMPLETE and row.value is not None and math.isfinite(row.value):
            value = counts.sign * row.value
            if value < counts.best:
                counts.best, counts.best_params = value, row.params


def infeasible(point: Point, value: float) -> str | None:
    """Why a trial cannot go on, or None."""
    if point.bad is not None:
        return f"diverged: the loss is not finite at step {point.bad}"
    if not math.isfinite(value):
        return f"the objective is not finite at step {point.step}"
    return None
