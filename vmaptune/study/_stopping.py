"""Early stopping in a study: which rule, on which rungs, and what it says of a segment's trials.

A round has rules of its own, one for each number of steps that its trials may have, so that like is compared with
like. What a rule holds depends on the values recorded, not on their order, so it is rebuilt from the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vmaptune.engine.plan import Plan
from vmaptune.errors import InputError
from vmaptune.search.brackets import BracketRule, Verdict, bracket_tables
from vmaptune.search.halving import (
    Halving,
    HalvingRule,
    MedianRule,
    MedianStopping,
    Report,
    hyperband,
    parse_halving,
)
from vmaptune.search.patience import PatienceRule

SYNCHRONOUS = ("sync", "hyperband")
STOPPING = ("none", "asha", *SYNCHRONOUS, "median", "patience")
DEFAULT_ETA = 3
DEFAULT_RUNGS = 2  # below the end, where `min_steps` is not given: steps / eta^2
LANES = 64  # where nothing else is said: more lanes start more trials before a rung has results to judge by
LEAST_CALLS = 4
PATIENCE = 16  # evaluations
PATIENCES = 4  # that a training is long at least, where nobody says how many steps lie between two evaluations


@dataclass(frozen=True)
class Stopping:
    """What `--stopping` and `--halving` ask for."""

    kind: str = "none"
    eta: int = DEFAULT_ETA
    min_steps: int | None = None
    patience: int = PATIENCE  # evaluations without a better one

    def __post_init__(self) -> None:
        if self.kind not in STOPPING:
            raise InputError(f"stopping must be one of {', '.join(STOPPING)}, but got {self.kind!r}")

    def __bool__(self) -> bool:
        return self.kind != "none"

    @property
    def synchronous(self) -> bool:
        """Whether trials wait for one another at a rung."""
        return self.kind in SYNCHRONOUS

    @property
    def patient(self) -> bool:
        """Whether a trial is judged by itself alone, in the confirmation too, and counts by its best evaluation."""
        return self.kind == "patience"

    def check(self, *, lockstep: bool) -> None:
        """Raises InputError where trials must wait, but lanes that share their order of the data cannot."""
        if self.synchronous and lockstep:
            raise InputError(
                f"--stopping {self.kind} lets trials go on after a wait, but with order='shared' those of a tile must "
                f"begin together; take --stopping asha, or leave the order out of the Experiment"
            )

    def first_rung(self, steps: int) -> int:
        """Steps before which no trial is stopped for its value."""
        least = self._least(steps)
        return hyperband(steps, self.eta, min_steps=least)[0][0][1] if self.synchronous else least

    def brackets(self, trials: Sequence[int], steps: int, every: int) -> BracketRule:
        """The rule of synchronous brackets for trials of so many steps, in segments of `every`."""
        return BracketRule(bracket_tables(self.kind, trials, steps, self.eta, self._least(steps), every))

    def _least(self, steps: int) -> int:
        if self.min_steps is None and self.patient:
            return 1
        if self.min_steps is None:
            part = self.eta**DEFAULT_RUNGS
            return max(1, steps // part if self.synchronous else -(-steps // part))
        if self.min_steps > steps:
            raise InputError(
                f"--halving: min_steps must be at most the {steps} steps of a trial, but got {self.min_steps}; "
                f"take fewer, or train for more steps"
            )
        return self.min_steps

    def plan(self, plan: Plan, steps: int, lanes: int, pinned: Collection[str]) -> Plan:
        """A group's plan such that segments end at the first rung, and that the lanes are several calls of the
        program: while one call's trials are judged and its lanes refilled, the others compute."""
        changes: dict[str, int] = {}
        if "every" not in pinned:
            changes["every"] = self.segment(plan.every, steps)
        if "lanes" not in pinned:
            changes["lanes"] = max(1, min(plan.lanes, lanes // (plan.devices * LEAST_CALLS)))
        if "tiles" not in pinned:
            changes["tiles"] = 1
        return replace(plan, **changes)

    def segment(self, every: int, steps: int) -> int:
        """A segment's steps, of at most about `every`, such that a segment ends at the first rung and so at all; with
        patience, such that a training has time for it."""
        if self.patient:
            return max(1, min(every, steps // (PATIENCES * self.patience)))
        first = self.first_rung(steps)
        return math.ceil(first / max(1, math.ceil(first / every)))


Rule = HalvingRule | MedianRule | BracketRule | PatienceRule


@dataclass
class Rules:
    """The rules of a study's rounds.

    Args:
      roster: the trials of a round that have so many steps, in their order.
    """

    stopping: Stopping
    every: int  # steps of a segment
    roster: Callable[[int, int], list[int]] = lambda round, steps: []
    _rules: dict[tuple[int, int], Rule] = field(default_factory=dict)

    def rule(self, round: int, steps: int) -> Rule:
        """The rule for a round's trials of so many steps."""
        key = (round, steps)
        if key not in self._rules:
            first = self.stopping.first_rung(steps)
            if self.stopping.kind == "median":
                self._rules[key] = MedianStopping(grace_steps=first).rule()
            elif self.stopping.patient:
                self._rules[key] = PatienceRule(self.stopping.patience, first)
            elif self.stopping.synchronous:
                self._rules[key] = self.stopping.brackets(self.roster(round, steps), steps, self.every)
            else:
                self._rules[key] = Halving(self.stopping.eta, first).rule(steps, every=self.every)
        return self._rules[key]

    def tables(self, round: int) -> list[dict[str, Any]]:
        """The brackets of a round so far: their rungs `[trials, steps]`, and their trials."""
        return [
            {"steps": steps, "rungs": [list(rung) for rung in table], "trials": trials}
            for (of, steps), rule in self._rules.items()
            if of == round and isinstance(rule, BracketRule)
            for table, trials in rule.brackets
        ]

    def restore(self, round: int, steps: int, trial: int, curve: Sequence[tuple[int, float]], stopped: bool) -> None:
        """Takes in what the ledger holds of a trial: its (step, value) reports, and whether it was stopped. When this
        has been done for all trials, in any order, and they are `settled`, the rules decide as if they had never been
        away."""
        rule = self.rule(round, steps)
        for step, value in curve:
            rule.record(trial, step, value)
        if stopped:
            rule.stopped.add(trial)

    def settled(self) -> None:
        """Takes again the decisions that were taken before; called when all trials have been restored."""
        for rule in self._rules.values():
            if isinstance(rule, BracketRule):
                rule.settle()

    def decide(self, round: int, steps: int, reports: Sequence[Report]) -> Verdict:
        """Records what a segment says of trials; returns what becomes of them."""
        rule = self.rule(round, steps)
        if isinstance(rule, BracketRule):
            return rule.report_all(reports)
        if isinstance(rule, MedianRule):
            return Verdict(
                {
                    trial: f"stopped at step {step}: its best value is worse than the median of the others' averages"
                    for trial, step, value in reports
                    if rule.report(trial, step, value)
                }
            )
        if isinstance(rule, PatienceRule):
            ended = [report for report in reports if rule.report(*report)]
            return Verdict(
                {
                    trial: f"ended at step {step}: no better for {self.stopping.patience} evaluations than at step "
                    f"{rule.best_step(trial)}"
                    for trial, step, value in ended
                    if math.isfinite(value)
                }
            )
        return Verdict(
            {
                trial: f"stopped at step {step}: not among the best 1 in {self.stopping.eta} of the "
                f"{len(rule.results[rule.reached[trial].rung])} trials there"
                for (trial, step, value), stop in zip(reports, rule.report_all(reports), strict=True)
                if stop and math.isfinite(value)  # one that went wrong, perhaps before a rung, has its own reason
            }
        )


def is_best(rule: Rule, trial: int, step: int) -> bool:
    """Whether a trial counts by its evaluation at this step, as far as it has come: by its last one, or with patience
    by its best."""
    return not isinstance(rule, PatienceRule) or rule.best_step(trial) == step


def stopping_lanes(options: Any) -> int:
    """The lanes alive at once, of all groups together, in a study that stops trials early."""
    round_ = options.trials // options.rounds
    return options.lanes or max(8, min(round_ // 2, max(LANES, round_ // 8)))


def read_stopping(kind: str | None, halving: str | None) -> Stopping:
    """The stopping that two options ask for: `--halving` alone means asynchronous successive halving, and the kind
    "patience=8" is patience for 8 evaluations.

    Raises:
      InputError: numbers that cannot be read, or that contradict the rule.
    """
    patience = PATIENCE
    if kind is not None and kind.startswith("patience="):
        kind, _, number = kind.partition("=")
        if not number.isdecimal() or int(number) < 1:
            raise InputError(
                f"--stopping patience=K: K, the evaluations without a better one after which a trial ends, must be a "
                f"whole number of at least 1, but got {number!r}; leave =K out for {PATIENCE}"
            )
        patience = int(number)
    if halving is None:
        return Stopping(kind or "none", patience=patience)
    numbers = parse_halving(halving)
    if kind == "none":
        raise InputError("--halving says how to stop trials early, but --stopping is none; leave one of them out")
    if kind == "patience" and "eta" in halving:
        raise InputError(
            f"--stopping patience compares no trials, so it has no eta, but got --halving {halving}; of its numbers "
            f"it takes min_steps alone, and --stopping patience=K says how patient it is"
        )
    min_steps = numbers.min_steps if "min_steps" in halving else None
    return Stopping(kind or "asha", numbers.eta, min_steps, patience)
