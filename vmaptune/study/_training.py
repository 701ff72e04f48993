"""Trains the trials of a round on their groups' lanes; every segment goes into the ledger in one transaction.

Between two calls a snapshot can be taken of all that is in memory and not in the ledger: the lanes, with the
results that were not read yet, and the final states that were kept. Together with the ledger up to the same
row it is the whole of a moment, so a study that goes on from it comes to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from vmaptune.engine import moments
from vmaptune.engine.functions import pack
from vmaptune.engine.jobs import Job, Leaving, Paused, Point
from vmaptune.engine.lanes import Lanes
from vmaptune.experiment import Experiment
from vmaptune.search.brackets import BracketRule, Verdict
from vmaptune.search.halving import MedianRule
from vmaptune.search.patience import PatienceRule
from vmaptune.search.zoom import Scored
from vmaptune.store.checkpoints import Snapshot
from vmaptune.store.ledger import CurvePoint, Ledger, TrialResult, TrialRow
from vmaptune.store.live import HEARTBEAT
from vmaptune.store.states import UNDEFINED, State
from vmaptune.study._groups import PATIENCE, Group, Groups
from vmaptune.study._occupancy import Occupancy
from vmaptune.study._options import Options
from vmaptune.study._progress import Counts
from vmaptune.study._saving import Saving
from vmaptune.study._stopping import Rules, is_best, stopping_lanes
from vmaptune.study._structure import COMPILERS

BESIDE = 4.0  # seconds of training, by its operations, beside which as many programs compile as do at once


@dataclass
class _Later:
    """Trials of a group that has no lanes yet."""

    group: Group
    jobs: list[Job]
    due: float  # how much has been trained, in seconds by its operations, when they get lanes: with early stopping


class Training:
    """The trials that are or were on lanes: their rows as the ledger has them, and the states that were kept.

    Args:
      feed: called when a lane is free and no trial waits; may `add` trials. With early stopping alone.
    """

    def __init__(
        self,
        experiment: Experiment,
        options: Options,
        groups: Groups,
        ledger: Ledger,
        counts: Counts,
        saving: Saving,
        feed: Callable[[], None] | None = None,
    ):
        self.experiment, self.options, self.groups = experiment, options, groups
        self.ledger, self.counts, self.saving, self.feed = ledger, counts, saving, feed
        self.rows: dict[int, TrialRow] = {}  # of all rounds
        self.occupancy = Occupancy()  # of the last round
        self.states: dict[int, Any] = {}  # final states of trials with `keep`
        self.paused: dict[int, Paused] = {}  # trials that wait for others at a rung, or for a lane after that
        self.rules = Rules(options.stopping, 1, self._roster)
        self.lanes: dict[int, Lanes] = {}  # by group, of the trials that train now
        self._later: list[_Later] = []
        self._share = 1  # groups that share the lanes
        self._waited = 0.0  # seconds for programs, while nothing trained
        self._keeps = False  # whether their final states are wanted
        self._saved: Snapshot | None = None  # whose states were not asked for yet

    def train(self, rows: Sequence[TrialRow], keep: bool = False, snapshot: Snapshot | None = None) -> list[TrialRow]:
        """Trains each of these trials, and those that are added meanwhile, to its end; returns its row then. All of
        their groups live at once: the calls of their programs take turns, in the order of the groups. With
        `snapshot` they go on from it.

        Raises:
          Interrupted: somebody asked to stop; the moment was saved.
        """
        self.lanes, self._later, self._keeps = {}, [], keep
        self._share = len({self.groups.of(row.params).number for row in rows})
        self.rules.every = max(group.plan.every for group in self.groups)
        self.occupancy = Occupancy()
        self._waited = 0.0
        started = time.perf_counter()
        if snapshot is None:
            self.add(rows, keep)
        else:
            self._restore_lanes(snapshot, keep)
        busy = True
        while busy or self._later:
            if self._will_wait(idle=not busy):
                self.saving.before_a_wait(self.snapshot, self.ledger.seq)
            self._begin_later(idle=not busy)
            # an advance of one group's lanes may add trials to another's: look at all before the end
            busy = sum(each.advance() for each in list(self.lanes.values())) > 0
            busy = busy or any(each.waiting for each in self.lanes.values())
            self.occupancy.note(
                time.perf_counter() - started,
                sum(each.live_steps for each in self.lanes.values()),
                sum(each.lane_steps for each in self.lanes.values()),
            )
            self.saving.between_calls(self.snapshot, self.settle, busy=busy)
        self.counts.lanes = ()
        spent = time.perf_counter() - started - self._waited
        self.groups.time_evaluations()
        evaluating = 0.0
        for group in self.groups:
            if group.number in self.lanes:
                lanes = self.lanes[group.number]
                evaluating += lanes.calls * (group.evaluate_seconds or 0.0)
                self.counts.count_lanes(lanes)
        self.counts.seconds["train"] += spent - min(spent, evaluating)
        self.counts.seconds["evaluate"] += min(spent, evaluating)
        return [self.rows[row.trial] for row in rows]

    def add(self, rows: Sequence[TrialRow], keep: bool = False, due: Mapping[int, float] | None = None) -> None:
        """Puts trials into the queues of their groups' lanes. `due`: when those of groups without lanes get some, where
        that was settled before."""
        self.rows.update({row.trial: row for row in rows})
        later = {each.group.number: each for each in self._later}
        for number, moment in (self._due(rows) if due is None else due).items():
            later.setdefault(number, _Later(self._group(number), [], moment))
        for row in rows:
            group = self.groups.of(row.params)
            later.setdefault(group.number, _Later(group, [], 0.0)).jobs.append(self.job(row, keep))
        self._later = list(later.values())
        self._begin_later()
        self.counts.submitted = len(self.rows)

    def _due(self, rows: Sequence[TrialRow]) -> dict[int, float]:
        """When the groups get lanes that nobody has trained in: as many as compile at once together, and beside the
        training of others if there is any."""
        before = {row.group for row in self.rows.values() if row.round < rows[0].round}
        there = list(dict.fromkeys(row.group for row in rows))
        new = [number for number in there if number not in before]
        turns = int(bool(self.lanes) or len(new) < len(there))
        return {number: self._trained() + BESIDE * (turns + i // COMPILERS) for i, number in enumerate(new)}

    def _trained(self) -> float:
        """How much these lanes have trained, in seconds by its operations: no clock has a part in it."""
        return sum(each.lane_steps * self._group(number).step_seconds for number, each in self.lanes.items())

    def _group(self, number: int) -> Group:
        return next(group for group in self.groups if group.number == number)

    def _begin_later(self, *, idle: bool = False) -> None:
        """Trials whose turn has come go to their groups' lanes. Where trials are stopped early, the turn hangs on what
        was trained so far or on lanes being `idle`, never on how long a program compiled: it is waited for. Elsewhere
        it comes with the program."""
        if not self._later:
            return
        stops, trained = bool(self.options.stopping), self._trained()
        if idle and not stops:
            self._waited += self.groups.wait_for_any(PATIENCE)
        later, self._later = self._later, []
        for each in later:
            number = each.group.number
            if number not in self.lanes:
                turn = idle or each.due <= trained if stops else self.groups.ready(each.group)
                if not turn:
                    self._later.append(each)
                    continue
                idle = False
                self._waited += self.groups.wait_for(each.group)
                self.lanes[number] = self._lanes(each.group)
            self.lanes[number].submit(each.jobs)
        self.counts.lanes = list(self.lanes.values())

    def _will_wait(self, *, idle: bool) -> bool:
        """Whether the next trials to begin are those of a group whose program still compiles, and are waited for."""
        if not self.options.stopping:
            return idle and not any(self.groups.ready(each.group) for each in self._later)
        trained = self._trained()
        due = [each for each in self._later if each.group.number not in self.lanes and (idle or each.due <= trained)]
        return any(not self.groups.ready(each.group) for each in due)

    def _hungry(self) -> None:
        """A lane is free and none of its group's trials waits: those of a group without lanes come before new ones."""
        if self._later:
            self._begin_later(idle=not self.waiting())
        elif self.feed is not None:
            self.feed()

    def settle(self) -> None:
        """Waits for the calls under way; reads nothing of what came of them."""
        for each in self.lanes.values():
            moments.settle(each)

    def snapshot(self, *, ended: bool = False) -> Snapshot:
        """This moment between two calls; or, once all lanes are empty, the end of a round."""
        found = {} if ended else {number: moments.take(each) for number, each in self.lanes.items()}
        arrays: dict[str, np.ndarray] = {}
        for number, (_, part) in found.items():
            arrays |= {f"lanes{number}.{name}": array for name, array in part.items()}
        for trial, state in self.states.items():
            arrays |= {f"state{trial}.{i}": np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        for trial, paused in self.paused.items():
            arrays |= {f"paused{trial}.{i}": leaf for i, leaf in enumerate(paused.leaves)}
        plain = {
            "round": self.counts.round,
            "ended": ended,
            "time": time.time(),
            "lanes": [[number, part] for number, (part, _) in found.items()],
            "states": list(self.states),
            "later": [] if ended else [[each.group.number, each.due] for each in self._later],
            "paused": [[trial, paused.done, len(paused.leaves)] for trial, paused in self.paused.items()],
            "seconds": self.counts.seconds,
            "lane_counts": [self.counts.lane_steps, self.counts.live_steps, self.counts.refilled],
        }
        return Snapshot(self.ledger.seq, plain, arrays)

    def _restore_lanes(self, snapshot: Snapshot, keep: bool) -> None:
        """Puts the trials that were under way back into their lanes, and tells the rules what they knew."""
        for trial, done, n in snapshot.plain.get("paused", []):
            self.paused[trial] = Paused(done, tuple(snapshot.arrays[f"paused{trial}.{i}"] for i in range(n)))
        running = [row for row in self.rows.values() if row.state == State.RUNNING]
        jobs = {row.trial: self.job(row, keep) for row in running}
        jobs |= {row.trial: self.job(row, keep) for row in self.rows.values() if row.round == self.counts.round}
        placed = set(self.paused)
        for number, plain in snapshot.plain["lanes"]:
            self._waited += self.groups.wait_for(self._group(number))
            self.lanes[number] = self._lanes(self._group(number))
            moments.restore(self.lanes[number], plain, arrays_of(snapshot.arrays, f"lanes{number}."), jobs)
            placed |= set(moments.trials_of(plain))
        due = dict(snapshot.plain.get("later", []))
        self.add([row for row in running if row.trial not in placed], keep, due)  # their programs still compiled
        if self.options.stopping:
            for trial, curve in self.ledger.curves():
                row = self.rows[trial]
                if row.round < self.counts.rounds or self.options.stopping.patient:
                    bad = row.steps if row.state == State.INFEASIBLE else None
                    steps = self.experiment.total_steps(row.params)
                    first = self.options.stopping.first_rung(steps)
                    values = [math.nan if p.step == bad or p.value is None else p.value for p in curve]
                    seen = [
                        (p.step, self.counts.sign * v) for p, v in zip(curve, values, strict=True)
                        if math.isfinite(v) or p.step >= first or p.step == bad
                    ]  # fmt: skip
                    self.rules.restore(row.round, steps, trial, seen, row.state == State.STOPPED)
                    if row.state == State.RUNNING and self.options.stopping.patient:
                        best = [p for p in curve if is_best(self.rules.rule(row.round, steps), trial, p.step)]
                        self.rows[trial] = replace(row, value=best[0].value, metrics=best[0].metrics) if best else row
            self.rules.settled()
        self.counts.lanes = list(self.lanes.values())
        self.counts.submitted = len(self.rows)

    def restore(self, snapshot: Snapshot | None) -> None:
        """What the ledger and, if there is one, the snapshot say of the trials so far."""
        last = {trial: points[-1] for trial, points in self.ledger.curves()}
        for row in self.ledger.trials():
            if row.state == State.RUNNING and row.trial in last:
                point = last[row.trial]
                row = replace(row, steps=point.step, value=point.value, metrics=point.metrics)
            elif row.state == State.RUNNING:
                row = replace(row, steps=0)
            else:
                self._count(row)
            self.counts.steps_seen += row.steps
            self.rows[row.trial] = row
        if snapshot is None:
            return
        self.counts.seconds.update(snapshot.plain["seconds"])
        self.counts.lane_steps, self.counts.live_steps, self.counts.refilled = snapshot.plain["lane_counts"]
        self._saved = snapshot

    def restore_states(self) -> None:
        """The final states that were kept: called when something is to be made of them."""
        if self._saved is None:
            return
        for trial in self._saved.plain["states"]:
            shapes = jax.eval_shape(pack, self.groups.of(self.rows[trial].params).functions.state)
            leaves, tree = jax.tree.flatten(shapes)
            self.states[trial] = jax.tree.unflatten(
                tree, [self._saved.arrays[f"state{trial}.{i}"] for i in range(len(leaves))]
            )
        self._saved = None

    def waiting(self) -> int:
        """Trials that wait for a lane, of all groups."""
        return sum(each.waiting for each in self.lanes.values())

    def standing(self, row: TrialRow) -> Scored:
        """A trial that still trains, by the furthest rung that it has reached."""
        rule = self.rules.rule(row.round, self.experiment.total_steps(row.params))
        at = rule.standing(row.trial)
        return Scored(row.trial, dict(row.params), at.value, at.rung)

    def job(self, row: TrialRow, keep: bool) -> Job:
        """A trial as its lane receives it."""
        settings = self.groups.lane_values(row.params)
        steps = self.experiment.total_steps(row.params)
        return Job(row.trial, row.seed, settings, steps, keep, self.paused.get(row.trial))

    def _roster(self, round: int, steps: int) -> list[int]:
        """The trials of a round that have so many steps."""
        rows = (row for row in self.rows.values() if row.round == round)
        return [row.trial for row in rows if self.experiment.total_steps(row.params) == steps]

    def _lanes(self, group: Group) -> Lanes:
        capacity = self.options.lanes or group.capacity // self._share
        if self.options.stopping:
            capacity = min(capacity, stopping_lanes(self.options) // self._share)
        return Lanes(
            group.program,
            capacity=max(capacity, group.plan.width),
            on_points=self._record,
            on_state=lambda job, state: self.states.__setitem__(job.trial, state),
            on_pause=lambda job, paused: self.paused.__setitem__(job.trial, paused),
            on_hungry=self._hungry if self.options.stopping else None,
            prompt=bool(self.options.stopping),
            judged=self.options.stopping.patient,
        )

    def _record(self, points: list[Point]) -> Leaving:
        """One segment of one call into the ledger, in one transaction; returns the trials that leave their lanes."""
        curve, ended, stop, keep = [], [], [], []
        verdict = self._verdict(points) if self.options.stopping else Verdict()
        patient = self.options.stopping.patient

        def end(row: TrialRow, state: State, reason: str | None) -> None:
            row = replace(row, state=state, reason=reason)
            self.rows[row.trial] = row
            self._count(row)
            ended.append(TrialResult(row.trial, state, reason, row.steps, row.value, row.metrics))

        self.counts.rungs = self._rungs(points)
        for point in points:
            value = point.metrics[self.experiment.objective]
            reason = None if self._undefined_yet(point) else infeasible(point, value)
            curve.append(CurvePoint(point.trial, point.step, point.loss, value, point.metrics))
            row = self.rows[point.trial]
            self.counts.steps_seen += point.step - row.steps
            self.paused.pop(point.trial, None)  # it was in a lane again
            steps = self.experiment.total_steps(row.params)
            row = replace(row, steps=point.step)
            if not patient or reason is not None or self._is_best(row):
                row = replace(row, value=value, metrics=point.metrics)
                if patient and reason is None and self._keeps:
                    keep.append(row.trial)
            self.rows[row.trial] = row
            if reason is not None:
                end(row, State.INFEASIBLE, reason)
                if patient:
                    self.states.pop(row.trial, None)
            elif point.step >= steps:
                end(row, State.COMPLETE, None)
            elif point.trial in verdict.stop and patient:
                end(row, State.COMPLETE, verdict.stop[point.trial])
            elif point.trial in verdict.stop:
                end(row, State.STOPPED, verdict.stop[point.trial])
            else:
                continue
            if point.step < steps or patient:
                stop.append(point.trial)
        for trial, reason in verdict.stop.items():  # that waited, and have lost by what came now
            if self.rows[trial].state == State.RUNNING:
                del self.paused[trial]
                end(self.rows[trial], State.STOPPED, reason)
        with self.ledger.transaction():
            self.ledger.add_curve_points(curve)
            self.ledger.finish_trials(ended)
            beat = self.counts.heartbeat()
            if beat is not None:
                self.ledger.set_meta(HEARTBEAT, beat)
        self.counts.tell()
        for trial in verdict.go:
            row = self.rows[trial]
            self.lanes[self.groups.of(row.params).number].submit([self.job(row, self._keeps)], first=True)
        return Leaving(stop, verdict.wait, keep)

    def _is_best(self, row: TrialRow) -> bool:
        """With patience, whether the evaluation to which a trial has come is its best so far."""
        return is_best(self.rules.rule(row.round, self.experiment.total_steps(row.params)), row.trial, row.steps)

    def _undefined_yet(self, point: Point) -> bool:
        """Whether the objective of a training that goes well is not finite before its first rung: under early stopping,
        which evaluates sooner, that does not count, since it may be defined later only."""
        finite = math.isfinite(point.metrics[self.experiment.objective])
        if finite or point.bad is not None or not self.options.stopping:
            return False
        return point.step < self.options.stopping.first_rung(self.experiment.total_steps(self.rows[point.trial].params))

    def _verdict(self, points: Sequence[Point]) -> Verdict:
        """What the rounds' rules say of a segment's trials, and of those that waited for them."""
        reports: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
        for point in points:
            row = self.rows[point.trial]
            confirms = row.round >= self.counts.rounds and not self.options.stopping.patient  # it trains to the end
            if confirms or self._undefined_yet(point):
                continue
            value = point.metrics[self.experiment.objective]
            value = math.nan if infeasible(point, value) else self.counts.sign * value
            key = row.round, self.experiment.total_steps(row.params)
            reports.setdefault(key, []).append((point.trial, point.step, value))
        found = [self.rules.decide(*key, of_rule) for key, of_rule in reports.items()]
        return Verdict(
            {trial: why for each in found for trial, why in each.stop.items()},
            tuple(trial for each in found for trial in each.wait),
            tuple(trial for each in found for trial in each.go),
        )

    def _rungs(self, points: Sequence[Point]) -> Sequence[tuple[int, int]]:
        """Under halving, how many trials of the round came to each of its rungs; empty while it confirms."""
        counts = self.counts
        if not self.options.stopping or counts.round >= counts.rounds or not points:
            return ()
        rule = self.rules.rule(counts.round, self.experiment.total_steps(self.rows[points[0].trial].params))
        if isinstance(rule, MedianRule | PatienceRule):
            return ()
        if isinstance(rule, BracketRule):
            levels = sorted({steps for table, _ in rule.brackets for _, steps in table})
            return [(level, sum(at.rung >= level for at in rule.reached.values())) for level in levels]
        return [(level, len(rule.results.get(level, ()))) for level in rule.levels]

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


def arrays_of(arrays: Mapping[str, Any], before: str) -> dict[str, Any]:
    """A snapshot's arrays whose names begin with `before`, by what follows."""
    return {name.removeprefix(before): array for name, array in arrays.items() if name.startswith(before)}


def infeasible(point: Point, value: float) -> str | None:
    """Why a trial cannot go on, or None."""
    if point.bad is not None:
        return f"diverged: the loss is not finite at step {point.bad}"
    if not math.isfinite(value):
        return f"{UNDEFINED} {point.step}"
    return None
