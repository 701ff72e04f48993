"""What `run` was asked, checked before anything compiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.experiment import MOST_STEPS, Experiment
from vmaptune.search.coarse_to_fine import check_room
from vmaptune.search.confirm import RANKS, Budget, split_budget
from vmaptune.search.proposer import METHODS as OTHERS
from vmaptune.search.proposer import PREFIX
from vmaptune.search.sampler import KEEP, MARGIN
from vmaptune.study._stopping import Stopping

DEFAULT_TRIALS = 512
DEFAULT_ROUNDS = 6
DESIGNS = ("random", "sobol", "halton", "grid")
STRUCTURES = ("auto", "groups", "masks")
METHODS = (*DESIGNS, "pbt", *OTHERS)
BATCHES = 16  # rounds, where nothing else is said, of a sampler that learns only between them
LEFT_OUT = {
    "trials": f"the experiment's own number, or {DEFAULT_TRIALS}",
    "rounds": f"the experiment's own number, or {DEFAULT_ROUNDS} where there are trials enough",
    "steps": "the experiment's own number",
    "lanes": "as many as fit",
    "repeats": "one seed a setting",
    "ensemble": "none",
}


def default_directory(name: str) -> Path:
    """Where a study goes that was given no directory. Raises InputError for a name that would lead elsewhere."""
    if any(c in "/\\:" or not c.isprintable() for c in name) or name.strip(". ") == "":
        raise InputError(f"the experiment's name, {name!r}, cannot name a directory; rename it, or give --out DIR")
    return Path("runs") / name


@dataclass(frozen=True)
class Options:
    """A study's settings. `trials` is the total, confirmation included."""

    trials: int = DEFAULT_TRIALS
    rounds: int = DEFAULT_ROUNDS
    steps: int | None = None
    seed: int = 0
    keep: float = KEEP
    margin: float = MARGIN
    method: str = "sobol"
    expand: bool = False
    plan: Mapping[str, int] = field(default_factory=dict)
    lanes: int | None = None  # the most lanes alive at once in a group
    stopping: Stopping = field(default_factory=Stopping)
    repeats: int = 1  # seeds of each setting in the search
    rank: str = "mean"  # how a setting's repeats are ranked
    structure: str = "auto"  # how the settings that masked layers read are grouped
    ensemble: int | None = None  # the most picks of the finalists' ensemble
    as_written: bool = False  # whether models are trained without being rewritten to run faster
    enqueue: Sequence[Mapping[str, Any]] = ()  # configurations that the first round begins with
    minutes: float | None = None  # all that the study may take; then `trials` and `rounds` are what fits

    def __post_init__(self) -> None:
        if isinstance(self.stopping, Mapping):  # as the ledger holds it
            object.__setattr__(self, "stopping", Stopping(**self.stopping))
        for name in ("trials", "rounds", "steps", "lanes", "repeats", "ensemble"):
            value = getattr(self, name)
            if value is None and name in ("steps", "lanes", "ensemble"):
                continue
            if not _is_int(value) or value < 1:
                raise InputError(
                    f"{name} must be a whole number of at least 1, but got {value!r}; "
                    f"leave --{name} out for {LEFT_OUT[name]}"
                )
        if self.steps is not None and self.steps > MOST_STEPS:
            raise InputError(f"steps must be at most {MOST_STEPS}, but got {self.steps!r}; take fewer --steps")
        if not _is_int(self.seed) or self.seed < 0:
            raise InputError(
                f"seed must be a whole number of at least 0, but got {self.seed!r}; leave --seed out for 0"
            )
        if not _is_real(self.keep) or not 0 < self.keep <= 1:
            raise InputError(
                f"keep, the share of a round that seeds the next, must be above 0 and at most 1, "
                f"but got {self.keep!r}; {KEEP} is the default"
            )
        if not _is_real(self.margin) or self.margin < 0:
            raise InputError(f"margin must be at least 0, but got {self.margin!r}")
        if self.structure not in STRUCTURES:
            raise InputError(f"structure must be one of {', '.join(STRUCTURES)}, but got {self.structure!r}")
        if self.rank not in RANKS:
            raise InputError(f"rank must be one of {', '.join(RANKS)}, but got {self.rank!r}")
        if self.method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, but got {self.method!r}")
        if self.method == "pbt" and (self.stopping or self.repeats > 1):
            raise InputError("--method pbt replaces its worst members itself: leave --stopping and --repeats out")
        if self.method.startswith(PREFIX) and self.stopping:
            raise InputError(f"--method {self.method} takes in whole rounds: leave --stopping and --halving out")
        if self.method.startswith(PREFIX) and self.enqueue:
            raise InputError(f"--method {self.method} begins by itself: leave --enqueue out, or take another method")
        budget = self.budget()
        if min(budget.rounds) < self.repeats:
            raise InputError(
                f"each round needs at least one setting with its {self.repeats} repeats, but a round has "
                f"{min(budget.rounds)} trainings; take more trials, or fewer rounds or repeats"
            )

    @property
    def design(self) -> str:
        """How a round's points are drawn; a population's first ones as a round's."""
        return self.method if self.method in DESIGNS else "sobol"

    def budget(self) -> Budget:
        """How the trials are split over rounds and confirmation; a population has neither."""
        if self.method == "pbt":
            return Budget((self.trials,), 0, 0)
        first = {"first_share": 0.0} if self.method.startswith(PREFIX) else {}  # its batches are no rounds
        return split_budget(self.trials, self.rounds, least=self.repeats, **first)


def options_for(experiment: Experiment, **given: Any) -> Options:
    """The options that were given, over the experiment's own, over the defaults."""
    own = {"trials": experiment.trials, "rounds": experiment.rounds}
    chosen: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    chosen.update({name: value for name, value in given.items() if value is not None})
    check_minutes(given.get("minutes"), given.get("trials"))
    if chosen.get("minutes") is not None:
        chosen["trials"] = DEFAULT_TRIALS  # until it is known how many fit
    trials = chosen.get("trials", DEFAULT_TRIALS)
    if given.get("rounds") is None and _is_int(trials) and trials >= 1:
        others = str(chosen.get("method", "")).startswith(PREFIX)
        chosen["rounds"] = max(1, min(BATCHES if others else chosen.get("rounds", DEFAULT_ROUNDS), trials // 8))
    options = Options(**chosen)
    if options.minutes is None:
        check_room(options.enqueue, options.budget().rounds[0], options.repeats)
    return options


def check_minutes(minutes: Any, trials: Any) -> None:
    """Raises InputError for what is no time, or for a number of trials beside it."""
    if minutes is None:
        return
    if not _is_real(minutes) or minutes <= 0:
        raise InputError(
            f"minutes must be a number above 0, but got {minutes!r}; say e.g. --minutes 10, or leave it out and say "
            f"--trials N"
        )
    if trials is not None:
        raise InputError(
            f"--minutes says how long and --trials how many, so one of them is enough, but got minutes={minutes!r} "
            f"and trials={trials!r}; leave one out"
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
