"""One trial trained alone, without a lane axis: what `replay` compares the ledger with, and what a person babysits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.functions import LaneFunctions, no_sum, pack, unpack
from vmaptune.engine.lanes import Point
from vmaptune.engine.tiles import NEVER


class Alone:
    """Trains one trial by itself, a jitted step at a time."""

    def __init__(self, functions: LaneFunctions, settings: Mapping[str, Any], seed: int, *, options: Any = None):
        """`options` are XLA's, JAX's own without."""
        shapes = functions.traced
        self.functions = functions
        self.settings = self.arrays({name: settings[name] for name in shapes if name in settings})
        self.seed = jnp.uint32(seed)
        kinds = functions.key_kinds

        def init(consts: Any, arrays: Any, seed: Any) -> Any:
            return pack(functions.init.call(consts, arrays, seed))

        def step(consts: Any, state: Any, arrays: Any, seed: Any, done: Any) -> Any:
            before, (step_consts, taken_consts) = unpack(state, kinds), consts
            taken = functions.taken.call(taken_consts, before, arrays, done)
            state, loss = functions.step.call(step_consts, before, arrays, seed, done, taken)
            return pack(state), loss

        def evaluate(consts: Any, state: Any, arrays: Any) -> Any:
            return functions.evaluate.call(consts, unpack(state, kinds), arrays)

        def segment(consts: Any, state: Any, arrays: Any, seed: Any, done: Any, n: Any) -> Any:
            def body(i: Any, carry: Any) -> Any:
                state, total, bad = carry
                state, loss = step(consts, state, arrays, seed, done + i)
                if functions.has_loss:
                    bad = jnp.where((bad == NEVER) & ~jnp.isfinite(loss), done + i + 1, bad)
                return state, total.plus(loss), bad

            state, total, bad = jax.lax.fori_loop(0, n, body, (state, no_sum(), jnp.int32(NEVER)))
            return state, total.total, bad

        self._init, self._step, self._evaluate, self._segment = (
            jax.jit(function, compiler_options=options) for function in (init, step, evaluate, segment)
        )
        self._consts = functions.step.consts, functions.taken.consts

    def arrays(self, settings: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Traced settings as the step takes them: float32 or int32 scalars by name."""
        return {name: jnp.asarray(value, self.functions.traced[name].dtype) for name, value in settings.items()}

    def start(self) -> Any:
        """The trial's state before its first step, packed. A pure function of its settings and seed."""
        return self._init(self.functions.init.consts, self.settings, self.seed)

    def segment(
        self, state: Any, done: int, n: int, settings: Mapping[str, jax.Array]
    ) -> tuple[Any, float, int | None]:
        """Trains `n` steps after the first `done` ones, with `arrays(...)` of settings that may have changed.

        One program for every n and every value. Returns the new state, the sum of the losses, and the first step
        whose loss was not finite.
        """
        state, total, bad = self._segment(self._consts, state, dict(settings), self.seed, np.int32(done), np.int32(n))
        found = int(bad)
        return state, float(total), None if found == NEVER else found

    def measure(self, state: Any, settings: Mapping[str, jax.Array]) -> dict[str, float]:
        """The metrics of a state by name."""
        measured = jax.device_get(self._evaluate(self.functions.evaluate.consts, state, dict(settings)))
        return {name: float(value) for name, value in measured.items()}

    def train(
        self,
        stops: Sequence[int],
        *,
        nudge: float = 0.0,
        draw: int = 0,
        then: Sequence[tuple[int, Mapping[str, Any], int]] = (),
    ) -> list[Point]:
        """Trains from the start and measures at each of `stops` (steps).

        `then` says from which steps on it has other settings and another seed: (step, settings, seed), in order.

        `nudge` multiplies every floating-point number of the initial state by its own `1 ± nudge`, the signs
        drawn from `draw`: with one of the size of rounding errors, how far the curve moves tells whether
        rounding decides it there.
        """
        functions = self.functions
        settings, seed, changes = self.settings, self.seed, list(then)
        state = self.start()
        if nudge:
            state = nudged(state, nudge, np.random.default_rng(draw))
        points, done, bad = [], 0, None
        for stop in stops:
            losses = []
            while done < stop:
                while changes and changes[0][0] == done:
                    _, changed, number = changes.pop(0)
                    settings = self.arrays(changed)
                    seed = jnp.uint32(number)
                state, loss = self._step(self._consts, state, settings, seed, np.int32(done))
                done += 1
                losses.append(loss)
            values = np.asarray(jax.device_get(losses), np.float64)
            if functions.has_loss and bad is None and not np.isfinite(values).all():
                bad = done - len(values) + int(np.argmax(~np.isfinite(values))) + 1
            measured = jax.device_get(self._evaluate(functions.evaluate.consts, state, settings))
            mean = float(np.mean(values))
            points.append(Point(-1, done, mean, {n: float(v) for n, v in measured.items()}, bad))
        return points


def nudged(state: Any, nudge: float, signs: np.random.Generator) -> Any:
    """A state whose real numbers are each multiplied by `1 ± nudge`, the signs drawn, or by what their type can tell
    from 1 where that is more."""

    def one(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        by = max(nudge, float(jnp.finfo(x.dtype).eps))
        return (np.asarray(x) * (1 + by * signs.choice([-1.0, 1.0], x.shape))).astype(x.dtype)

    return jax.tree.map(one, state)
