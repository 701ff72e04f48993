"""Boundaries of a test that may be looked at as its data come in, and what a result at one of the looks is worth.

Source: Lan and DeMets (1983), Discrete sequential boundaries for clinical trials, with their spending function of
Pocock's kind; the recursion of Armitage, McPherson and Rowe (1969); p-values by stages, and the change from known to
estimated variances by significance levels, as in Jennison and Turnbull, Group Sequential Methods (2000), sections 8.4
and 4.4. The boundaries are those of R's rpact and gsDesign (`asP`, `sfLDPocock`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

NODES = 128  # of the integration
FAR = 7.0  # standard deviations, beyond which there is nothing to integrate


def spent(fraction: float, level: float) -> float:
    """How much of a level may be spent when a fraction of the data is there: level * ln(1 + (e - 1) fraction)."""
    return level * math.log(1 + (math.e - 1) * min(1.0, fraction))


@lru_cache(maxsize=64)
def boundaries(fractions: tuple[float, ...], level: float) -> tuple[float, ...]:
    """The normal deviate that each look's statistic must reach, one-sided, for `level` to be spent over all looks.

    Args:
      fractions: of the data, that are there at each look; rising, above 0, at most 1.
    """
    from scipy.optimize import brentq

    found: list[float] = []
    path = _Path()
    before = 0.0
    for fraction in fractions:
        now = spent(fraction, level)
        wanted = now - before
        bound = brentq(lambda z, f=fraction, w=wanted: path.beyond(f, z) - w, -FAR, 2 * FAR, xtol=1e-10)
        path.go_on(fraction, bound)
        found.append(bound)
        before = now
    return tuple(found)


def stagewise_p(fractions: Sequence[float], critical: Sequence[float], z: float) -> float:
    """The chance, were there no gain, to stop for one at an earlier look, or to see as much as `z` at the last one.

    Args:
      fractions, critical: the looks so far, and the boundary of each; `z`: the normal deviate at the last one.
    """
    path = _Path()
    total = 0.0
    for fraction, bound in zip(fractions[:-1], critical, strict=False):
        total += path.beyond(fraction, bound)
        path.go_on(fraction, bound)
    return min(1.0, total + path.beyond(fractions[-1], z))


class _Path:
    """A Brownian path that has not crossed a boundary yet: the density of where it is, on Gauss-Legendre nodes."""

    def __init__(self) -> None:
        self.at, self.nodes, self.weights = 0.0, np.zeros(1), np.ones(1)

    def beyond(self, fraction: float, z: float) -> float:
        """The chance to be uncrossed so far and above the deviate `z` at this fraction."""
        from scipy.special import ndtr

        step = math.sqrt(fraction - self.at)
        return float(self.weights @ ndtr((self.nodes - z * math.sqrt(fraction)) / step))

    def go_on(self, fraction: float, z: float) -> None:
        """Comes to this fraction; what lies above the deviate `z` is lost."""
        root, step = math.sqrt(fraction), math.sqrt(fraction - self.at)
        points, weights = np.polynomial.legendre.leggauss(NODES)
        low, high = -FAR * root, min(z, FAR) * root
        nodes = (high - low) / 2 * points + (high + low) / 2
        kernel = np.exp(-0.5 * ((nodes[:, None] - self.nodes) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        self.weights = (high - low) / 2 * weights * (kernel @ self.weights)
        self.at, self.nodes = fraction, nodes


def to_student(z: float, degrees: int) -> float:
    """The quantile of Student's distribution with the same tail."""
    from scipy.special import log_ndtr
    from scipy.stats import t

    return float(t.isf(math.exp(log_ndtr(-z)), degrees))


def to_normal(t: float, degrees: int) -> float:
    """The normal deviate with the same tail as one of Student's distribution."""
    from scipy.special import ndtri, stdtr

    return float(-ndtri(max(stdtr(degrees, -t), 1e-300)))
