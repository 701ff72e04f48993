"""How alike two settings are: the Matérn 5/2 kernel over them, its parameters, and their fit. NumPy and SciPy only.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 5.8 and 5.9; the Matérn 5/2
kernel with a length for each setting as in Snoek, Larochelle and Adams (2012).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize
from scipy.linalg import lapack

from vmaptune.space import Space

LENGTHS = (0.05, 20.0)  # bounds of a setting's length, in ranges of the first space
NOISE = (1e-4, 2.0)  # bounds of the seeds' variance, where the ranks' own is 1
GUESSED_NOISE, NOISE_DOUBT = 0.1, 1.5  # the priors: log-normal, with these deviations of the logarithm
LENGTH_DOUBT, SCALE_DOUBT = 1.0, 1.0
TURN_DOUBT, TURN = 0.25, 3.0  # of another setting's share in one: the prior's deviation, and the bound
ALIKE_DOUBT = 0.5  # of another option's share in one
MOST_ALIKE = 8  # options of a choice between which likeness is learned
LEVEL = 1.0  # the variance of the level that all settings share, which is not known before
JITTER = 1e-8
OPTION_DISTANCE = 0.25  # squared, between two options that have no order
BELOW = 0.15  # how far a setting's zero lies below its range
ZERO_DISTANCE = 0.5  # of a zero from the rest of its range, in a length of its own


class Kernel:
    """The covariance of what settings are worth, by their coordinates `[N, D]`, and the prior of its parameters.

    Distances are between `metric @ features`. A setting with an order is one feature, divided by a length, plus a share
    of the others, so that a valley which runs across the settings' axes (a larger learning rate goes with less
    momentum) is one. One without is a feature for each option, which have shares in each other, so that options which
    do as well are near; choices of the same options share these.

    `theta` holds the logarithms of the lengths, the shares, the logarithms of scale and noise. A `rough` one is Matérn
    1/2, for functions with edges: between two trials it goes evenly from one to the other, where a smooth one
    overshoots and is sure beyond what was tried.
    """

    def __init__(self, first: Space, *, rough: bool = False):
        self.first = first
        self._like = _exponential if rough else _matern
        of: list[int] = []  # the length of each feature
        ordered: list[bool] = []
        blocks: dict[tuple, list[int]] = {}  # where the features of choices of the same options begin
        lengths = len(first)
        for d, setting in enumerate(first.values()):
            if setting.kind == "choice":
                options = setting.options or ()
                if 2 < len(options) <= MOST_ALIKE:
                    blocks.setdefault(tuple(map(repr, options)), []).append(len(of))
                of += [d] * len(options)
                ordered += [False] * len(options)
            else:
                of.append(d)
                ordered.append(True)
                if setting.or_zero > 0:
                    of.append(lengths)
                    ordered.append(False)
                    lengths += 1
        self._of, self._lengths = np.array(of), lengths  # [F]
        is_ordered = np.array(ordered)
        self._share = np.full((len(of), len(of)), -1)  # [F, F]: the parameter in each place of the metric
        crossed = is_ordered[:, None] & is_ordered[None, :] & ~np.eye(len(of), dtype=bool)
        shares = int(crossed.sum())
        self._share[crossed] = np.arange(shares)
        doubts = [TURN_DOUBT] * shares
        for options, starts in blocks.items():
            n = len(options)
            for start in starts:
                self._share[start : start + n, start : start + n] = shares + np.arange(n * n).reshape(n, n)
            shares += n * n
            doubts += [ALIKE_DOUBT] * (n * n)
        self._shared, self._shares = self._share >= 0, shares
        self.guess = np.array(
            [math.log(0.5 * math.sqrt(len(first)))] * lengths + [0.0] * shares + [0.0, math.log(GUESSED_NOISE)]
        )
        self._doubt = np.array([LENGTH_DOUBT] * lengths + doubts + [SCALE_DOUBT, NOISE_DOUBT])
        self._bounds = [
            *[tuple(map(math.log, LENGTHS))] * lengths, *[(-TURN, TURN)] * shares, (-2.0, 3.0),
            tuple(map(math.log, NOISE)),
        ]  # fmt: skip

    def features(self, points: np.ndarray) -> np.ndarray:
        """A column for each setting that has an order and one for its zero, one for each option of others: `[N, F]`."""
        columns = []
        for d, setting in enumerate(self.first.values()):
            place = points[:, d : d + 1]
            if setting.kind == "choice":
                options = len(setting.options or ())
                index = np.round(place * (options - 1))
                columns.append(math.sqrt(OPTION_DISTANCE / 2) * (index == np.arange(options)))
            else:
                columns.append(place)
                if setting.or_zero > 0:
                    columns.append(ZERO_DISTANCE * (place == -BELOW))
        return np.concatenate(columns, axis=1)

    def metric(self, theta: np.ndarray) -> np.ndarray:
        """From features to coordinates in which a distance of 1 matters: `[F, F]`."""
        turned = np.eye(len(self._of))
        turned[self._shared] += theta[self._lengths : -2][self._share[self._shared]]
        return turned * np.exp(-theta[self._of])[:, None]

    def covariance(self, theta: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Between settings by their features `[A, F]` and `[B, F]`: `[A, B]`."""
        metric = self.metric(theta)
        return self._like(squares(a @ metric.T, b @ metric.T), theta)[0] + LEVEL

    def variance(self, theta: np.ndarray) -> float:
        """Of any setting, before anything is known."""
        return math.exp(theta[-2]) + LEVEL

    def fitted(self, start: np.ndarray, features: np.ndarray, scores: np.ndarray, iterations: int) -> np.ndarray:
        """The parameters that are likeliest by these trials and the priors, as near as so many iterations come."""
        found = optimize.minimize(
            self.loss, start, (features, scores), jac=True, method="L-BFGS-B", bounds=self._bounds,
            options={"maxiter": iterations},
        )  # fmt: skip
        return found.x

    def loss(self, theta: np.ndarray, x: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative logarithm of likelihood times priors of features `[N, F]` and scores `[N]`, and its gradient."""
        metric = self.metric(theta)
        z = x @ metric.T
        apart = squares(z, z)
        apart.flat[:: len(z) + 1] = 0.0  # not what rounding makes of it
        kernel, slope = self._like(apart, theta)
        noise = math.exp(theta[-1])
        whole = kernel + LEVEL
        whole.flat[:: len(scores) + 1] += noise + JITTER
        factor, failed = lapack.dpotrf(whole, lower=1, overwrite_a=1)
        if failed:
            return 1e10, np.zeros_like(theta)
        weights = lapack.dpotrs(factor, scores, lower=1)[0]
        log_root = np.log(np.diag(factor)).sum()
        pull = lapack.dpotri(factor, lower=1, overwrite_c=1)[0]  # the inverse: its lower half, and something above
        pull = np.tril(pull) + np.tril(pull, -1).T - np.outer(weights, weights)
        off = (theta - self.guess) / self._doubt
        loss = 0.5 * scores @ weights + log_root + 0.5 * off @ off
        gradient = off / self._doubt
        steep = pull * slope
        by_metric = z.T @ (steep @ x - steep.sum(axis=1)[:, None] * x)  # [F, F]: d squares = 2 (z - z')^T dM (x - x')
        lengths = self._lengths
        gradient[:lengths] -= np.bincount(self._of, (by_metric * metric).sum(axis=1), lengths)
        by_share = (by_metric * np.exp(-theta[self._of])[:, None])[self._shared]
        gradient[lengths:-2] += np.bincount(self._share[self._shared], by_share, self._shares)
        gradient[-2] += 0.5 * float((pull * kernel).sum())
        gradient[-1] += 0.5 * noise * float(np.trace(pull))
        return float(loss), gradient


def _matern(squared: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matérn 5/2 of squared distances in lengths: the covariances, and minus twice their slopes by these."""
    r = np.sqrt(5 * squared + 1e-15)
    fall = np.exp(theta[-2] - r)
    return (1 + r + r * r / 3) * fall, (5 / 3) * (1 + r) * fall


def _exponential(squared: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matérn 1/2, whose functions are rough: the same."""
    r = np.sqrt(squared + 1e-15)
    fall = np.exp(theta[-2] - r)
    return fall, fall / r


def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between the rows of `a` and of `b`: `[len(a), len(b)]`."""
    centre = a.mean(axis=0)
    a, b = a - centre, b - centre
    return np.maximum((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * a @ b.T, 0.0)
