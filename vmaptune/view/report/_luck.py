"""What a single training's value would be on fresh seeds: the best of many was picked for its luck as well.

The true means of the configurations are a distribution on a grid, found by expectation-maximisation from their values,
which are these means plus the seeds' normal spread. The posterior of one configuration's mean needs no correction for
its having been picked. How far so few values tell the distribution is taken in by weighting them at random.

Source: Efron (2014), Two modeling strategies for empirical Bayes estimation; Rubin (1981), The Bayesian bootstrap.
"""

from __future__ import annotations

import numpy as np

BELOW, ABOVE = 5.0, 12.0  # the grid around a value, in spreads: values beyond say nothing of its mean
EACH = 4  # grid points in one spread
ITERATIONS = 20  # few enough for the distribution to stay smooth,
PRIOR = 1.0  # and as if one value more were anywhere
WEIGHTINGS = 8
TAILS = (0.025, 0.975)  # of the posterior; over many distributions they hold 84 to 95 % of the means: the band is of 80
BAND = "80 %"


def on_fresh_seeds(values: np.ndarray, at: float, spread: float) -> tuple[float, float, float]:
    """The expected mean over seeds of a configuration that came to `at` once, and a band that holds it with a chance of
    80 % or more.

    Args:
      values: `[N]` those of all trainings that it was picked among, its own too; lower is better.
      spread: the standard deviation that seeds bring.
    """
    if not spread > 0:
        return at, at, at
    grid = at + spread * np.arange(-BELOW, ABOVE, 1 / EACH)  # [G]
    near = values[(values >= grid[0]) & (values <= grid[-1])]
    likely = np.exp(-0.5 * ((near[:, None] - grid) / spread) ** 2)  # [N, G]
    weights = np.random.default_rng(0).exponential(1.0, (WEIGHTINGS, len(near)))  # [W, N]
    share = np.full((WEIGHTINGS, len(grid)), 1 / len(grid))
    total = weights.sum(axis=1, keepdims=True) + PRIOR
    for _ in range(ITERATIONS):
        share = (share * ((weights / (share @ likely.T)) @ likely) + PRIOR / len(grid)) / total
    own = share * np.exp(-0.5 * ((at - grid) / spread) ** 2)
    own = (own / own.sum(axis=1, keepdims=True)).mean(axis=0)
    low, high = np.interp(TAILS, np.cumsum(own), grid)
    return float(own @ grid), float(low), float(high)
