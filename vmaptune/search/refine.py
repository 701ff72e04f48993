"""What a finer round tries: settings of the box around the best, beside the best, and from anywhere, thinned.

The zoom says where most of a round's settings lie; a surrogate thins a larger draw to the ones that may be best. A part
of that draw is from the whole first space and a part lies beside the best settings, so that a good region that the
slice missed, or a ridge that leaves the box, is found while there are trials left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from vmaptune.search.surrogate import columns_of
from vmaptune.search.worth import Worth
from vmaptune.search.zoom import Scored, best
from vmaptune.space import Space

OVER = 8  # candidates for each setting of a round, from the box and from the first space each
BESIDE = 4  # and from beside the best settings
MOST_AT_ONCE = 64  # settings chosen from one set of candidates: its covariance grows with the square
LEAST_TRIALS = 8  # with fewer finite ones there is nothing to learn from
LEAST_CHOICE = 2  # candidates for each setting, however unlikely they are
MOST_CHOICE, HOPE = 8, 2.0  # and at the most, by what they may be worth: so many deviations below what is expected
FUNCTIONS = 4  # drawn for each setting, of which each proposes its best one
LIKELY = 0.95  # the chance that a candidate must have of being better than the median of plain draws
BOLD, BOLD_LOST = 0.1, 0.5  # the share that is tried where a training may well diverge, with up to this chance
LEADERS = 0.05  # of the trials so far: those beside which candidates lie
STEP = 0.1  # how far beside, at the most, in deviations and shares of a setting's law
PLAIN = ("grid",)  # designs that are taken as they are

Params = dict[str, Any]
Learn = Callable[[Space, Sequence[Scored]], Worth]  # what settings are worth, from the trials so far


def propose(
    now: Space,
    first: Space,
    scored: Sequence[Scored],
    n: int,
    *,
    seed: tuple[int, int],
    method: str,
    learn: Learn = Worth,
) -> list[Params]:
    """The `n` settings of a round, in the order in which they are trained.

    A first round, or one after fewer than eight finite trials, is drawn from its space as `method` says. Otherwise
    `OVER` times as many are drawn from the round's space and from the first one, and some beside the best so far. Those
    that are not likely to be better than most plain draws from the first space are left out. Of the others, functions
    that fit the trials so far are drawn at random, and each picks the candidate at which it is lowest (Thompson
    sampling), so that settings which are surely good are taken, and such of which nobody knows.

    Source: Thompson (1933); for batches, Kandasamy et al., Parallelised Bayesian optimisation via Thompson sampling
    (2018).
    """
    finite = best(scored, len(scored))
    if method in PLAIN or len(finite) < LEAST_TRIALS:
        return now.rows(now.sample(n, seed=seed, method=method))
    worth = learn(first, scored)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*seed, 1])))
    far = first.sample(OVER * n, seed=(*seed, 2), method=method)
    drawn = (  # how many for each setting, and these
        (OVER, now.sample(OVER * n, seed=seed, method=method)),
        (OVER, far),
        (BESIDE, beside(first, [s.params for s in finite], worth, BESIDE * n, rng)),
    )
    points = [worth.points(columns) for _, columns in drawn]
    level = float(np.median(worth.mean(points[1])))
    chosen: list[Params] = []
    for start in range(0, n, MOST_AT_ONCE):
        count = min(MOST_AT_ONCE, n - start)
        parts = [slice(times * start, times * (start + count)) for times, _ in drawn]
        at = np.concatenate([some[part] for some, part in zip(points, parts, strict=True)])
        likely, bold = _hopeful(worth, level, at, count)
        picked = likely[_thompson(worth.samples(at[likely], FUNCTIONS * count, rng), count, bold)]
        columns = {
            name: np.concatenate([np.asarray(d[name], object)[part] for (_, d), part in zip(drawn, parts, strict=True)])
            for name in first
        }
        chosen += first.rows({name: column[picked] for name, column in columns.items()})
    return chosen


def _hopeful(worth: Worth, level: float, points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which candidates `[M, D]` functions are drawn at, for `count` settings, ascending: those that are likely to be
    better than `level`; of many, those that may be the best. And which of them are bold: likely to be better only if
    they do not diverge."""
    mean, deviation = worth.outlook(points)
    lost = worth.lost(points)
    better = ndtr((level - mean) / deviation)
    chance = (1 - lost) * better
    bold = (chance < LIKELY) & (better >= LIKELY) & (lost <= BOLD_LOST)
    likely = np.flatnonzero((chance >= LIKELY) | bold)
    if len(likely) < LEAST_CHOICE * count:  # nothing is sure yet, or all is noise
        likely = np.argsort(-chance, kind="stable")[: LEAST_CHOICE * count]
    if len(likely) > MOST_CHOICE * count:
        hope = (mean - HOPE * deviation)[likely]
        likely = likely[np.argsort(hope, kind="stable")[: MOST_CHOICE * count]]
    likely = np.sort(likely)
    return likely, bold[likely]


def beside(first: Space, rows: Sequence[Params], worth: Worth, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Settings that differ in one or two from one of the best of these `rows`: `n` of each, by name."""
    expected = worth.mean(worth.points(columns_of(first, rows)))
    leaders = np.argsort(expected, kind="stable")[: max(5, int(LEADERS * len(rows)))]
    units = first.to_unit(columns_of(first, [rows[i] for i in leaders]))[rng.integers(len(leaders), size=n)]
    changed = rng.random(units.shape) < 1 / units.shape[1]
    changed[np.arange(n), rng.integers(units.shape[1], size=n)] = True
    lists = np.array([d.kind == "choice" for d in first.values()])
    step = STEP * rng.random((n, 1)) ** 2 * rng.standard_normal(units.shape)
    moved = np.where(lists, rng.random(units.shape), np.clip(units + step, 0.0, 1.0))
    return first.from_unit(np.where(changed, moved, units))


def _thompson(functions: np.ndarray, n: int, bold: np.ndarray) -> np.ndarray:
    """The first `n` candidates at which functions `[F, M]` are lowest; then the best of the rest, on average. Of the
    `bold` ones, `[M]`, only a tenth, since all of them may lie beyond the same edge; more where there are no others."""
    lowest = [*functions.argmin(axis=1), *np.argsort(functions.mean(axis=0), kind="stable")]
    order = np.array(list(dict.fromkeys(map(int, lowest))))
    too_bold = bold[order] & (np.cumsum(bold[order]) > max(1, int(BOLD * n)))
    return np.concatenate([order[~too_bold], order[too_bold]])[:n]
