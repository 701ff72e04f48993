"""A smooth guess of how trials rank, from their settings: a Gaussian process over ranks. NumPy and SciPy only.

Ranks, not values: they do not care how the objective is scaled, a diverged trial is merely the last, and trials that
were stopped early keep their place behind those that went further. The process tells apart what a setting is worth
from what its seed did: a value that its neighbours do not share is noise.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.25, 2.26 and 5.9; the
Matérn 5/2 kernel with a length for each setting as in Snoek, Larochelle and Adams (2012).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg, optimize
from scipy.special import ndtri

from vmaptune.space import Distribution, Space

ITERATIONS = 15  # of the fit
LENGTHS = (0.05, 20.0)  # bounds of a setting's length, in ranges of the first space
NOISE = (1e-4, 2.0)  # bounds of the seeds' variance, where the ranks' own is 1
GUESSED_NOISE, NOISE_DOUBT = 0.1, 1.5  # the priors: log-normal, with these deviations of the logarithm
LENGTH_DOUBT, SCALE_DOUBT = 1.0, 1.0
JITTER = 1e-8
OPTION_DISTANCE = 0.25  # squared, between two options that have no order
BELOW = 0.15  # how far a setting's zero lies below its range


def coordinates(first: Space, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Settings on their own scales, from 0 to 1 over the first space: `[N, D]`.

    A value beyond the first space lies beyond that range, the zero of `or_zero` a little below it; a setting that does
    not exist is in the middle.
    """
    return np.stack([_column(d, [row.get(name) for row in rows]) for name, d in first.items()], axis=1)


def _column(d: Distribution, values: Sequence[Any]) -> np.ndarray:
    low, high = d.scaled_bounds
    place = np.full(len(values), 0.5)
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
      rows: settings. The time of a fit grows with the cube of these.
      scores: what each came to, `[N]`, of mean 0 and variance about 1; lower is better.
    """

    def __init__(self, first: Space, rows: Sequence[Mapping[str, Any]], scores: np.ndarray):
        self.first = first
        self.ordered = np.array([d.kind != "choice" for d in first.values()])
        self.points = coordinates(first, rows)  # [N, D]
        self.scores = np.asarray(scores, np.float64)  # [N]
        D = self.points.shape[1]
        self._guess = np.array([math.log(0.5 * math.sqrt(D))] * D + [0.0, math.log(GUESSED_NOISE)])
        self._doubt = np.array([LENGTH_DOUBT] * D + [SCALE_DOUBT, NOISE_DOUBT])
        self._squares = np.stack([self._squared(self.points, self.points, d) for d in range(D)], axis=-1)
        self.theta = self._fitted(self._guess)  # [D + 2]: logarithms of lengths, scale, noise
        kernel = self._covariance(self.points, self.points)
        self._factor = linalg.cholesky(kernel + (self.noise + JITTER) * np.eye(len(kernel)), lower=True)
        self._weights = linalg.cho_solve((self._factor, True), self.scores)

    @property
    def noise(self) -> float:
        """The variance that seeds alone bring, in units of the ranks' scores."""
        return math.exp(self.theta[-1])

    @property
    def lengths(self) -> np.ndarray:
        """How far each setting has to move to matter, in ranges of the first space: `[D]`."""
        return np.exp(self.theta[:-2])

    def mean(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The expected score of settings, lower is better: `[M]`."""
        return self._covariance(coordinates(self.first, rows), self.points) @ self._weights

    def samples(self, rows: Sequence[Mapping[str, Any]], n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` functions that fit the trials, at these settings: `[n, M]`."""
        points = coordinates(self.first, rows)
        cross = self._covariance(points, self.points)
        half = linalg.solve_triangular(self._factor, cross.T, lower=True)
        covariance = self._covariance(points, points) - half.T @ half
        factor = _factor(covariance, 1e-6 * math.exp(self.theta[-2]))
        return cross @ self._weights + rng.standard_normal((n, len(points))) @ factor.T

    def _squared(self, a: np.ndarray, b: np.ndarray, d: int) -> np.ndarray:
        """Squared distances in one setting: `[len(a), len(b)]`."""
        found = (a[:, None, d] - b[None, :, d]) ** 2
        return found if self.ordered[d] else OPTION_DISTANCE * (found > 0)

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Between points: `[len(a), len(b)]`."""
        squares = sum(self._squared(a, b, d) / length**2 for d, length in enumerate(self.lengths))
        return self._kernel(np.asarray(squares), self.theta)[0]

    @staticmethod
    def _kernel(squares: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matérn 5/2 of squared distances in lengths: the covariances, and what their gradient needs again."""
        r = np.sqrt(5 * squares + 1e-15)
        fall = np.exp(theta[-2] - r)
        return (1 + r + r * r / 3) * fall, r, fall

    def _fitted(self, start: np.ndarray) -> np.ndarray:
        D = len(start) - 2
        bounds = [tuple(map(math.log, LENGTHS))] * D + [(-2.0, 3.0), tuple(map(math.log, NOISE))]
        found = optimize.minimize(
            self._loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS}
        )
        return found.x

    def _loss(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative logarithm of likelihood times priors, and its gradient."""
        n = len(self.scores)
        kernel, r, fall = self._kernel(self._squares @ np.exp(-2 * theta[:-2]), theta)
        noise = math.exp(theta[-1])
        try:
            factor = linalg.cholesky(kernel + (noise + JITTER) * np.eye(n), lower=True)
        except linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = linalg.cho_solve((factor, True), np.eye(n))
        weights = inverse @ self.scores
        pull = inverse - np.outer(weights, weights)
        off = (theta - self._guess) / self._doubt
        loss = 0.5 * self.scores @ weights + np.log(np.diag(factor)).sum() + 0.5 * off @ off
        gradient = off / self._doubt
        slope = (pull * ((5 / 3) * (1 + r) * fall)).ravel() @ self._squares.reshape(n * n, -1)
        gradient[:-2] += 0.5 * slope * np.exp(-2 * theta[:-2])
        gradient[-2] += 0.5 * float((pull * kernel).sum())
        gradient[-1] += 0.5 * noise * float(np.trace(pull))
        return float(loss), gradient
