"""What settings are worth, by the trials so far: how those rank that ended, and where none ends. Lower is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vmaptune.search.surrogate import Surrogate, columns_of, coordinates, normal_scores
from vmaptune.search.zoom import Scored
from vmaptune.space import Space

LOST = 0.7  # the score of a trial that is not finite, among the normal scores of the others
NEVER = 100.0  # the score of a setting that diverges in a function that is drawn


class Worth:
    """Two surrogates: one of the finite trials by their ranks (by rung, then by value), and, where some trials were not
    finite, a rough one of which were, by least squares: the best settings often lie just before those that diverge, and
    one smooth function of both would miss the edge.

    Args:
      first: the space that coordinates are relative to.
      scored: the trials, of which at least one is finite.

    Source: for least-squares classification, Rasmussen and Williams (2006), section 6.5.
    """

    def __init__(self, first: Space, scored: Sequence[Scored]):
        self.first = first
        points = coordinates(first, columns_of(first, [s.params for s in scored]))
        there = np.array([math.isfinite(s.value) for s in scored])
        scores = np.full(len(scored), LOST)  # [N]
        scores[there] = normal_scores([(-s.rung, s.value) for s in scored if math.isfinite(s.value)])
        scores -= scores.mean()
        self.value = Surrogate(first, points, scores)
        self._lost = None if there.all() else Surrogate(first, points, np.where(there, -1.0, 1.0), rough=True)
        self._worst = float(scores.max())

    @property
    def noise(self) -> float:
        """The variance that seeds alone bring, in units of the ranks' scores."""
        return self.value.noise

    def points(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> np.ndarray:
        """Coordinates of settings by name: `[M, D]`."""
        return coordinates(self.first, columns)

    def lost(self, points: np.ndarray) -> np.ndarray:
        """The chance that a training there is not finite: `[M]`. Between a trial that was and one that was not it rises
        evenly, as the edge may be anywhere between them."""
        if self._lost is None:
            return np.zeros(len(points))
        return np.clip((1 + self._lost.mean(points)) / 2, 0.0, 1.0)

    def mean(self, points: np.ndarray) -> np.ndarray:
        """The expected score at coordinates `[M, D]`, of a training that is not finite the worst: `[M]`."""
        mean = self.value.mean(points)
        return mean + self.lost(points) * np.maximum(self._worst - mean, 0.0)

    def variance(self, points: np.ndarray) -> np.ndarray:
        """The variance of what is expected of a training that is finite, without the seeds': `[M]`."""
        return self.value.variance(points)

    def outlook(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same and its deviation, each `[M]`, of a training that is finite."""
        return self.value.mean(points), np.sqrt(self.value.variance(points)) + 1e-12

    def samples(self, points: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` functions that fit the trials, there: `[n, M]`."""
        found = self.value.samples(points, n, rng)
        return found if self._lost is None else found + NEVER * (self._lost.samples(points, n, rng) > 0)
