"""Patience: a trial ends when its own value has got no better for some evaluations, and counts by its best one.

Unlike the rules that compare trials, this one ends a training as a person would who watches it alone: what it came to
is its best evaluation, so it is as complete as a trial that used all of its steps. Lower values are better here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from vmaptune.search.halving import Reached, Report


@dataclass
class _Course:
    """What is known of one trial."""

    step: int = 0  # of its last evaluation
    best_step: int = 0
    best: float = math.inf
    since: int = 0  # evaluations since the best one


@dataclass
class PatienceRule:
    """Ends a trial at its `evaluations`-th evaluation in a row that is no better than its best before, but not before
    `min_steps`.

    A value that is not finite ends its trial at once. It is fed `(trial, step, value)` reports like the other rules:
    what it decides on a trial depends on that trial's reports alone, and a report twice changes nothing.

    Source: Prechelt, "Early Stopping - But When?", 1998, the criterion UP_s with single evaluations for strips and the
    best value so far for the one before.
    """

    evaluations: int
    min_steps: int = 0
    stopped: set[int] = field(default_factory=set)
    _courses: dict[int, _Course] = field(default_factory=dict, repr=False)

    def report(self, trial: int, step: int, value: float) -> bool:
        """Records a trial's value after `step` steps; True means: end it."""
        news = self.record(trial, step, value)
        if news and self._courses[trial].since >= self.evaluations and step >= self.min_steps:
            self.stopped.add(trial)
        return trial in self.stopped

    def record(self, trial: int, step: int, value: float) -> bool:
        """Records without a decision, though a value that is not finite ends its trial; False where it is no news."""
        course = self._courses.setdefault(trial, _Course())
        if trial in self.stopped or step <= course.step:
            return False
        course.step = step
        course.since += 1
        if not math.isfinite(value):
            self.stopped.add(trial)
        elif value < course.best:
            course.best_step, course.best, course.since = step, value, 0
        return True

    def best_step(self, trial: int) -> int:
        """The step of a trial's best evaluation so far, of equal ones the first; 0 before there is one."""
        return self._courses[trial].best_step if trial in self._courses else 0

    def standing(self, trial: int) -> Reached:
        """The last step and the best value of a trial; rung 0 and NaN for one without a finite report."""
        course = self._courses.get(trial, _Course())
        return Reached(trial, course.step, course.best) if course.best_step else Reached(trial, 0, math.nan)

    def replay(self, reports: Iterable[Report]) -> list[bool]:
        """Feeds the rule recorded reports; returns its decisions."""
        return [self.report(*report) for report in reports]
