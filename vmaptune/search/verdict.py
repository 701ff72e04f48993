"""Whether an old best setting is still the best: it against one rival, pair after pair of fresh seeds.

After every batch of pairs the gain has a confidence interval that holds at all looks together, so the comparison may
stop at whichever look decides it. The rival must have been chosen before, by other trainings than those compared here:
then its luck was left behind. Lower values are better.

Source: repeated confidence intervals, Jennison and Turnbull (1989), Interim analyses: the repeated confidence interval
approach, with the boundaries of `sequential`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmaptune.search.sequential import boundaries, stagewise_p, to_normal, to_student

LEVEL = 0.002  # of the interval at all looks together: half of it on each side
MARGIN = 0.75  # of the spread of one training over seeds: what a rival must be better by to be missed rarely
BATCH = 16  # pairs between two looks

STILL_BEST, MOVED, UNCLEAR = "still best", "moved", "unclear"


@dataclass(frozen=True)
class Comparison:
    """What the pairs so far say."""

    answer: str  # STILL_BEST, MOVED or UNCLEAR
    gain: float  # the mean of the old one's values less the rival's; above 0: the rival is better
    low: float  # interval of the gain, which holds at all looks together at 1 - LEVEL
    high: float
    p: float  # of as much evidence for a gain, at this look or before, if there were none
    spread: float  # of one training over seeds: the smaller of the two standard deviations
    pairs: int
    looks: int
    failed: tuple[int, int]  # trainings of the old one and of the rival that were not finite


def compare(old: Sequence[float], rival: Sequence[float], most: int, batch: int = BATCH) -> Comparison:
    """Compares two settings on paired seeds, of which there will be `most` at the most, looked at every `batch`.

    The answer is MOVED when the interval of the gain lies above 0, which happens to equals with a chance of LEVEL / 2
    at most, over all looks, and the gain is worth a word: half of the margin at least. It is STILL_BEST when the
    interval lies below the margin, MARGIN spreads, which happens to a rival that is better by as much with the same
    chance at most; else UNCLEAR, and then more pairs may decide, as long as there are fewer than `most`. The smaller
    spread is the one that counts, because a setting that fails on some seeds has a large one, in which any gain would
    be lost.

    A training that is not finite counts as worse than the worst that was seen, by the range of all that were: so
    a rare failure weighs little, and a setting that fails often loses.

    Args:
      old, rival: values `[n]`, the i-th of both from the same seed, n a multiple of `batch` or `most`.
      most: pairs that are trained if none of the looks before decides. batch: pairs between two looks.
    """
    n, looks = len(old), -(-len(old) // batch)
    if not 2 <= n == len(rival) <= most:
        raise ValueError(f"a comparison needs 2 to {most} pairs, but got {n} and {len(rival)} values")
    values = np.array([old, rival], dtype=float)  # [2, n]
    failed_old, failed_rival = map(int, (~np.isfinite(values)).sum(axis=1))
    failed = failed_old, failed_rival
    a, b = _filled(values)
    spread = float(min(a.std(ddof=1), b.std(ddof=1)))
    differences = a - b
    gain, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n)
    if failed == (n, n):  # nothing is known of either
        return Comparison(UNCLEAR, 0.0, -math.inf, math.inf, 1.0, 0.0, n, looks, failed)
    fractions = tuple(min(1.0, (i + 1) * batch / most) for i in range(-(-most // batch)))[:looks]
    critical = boundaries(fractions, LEVEL / 2)
    if error <= 1e-12 * abs(gain):  # nothing depends on the seed
        p, reach = (0.0 if gain > 0 else 1.0), 0.0
    else:
        p = stagewise_p(fractions, critical, to_normal(gain / error, n - 1))
        reach = to_student(critical[-1], n - 1) * error
    low, high = gain - reach, gain + reach
    margin = MARGIN * spread
    if low > 0 and gain >= margin / 2:
        answer = MOVED
    else:
        answer = STILL_BEST if high <= margin else UNCLEAR
    return Comparison(answer, gain, low, high, p, spread, n, looks, failed)


def _filled(values: np.ndarray) -> np.ndarray:
    """The values `[2, n]`; those that are not finite are as much worse than the worst as that is than the best."""
    finite = values[np.isfinite(values)]
    worst, best = (finite.max(), finite.min()) if finite.size else (0.0, 0.0)
    return np.where(np.isfinite(values), values, worst + ((worst - best) or 1.0))
