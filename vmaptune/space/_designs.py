"""Points of the unit cube: random, low-discrepancy, or a grid. `[n, D]`, float64, from a seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vmaptune.errors import InputError

METHODS = ("random", "sobol", "halton", "grid")
Seed = int | Sequence[int]


def unit_points(n: int, dimensions: int, seed: Seed, method: str = "random") -> np.ndarray:
    """`n` points of the unit cube.

    random: independent and uniform. sobol, halton: scrambled low-discrepancy sequences (Owen 1998; from
    SciPy), which cover the cube more evenly. grid: `floor(n ** (1/D))` values of each dimension, or a few more
    of the first ones where they fit, so at most `n` points; it exists so that a person can see why not to use
    it: 25 points of two dimensions try 5 values of the one that matters, not 25.

    Raises:
      InputError: `n` is not a whole number of at least 1, or the method is unknown.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise InputError(f"sample(): `n` must be a whole number of at least 1, but got {n!r}")
    if method not in METHODS:
        raise InputError(f"sample(): `method` must be one of {', '.join(METHODS)}, but got {method!r}")
    if method == "grid":
        return _grid(int(n), dimensions)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    if method == "random":
        return rng.random((int(n), dimensions))
    from scipy.stats import qmc

    if method == "halton":
        return qmc.Halton(dimensions, scramble=True, rng=rng).random(int(n))
    return qmc.Sobol(dimensions, scramble=True, rng=rng).random_base2(max(0, int(n) - 1).bit_length())[:n]


def _grid(n: int, dimensions: int) -> np.ndarray:
    counts = [max(1, int(np.floor(n ** (1 / dimensions) + 1e-9)))] * dimensions
    for d in range(dimensions):
        if np.prod(counts, dtype=float) / counts[d] * (counts[d] + 1) <= n:
            counts[d] += 1
    axes = [(np.arange(count) + 0.5) / count for count in counts]
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
