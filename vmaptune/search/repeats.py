"""How many fresh seeds the best settings need: told by the search's noise before, by how close they are afterwards.

Lower values are better here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vmaptune.search.confirm import Budget
from vmaptune.search.decide import chances, last_wave, seed_spread
from vmaptune.search.refine import LEAST_TRIALS, Learn
from vmaptune.search.surrogate import columns_of, coordinates
from vmaptune.search.worth import Worth
from vmaptune.search.zoom import Scored, best
from vmaptune.space import Space

RELIABLE = 0.8  # the share of the differences between means of repeats that is to be the settings' own
LEAST = 2  # fresh seeds of a finalist: one has no spread
SURE = 0.95  # a chance of being the best at which nothing more is trained


def resized(
    budget: Budget, first: Space, scored: Sequence[Scored], *, repeats: int = 1, learn: Learn = Worth
) -> Budget:
    """The budget with as large a confirmation as the noise asks for, known before the last search round.

    What the noise doesn't ask for, the last round gets. The surrogate of the trials so far says how much of the
    differences between the best settings is their own, and how much one seed's luck; the mean of `r` seeds is
    reliable to `r s / (r s + n)` for variances `s` and `n` of those, and that is to be 0.8. So where seeds make no
    difference each finalist gets two, and at most as many as the budget has.

    Args:
      scored: the trials before the last round.
      repeats: seeds of each setting in the search, of whose mean the values are.

    Source: Spearman (1910) and Brown (1910), for the reliability of a mean.
    """
    if len(budget.rounds) < 2 or not budget.finalists or len(best(scored, LEAST_TRIALS)) < LEAST_TRIALS:
        return budget
    wanted = min(budget.repeats, wanted_repeats(first, scored, budget.finalists, repeats, learn))
    spare = budget.finalists * (budget.repeats - wanted)
    return replace(budget, rounds=(*budget.rounds[:-1], budget.rounds[-1] + spare), repeats=wanted)


def wanted_repeats(first: Space, scored: Sequence[Scored], k: int, repeats: int = 1, learn: Learn = Worth) -> int:
    """How many fresh seeds tell the `k` best settings apart reliably, by the surrogate; at least two."""
    worth = learn(first, scored)
    points = coordinates(first, columns_of(first, [s.params for s in best(scored, len(scored))]))
    expected = worth.mean(points)
    leaders = np.argsort(expected, kind="stable")[: max(2, k)]
    own = float(np.var(expected[leaders], ddof=1)) + float(worth.variance(points[leaders]).mean())
    wanted = RELIABLE / (1 - RELIABLE) * worth.noise * repeats / max(own, 1e-12)
    return max(LEAST, math.ceil(min(wanted, 1e6)))


def first_repeats(budget: Budget) -> int:
    """Fresh seeds of each finalist before it is looked which of them need more: half of all, two at least."""
    return min(budget.repeats, max(LEAST, math.ceil(budget.repeats / 2)))


def more_repeats(values: Mapping[int, Sequence[float]], left: int) -> dict[int, int]:
    """How many more trainings each finalist gets in the next wave, by trial: the better half of the last wave's, each
    as many, so that all waves down to the last two settings cost about the same; the last wave takes all that is left.

    None at all where one of them is the best for sure (95 %), or where only one is left. A setting of which a repeat
    was not finite is out.

    Args:
      values: the repeats so far of each finalist, by trial; those of the last wave have the most.
      left: trainings that this wave and those after it may take.

    Source: sequential halving, Karnin, Koren and Somekh, Almost optimal exploration in multi-armed bandits (2013),
    algorithm 1; here a setting's earlier repeats count too.
    """
    finite = {t: v for t, v in values.items() if len(v) and np.isfinite(v).all()}
    if left < 1 or len(finite) < 2 or not seed_spread(finite) > 0 or max(chances(finite).values()) >= SURE:
        return {}
    field = last_wave(finite)
    if len(field) == 1:  # the others of its wave went wrong
        field = list(finite)
    kept = sorted(field, key=lambda t: (float(np.mean(finite[t])), t))[: max(2, math.ceil(len(field) / 2))]
    waves = max(1, math.ceil(math.log2(len(kept))))
    share = left if waves == 1 else max(len(kept), left // waves)
    each, more = divmod(min(share, left), len(kept))
    found = {t: each + (i < more if waves == 1 or not each else 0) for i, t in enumerate(kept)}
    return {t: n for t, n in found.items() if n}
