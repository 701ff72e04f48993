"""Picking one entry of an axis by a comparison with its index instead of a `gather`.

The gradient of such a gather, which every cross-entropy on integer labels holds, is a `scatter_add`: on a CPU a loop
over single numbers, as long as the rest of a small model's step. Selecting by comparison gives the same bits, value
and gradient, from elementwise operations: all other terms of the sum are zeros.

It takes floating numbers of any width. What isn't picked is replaced, never multiplied by zero, so that NaN and
infinities beside a pick reach neither it nor a gradient; a pick of -0.0 is 0.0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LARGEST_AXIS = 256  # entries to pick from; a longer axis costs more to compare with than to index
LARGEST_MASK = 1024  # entries times picks


@dataclasses.dataclass(frozen=True)
class PickShape:
    """One `gather` of single entries along one axis: shapes, dtypes and where the axis is."""

    operand: tuple[int, ...]
    indices: tuple[int, ...]
    dtype: str
    index_dtype: str
    axis: int
    along: bool  # an index for each place of the other axes, as in `take_along_axis`; else one index for all
    fill: float | None  # what an index out of range gives; None: it is clipped, or does not occur


def pick_shape(eqn: Any) -> PickShape | None:
    """The record of an equation that picks entries of a short axis, or None."""
    if eqn.primitive.name != "gather":
        return None
    operand, indices = (v.aval for v in eqn.invars)
    p, dims = eqn.params, eqn.params["dimension_numbers"]
    if len(dims.start_index_map) != 1 or dims.collapsed_slice_dims != dims.start_index_map:
        return None
    if not jnp.issubdtype(operand.dtype, jnp.floating) or not operand.shape:
        return None
    (axis,) = dims.start_index_map
    others = tuple(d for d in range(operand.ndim) if d != axis)
    size = operand.shape[axis]
    along = (
        dims.offset_dims == ()
        and dims.operand_batching_dims == others
        and dims.start_indices_batching_dims == tuple(range(len(others)))
        and axis == operand.ndim - 1
        and len(indices.shape) == operand.ndim + 1
        and all(n == 1 for n in p["slice_sizes"])
    )
    whole = (
        dims.operand_batching_dims == ()
        and indices.shape == (1,)
        and tuple(p["slice_sizes"]) == tuple(1 if d == axis else n for d, n in enumerate(operand.shape))
        and dims.offset_dims == tuple(range(operand.ndim - 1))
    )
    if not (along or whole) or not 0 < size <= min(LARGEST_AXIS, np.iinfo(indices.dtype).max):
        return None
    if along and size * indices.shape[-2] > LARGEST_MASK:
        return None
    mode = p["mode"]
    if mode == lax.GatherScatterMode.FILL_OR_DROP:
        fill = p["fill_value"]
        fill = float("nan") if fill is None else float(fill)
    elif mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        fill = None
    else:
        return None
    return PickShape(
        tuple(operand.shape), tuple(indices.shape), operand.dtype.name, indices.dtype.name, axis, along, fill
    )


def pick(shape: PickShape, operand: jax.Array, indices: jax.Array) -> jax.Array:
    """The entries at `indices`, equal to the gather's to the bit, in value and in gradient.

    Along: operand [..., K], indices [..., M, 1], result [..., M]. Otherwise: indices [1], result without the axis.
    """
    size = shape.operand[shape.axis]
    count = np.arange(size).astype(shape.index_dtype)
    if shape.along:
        mask = indices == count  # [..., M, K]
        found = jnp.where(mask, operand[..., None, :], jnp.zeros((), operand.dtype)).sum(-1)
        index = indices[..., 0]
    else:
        index = indices[0]
        column = count.reshape([size if d == shape.axis else 1 for d in range(len(shape.operand))])
        found = jnp.where(index == column, operand, jnp.zeros((), operand.dtype)).sum(shape.axis)
    if shape.fill is None:
        return found
    return jnp.where((index >= 0) & (index < size), found, jnp.asarray(shape.fill, operand.dtype))
