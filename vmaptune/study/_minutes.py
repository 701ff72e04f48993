"""`--minutes M`: a time instead of a count.

Before the first round each group's program is compiled and timed, and the study's rounds are cut so that they, the
confirmation and the end fit what is left. Before each further round, and before the confirmation, what has been
trained so far says how wrong that was, and the rest is cut anew. Every cut is in the ledger, under `minutes` in the
study's meta and as a decision, so a study that goes on takes those of its rounds as they were.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from vmaptune.engine.plan import SPEED, Costs
from vmaptune.engine.rate import TileRate, tile_rate
from vmaptune.search.confirm import Budget
from vmaptune.search.minutes import LEAST_ROUND, MOST_TRIALS, fit, fit_confirmation
from vmaptune.study._groups import Group, Groups

KEY = "minutes"  # in the study's meta
TOLERANCE = 0.1  # of the time, by which a study may miss it
LEAST_TOLERANCE = 10.0  # seconds
AIM = 0.98  # of the time: a little early rather than late
END_SECONDS = 3.0  # from the last trial to the prompt: the test part, weights, the report, going home
END_SECONDS_PER_TRIAL = 3e-4  # of the report and the tables
HOST_SECONDS = 4e-4  # of a trial, to put it into a lane and the ledger
HOST_SECONDS_PER_POINT = 8e-5  # of its curve
FIRST_FACTOR = 1.25  # before anything was trained: a round too short is made up for later, one too long is not
WRONG = (0.2, 5.0)  # how far what was trained may correct what was timed
clock = time.perf_counter


@dataclass
class Timetable:
    """The time of one study: what it has, what it has spent, what its trials cost.

    Args:
      minutes: that the study may take in all, from `started` on.
      started: the moment at which they began to count, by `clock`.
      spent: seconds that the study had worked before, where it goes on; the pause does not count.
      plans: the cuts that the ledger holds, by the number of the round before which they were made.
    """

    minutes: float
    started: float
    spent: float = 0.0
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    factor: float = FIRST_FACTOR  # what trials took, to what they should have taken by the timing
    rates: dict[int, TileRate] = field(default_factory=dict)  # by group
    _since: tuple[int, float] | None = None  # (the first round, the working time) since when trials are watched

    @property
    def seconds(self) -> float:
        """All that there are."""
        return 60 * self.minutes

    def used(self) -> float:
        """Seconds that the study has worked."""
        return self.spent + clock() - self.started

    def left(self, trials: int) -> float:
        """Seconds left to train in, when the study will have `trials`."""
        return AIM * self.seconds - self.used() - END_SECONDS - END_SECONDS_PER_TRIAL * trials

    def last(self) -> Budget | None:
        """The cut that holds now, of those recorded: the last one that was made."""
        if not self.plans:
            return None
        plan = self.plans[max(self.plans, key=int)]
        self.factor = plan["factor"]
        return Budget(tuple(plan["rounds"]), plan["finalists"], plan["repeats"])

    def guess(self, costs: Costs, steps: int, devices: int | None = None) -> int:
        """A number of trials before anything was timed, from operations alone: a power of two, so that programs that
        an earlier run compiled can be used again."""
        devices = devices or jax.local_device_count()
        flops = max(1.0, costs.step_flops) * steps
        fit = min(MOST_TRIALS, self.seconds * SPEED * devices / flops)
        return 2 ** max(4, int(math.log2(max(1.0, fit))))

    def measure(self, groups: Groups) -> None:
        """Times the programs of groups that were not timed yet."""
        for group in groups:
            if group.number not in self.rates and group._program is not None:
                self.rates[group.number] = tile_rate(group.program)

    def round_seconds(self, groups: Sequence[Group], trials: float | None = None) -> float:
        """What a round takes whose trials are of these groups; of a sample of them, for `trials` in all."""
        counts = Counter(group.number for group in groups)
        scale = 1.0 if trials is None else trials / max(1, len(groups))
        by_number = {group.number: group for group in groups}
        return self.factor * sum(
            self._rate(group).seconds(group.program, counts[number] * scale, group.steps)
            + counts[number] * scale * self._host_seconds(group, group.steps)
            for number, group in by_number.items()
        )

    def flowing_seconds(self, work: Sequence[tuple[Group, float]]) -> float:
        """What trials take that share always busy lanes: of each its group and its steps."""
        return self.factor * sum(
            self._rate(group).seconds_each(group.program, steps) + self._host_seconds(group, steps)
            for group, steps in work
        )

    def _host_seconds(self, group: Group, steps: float) -> float:
        return HOST_SECONDS + HOST_SECONDS_PER_POINT * steps / group.plan.every

    def _rate(self, group: Group) -> TileRate:
        if group.number not in self.rates:
            self.rates[group.number] = tile_rate(group.program)
        return self.rates[group.number]

    # ---- what was trained --------------------------------------------------------------------------------

    def watch(self, round: int, compiling: float) -> None:
        """From this round on, what trials take is compared with what they should have taken. `compiling`: the
        seconds that the study has compiled, which do not count."""
        self._since = (round, self.used() - compiling)

    def watched_from(self) -> int | None:
        """The first round of which that is known."""
        return self._since[0] if self._since else None

    def correct(self, wanted: float, compiling: float) -> None:
        """What was trained since then should have taken `wanted` seconds by the timing, were the factor 1."""
        if self._since is not None and wanted > 0:
            took = self.used() - compiling - self._since[1]
            self.factor = min(max(took / wanted, WRONG[0]), WRONG[1])

    # ---- the cuts ----------------------------------------------------------------------------------------

    def cut(self, done: Sequence[int], rounds: int, pending: float, search: Any, confirm: Any, **more: Any) -> Budget:
        """Rounds and confirmation such that what is to come fits the time left, `pending` seconds of trials that
        are under way among it. `search` and `confirm` give the seconds of so many trials."""
        trials = sum(done)
        for _ in range(3):  # what the end takes depends on the number of trials
            budget = fit(self.left(trials) - pending, search, confirm, rounds=rounds, done=done, **more)
            trials = sum(budget.rounds) + budget.finalists * budget.repeats
        return budget

    def cut_confirmation(self, done: Sequence[int], groups: Sequence[Group]) -> Budget:
        """The confirmation of the best settings, whose groups these are, such that it takes all the time left."""

        def seconds(finalists: int, repeats: int) -> float:
            return self.round_seconds([group for group in groups[:finalists] for _ in range(repeats)])

        finalists, repeats = fit_confirmation(self.left(sum(done)), seconds, len(groups))
        return Budget(tuple(done), finalists, repeats)

    def record(self, number: int, budget: Budget) -> dict[str, Any]:
        """Keeps a cut; returns what the ledger says of it."""
        plan = {
            "rounds": list(budget.rounds), "finalists": budget.finalists, "repeats": budget.repeats,
            "used": self.used(), "factor": self.factor,
        }  # fmt: skip
        self.plans[str(number)] = plan
        return plan

    def missed(self) -> str | None:
        """What to say when a study that is about to end missed its time."""
        over = self.used() - self.seconds
        if abs(over) <= max(LEAST_TOLERANCE, TOLERANCE * self.seconds):
            return None
        if over < 0:
            return (
                f"the study took {self.used():.0f} s of the {self.seconds:.0f} s that it had: "
                f"{MOST_TRIALS:,} trials are the most of a study, so give the rest to more --steps"
            )
        return (
            f"the study took {self.used():.0f} s, more than the {self.seconds:.0f} s that it had: so many were needed "
            f"to start, compile, and train and confirm {2 * LEAST_ROUND} trials; take more --minutes or fewer --steps"
        )


def recorded(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a study keeps about its time."""
    found = meta.get(KEY)
    return found if isinstance(found, dict) else {}
