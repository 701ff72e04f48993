"""Random choices of a case, and the weights of its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Draw:
    """Choices from one seed; each is a plain Python value, so that a case can be written as JSON."""

    def __init__(self, *seed: int):
        self._rng = np.random.default_rng(seed)

    def chance(self, p: float) -> bool:
        return bool(self._rng.random() < p)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self._rng.integers(len(options)))]

    def int(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(self._rng.integers(low, high + 1))

    def size(self, most: int = 40) -> int:
        """How many features a layer has: often few, now and then one, often odd."""
        low, high = self.pick(
            [(1, 1), (2, 4), (2, 8), (5, 12), (9, 17), (16, 24), (18, 32), (25, 40), (31, 33), (12, 32)]
        )
        return self.int(min(low, most), min(high, most))


class Weights:
    """A layer's first weights, float32: the same numbers whatever precision trains them later.

    They are cut from `pool`, normal numbers drawn at once, since each draw is a program to compile.
    """

    def __init__(self, key: jax.Array, pool: Any):
        self.key, self.pool, self.used = key, pool, 0

    def __call__(self, *shape: int, scale: float | None = None) -> jax.Array:
        count = math.prod(shape)
        scale = 1 / math.sqrt(max(1, shape[0])) if scale is None else scale
        self.used += count
        return self.pool[self.used - count : self.used].reshape(shape) * np.float32(scale)

    def ones(self, *shape: int) -> jax.Array:
        return jnp.ones(shape, jnp.float32)

    def zeros(self, *shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)
