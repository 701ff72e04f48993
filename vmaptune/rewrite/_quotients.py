"""Divisions of an array by one number: a multiplication by its reciprocal.

A processor divides some ten times slower than it multiplies, and Adam's bias corrections divide each moment by a
number. A number that is known as the program is compiled is left to XLA, which multiplies by its reciprocal as well.

It takes float32 arrays and a scalar, and the quotient may differ in its last two bits. Nothing else differs: a
reciprocal that would overflow or vanish is brought into range by a power of two, and the quotient back by the same, so
that 0, infinity, NaN and subnormal numbers, as divisors too, give what a division gives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from vmaptune.rewrite._walk import call_instead

SMALLEST, LARGEST = 2.0**-126, 2.0**126  # of divisors whose reciprocals are neither infinite nor subnormal


def quotient(array: jax.Array, number: jax.Array) -> jax.Array:
    """`array / number`, the number a scalar."""
    size = jnp.abs(number)
    scale = jnp.where(size < SMALLEST, jnp.float32(2.0**24), jnp.where(size > LARGEST, jnp.float32(0.25), 1))
    return array * (1 / (number * scale)) * scale


def faster_quotient(eqn: Any) -> Any:
    """The equation to compute in the place of a division of a float32 array by a scalar; others as they are."""
    if eqn.primitive.name != "div":
        return eqn
    array, number = (v.aval for v in eqn.invars)
    if isinstance(eqn.invars[1], core.Literal):
        return eqn
    if array.ndim == 0 or number.ndim or {array.dtype, number.dtype} != {jnp.dtype(jnp.float32)}:
        return eqn
    return call_instead(eqn, "quotient", (quotient,))
