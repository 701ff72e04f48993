"""The search's decisions, each a pure function of the trials so far, in the order in which a study takes them.

`vt.Sampler` and the round loop both ask these, so the two cannot drift apart. Lower values are better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmaptune.errors import InputError
from vmaptune.search.confirm import Budget, Confirmed
from vmaptune.search.decide import settle, shortlist
from vmaptune.search.refine import Params, propose
from vmaptune.search.repeats import first_repeats, more_repeats, resized
from vmaptune.search.worth import Worth
from vmaptune.search.zoom import Scored, slice_of, zoom
from vmaptune.space import Space, completed

KEEP = 0.15  # the slice; measured against wider ones
MARGIN = 0.10


def check_room(enqueue: Sequence[Any], trials: int, repeats: int = 1) -> None:
    """Raises InputError where a first round of so many trials has no room for all that is enqueued."""
    if len(enqueue) > (room := trials // repeats):
        raise InputError(
            f"enqueue must hold at most as many configurations as the first round tries, {room}, but got "
            f"{len(enqueue)}; enqueue fewer, or take more trials or fewer rounds"
        )


@dataclass
class CoarseToFine:
    """Rounds, each drawn from a finer space, then the best settings once more on fresh seeds."""

    first: Space  # of the first round
    seed: int
    method: str = "sobol"  # how points are drawn: sobol, random, halton or grid
    keep: float = KEEP  # the share of a round that seeds the next one
    margin: float = MARGIN  # how much wider than those the next space is, on each side
    expand: bool = False  # whether a zoom may leave the first space
    repeats: int = 1  # seeds of each setting in the search
    enqueue: Sequence[Mapping[str, Any]] = ()  # configurations that a person gives, whole or in part: tried first
    _learned: tuple[list[Scored], Worth] | None = field(
        default=None, init=False, repr=False
    )  # the last, with its trials

    def __post_init__(self) -> None:
        self.enqueued = completed(self.first, self.enqueue, (self.seed, 0, 3))

    def settings(self, space: Space, known: Sequence[Scored], number: int, trials: int) -> list[Params]:
        """What a round of so many `trials` tries, in the order in which they train."""
        n = trials // self.repeats
        given = self.enqueued[:n] if number == 0 else []
        if len(given) == n:
            return given
        seed = (self.seed, number)
        n -= len(given)
        return given + propose(space, self.first, known, n, seed=seed, method=self.method, learn=self._learn)

    def slice_of(self, standings: Sequence[Scored], trials: int) -> list[Scored]:
        """The best of all settings so far: as many as the share of a round of `trials` that seeds the next one."""
        return slice_of(standings, self.keep * (trials // self.repeats) / len(standings)) if standings else []

    def finer(self, space: Space, slice_: Sequence[Scored]) -> Space:
        """The next round's space."""
        return zoom(space, self.first, slice_, margin=self.margin, expand=self.expand) if slice_ else space

    def resized(self, budget: Budget, number: int, known: Sequence[Scored]) -> Budget:
        """Before the last search round: the confirmation as large as the noise asks for; before others, as it was."""
        last = number + 1 == len(budget.rounds)
        return resized(budget, self.first, known, repeats=self.repeats, learn=self._learn) if last else budget

    def finalists(self, standings: Sequence[Scored], budget: Budget) -> list[Scored]:
        """The settings to confirm, the best first."""
        return shortlist(self.first, standings, budget.finalists, self._learn) if budget.finalists else []

    def first_wave(self, trials: Iterable[int], budget: Budget) -> dict[int, int]:
        """How many fresh seeds each finalist begins with, by trial."""
        return dict.fromkeys(trials, first_repeats(budget))

    def next_wave(self, values: Mapping[int, Sequence[float]], budget: Budget) -> dict[int, int]:
        """How many more each gets, by trial; none where the winner is sure or the budget spent."""
        return more_repeats(values, budget.finalists * budget.repeats - sum(map(len, values.values())))

    def ranked(self, values: Mapping[int, Sequence[float]]) -> list[Confirmed]:
        """The finalists by their fresh seeds, the best first."""
        return settle(values)

    def _learn(self, first: Space, scored: Sequence[Scored]) -> Worth:
        """What is known from these trials; asked twice, as before the last round, it is found once."""
        if self._learned is None or self._learned[0] != scored:
            self._learned = list(scored), Worth(first, scored)
        return self._learned[1]
