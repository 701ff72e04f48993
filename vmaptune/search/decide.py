"""Which settings are confirmed, which of them wins, and how sure that is. Lower values are better here.

The value of a single training is partly its seed's luck, and the best of hundreds is the luckiest. So the settings to
confirm are chosen by the surrogate, in which a value that its neighbours do not share counts as noise, and the winner
by fresh repeats alone: the surrogate cannot tell its favourites apart, as they lie side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from vmaptune.search.confirm import Confirmed, finalists, rank
from vmaptune.search.refine import LEAST_TRIALS, Learn
from vmaptune.search.surrogate import columns_of, coordinates
from vmaptune.search.worth import Worth
from vmaptune.search.zoom import Scored, best
from vmaptune.space import Space

DRAWS = 1000  # of who is the best
LEAST_DEGREES = 1  # of freedom, to say anything of the seeds' spread
LEVEL = 0.95  # of an interval


def shortlist(first: Space, scored: Sequence[Scored], k: int, learn: Learn = Worth) -> list[Scored]:
    """The `k` settings to confirm, that differ: the best by rung, then by what the surrogate expects of them; with
    fewer than eight finite trials, by rung and value."""
    finite = best(scored, len(scored))
    if len(finite) < LEAST_TRIALS:
        return finalists(scored, k)
    expected = learn(first, scored).mean(coordinates(first, columns_of(first, [s.params for s in finite])))
    smooth = [replace(s, value=float(m)) for s, m in zip(finite, expected, strict=True)]
    by_trial = {s.trial: s for s in finite}
    return [by_trial[s.trial] for s in finalists(smooth, k)]


def settle(repeats: Mapping[int, Sequence[float]]) -> list[Confirmed]:
    """The finalists, best first, from their repeats on fresh seeds: trial -> values.

    By the mean of the repeats, those that were in the last wave first; one with a repeat that is not finite comes
    last. Each has its chance of being the best, and the value to expect of it: the mean of its repeats, drawn towards
    that of all finalists as far as their differences can be the seeds' (empirical Bayes), so that the winner's is not
    too good. The interval of each mean is Student's, with the spread of the seeds that all finalists share.

    Source: James and Stein (1961); Efron and Morris (1975), with the variance between finalists estimated by moments.
    """
    likely, expected = chances(repeats), shrunken(repeats)
    reach = {t: _reach(repeats, t) for t in repeats}
    still_in = set(last_wave({t: v for t, v in repeats.items() if np.isfinite(v).all()}))
    ranked = sorted(rank(repeats), key=lambda c: (c.infeasible > 0, c.trial not in still_in))
    return [
        replace(
            c, expected=expected[c.trial], chance=likely[c.trial], low=c.mean - reach[c.trial],
            high=c.mean + reach[c.trial],
        )
        for c in ranked
    ]  # fmt: skip


def alike(repeats: Mapping[int, Sequence[float]], best: int) -> list[int]:
    """The settings that their seeds can't tell from `best`: their means differ from its own by no more than twice the
    standard error of the difference, by the spread that all share. Where seeds make no difference, equal ones."""
    finite = {t: values for t, values in repeats.items() if len(values) and np.isfinite(values).all()}
    spread = seed_spread(finite)
    if best not in finite or not math.isfinite(spread):
        return []
    of = finite[best]
    return [
        t for t, values in finite.items()
        if t != best
        and abs(np.mean(values) - np.mean(of)) <= 2 * spread * math.sqrt(1 / len(values) + 1 / len(of))
    ]  # fmt: skip


def _reach(repeats: Mapping[int, Sequence[float]], trial: int) -> float:
    """Half the 95 % interval of a setting's mean; NaN where the seeds' spread is unknown, or zero: so few seeds, or
    values so coarse, say nothing of it."""
    finite = {t: values for t, values in repeats.items() if len(values) and np.isfinite(values).all()}
    spread = seed_spread(finite)
    if trial not in finite or not spread > 0:
        return math.nan
    degrees = sum(len(values) - 1 for values in finite.values())
    return float(special.stdtrit(degrees, 0.5 + LEVEL / 2)) * spread / math.sqrt(len(finite[trial]))


def smoothed(first: Space, scored: Sequence[Scored], repeats: Mapping[int, Sequence[float]]) -> list[int]:
    """Settings with repeats, best first by what the surrogate of the search and of the repeats expects; one with a
    repeat that is not finite comes last. With fewer than eight finite trials, by the mean of the repeats."""
    ranked = rank(repeats)
    if len(best(scored, LEAST_TRIALS)) >= LEAST_TRIALS:
        params = {s.trial: s.params for s in scored}
        again = [Scored(-1, params[t], v) for t, values in repeats.items() for v in values]
        means = Worth(first, [*again, *scored]).mean(
            coordinates(first, columns_of(first, [params[c.trial] for c in ranked]))
        )
        place = {c.trial: float(m) for c, m in zip(ranked, means, strict=True)}
        ranked = sorted(ranked, key=lambda c: (c.infeasible > 0, c.infeasible, place[c.trial], c.trial))
    return [c.trial for c in ranked]


def last_wave(repeats: Mapping[int, Sequence[float]]) -> list[int]:
    """The finalists that are still in: those with the most repeats."""
    most = max(map(len, repeats.values()), default=0)
    return [t for t, values in repeats.items() if len(values) == most]


def seed_spread(repeats: Mapping[int, Sequence[float]]) -> float:
    """The standard deviation that seeds alone bring, from all settings' repeats; NaN where none has two."""
    degrees, total = 0, 0.0
    for values in repeats.values():
        if len(values) > 1 and np.isfinite(values).all():
            degrees += len(values) - 1
            total += float(np.var(values)) * len(values)
    return math.sqrt(total / degrees) if degrees >= LEAST_DEGREES else math.nan


