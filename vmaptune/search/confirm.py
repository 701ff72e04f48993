"""The last round: the best few settings again, on fresh seeds, because the best value seen is partly luck."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vmaptune.errors import InputError
from vmaptune.search.zoom import Scored, best

CONFIRM_SHARE = 8  # one in eight trainings confirms
FIRST_SHARE = 0.25  # of the search, at least: the first round has to see every region that may be good
RANKS = ("mean", "median", "lower")
LEAST_TO_CONFIRM = 16  # with fewer trials in all, all of them search


@dataclass(frozen=True)
class Budget:
    """How a study's trials are split."""

    rounds: tuple[int, ...]  # trials of each search round
    finalists: int  # settings that are trained again
    repeats: int  # fresh seeds of each


@dataclass(frozen=True)
class Confirmed:
    """A setting after its repeats."""

    trial: int  # whose setting it is
    mean: float  # of the repeats' values; lower is better
    std: float  # of the repeats' values, n - 1 in the denominator; NaN with one repeat
    repeats: int
    infeasible: int  # repeats that ended not finite
    expected: float = math.nan  # the value to expect of another training: the mean less what of it is luck
    chance: float = math.nan  # of being the best of the finalists; NaN where the seeds' spread is unknown
    low: float = math.nan  # the interval of the mean over all seeds there are, at 95 %
    high: float = math.nan


def split_budget(trials: int, rounds: int, *, least: int = 1, first_share: float = FIRST_SHARE) -> Budget:
    """Splits `trials` over `rounds` of search and the confirmation.

    About an eighth confirms: of C trainings, about sqrt(2 C) finalists with C / finalists fresh seeds each, so
    256 trials end with 8 finalists on 4 seeds. Below 16 trials nothing is left to confirm with.

    Args:
      least: the fewest trials of a round that the first one's share may leave to the others.
      first_share: of the search's trials, what the first round gets at least; the others are alike.

    Raises:
      InputError: fewer trials than rounds.
    """
    if trials < 1 or rounds < 1 or rounds > trials:
        raise InputError(
            f"each round needs at least one trial, but got trials={trials}, rounds={rounds}; "
            f"take more trials or fewer rounds"
        )
    count = repeats = 0
    if trials >= LEAST_TO_CONFIRM and trials - trials // CONFIRM_SHARE >= rounds:
        spare = max(4, trials // CONFIRM_SHARE)
        count = max(2, min(spare // 2, round(math.sqrt(2 * spare))))
        repeats = spare // count
        if trials - count * repeats < rounds:
            count = repeats = 0
    return Budget(split_search(trials - count * repeats, rounds, least, first_share), count, repeats)


def split_search(trials: int, rounds: int, least: int = 1, first_share: float = FIRST_SHARE) -> tuple[int, ...]:
    """The trials of each search round: the first gets its share and what doesn't divide, the others are alike."""
    if rounds == 1:
        return (trials,)
    wanted = min(round(first_share * trials), trials - least * (rounds - 1))
    each = min(trials // rounds, (trials - wanted) // (rounds - 1))
    return (trials - each * (rounds - 1), *[each] * (rounds - 1))


def finalists(scored: Sequence[Scored], k: int) -> list[Scored]:
    """The `k` best trials with settings that differ."""
    chosen: list[Scored] = []
    for candidate in best(scored, len(scored)):
        if len(chosen) == k:
            break
        if all(candidate.params != other.params for other in chosen):
            chosen.append(candidate)
    return chosen


def rank(groups: Mapping[int, Sequence[float]]) -> list[Confirmed]:
    """Settings by the mean of their repeats, best first; one with a repeat that is not finite comes last."""
    ranked = []
    for trial, values in groups.items():
        finite = [v for v in values if math.isfinite(v)]
        std = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
        mean = float(np.mean(finite)) if finite else math.nan
        ranked.append(Confirmed(trial, mean, std, len(values), len(values) - len(finite)))
    return sorted(ranked, key=lambda c: (c.infeasible > 0, c.infeasible, _last(c.mean), c.trial))


def repeated(repeats: Sequence[Scored], by: str = "mean") -> Scored:
    """A setting's repeats as one: of those that were stopped early, at the earliest rung that one was stopped at.

    `by` says how values become one: their mean, their median, or `lower`, a lower bound of how good the setting is:
    the mean plus its standard error. A setting of which one repeat is not finite is not finite.
    """
    rung = min(s.rung for s in repeats)
    values = [s.value for s in repeats if s.rung == rung]
    if not all(math.isfinite(s.value) for s in repeats):
        return replace(repeats[0], value=math.nan, rung=rung)
    value = float(np.median(values) if by == "median" else np.mean(values))
    if by == "lower" and len(values) > 1:
        value += float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return replace(repeats[0], value=value, rung=rung)


def _last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
