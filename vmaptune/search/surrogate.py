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
TURN_DOUBT, TURN = 0.25, 3.0  # of another setting's share in one: the prior's deviation, and the bound
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

    Distances are between `metric @ features`: each setting divided by a length, plus a share of the others, so that a
    valley which runs across the settings' axes (a larger learning rate goes with less momentum) is one.

    Args:
      first: the space that coordinates are relative to.
      rows: settings. The time of a fit grows with the cube of these.
      scores: what each came to, `[N]`, of mean 0 and variance about 1; lower is better.
    """

    def __init__(self, first: Space, rows: Sequence[Mapping[str, Any]], scores: np.ndarray):
        self.first = first
        self.points = coordinates(first, rows)  # [N, D]
        self.scores = np.asarray(scores, np.float64)  # [N]
        self._of = np.array(
            [d for d, s in enumerate(first.values()) for _ in range(len(s.options or ()) if s.kind == "choice" else 1)]
        )  # [F]: the setting of each feature
        ordered = np.array([s.kind != "choice" for s in first.values()])[self._of]
        self._turnable = ordered[:, None] & ordered[None, :] & ~np.eye(len(ordered), dtype=bool)  # [F, F]
        D, K = len(first), int(self._turnable.sum())
        self._guess = np.array([math.log(0.5 * math.sqrt(D))] * D + [0.0] * K + [0.0, math.log(GUESSED_NOISE)])
        self._doubt = np.array([LENGTH_DOUBT] * D + [TURN_DOUBT] * K + [SCALE_DOUBT, NOISE_DOUBT])
        self._features = self._featured(self.points)  # [N, F]
        self.theta = self._fitted(self._guess)  # [D + K + 2]: logarithms of lengths, turns, logarithms of scale, noise
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
        return np.exp(self.theta[: len(self.first)])

    def mean(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The expected score of settings, lower is better: `[M]`."""
        return self._covariance(coordinates(self.first, rows), self.points) @ self._weights

    def variance(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The variance of what is expected of settings, without the seeds': `[M]`."""
        cross = self._covariance(coordinates(self.first, rows), self.points)
        half = linalg.solve_triangular(self._factor, cross.T, lower=True)
        return np.maximum(math.exp(self.theta[-2]) - (half * half).sum(axis=0), 0.0)

    def samples(self, rows: Sequence[Mapping[str, Any]], n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` functions that fit the trials, at these settings: `[n, M]`."""
        points = coordinates(self.first, rows)
        cross = self._covariance(points, self.points)
        half = linalg.solve_triangular(self._factor, cross.T, lower=True)
        covariance = self._covariance(points, points) - half.T @ half
        factor = _factor(covariance, 1e-6 * math.exp(self.theta[-2]))
        return cross @ self._weights + rng.standard_normal((n, len(points))) @ factor.T

    def metric(self, theta: np.ndarray | None = None) -> np.ndarray:
        """From features to coordinates in which a distance of 1 matters: `[F, F]`."""
        theta = self.theta if theta is None else theta
        turned = np.eye(len(self._of))
        turned[self._turnable] = theta[len(self.first) : -2]
        return turned * np.exp(-theta[self._of])[:, None]

    def _featured(self, points: np.ndarray) -> np.ndarray:
        """A column for each setting that has an order, and one for each option of one that has none: `[N, F]`."""
        columns = []
        for d, setting in enumerate(self.first.values()):
            if setting.kind == "choice":
                options = len(setting.options or ())
                place = np.round(points[:, d] * (options - 1)).astype(int)
                columns.append(math.sqrt(OPTION_DISTANCE / 2) * (place[:, None] == np.arange(options)))
            else:
                columns.append(points[:, d : d + 1])
        return np.concatenate(columns, axis=1)

    def _covariance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Between points: `[len(a), len(b)]`."""
        metric = self.metric()
        squares = _squares(self._featured(a) @ metric.T, self._featured(b) @ metric.T)
        return self._kernel(squares, self.theta)[0]

    @staticmethod
    def _kernel(squares: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matérn 5/2 of squared distances in lengths: the covariances, and what their gradient needs again."""
        r = np.sqrt(5 * squares + 1e-15)
        fall = np.exp(theta[-2] - r)
        return (1 + r + r * r / 3) * fall, r, fall

    def _fitted(self, start: np.ndarray) -> np.ndarray:
        D, K = len(self.first), len(start) - len(self.first) - 2
        bounds = [tuple(map(math.log, LENGTHS))] * D + [(-TURN, TURN)] * K + [(-2.0, 3.0), tuple(map(math.log, NOISE))]
        found = optimize.minimize(
            self._loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": ITERATIONS}
        )
        return found.x

    def _loss(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative logarithm of likelihood times priors, and its gradient."""
        n, D, x = len(self.scores), len(self.first), self._features
        metric = self.metric(theta)
        z = x @ metric.T
        kernel, r, fall = self._kernel(_squares(z, z), theta)
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
        steep = pull * ((5 / 3) * (1 + r) * fall)
        by_metric = z.T @ (steep @ x - steep.sum(axis=1)[:, None] * x)  # [F, F]: d squares = 2 (z - z')^T dM (x - x')
        gradient[:D] -= np.bincount(self._of, (by_metric * metric).sum(axis=1), D)
        gradient[D:-2] += (by_metric * np.exp(-theta[self._of])[:, None])[self._turnable]
        gradient[-2] += 0.5 * float((pull * kernel).sum())
        gradient[-1] += 0.5 * noise * float(np.trace(pull))
        return float(loss), gradient


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between the rows of `a` and of `b`: `[len(a), len(b)]`."""
    centre = a.mean(axis=0)
    a, b = a - centre, b - centre
    return np.maximum((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * a @ b.T, 0.0)
