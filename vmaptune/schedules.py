"""Learning-rate schedules in which every number may be traced, a value per lane.

Each returns a function `count -> value`, as Optax's do: `count` is the number of updates made so far (int32
scalar), the value a float scalar. Optax's own refuse a traced peak, rate or number of steps in places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = [
    "constant", "cosine", "exponential", "linear", "onecycle", "polynomial", "sgdr", "step_decay",
    "warmup_cosine",
]  # fmt: skip

Schedule = Callable[[Any], jax.Array]


def _float(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.result_type(float))


def _share(count: Any, steps: Any) -> jax.Array:
    """How much of `steps` has passed, from 0 to 1; 1 when there are none."""
    steps = _float(steps)
    return jnp.where(steps > 0, jnp.clip(_float(count) / jnp.where(steps > 0, steps, 1.0), 0.0, 1.0), 1.0)


def _half_cosine(share: jax.Array) -> jax.Array:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def constant(value: Any) -> Schedule:
    """The same value at every step. Agrees with `optax.constant_schedule`."""
    return lambda count: _float(value)


def linear(init: Any, end: Any, steps: Any) -> Schedule:
    """From `init` to `end` in a straight line over `steps`, then `end`. Agrees with `optax.linear_schedule`."""
    return polynomial(init, end, 1.0, steps)


def polynomial(init: Any, end: Any, power: Any, steps: Any) -> Schedule:
    """`end + (init - end) * (1 - count / steps) ** power`, then `end`. Agrees with `optax.polynomial_schedule`."""

    def schedule(count: Any) -> jax.Array:
        left = 1.0 - _share(count, steps)
        factor = jnp.where(left > 0, jnp.where(left > 0, left, 1.0) ** _float(power), 0.0)
        return _float(end) + (_float(init) - _float(end)) * factor

    return schedule


def cosine(peak: Any, steps: Any, *, warmup: Any = 0, end: Any = 0.0) -> Schedule:
    """A straight line from 0 to `peak` over `warmup` steps, then half a cosine to `end` at `steps`.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts; agrees with
    `optax.warmup_cosine_decay_schedule(0, peak, warmup, steps, end)`, and without warm-up with
    `optax.cosine_decay_schedule`.
    """
    return warmup_cosine(peak, steps, warmup, init=0.0, end=end)


def warmup_cosine(peak: Any, steps: Any, warmup: Any, *, init: Any = 0.0, end: Any = 0.0) -> Schedule:
    """From `init` to `peak` in a straight line over `warmup` steps, then half a cosine to `end` at `steps`.

    Agrees with `optax.warmup_cosine_decay_schedule(init, peak, warmup, steps, end)`.
    """

    def schedule(count: Any) -> jax.Array:
        count, rise = _float(count), _float(warmup)
        up = _float(init) + (_float(peak) - _float(init)) * _share(count, rise)
        down = _float(end) + (_float(peak) - _float(end)) * _half_cosine(_share(count - rise, _float(steps) - rise))
        return jnp.where(count < rise, up, down)

    return schedule


def exponential(init: Any, rate: Any, transition: Any, *, staircase: bool = False) -> Schedule:
    """`init * rate ** (count / transition)`; with `staircase`, the exponent is rounded down.

    Agrees with `optax.exponential_decay`.
    """

    def schedule(count: Any) -> jax.Array:
        exponent = _float(count) / jnp.maximum(_float(transition), 1e-12)
        return _float(init) * _float(rate) ** (jnp.floor(exponent) if staircase else exponent)

    return schedule


def step_decay(init: Any, boundaries: Sequence[Any], factors: Sequence[Any]) -> Schedule:
    """`init`, multiplied by `factors[i]` from count `boundaries[i]` on.

    Agrees with `optax.piecewise_constant_schedule(init, dict(zip(boundaries, factors)))`.
    """

    def schedule(count: Any) -> jax.Array:
        value = _float(init)
        for boundary, factor in zip(boundaries, factors, strict=True):
            value = value * jnp.where(_float(count) >= _float(boundary), _float(factor), 1.0)
        return value

    return schedule


def onecycle(peak: Any, steps: Any, *, rise: Any = 0.3, start_factor: Any = 25.0, end_factor: Any = 1e4) -> Schedule:
    """Half a cosine up from `peak / start_factor` over a share `rise` of the steps, then one down to
    `peak / (start_factor * end_factor)`.

    Source: Smith and Topin, "Super-Convergence", 2018; agrees with `optax.cosine_onecycle_schedule`.
    """

    def schedule(count: Any) -> jax.Array:
        count, top = _float(count), jnp.floor(_float(rise) * _float(steps))
        low = _float(peak) / _float(start_factor)
        last = low / _float(end_factor)
        up = low + (_float(peak) - low) * (1.0 - _half_cosine(_share(count, top)))
        down = last + (_float(peak) - last) * _half_cosine(_share(count - top, _float(steps) - top))
        return jnp.where(count < top, up, down)

    return schedule


def sgdr(peak: Any, cycle: Any, *, mult: int = 1, end: Any = 0.0, cycles: int = 16) -> Schedule:
    """Half a cosine from `peak` to `end` over `cycle` steps, again and again, each `mult` times as long.

    At most `cycles` of them; then `end`. Source: Loshchilov and Hutter, "SGDR", ICLR 2017.
    """

    def schedule(count: Any) -> jax.Array:
        left, length = _float(count), _float(cycle)
        value = _float(end)
        running = jnp.bool_(True)
        for _ in range(cycles):
            inside = running & (left < length)
            share = jnp.clip(left / jnp.maximum(length, 1e-12), 0.0, 1.0)
            value = jnp.where(inside, _float(end) + (_float(peak) - _float(end)) * _half_cosine(share), value)
            running = running & ~inside
            left, length = left - length, length * mult
        return value

    return schedule
