"""Max and sum pooling as strided slices: `reduce_window` with a gradient that needs no `select_and_scatter`.

XLA's gradient of a max-pool, `select_and_scatter_add`, is slow on a CPU. The gradient here goes to the same element as
XLA's: the first of a window's maxima, in row-major order, padding being minus infinity.

It takes floating numbers of any width; sums of 16-bit ones are made in float32. A window with NaN gives NaN and no
other window does; infinities and -0.0 are numbers like others (of 0.0 and -0.0, which are equal, the first counts). A
window's gradient goes to its first NaN, if there is one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LARGEST_WINDOW = 32  # positions; a longer chain of slices compiles slowly and gains little


@dataclasses.dataclass(frozen=True)
class PoolShape:
    """One `reduce_window` by maximum or sum: the operand's shape and the parameters, a value for each dimension."""

    kind: str  # "max" or "sum"
    operand: tuple[int, ...]
    dtype: str
    window_dimensions: tuple[int, ...]
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        """The result's shape, where `base_dilation` is 1."""
        return tuple(
            max((size + low + high - (window - 1) * dilation - 1) // stride + 1, 0)
            for size, (low, high), window, dilation, stride in zip(
                self.operand, self.padding, self.window_dimensions, self.window_dilation, self.window_strides,
                strict=True,
            )
        )  # fmt: skip


def poolable(shape: PoolShape) -> bool:
    """Whether `pool` computes this one; what it does not is left to XLA."""
    return (
        jnp.issubdtype(shape.dtype, jnp.floating)
        and all(d == 1 for d in shape.base_dilation)
        and all(low >= 0 and high >= 0 for low, high in shape.padding)
        and all(size > 0 for size in (*shape.operand, *shape.out))
        and 1 < math.prod(shape.window_dimensions) <= LARGEST_WINDOW
    )


def pool(shape: PoolShape, operand: jax.Array) -> jax.Array:
    """The maximum or the sum of each window, equal to XLA's in value and gradient. Shapes as `shape` says."""
    padded = any(map(any, shape.padding))
    if shape.kind == "sum":
        wide = operand.astype(jnp.promote_types(operand.dtype, jnp.float32))
        slices = _slices(shape, _pad(shape, wide, 0) if padded else wide)
        return sum(slices[1:], start=slices[0]).astype(operand.dtype)
    return _first_maximum(_slices(shape, _pad(shape, operand, -jnp.inf) if padded else operand))


def _first_maximum(slices: list[jax.Array]) -> jax.Array:
    """The maximum over the slices, each element taken whole from the first slice that has it.

    A later element wins only if it is larger, so that a derivative follows the same element as in
    `select_and_scatter_add`; NaN stays NaN.
    """
    best = slices[0]
    for candidate in slices[1:]:
        best = jnp.where((best >= candidate) | (best != best), best, candidate)
    return best


def _pad(shape: PoolShape, operand: jax.Array, value: Any) -> jax.Array:
    return lax.pad(operand, np.asarray(value, operand.dtype), [(low, high, 0) for low, high in shape.padding])


def _slices(shape: PoolShape, operand: jax.Array) -> list[jax.Array]:
    """What each position of the window sees, in row-major order; each slice has the result's shape."""
    slices = []
    for position in itertools.product(*map(range, shape.window_dimensions)):
        starts = [p * d for p, d in zip(position, shape.window_dilation, strict=True)]
        ends = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(starts, shape.out, shape.window_strides, strict=True)
        ]
        slices.append(lax.slice(operand, starts, ends, shape.window_strides))
    return slices
