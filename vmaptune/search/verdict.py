"""Whether an old best setting is still the best, from fresh repeats of it and of its rivals. Lower is better here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05

STILL_BEST, MOVED, UNCLEAR = "still best", "moved", "unclear"


@dataclass(frozen=True)
class Verdict:
    """The answer and its evidence."""

    answer: str  # STILL_BEST, MOVED or UNCLEAR
    rival: int | None  # the best rival
    gain: float  # the mean of the old one's values less the rival's; above 0: the rival is better
    low: float  # 95 % interval of the gain (Welch)
    high: float
    p: float  # of a gain as large if both were the same, for as many rivals as were looked at (Bonferroni)


def judge(old: Sequence[float], rivals: Mapping[int, Sequence[float]]) -> Verdict:
    """Compares the old setting's repeats with each rival's.

    The answer is MOVED when the best rival is better at the 5 % level (Welch's t-test, one-sided, times the number
    of rivals); STILL_BEST when no rival can be better by more than the spread of one training over seeds (the upper
    end of the 95 % interval of the best rival's gain is below the smaller of their standard deviations: a setting
    that fails on some seeds has a large one, and would always be the best); else UNCLEAR.
    A setting of which a repeat is not finite is worse than any other.

    Source: Welch (1947), The generalization of "Student's" problem when several different population variances are
    involved; agrees with SciPy's `ttest_ind(equal_var=False)`.
    """
    finite = {trial: list(values) for trial, values in rivals.items() if _all_finite(values)}
    if not finite:
        return Verdict(STILL_BEST if _all_finite(old) else UNCLEAR, None, -math.inf, -math.inf, -math.inf, 1.0)
    rival = min(finite, key=lambda trial: (float(np.mean(finite[trial])), trial))
    if not _all_finite(old):
        return Verdict(MOVED, rival, math.inf, math.inf, math.inf, 0.0)
    gain, low, high, p = _welch(old, finite[rival])
    p = min(1.0, p * len(finite))
    if p < LEVEL:
        return Verdict(MOVED, rival, gain, low, high, p)
    spread = min(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in (old, finite[rival]))
    answer = STILL_BEST if high <= spread or (gain <= 0 and high <= 0) else UNCLEAR
    return Verdict(answer, rival, gain, low, high, p)


def _all_finite(values: Sequence[float]) -> bool:
    return len(values) > 0 and bool(np.isfinite(values).all())


def _welch(old: Sequence[float], new: Sequence[float]) -> tuple[float, float, float, float]:
    """Gain, its 95 % interval, and the one-sided p-value."""
    from scipy import stats

    gain = float(np.mean(old) - np.mean(new))
    if min(len(old), len(new)) < 2:
        return gain, -math.inf, math.inf, 1.0
    if np.std(old) == 0 and np.std(new) == 0:  # nothing depends on the seed
        return gain, gain, gain, 0.0 if gain > 0 else 1.0
    found = stats.ttest_ind(old, new, equal_var=False, alternative="greater")
    both = stats.ttest_ind(old, new, equal_var=False).confidence_interval(0.95)
    return gain, float(both.low), float(both.high), float(found.pvalue)
