"""Divisions of an array by one number: a multiplication by its reciprocal.

A processor divides some ten times slower than it multiplies, and Adam's bias corrections divide each moment by a
number. The quotient may differ in its last two bits, and overflows or vanishes where the divisor's reciprocal does:
beyond 2^126.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vmaptune.rewrite._walk import call_instead


def quotient(array: jax.Array, number: jax.Array) -> jax.Array:
    """`array / number`, the number a scalar."""
    return array * (jnp.ones((), number.dtype) / number)


def faster_quotient(eqn: Any) -> Any:
    """The equation to compute in the place of a division of a float32 array by a scalar; others as they are."""
    if eqn.primitive.name != "div":
        return eqn
    array, number = (v.aval for v in eqn.invars)
    if array.ndim == 0 or number.ndim or {array.dtype, number.dtype} != {jnp.dtype(jnp.float32)}:
        return eqn
    return call_instead(eqn, "quotient", (quotient,))