def shrunken(repeats: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """What to expect of each setting, by trial; NaN with a repeat that is not finite."""
    found = dict.fromkeys(repeats, math.nan)
    finite = {t: values for t, values in repeats.items() if len(values) and np.isfinite(values).all()}
    if not finite:
        return found
    means = {t: float(np.mean(values)) for t, values in finite.items()}
    spread, centre = seed_spread(finite), float(np.mean(list(means.values())))
    for t, values in finite.items():
        kept = 1.0
        if math.isfinite(spread) and len(means) > 2:
            error = spread**2 / len(values)
            between = float(np.var(list(means.values()), ddof=1))
            kept = max(0.0, 1 - error / between) if between > 0 else 0.0
        found[t] = centre + kept * (means[t] - centre)
    return found


def chances(repeats: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """How likely each is the best of them, by trial: draws of their true means, given the repeats.

    Around the shrunken values, with the variance that is left to them; 0 for one with a repeat that is not finite.
    Draws alone never make it 0 or 1, and it is NaN where no two seeds of a setting differ: that says as little of how
    sure the order is as one seed of each.
    """
    expected = shrunken(repeats)
    found = dict.fromkeys(repeats, 0.0)
    finite = [t for t in repeats if math.isfinite(expected[t])]
    if not finite:
        return found
    spread = seed_spread({t: repeats[t] for t in finite})
    if not spread > 0:
        return found | dict.fromkeys(finite, math.nan)
    if len(finite) == 1:
        return found | {finite[0]: 1.0}
    means = np.array([np.mean(repeats[t]) for t in finite])
    errors = np.array([spread**2 / len(repeats[t]) for t in finite])
    between = max(0.0, float(np.var(means, ddof=1)) - float(errors.mean())) if len(finite) > 2 else math.inf
    left = errors if math.isinf(between) else errors * between / (errors + between)
    rng = np.random.Generator(np.random.PCG64(0))
    draws = np.array([expected[t] for t in finite]) + rng.standard_normal((DRAWS, len(finite))) * np.sqrt(left)
    if not left.any():  # nothing tells them apart
        return found | dict.fromkeys(finite, 1.0 / len(finite))
    wins = np.bincount(draws.argmin(axis=1), minlength=len(finite))
    return found | {t: (float(w) + 1 / len(finite)) / (DRAWS + 1) for t, w in zip(finite, wins, strict=True)}
