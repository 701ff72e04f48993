"""One trial trained alone, without a lane axis: what `replay` compares the ledger with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.lanes import Point
from vmaptune.engine.program import LaneFunctions, pack, unpack


def train_alone(
    functions: LaneFunctions,
    settings: Mapping[str, Any],
    seed: int,
    stops: Sequence[int],
    *,
    nudge: float = 0.0,
) -> list[Point]:
    """Trains one trial by itself, a jitted step at a time, and measures it at each of `stops` (steps).

    `nudge` multiplies every floating-point number of the initial state by its own `1 ± nudge`: with one of
    the size of rounding errors, how far the curve moves tells whether training is chaotic there.
    """
    arrays = {name: jnp.asarray(settings[name], shape.dtype) for name, shape in _shapes(functions, settings).items()}
    key_seed = jnp.uint32(seed)
    init = jax.jit(lambda a, s: pack(functions.init.call(functions.init.consts, a, s)))
    step_consts, evaluate_consts = functions.step.consts, functions.evaluate.consts

    @jax.jit
    def step(consts: Any, state: Any, a: Any, s: Any, done: Any) -> Any:
        state, loss = functions.step.call(consts, unpack(state, functions.key_kinds), a, s, done)
        return pack(state), loss

    evaluate = jax.jit(lambda c, state, a: functions.evaluate.call(c, unpack(state, functions.key_kinds), a))
    state = init(arrays, key_seed)
    if nudge:
        signs = np.random.default_rng(0)
        state = jax.tree.map(
            lambda x: (
                x * jnp.asarray(1 + nudge * signs.choice([-1, 1], x.shape), x.dtype)
                if jnp.issubdtype(x.dtype, jnp.floating)
                else x
            ),
            state,
        )
    points, done, bad = [], 0, None
    for stop in stops:
        losses = []
        while done < stop:
            state, loss = step(step_consts, state, arrays, key_seed, np.int32(done))
            done += 1
            losses.append(loss)
        values = np.asarray(jax.device_get(losses), np.float32)
        if functions.has_loss and bad is None and not np.isfinite(values).all():
            bad = done - len(values) + int(np.argmax(~np.isfinite(values))) + 1
        metrics = {n: float(v) for n, v in jax.device_get(evaluate(evaluate_consts, state, arrays)).items()}
        mean = float(np.sum(values, dtype=np.float32) / np.float32(len(values)))
        points.append(Point(-1, done, mean, metrics, bad))
    return points


def _shapes(functions: LaneFunctions, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shape for name, shape in functions.traced.items() if name in settings}
