"""Early stopping: which trials go on, decided from what has been recorded so far. Lower values are better here.

Every rule is fed `(trial, step, value)` reports and says whether to stop that trial. It reads no clock and
draws no number, so the same reports in the same order give the same decisions, and a rule is rebuilt by
feeding it the ledger's reports again. Repeated reports change nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from vmaptune.errors import InputError

Report = tuple[int, int, float]  # trial, step, value
Bracket = tuple[tuple[int, int], ...]  # (trials, steps of each in all) of every rung, the first one first


# ---- rungs -------------------------------------------------------------------------------------------


def rungs(min_steps: int, max_steps: int, eta: int) -> list[int]:
    """The steps at which trials are compared: `min_steps * eta**k` below `max_steps`, then `max_steps` itself.

    Nothing is decided at the last one: a trial is complete there.

    Raises:
      InputError: `eta` below 2, or not `1 <= min_steps <= max_steps`.
    """
    _check_whole("eta", eta, 2)
    _check_whole("min_steps", min_steps, 1)
    _check_whole("max_steps", max_steps, 1)
    if min_steps > max_steps:
        raise InputError(
            f"`min_steps <= max_steps` must hold, but got min_steps={min_steps}, max_steps={max_steps}; "
            f"train for more steps or take a smaller min_steps"
        )
    levels = []
    level = min_steps
    while level < max_steps:
        levels.append(level)
        level *= eta
    return [*levels, max_steps]


@dataclass(frozen=True)
class Halving:
    """Successive halving's two numbers: one in `eta` trials goes on from each rung, the first at `min_steps`."""

    eta: int = 3
    min_steps: int = 1

    def __post_init__(self) -> None:
        _check_whole("eta", self.eta, 2)
        _check_whole("min_steps", self.min_steps, 1)

    def levels(self, max_steps: int, every: int = 1) -> list[int]:
        """The rungs, each moved up to the next multiple of `every`, where trials are evaluated.

        So all trials are compared at the same step, whatever they are trained beside.

        Raises:
          InputError: as `rungs`, or `every` below 1.
        """
        _check_whole("every", every, 1)
        moved = (-(-level // every) * every for level in rungs(self.min_steps, max_steps, self.eta))
        return sorted({min(level, max_steps) for level in moved})

    def rule(self, max_steps: int, *, every: int = 1, reports: Iterable[Report] = ()) -> HalvingRule:
        """A rule that has seen `reports`, in their order.

        Raises:
          InputError: as `levels`.
        """
        rule = HalvingRule(tuple(self.levels(max_steps, every)), self.eta)
        rule.replay(reports)
        return rule

    def __str__(self) -> str:
        return f"eta={self.eta},min_steps={self.min_steps}"


def parse_halving(text: str, option: str = "--halving") -> Halving:
    """Reads `eta=3,min_steps=100`, either of the two or both.

    Raises:
      InputError: another name, a name twice, or a value that is no whole number, or too small a one.
    """
    least = {"eta": 2, "min_steps": 1}
    found: dict[str, int] = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, _, value = item.partition("=")
        if name not in least or name in found or not value.isdecimal() or int(value) < least[name]:
            raise InputError(
                f"{option} must read like eta=3,min_steps=100 (each at most once, whole numbers, eta at least 2 "
                f"and min_steps at least 1), but got {item!r}"
            )
        found[name] = int(value)
    return Halving(**found)


# ---- who outranks whom -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reached:
    """The furthest rung of a trial and its value there."""

    trial: int
    rung: int  # its steps; 0 for a trial that reached none
    value: float  # lower is better; not finite for an infeasible trial


def rank_key(reached: Reached) -> tuple[bool, int, float, int]:
    """Sorts like with like, best first: further rungs first, then lower values there, then lower trial ids.

    A value is compared with values of the same rung only, so a trial that was stopped early never comes
    before one that went further. Infeasible trials come last, however far they went.
    """
    infeasible = not math.isfinite(reached.value)
    return infeasible, -reached.rung, math.inf if infeasible else reached.value, reached.trial


def outranks(a: Reached, b: Reached) -> bool:
    """Whether `a` is strictly better than `b`; the trial ids do not count."""
    return rank_key(a)[:3] < rank_key(b)[:3]


# ---- asynchronous successive halving -----------------------------------------------------------------


@dataclass
class HalvingRule:
    """Asynchronous successive halving in its stopping variant: nothing ever waits for a rung to fill.

    A trial that reaches a rung is compared with the results recorded there so far, its own included. Of `n`
    results, the best `max(1, n // eta)` go on, ties too, and the trial is stopped when it is none of them;
    a decision is never taken back. A value that is not finite stops its trial at any step, and is counted at
    a rung as worse than every other.

    A rung's result is the trial's first report at or after the rung's steps; `Halving.levels` puts the rungs
    where reports are.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, which promotes
    paused trials (algorithm 2); trials that stop for good instead, and the first `eta - 1` at a rung judged
    by the best so far, agree with Optuna's `SuccessiveHalvingPruner`.
    """

    levels: tuple[int, ...]  # increasing; the last one is the end of training
    eta: int
    results: dict[int, list[float]] = field(default_factory=dict)  # rung -> values, sorted
    reached: dict[int, Reached] = field(default_factory=dict)  # by trial
    stopped: set[int] = field(default_factory=set)
    _last: dict[int, int] = field(default_factory=dict, repr=False)  # trial -> its last reported step

    def report(self, trial: int, step: int, value: float) -> bool:
        """Records a trial's value after `step` steps; True means: stop it."""
        return self.report_all([(trial, step, value)])[0]

    def report_all(self, reports: Sequence[Report]) -> list[bool]:
        """Records what a segment says of several trials, each once, then decides on each: so the trials of one
        segment are judged by one another too, in whatever order they come."""
        taken = [self.record(*report) for report in reports]
        return [self._decide(*report, levels) for report, levels in zip(reports, taken, strict=True)]

    def record(self, trial: int, step: int, value: float) -> list[int]:
        """Records without a decision: the state that results is the same in whatever order trials are recorded.
        Returns the rungs that the trial has come to."""
        last = self._last.get(trial, 0)
        if trial in self.stopped or step <= last:
            return []
        self._last[trial] = step
        levels = list(self.levels[bisect_right(self.levels, last) : bisect_right(self.levels, step)])
        for level in levels:
            insort(self.results.setdefault(level, []), math.inf if not math.isfinite(value) else value)
            self.reached[trial] = Reached(trial, level, value)
        if not math.isfinite(value):
            at = self.reached.get(trial, Reached(trial, 0, value))
            self.reached[trial] = Reached(trial, at.rung, value)
            self.stopped.add(trial)
        return levels

    def _decide(self, trial: int, step: int, value: float, levels: Sequence[int]) -> bool:
        for level in levels:
            values = self.results[level]
            if level != self.levels[-1] and value > values[max(1, len(values) // self.eta) - 1]:
                self.stopped.add(trial)
        return trial in self.stopped

    def threshold(self, level: int) -> float:
        """The worst value with which a trial goes on from a rung, by what has been recorded there so far."""
        values = self.results.get(level, [])
        return values[max(1, len(values) // self.eta) - 1] if values else math.inf

    def replay(self, reports: Iterable[Report]) -> list[bool]:
        """Feeds the rule recorded reports; returns its decisions."""
        return [self.report(*report) for report in reports]

    def standing(self, trial: int) -> Reached:
        """The furthest rung of a trial; rung 0 and NaN for one that has reached none."""
        return self.reached.get(trial, Reached(trial, 0, math.nan))

    def ranking(self) -> list[Reached]:
        """The trials that reached a rung or became infeasible, best first."""
        return sorted(self.reached.values(), key=rank_key)


# ---- synchronous successive halving and Hyperband ----------------------------------------------------


def bracket(trials: int, max_steps: int, eta: int, *, min_steps: int = 1) -> Bracket:
    """Synchronous successive halving of `trials`: `(n_i, r_i)` with `n_i = trials // eta**i` and the last `r_i`
    equal to `max_steps`.

    It has as many rungs as leave a trial in each and `min_steps` in the first.

    Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification", AISTATS 2016.

    Raises:
      InputError: as `rungs`, or fewer than one trial.
    """
    _check_whole("trials", trials, 1)
    levels = min(_log(trials, 1, eta), _log(max_steps, min_steps, eta))
    return _table(trials, levels, max_steps, eta)


def hyperband(max_steps: int, eta: int, *, min_steps: int = 1) -> list[Bracket]:
    """Hyperband's brackets, the most exploring one first; each is a table of `(n_i, r_i)`.

    Bracket `s` starts `n = floor((s_max + 1) / (s + 1)) * eta**s` trials, the rule behind the published table
    for R = 81, eta = 3 (algorithm 1 as printed rounds up and gives 34, 15 and 8 where the table has 27, 9
    and 6). Steps that `eta` does not divide are rounded down; the last rung always has all.

    Source: Li et al., "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", JMLR 2018,
    algorithm 1 and table 1.

    Raises:
      InputError: as `rungs`.
    """
    s_max = _log(max_steps, min_steps, eta)
    return [_table((s_max + 1) // (s + 1) * eta**s, s, max_steps, eta) for s in range(s_max, -1, -1)]


def survivors(values: Mapping[int, float], k: int) -> list[int]:
    """The `k` best of trial -> value, for the next rung of a bracket; ties by trial id, never one not finite."""
    finite = [trial for trial, value in values.items() if math.isfinite(value)]
    return sorted(finite, key=lambda trial: (values[trial], trial))[:k]


def _table(trials: int, levels: int, max_steps: int, eta: int) -> Bracket:
    return tuple((trials // eta**i, max_steps // eta ** (levels - i)) for i in range(levels + 1))


def _log(high: int, low: int, eta: int) -> int:
    """The largest k with `low * eta**k <= high`, in whole numbers: log(243) / log(3) is below 5 in floats."""
    return sum(1 for level in rungs(low, high, eta) if level * eta <= high)


# ---- median stopping ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MedianStopping:
    """The median rule's numbers."""

    grace_steps: int = 0  # nothing is stopped for its value before so many steps
    least_trials: int = 3  # nor before so many other trials have reached the step

    def __post_init__(self) -> None:
        _check_whole("grace_steps", self.grace_steps, 0)
        _check_whole("least_trials", self.least_trials, 1)

    def rule(self, reports: Iterable[Report] = ()) -> MedianRule:
        """A rule that has seen `reports`, in their order."""
        rule = MedianRule(self)
        rule.replay(reports)
        return rule


@dataclass
class MedianRule:
    """Stops a trial whose best value so far is worse than the median of the others' running averages.

    At step `s` each other trial that has reached `s` counts with the mean of its reports up to `s` (so it must
    have one); one with a value that is not finite among those counts as worse than every other. A value that is
    not finite stops its own trial at once, in the grace period too.

    Source: Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017, section 3.2.2,
    with trials that are still running, or were stopped, counted besides the complete ones.
    """

    options: MedianStopping
    stopped: set[int] = field(default_factory=set)
    _curves: dict[int, _Curve] = field(default_factory=dict, repr=False)

    def report(self, trial: int, step: int, value: float) -> bool:
        """Records a trial's value after `step` steps; True means: stop it."""
        if not self.record(trial, step, value):
            return trial in self.stopped
        curve = self._curves[trial]
        stop = not math.isfinite(value)
        if not stop and step >= self.options.grace_steps:
            others = [c.average(step) for t, c in self._curves.items() if t != trial and c.covers(step)]
            stop = len(others) >= self.options.least_trials and curve.best > median(others)
        if stop:
            self.stopped.add(trial)
        return stop

    def record(self, trial: int, step: int, value: float) -> bool:
        """Records without a decision; False where it is no news."""
        curve = self._curves.setdefault(trial, _Curve())
        if trial in self.stopped or (curve.steps and step <= curve.steps[-1]):
            return False
        curve.add(step, value)
        return True

    def standing(self, trial: int) -> Reached:
        """The last step and value of a trial; rung 0 and NaN for one without a report."""
        curve = self._curves.get(trial)
        return Reached(trial, curve.steps[-1], curve.last) if curve else Reached(trial, 0, math.nan)

    def replay(self, reports: Iterable[Report]) -> list[bool]:
        """Feeds the rule recorded reports; returns its decisions."""
        return [self.report(*report) for report in reports]


@dataclass
class _Curve:
    """A trial's reports: their steps, and the mean of the values up to each."""

    steps: list[int] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    best: float = math.inf
    last: float = math.nan

    def add(self, step: int, value: float) -> None:
        self.last = value
        value = value if math.isfinite(value) else math.inf
        mean = self.means[-1] if self.means else 0.0
        n = len(self.means) + 1
        self.means.append(math.inf if math.inf in (mean, value) else mean * ((n - 1) / n) + value / n)
        self.steps.append(step)
        self.best = min(self.best, value)

    def average(self, step: int) -> float:
        return self.means[bisect_right(self.steps, step) - 1]

    def covers(self, step: int) -> bool:
        return self.steps[0] <= step <= self.steps[-1]


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"`{name}` must be a whole number of at least {least}, but got {value!r}")
