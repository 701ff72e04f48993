"""Lanes that go on from other lanes' states: one compiled gather over all calls of a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.program import Program


class Gather:
    """Compiled once for a number of calls; every array of a state has the lane axis first."""

    def __init__(self, program: Program, calls: int):
        self.program = program
        width = program.plan.width

        def take(states: list[Any], index: jax.Array) -> list[Any]:
            whole = jax.tree.map(lambda *parts: jnp.concatenate(parts)[index], *states)
            return [jax.tree.map(lambda a, c=c: a[c * width : (c + 1) * width], whole) for c in range(calls)]

        self._take = jax.jit(take, out_shardings=program.by_lane)

    def __call__(self, states: Sequence[Any], index: np.ndarray) -> list[Any]:
        """The states of all calls, lane `i` with the state that lane `index[i]` had; counted over all calls."""
        return self._take(list(states), jnp.asarray(index, jnp.int32))
