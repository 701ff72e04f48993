"""What a finer round tries, and which settings are worth confirming: the box around the best, and a surrogate.

The zoom says where most of a round's settings lie; the surrogate thins a larger draw to the ones that may be best. A
part of that draw is from the whole first space, so that a good region that the slice missed, or a ridge that leaves
the box, is found while there are trials left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vmaptune.search.surrogate import Surrogate, normal_scores
from vmaptune.search.zoom import Scored, best
from vmaptune.space import Space

OVER = 8  # candidates for each setting of a round, from the box and from the first space each
MOST_AT_ONCE = 64  # settings chosen from one set of candidates: its covariance grows with the square
LEAST_TRIALS = 8  # with fewer finite ones there is nothing to learn from
FUNCTIONS = 4  # drawn for each setting, of which each proposes its best one
MOST_TRIALS = 256  # that a surrogate is fitted to: the best ones
PLAIN = ("grid",)  # designs that are taken as they are

Params = dict[str, Any]


def propose(
    now: Space, first: Space, scored: Sequence[Scored], n: int, *, seed: tuple[int, int], method: str
) -> list[Params]:
    """The `n` settings of a round, in the order in which they are trained.

    A first round, or one after fewer than eight finite trials, is drawn from its space as `method` says. Otherwise
    `OVER` times as many are drawn from the round's space and from the first one; functions that fit all trials so far
    are drawn at random, and each picks the candidate at which it is lowest (Thompson sampling), so that settings which
    are surely good are taken, and such of which nobody knows.

    Source: Thompson (1933); for batches, Kandasamy et al., Parallelised Bayesian optimisation via Thompson sampling
    (2018).
    """
    finite = best(scored, len(scored))
    if len(finite) < LEAST_TRIALS or method in PLAIN:
        return now.rows(now.sample(n, seed=seed, method=method))
    fit = surrogate(first, scored)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([*seed, 1])))
    near = now.rows(now.sample(OVER * n, seed=seed, method=method))
    far = first.rows(first.sample(OVER * n, seed=(*seed, 2), method=method))
    chosen: list[Params] = []
    for start in range(0, n, MOST_AT_ONCE):
        count = min(MOST_AT_ONCE, n - start)
        part = slice(OVER * start, OVER * (start + count))
        candidates = [*near[part], *far[part]]
        chosen += [candidates[i] for i in _thompson(fit.samples(candidates, FUNCTIONS * count, rng), count)]
    return chosen


def _thompson(functions: np.ndarray, n: int) -> list[int]:
    """The first `n` candidates at which functions `[F, M]` are lowest; then the best of the rest, on average."""
    picked = list(dict.fromkeys(map(int, functions.argmin(axis=1))))[:n]
    if len(picked) < n:
        taken = set(picked)
        rest = (int(i) for i in np.argsort(functions.mean(axis=0), kind="stable") if int(i) not in taken)
        picked += [i for i, _ in zip(rest, range(n - len(picked)), strict=False)]
    return picked


def surrogate(first: Space, scored: Sequence[Scored]) -> Surrogate:
    """A surrogate of these trials by their ranks: by rung, then by value; those that are not finite share the last."""
    kept = best(scored, MOST_TRIALS)
    order = [(-s.rung, s.value) for s in kept]
    lost = [s for s in scored if not math.isfinite(s.value)][: MOST_TRIALS - len(kept)]
    order += [(math.inf, math.inf)] * len(lost)
    return Surrogate(first, [s.params for s in (*kept, *lost)], normal_scores(order))
