"""Ask and tell: the search of `vt.run` for those who train elsewhere. NumPy only; nothing is written to disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.search.coarse_to_fine import KEEP, MARGIN, CoarseToFine, check_room
from vmaptune.search.confirm import Budget, Confirmed, finalists, split_budget
from vmaptune.search.zoom import Scored
from vmaptune.space import Space

ROUNDS = 6
DIRECTIONS = ("minimize", "maximize")


def trial_seed(study_seed: int, trial: int) -> int:
    """The seed of a trial, from the study's seed and the trial's id alone; from 0 to 2^31 - 1."""
    return int(np.random.SeedSequence([study_seed, trial]).generate_state(1)[0] & 0x7FFFFFFF)


@dataclass(frozen=True)
class Asked:
    """One training to do elsewhere."""

    trial: int  # tell the result under this number
    params: dict[str, Any]
    seed: int  # for its random numbers, from 0 to 2^31 - 1
    round: int
    of: int | None = None  # the trial whose setting is confirmed by this one


class Sampler:
    """Proposes settings, coarse to fine, from results that come from anywhere.

    It draws to the bit what `vt.run` with the same arguments draws, as long as the results are the same: rounds, the
    zoom between them, and the best settings once more on fresh seeds. `ask(n)` gives settings to train, `tell` takes
    results. A round begins when every result of the last one is in; until then `ask` may give fewer than `n`, or none.

    All of its state follows from its arguments and from what it was told: to go on after a crash, make it again and
    tell it everything again.

    Args:
      space: a `vt.Space`, or name -> distribution.
      trials: trainings in all, confirmation included; fewer where the winner is sure before.
      rounds: rounds of search, each finer; 6, or one for every 8 trials, by default.
      seed: the seed of everything that is drawn.
      direction: "minimize" or "maximize".
      keep: the share of a round that seeds the next.
      margin: how much wider than those the next space is, on each side.
      method: "sobol", "random", "halton" or "grid".
      expand: whether a zoom may leave the first space.
      enqueue: configurations to try first, name -> value each; what is missing in one is drawn.

    Raises:
      InputError: an argument that is none of these; a configuration that the space does not have.
    """

    def __init__(
        self,
        space: Space | Mapping[str, Any],
        *,
        trials: int,
        rounds: int | None = None,
        seed: int = 0,
        direction: str = "minimize",
        keep: float = KEEP,
        margin: float = MARGIN,
        method: str = "sobol",
        expand: bool = False,
        enqueue: Sequence[Mapping[str, Any]] = (),
    ):
        if isinstance(trials, bool) or not isinstance(trials, (int, np.integer)) or trials < 1:
            raise InputError(f"Sampler(): `trials` must be a whole number of at least 1, but got {trials!r}")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InputError(f"Sampler(): `seed` must be a whole number of at least 0, but got {seed!r}")
        if direction not in DIRECTIONS:
            raise InputError(f"Sampler(): `direction` must be one of {', '.join(DIRECTIONS)}, but got {direction!r}")
        if not 0 < keep <= 1:
            raise InputError(f"Sampler(): `keep` must be above 0 and at most 1, but got {keep!r}")
        if not 0 <= margin < math.inf:
            raise InputError(f"Sampler(): `margin` must be at least 0, but got {margin!r}")
        self.space = space if isinstance(space, Space) else Space(space)
        self.budget: Budget = split_budget(trials, max(1, min(ROUNDS, trials // 8)) if rounds is None else rounds)
        self.seed = seed
        self.search = CoarseToFine(self.space, seed, method, keep, margin, expand, enqueue=enqueue)
        check_room(self.search.enqueued, self.budget.rounds[0])
        self.direction = direction
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._spaces = [self.space]
        self._trials: list[Asked] = []  # all that have been drawn, by id
        self._values: dict[int, float] = {}  # as they were told
        self._given: set[int] = set()
        self._slice: list[Scored] = []
        self._searched = 0  # trials of the search, once they are all in
        self.done = False  # whether every training has been told
        self.ranked: list[Confirmed] = []  # the finalists, best first, once all is in
        self._draw(0)

    # ---- what a person asks and tells ----------------------------------------------------------------

    def ask(self, n: int = 1) -> list[Asked]:
        """Up to `n` trainings that have not been given out yet.

        Fewer where the round has no more: tell its results first. None at all when everything is `done`.

        Raises:
          InputError: `n` is not a whole number of at least 1.
        """
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise InputError(f"ask(): `n` must be a whole number of at least 1, but got {n!r}")
        found = [t for t in self._trials if t.trial not in self._given and t.trial not in self._values][:n]
        self._given.update(t.trial for t in found)
        return found

    def tell(self, results: Mapping[int, float] | Iterable[tuple[int, float]]) -> None:
        """Takes in results, trial -> value; NaN or infinity for one that diverged.

        Results may come in any order, of a few trials or of many rounds at once.

        Raises:
          InputError: a trial that has not been drawn, one that was told before with another value, or a value that
            is no number. What came before it in the order of the trials has been taken in.
        """
        pairs = results.items() if isinstance(results, Mapping) else results
        for trial, value in sorted(pairs, key=lambda pair: pair[0]):
            self._take(trial, value)

    @property
    def waiting(self) -> list[Asked]:
        """What has been given out and not been told yet; after a crash elsewhere, train it again."""
        return [t for t in self._trials if t.trial in self._given and t.trial not in self._values]

    @property
    def spaces(self) -> list[Space]:
        """The space of each round of search that has begun, coarse to fine."""
        return list(self._spaces)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best setting so far: trial, params, value, value_std, repeats.

        Once the finalists have been confirmed, the winner by the mean of its fresh seeds; before, the best that was
        seen. None while there is no finite result.
        """
        if self.ranked:
            first = self.ranked[0]
            return {
                "trial": first.trial, "params": dict(self._trials[first.trial].params),
                "value": self._sign * first.mean, "value_std": first.std, "repeats": first.repeats,
            }  # fmt: skip
        seen = finalists(self._scored(range(self._searched or len(self._trials))), 1)
        if not seen:
            return None
        value = self._values[seen[0].trial]
        return {"trial": seen[0].trial, "params": seen[0].params, "value": value, "value_std": None, "repeats": 0}

    # ---- rounds --------------------------------------------------------------------------------------

    @property
    def _round(self) -> int:
        return self._trials[-1].round

    def _take(self, trial: int, value: float) -> None:
        if not isinstance(trial, (int, np.integer)) or not 0 <= trial < len(self._trials):
            raise InputError(
                f"tell(): a result must be of a trial that has been drawn, 0 to {len(self._trials) - 1}, but got "
                f"{trial!r}; a round begins when every result of the last one is in"
            )
        if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
            raise InputError(f"tell(): the value of trial {trial} must be a number, but got {value!r}")
        value, trial = float(value), int(trial)
        before = self._values.get(trial)
        if before is not None:
            if before != value and not (math.isnan(before) and math.isnan(value)):
                raise InputError(f"tell(): trial {trial} was told as {before!r} before, but now as {value!r}")
            return
        self._values[trial] = value
        if len(self._values) == len(self._trials):
            self._finish_round()

    def _finish_round(self) -> None:
        number = self._round
        if number >= len(self.budget.rounds):
            self._confirm(self.search.next_wave(self._repeats(), self.budget))
            return
        ids = [t.trial for t in self._trials if t.round == number]
        self._slice = self.search.slice_of([*self._slice, *self._scored(ids)], self.budget.rounds[number])
        if number + 1 < len(self.budget.rounds):
            self._spaces.append(self.search.finer(self._spaces[-1], self._slice))
            self._draw(number + 1)
            return
        self._searched = len(self._trials)
        chosen = self.search.finalists(self._scored(range(self._searched)), self.budget)
        self._confirm(self.search.first_wave((s.trial for s in chosen), self.budget))

    def _confirm(self, wave: Mapping[int, int]) -> None:
        """Each of these trials' settings so many times more; without any, the end."""
        number = self._round + 1
        for of, times in wave.items():
            for _ in range(times):
                self._add(self._trials[of].params, number, of)
        if not wave:
            self.done = True
            if self._round >= len(self.budget.rounds):
                self.ranked = self.search.ranked(self._repeats())

    def _draw(self, number: int) -> None:
        so_far = self._scored(range(len(self._trials)))
        self.budget = self.search.resized(self.budget, number, so_far)
        for params in self.search.settings(self._spaces[-1], so_far, number, self.budget.rounds[number]):
            self._add(params, number)

    def _add(self, params: dict[str, Any], number: int, of: int | None = None) -> None:
        trial = len(self._trials)
        self._trials.append(Asked(trial, params, trial_seed(self.seed, trial), number, of))

    def _repeats(self) -> dict[int, list[float]]:
        """What each finalist's fresh seeds came to, lower is better; not finite where they diverged."""
        values: dict[int, list[float]] = {}
        for t in self._trials:
            if t.of is not None:
                values.setdefault(t.of, []).append(self._sign * self._values[t.trial])
        return values

    def _scored(self, trials: Iterable[int]) -> list[Scored]:
        return [
            Scored(t, dict(self._trials[t].params), self._sign * value if math.isfinite(value) else math.nan)
            for t in trials
            if (value := self._values.get(t)) is not None
        ]
