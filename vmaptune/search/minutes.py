"""How many trials fit into the time that is left, from what a trial costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vmaptune.search.confirm import LEAST_TO_CONFIRM, Budget, split_budget, split_search

MOST_TRIALS = 50_000  # of a study: more would be a ledger and a report that nobody can open
LEAST_ROUND = 8  # trials of a round: fewer are no reason to draw once more

Cost = Callable[[float], float]  # trials -> the seconds that they take


def fit(
    seconds: float,
    search: Cost,
    confirm: Cost,
    *,
    rounds: int,
    done: Sequence[int] = (),
    confirmed: bool = True,
    least: int = LEAST_ROUND,
) -> Budget:
    """The largest study of at most `rounds` rounds whose part that is still to come takes at most `seconds`.

    It always has a whole study's parts, so where time is short it takes longer: at least `LEAST_TO_CONFIRM` trials
    in all, and a confirmation.

    Args:
      search: the seconds of a round of so many trials; increasing.
      confirm: the same of the confirmation.
      rounds: search rounds in all, `done` ones among them; fewer are taken where there are too few trials.
      done: the trials of the rounds that have begun; they stay as they are.
      confirmed: whether there is a confirmation at all; a population has none.
      least: the fewest trials of a round.
    """

    def split(trials: int) -> Budget:
        return _split(trials, rounds, done, least) if confirmed else Budget((trials,), 0, 0)

    def fits(trials: int) -> bool:
        budget = split(trials)
        taken = sum(map(search, budget.rounds[len(done) :])) + confirm(budget.finalists * budget.repeats)
        return taken <= seconds

    low, high = max(LEAST_TO_CONFIRM, 2 * least, sum(done) + 4), MOST_TRIALS
    while low < high:  # the largest one that fits
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return split(low)


def fit_confirmation(seconds: float, confirm: Callable[[int, int], float], most: int) -> tuple[int, int]:
    """(finalists, fresh seeds of each) such that the confirmation takes about all of `seconds`; two of two at least.

    Args:
      confirm: the seconds of so many finalists with so many seeds each.
      most: the settings that there are to choose from, at least one.
    """
    best = (min(2, most), 2)
    for trainings in range(4, MOST_TRIALS):
        finalists = min(most, max(2, min(trainings // 2, round(math.sqrt(2 * trainings)))))
        repeats = trainings // finalists
        if finalists * repeats < trainings:
            continue  # as many as a smaller number
        if confirm(finalists, repeats) > seconds:
            break
        best = finalists, repeats
    return best


def expected_steps(levels: Sequence[int], eta: int, at: int = 0) -> float:
    """The steps that a trial which has done `at` is expected to do still, if one in `eta` passes each rung.

    `levels` are the rungs and, last, the end of training: what `search.halving.Halving.levels` gives.
    """
    total, share = 0.0, 1.0
    for level in levels:
        if level > at:
            total += share * (level - at)
            share, at = share / eta, level
    return total


def _split(trials: int, rounds: int, done: Sequence[int], least: int) -> Budget:
    """`trials` over the rounds to come and the confirmation."""
    wanted = split_budget(trials, max(1, min(rounds, trials // least)))
    rest = trials - wanted.finalists * wanted.repeats - sum(done)
    count = min(rounds - len(done), rest // least)
    if not done:
        return Budget(split_search(rest, max(1, count), least), wanted.finalists, wanted.repeats)
    if count < 1:
        return Budget(tuple(done), wanted.finalists, wanted.repeats)
    each = rest // count
    return Budget((*done, rest - each * (count - 1), *[each] * (count - 1)), wanted.finalists, wanted.repeats)
