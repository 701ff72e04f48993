"""One trial trained alone, without a lane axis: what `replay` compares the ledger with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.lanes import Point
from vmaptune.engine.program import LaneFunctions, pack, unpack


class Alone:
    """Trains one trial by itself, a jitted step at a time."""

    def __init__(self, functions: LaneFunctions, settings: Mapping[str, Any], seed: int):
        shapes = functions.traced
        self.functions = functions
        self.settings = {name: jnp.asarray(settings[name], shapes[name].dtype) for name in shapes if name in settings}
        self.seed = jnp.uint32(seed)
        kinds = functions.key_kinds

        def init(consts: Any, arrays: Any, seed: Any) -> Any:
            return pack(functions.init.call(consts, arrays, seed))

        def step(consts: Any, state: Any, arrays: Any, seed: Any, done: Any) -> Any:
            state, loss = functions.step.call(consts, unpack(state, kinds), arrays, seed, done)
            return pack(state), loss

        def evaluate(consts: Any, state: Any, arrays: Any) -> Any:
            return functions.evaluate.call(consts, unpack(state, kinds), arrays)

        self._init, self._step, self._evaluate = jax.jit(init), jax.jit(step), jax.jit(evaluate)

    def train(self, stops: Sequence[int], *, nudge: float = 0.0, draw: int = 0) -> list[Point]:
        """Trains from the start and measures at each of `stops` (steps).

        `nudge` multiplies every floating-point number of the initial state by its own `1 ± nudge`, the signs
        drawn from `draw`: with one of the size of rounding errors, how far the curve moves tells whether
        rounding decides it there.
        """
        functions = self.functions
        state = self._init(functions.init.consts, self.settings, self.seed)
        if nudge:
            state = _nudged(state, nudge, np.random.default_rng(draw))
        points, done, bad = [], 0, None
        for stop in stops:
            losses = []
            while done < stop:
                state, loss = self._step(functions.step.consts, state, self.settings, self.seed, np.int32(done))
                done += 1
                losses.append(loss)
            values = np.asarray(jax.device_get(losses), np.float32)
            if functions.has_loss and bad is None and not np.isfinite(values).all():
                bad = done - len(values) + int(np.argmax(~np.isfinite(values))) + 1
            measured = jax.device_get(self._evaluate(functions.evaluate.consts, state, self.settings))
            mean = float(np.sum(values, dtype=np.float32) / np.float32(len(values)))
            points.append(Point(-1, done, mean, {n: float(v) for n, v in measured.items()}, bad))
        return points


def _nudged(state: Any, nudge: float, signs: np.random.Generator) -> Any:
    def one(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x * jnp.asarray(1 + nudge * signs.choice([-1, 1], x.shape), x.dtype)

    return jax.tree.map(one, state)
