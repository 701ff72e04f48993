"""Synchronous successive halving and Hyperband as rules that are fed reports. Lower values are better here.

A trial that has come to a rung of its bracket waits there until all of the bracket's trials have come to it, or have
failed; then the best go on and the others are stopped. What is decided depends on the values alone, not on the order
in which they came: a rule is rebuilt by feeding it the reports again, in any order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmaptune.search.halving import Bracket, Reached, Report, bracket, hyperband, survivors


@dataclass(frozen=True)
class Verdict:
    """What becomes of trials: of those that were reported, and of others that had waited for them."""

    stop: dict[int, str] = field(default_factory=dict)  # each with the reason
    wait: tuple[int, ...] = ()  # reported ones that leave their lanes until their rung is decided
    go: tuple[int, ...] = ()  # that had waited, and go on


def bracket_tables(
    kind: str, trials: Sequence[int], steps: int, eta: int, min_steps: int, every: int = 1
) -> list[tuple[Bracket, list[int]]]:
    """The brackets of a round's trials of `steps` each: its table, and its trials.

    "sync" is one bracket of all trials. "hyperband" shares the trials out to the brackets of Hyperband's table in
    proportion, so that as many trials as the table has (128 for R = 81, eta = 3), or a multiple, are brackets of that
    size; the trials of a bracket are spread evenly over the round's. Rungs are moved up to where trials are evaluated.

    Raises:
      InputError: as `bracket`.
    """
    if kind == "sync":
        shared = [(bracket(len(trials), steps, eta, min_steps=min_steps), list(trials))]
    else:
        rows = hyperband(steps, eta, min_steps=min_steps)
        counts = _apportioned(len(trials), [table[0][0] for table in rows])
        places = sorted(((i + 0.5) / n, s) for s, n in enumerate(counts) for i in range(n))
        members: list[list[int]] = [[] for _ in rows]
        for trial, (_, s) in zip(trials, places, strict=True):
            members[s].append(trial)
        shared = [
            (tuple((len(mine) // eta**i, r) for i, (_, r) in enumerate(table)), mine)
            for table, mine in zip(rows, members, strict=True)
            if mine
        ]
    return [(_moved(table, steps, every), mine) for table, mine in shared]


def _apportioned(n: int, weights: Sequence[int]) -> list[int]:
    """`n` shared out in proportion to whole numbers, by largest remainders; of equal ones the first."""
    total = sum(weights)
    counts = [n * w // total for w in weights]
    rest = sorted(range(len(weights)), key=lambda s: (-(n * weights[s] % total), s))
    for s in rest[: n - sum(counts)]:
        counts[s] += 1
    return counts


def _moved(table: Bracket, steps: int, every: int) -> Bracket:
    """Rungs at the next multiples of `every`, each with at least one trial; equal ones are the latter."""
    rungs: dict[int, int] = {}
    for n, r in table:
        rungs[min(-(-r // every) * every, steps)] = max(1, n)
    return tuple((n, r) for r, n in rungs.items())


@dataclass
class _Rung:
    """One rung of a bracket."""

    steps: int
    goes_on: int  # how many do; 0 for the last one
    members: set[int] = field(default_factory=set)
    values: dict[int, float] = field(default_factory=dict)  # of the members that have come, and were finite
    decided: bool = False


class BracketRule:
    """The brackets of a round's trials of one number of steps.

    At a rung with `n` trials, of which `k` go on, a trial waits until it is decided: it is stopped as soon as `k`
    others are better (by value, then by the trial's number), and goes on once all have come and it is among the best
    `k`. A value that is not finite stops its trial at any step.

    Source: Jamieson and Talwalkar 2016 (synchronous successive halving), Li et al. 2018, algorithm 1 (Hyperband).
    """

    def __init__(self, brackets: Sequence[tuple[Bracket, Sequence[int]]]):
        self.brackets = [(table, list(trials)) for table, trials in brackets]
        self._rungs: list[list[_Rung]] = []
        self._of: dict[int, int] = {}  # trial -> its bracket
        self._last: dict[int, int] = {}  # trial -> its last reported step
        self._failed: set[int] = set()
        self.reached: dict[int, Reached] = {}
        self.stopped: set[int] = set()
        for b, (table, trials) in enumerate(self.brackets):
            fewer = [n for n, _ in table[1:]] + [0]
            self._rungs.append([_Rung(r, k) for (_, r), k in zip(table, fewer, strict=True)])
            self._rungs[-1][0].members |= set(trials)
            self._of.update(dict.fromkeys(trials, b))

    def record(self, trial: int, step: int, value: float) -> None:
        """Records without a decision; a report twice changes nothing."""
        last = self._last.get(trial, 0)
        if trial in self._failed or step <= last:
            return
        self._last[trial] = step
        finite = math.isfinite(value)
        for rung in self._rungs[self._of[trial]]:
            if last < rung.steps <= step:
                self.reached[trial] = Reached(trial, rung.steps, value)
                if finite:
                    rung.values[trial] = value
        if not finite:
            at = self.reached.get(trial, Reached(trial, 0, value))
            self.reached[trial] = Reached(trial, at.rung, value)
            self._failed.add(trial)
            self.stopped.add(trial)

    def settle(self) -> tuple[dict[int, str], list[int]]:
        """Decides what can be decided now: the trials that are stopped for their value, with the reason, and those
        that go on from a rung; each is named once."""
        stop: dict[int, str] = {}
        go: list[int] = []
        for rungs in self._rungs:
            for rung, following in itertools.pairwise(rungs):
                if rung.decided or not rung.members:
                    continue
                best = survivors(rung.values, rung.goes_on)
                rung.decided = all(t in rung.values or t in self._failed for t in rung.members)
                for trial in sorted(set(rung.values) - set(best) - self.stopped):
                    self.stopped.add(trial)
                    stop[trial] = (
                        f"stopped at step {rung.steps}: not among the best {rung.goes_on} of the "
                        f"{len(rung.members)} trials of its bracket there"
                    )
                if rung.decided:
                    following.members |= set(best)
                    go += [t for t in best if t not in self._failed]
        return stop, go

    def report_all(self, reports: Sequence[Report]) -> Verdict:
        """Records what a segment says of several trials, then decides."""
        for report in reports:
            self.record(*report)
        stop, go = self.settle()
        told = {trial for trial, _, _ in reports}
        wait = tuple(t for t in told if t not in self.stopped and self.waits(t))
        return Verdict(stop, tuple(sorted(wait)), tuple(t for t in go if t not in told))

    def waits(self, trial: int) -> bool:
        """Whether a trial has come to a rung that is not decided yet, and is still in the running."""
        rungs = self._rungs[self._of[trial]]
        return trial not in self.stopped and any(
            trial in rung.members and trial in rung.values and not rung.decided for rung in rungs[:-1]
        )

    def standing(self, trial: int) -> Reached:
        """The furthest rung of a trial; rung 0 and NaN for one that has reached none."""
        return self.reached.get(trial, Reached(trial, 0, math.nan))
