"""First values of masked arrays: the numbers that the narrow layer would draw, and zeros in the padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vmaptune.errors import InputError
from vmaptune.nn._sizes import Size

# name: (scale, which fan, distribution), of `jax.nn.initializers.variance_scaling`
LAWS = {
    "lecun_normal": (1.0, "in", "normal"), "lecun_uniform": (1.0, "in", "uniform"),
    "he_normal": (2.0, "in", "normal"), "he_uniform": (2.0, "in", "uniform"),
    "glorot_normal": (1.0, "average", "normal"), "glorot_uniform": (1.0, "average", "uniform"),
}  # fmt: skip
TRUNCATED_STD = 0.87962566103423978  # of a standard normal cut off at -2 and 2

Initializer = Callable[..., jax.Array]


def initializer(law: str | Initializer, sizes: Sequence[Size]) -> Initializer:
    """`init(key, shape, dtype)` for an array whose axes have these sizes; the last two are in and out.

    The array drawn equals, where it is not padding, the one of the same law and key and the true shape: an element
    takes the random number that belongs to its position in the narrow array, and the fans are the true ones.
    This needs random numbers that depend on their position alone (`jax_threefry_partitionable`, JAX's default).

    Raises:
      InputError: an unknown name, or a function that depends on the shape.
    """
    if isinstance(law, str) and law not in LAWS:
        raise InputError(f"kernel_init must be one of {', '.join(LAWS)} or an initializer, but got {law!r}")
    if not any(size.is_traced for size in sizes):
        return getattr(jax.nn.initializers, law)() if isinstance(law, str) else law

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, *_: Any) -> jax.Array:
        count = 1
        for length in shape:
            count *= length
        index, inside = jnp.zeros((), jnp.int32), jnp.ones((), bool)
        for axis, size in enumerate(sizes):
            position = jnp.arange(size.most).reshape([-1 if d == axis else 1 for d in range(len(sizes))])
            index = index * size.value + position
            inside = inside & (position < size.value)
        flat = _drawn(law, key, count, dtype)
        values = flat[jnp.where(inside, index, 0)]
        if isinstance(law, str):
            values = values * _scale(law, sizes, dtype)
        return jnp.where(inside, values, jnp.zeros((), dtype))

    return init


def _drawn(law: str | Initializer, key: jax.Array, count: int, dtype: Any) -> jax.Array:
    if isinstance(law, str):
        if LAWS[law][2] == "uniform":
            return jax.random.uniform(key, (count,), dtype, -1)
        return jax.random.truncated_normal(key, -2, 2, (count,), dtype)
    try:
        return law(key, (count,), dtype)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"a masked layer's initializer must not depend on the shape, which is padded, but {law!r} does ({error}); "
            f"take one of {', '.join(LAWS)}, or one such as jax.nn.initializers.normal(0.02)"
        ) from error


def _scale(law: str, sizes: Sequence[Size], dtype: Any) -> jax.Array:
    """By what a law's standard draw is multiplied, from the true fans."""
    scale, fan, distribution = LAWS[law]
    window: Any = 1
    for size in sizes[:-2]:
        window = window * size.value
    fan_in, fan_out = (jnp.asarray(window * size.value, dtype) for size in sizes[-2:])
    variance = jnp.asarray(scale, dtype) / (fan_in if fan == "in" else (fan_in + fan_out) / 2)
    if distribution == "uniform":
        return jnp.sqrt(3 * variance)
    return jnp.sqrt(variance) / jnp.asarray(TRUNCATED_STD, dtype)


def vector(law: Initializer, size: Size) -> Initializer:
    """`init` of a bias or a scale `[size]`: `law`'s values, zeros in the padding."""
    return initializer(law, [size])
