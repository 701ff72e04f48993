"""A smooth guess of how trials rank, from their settings: a Gaussian process over ranks. NumPy and SciPy only.

Ranks, not values: they do not care how the objective is scaled, a diverged trial is merely the last, and trials that
were stopped early keep their place behind those that went further. The process tells apart what a setting is worth
from what its seed did: a value that its neighbours do not share is noise.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.25 and 2.26.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg
from scipy.special import ndtri

from vmaptune.search.kernel import BELOW, JITTER, Kernel
from vmaptune.space import Distribution, Space

FITS = ((64, 20), (512, 6))  # trials and iterations: the fit to few is a start for that to many
EDGE_FITS = ((64, 20), (256, 30))  # the same of an edge, whose likeliest parameters lie farther from a start
MOST_POINTS = 768  # trials that it remembers
AMONG = 8192  # trials among which it looks for the farthest
AT_ONCE = 2048  # points that are predicted at once


def coordinates(first: Space, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> np.ndarray:
    """Settings on their own scales, from 0 to 1 over the first space: `[N, D]`.

    A value beyond the first space lies beyond that range, the zero of `or_zero` a little below it; a setting that does
    not exist is in the middle.
    """
    return np.stack([_column(d, columns[name]) for name, d in first.items()], axis=1)


def columns_of(first: Space, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings by name; None where a row has none."""
    return {name: [row.get(name) for row in rows] for name in first}


def _column(d: Distribution, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    low, high = d.scaled_bounds
    place = np.full(len(values), 0.5)
    if isinstance(values, np.ndarray) and values.dtype != object:
        zero = (values == 0) if d.or_zero > 0 else np.zeros(len(values), bool)
        there = ~zero
    else:
        zero = np.array([d.or_zero > 0 and v is not None and v == 0 for v in values], bool)
        off = np.array([v is None and (d.options is None or None not in d.options) for v in values], bool)
        there = ~(zero | off)
    if there.any() and high > low:
        kept = [v for v, t in zip(values, there, strict=True) if t]
        place[there] = (d.to_scaled(kept if d.options is not None else np.array(kept, np.float64)) - low) / (high - low)
    place[zero] = -BELOW
    return place


def normal_scores(order: Sequence[tuple[float, float]]) -> np.ndarray:
    """Normal scores of the ranks of what sorts as `order`, the least first: `[N]`, equal ones the same."""
    _, place, count = np.unique(np.array(order, np.float64), axis=0, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ndtri((last - count / 2)[place.ravel()] / len(order))


def covering(features: np.ndarray, scores: np.ndarray, most: int) -> np.ndarray:
    """Which of all trials stand for them, ascending, `most` at the most: half of these are the best ones, each of the
    others the farthest from those before it, so that all regions are there, the bad ones too."""
    n = len(scores)
    if n <= most:
        return np.arange(n)
    order = np.argsort(scores, kind="stable")
    chosen, rest = list(order[: most // 2]), order[most // 2 :]
    if len(rest) > AMONG:  # even by rank
        rest = rest[np.linspace(0, len(rest) - 1, AMONG).astype(int)]
    there = features[rest]
    left = np.full(len(rest), np.inf)  # squared distances to the nearest that is chosen
    for i in chosen:
        left = np.minimum(left, ((there - features[i]) ** 2).sum(axis=1))
    while len(chosen) < most:
        farthest = int(left.argmax())
        chosen.append(rest[farthest])
        left = np.minimum(left, ((there - there[farthest]) ** 2).sum(axis=1))
        left[farthest] = -1.0
    return np.sort(chosen)


def _parts(points: np.ndarray) -> list[np.ndarray]:
    """Points in parts of which each has a covariance of a few megabytes with what is remembered."""
    return np.array_split(points, max(1, -(-len(points) // AT_ONCE)))


def _factor(covariance: np.ndarray, jitter: float) -> np.ndarray:
    """A Cholesky factor, with as much on the diagonal as rounding makes necessary."""
    while True:
        try:
            return linalg.cholesky(covariance + jitter * np.eye(len(covariance)), lower=True)
        except linalg.LinAlgError:
            jitter *= 10


class Surrogate:
    """A Gaussian process over trials by their ranks.

    Args:
      first: the space that coordinates are relative to.
      points: settings by their coordinates, `[N, D]`.
      scores: what each came to, `[N]`, of mean 0 and variance about 1; lower is better.
      rough: whether the scores may change at an edge, as they do between trainings that end and such that diverge.
    """

    def __init__(self, first: Space, points: np.ndarray, scores: np.ndarray, *, rough: bool = False):
        self.first, self.kernel = first, Kernel(first, rough=rough)
        scores = np.asarray(scores, np.float64)
        features = self.kernel.features(points)
        self.theta = self.kernel.guess
        for most, iterations in EDGE_FITS if rough else FITS:
            part = covering(features, scores, most)
            self.theta = self.kernel.fitted(self.theta, features[part], scores[part], iterations)
            if most >= len(points):
                break
        kept = covering(features, scores, MOST_POINTS)
        self._features, self.scores = features[kept], scores[kept]
        covariance = self.kernel.covariance(self.theta, self._features, self._features)
        covariance.flat[:: len(kept) + 1] += self.noise + JITTER
        self._factor = linalg.cholesky(covariance, lower=True)
        self._weights = linalg.cho_solve((self._factor, True), self.scores)

    @property
    def noise(self) -> float:
        """The variance that seeds alone bring, in units of the ranks' scores."""
        return math.exp(self.theta[-1])

    @property
    def lengths(self) -> np.ndarray:
        """How far each setting has to move to matter, in ranges of the first space: `[D]`."""
        return np.exp(self.theta[: len(self.first)])

    def mean(self, points: np.ndarray) -> np.ndarray:
        """The expected score at coordinates `[M, D]`, lower is better: `[M]`."""
        return np.concatenate([self._cross(part) @ self._weights for part in _parts(points)])

    def variance(self, points: np.ndarray) -> np.ndarray:
        """The variance of what is expected there, without the seeds': `[M]`."""
        before, found = self.kernel.variance(self.theta), []
        for part in _parts(points):
            half = linalg.solve_triangular(self._factor, self._cross(part).T, lower=True)
            found.append(np.maximum(before - (half * half).sum(axis=0), 0.0))
        return np.concatenate(found)

    def samples(self, points: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` functions that fit the trials, there: `[n, M]`."""
        cross = self._cross(points)
        half = linalg.solve_triangular(self._factor, cross.T, lower=True)
        features = self.kernel.features(points)
        covariance = self.kernel.covariance(self.theta, features, features) - half.T @ half
        factor = _factor(covariance, 1e-6 * math.exp(self.theta[-2]))
        return cross @ self._weights + rng.standard_normal((n, len(points))) @ factor.T

    def _cross(self, points: np.ndarray) -> np.ndarray:
        return self.kernel.covariance(self.theta, self.kernel.features(points), self._features)
