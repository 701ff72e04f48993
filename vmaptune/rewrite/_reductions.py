"""Sums and maxima along rows, as a layer norm, an attention and a loss over many classes hold them.

Without its library of kernels, XLA's CPU compiler reduces rows number by number (a maximum of 64 takes 0.79 ns a
number here, a sum 0.23), and sums over two axes at once, as a bias' gradient is over examples and times, in pieces of
rows (0.65). A sum is a product with ones as well (0.05), and a maximum one of whole vectors until few of its numbers
are left (0.09). With its library it takes a third of the former times, and fuses what comes before a sum.

It takes float32 numbers, sums, maxima and minima over axes that lie side by side, in any shape that holds numbers. Each
result is made of its own numbers alone: NaN and infinities come out where XLA's own would, and a sum of infinities of
both signs is NaN. A sum goes in another order, so that it may differ in its last bits, and where numbers of both signs
nearly overflow one order may and another may not. Of 0.0 and -0.0, which are equal, either is the extreme.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from vmaptune.rewrite._columns import FEW, VECTOR
from vmaptune.rewrite._walk import call_instead

LONGEST = 512  # numbers of which a row's maximum is written out
MANY, COLUMNS = 1024, 64  # numbers that are summed to one in columns: at least, and in how many
EXTREMES = {"reduce_max": lax.max, "reduce_min": lax.min}


def faster_reduction(eqn: Any) -> Any:
    """The equation to compute in the place of a sum, maximum or minimum along long rows, or of a sum over several
    axes before rows, of float32 numbers; equal, sums to rounding. Others as they are."""
    name = eqn.primitive.name
    if name != "reduce_sum" and name not in EXTREMES:
        return eqn
    operand, axes = eqn.invars[0].aval, tuple(eqn.params["axes"])
    if operand.dtype != jnp.float32 or not axes or 0 in operand.shape or axes != tuple(range(axes[0], axes[-1] + 1)):
        return eqn
    if eqn.params.get("out_sharding") is not None:
        return eqn
    before, reduced, after = (
        math.prod(sizes)
        for sizes in (operand.shape[: axes[0]], operand.shape[axes[0] : axes[-1] + 1], operand.shape[axes[-1] + 1 :])
    )
    out = eqn.outvars[0].aval.shape
    if name != "reduce_sum":
        wanted = after == 1 and FEW < reduced <= LONGEST
        return call_instead(eqn, "extreme_of_rows", (extreme_of_rows, name, (before, reduced), out)) if wanted else eqn
    if before == after == 1:
        columns = math.gcd(reduced, COLUMNS)
        wanted = columns > FEW and reduced >= MANY
        return call_instead(eqn, "sum_of_all", (sum_of_all, (reduced // columns, columns), out)) if wanted else eqn
    if after == 1 and reduced > FEW:
        return call_instead(eqn, "sum_of_rows", (sum_of_matrix, True, (before, reduced), out))
    if before == 1 and len(axes) > 1 and reduced > FEW and after >= FEW:
        return call_instead(eqn, "sum_over_rows", (sum_of_matrix, False, (reduced, after), out))
    return eqn


def sum_of_matrix(rows: bool, matrix: tuple[int, int], out: tuple[int, ...], array: jax.Array) -> jax.Array:
    """The sum of each row, or of each column, of an array read as a `matrix`, in the shape `out`."""
    return product_with_ones(array.reshape(matrix), rows).reshape(out)


def sum_of_all(matrix: tuple[int, int], out: tuple[int, ...], array: jax.Array) -> jax.Array:
    """The sum of an array read as a `matrix`, in the shape `out` of one number: of its columns first, since XLA knows a
    product of vectors for a sum."""
    return jnp.sum(product_with_ones(array.reshape(matrix), rows=False)).reshape(out)


def extreme_of_rows(name: str, matrix: tuple[int, int], out: tuple[int, ...], array: jax.Array) -> jax.Array:
    """The largest or the smallest number, with `name` "reduce_max" or "reduce_min", of each row of an array read as a
    `matrix`, in the shape `out`."""
    of_two, array, size = EXTREMES[name], array.reshape(matrix), matrix[1]
    starts = [*range(0, size - FEW, FEW), size - FEW]  # the last piece overlaps the one before, which changes nothing
    pieces = [lax.slice_in_dim(array, start, start + FEW, axis=-1) for start in starts]
    while len(pieces) > 1:
        pairs = zip(pieces[::2], pieces[1::2], strict=False)
        pieces = [of_two(*pair) for pair in pairs] + pieces[len(pieces) & ~1 :]
    of_pieces = of_two(pieces[0][..., :VECTOR], pieces[0][..., VECTOR:])
    return (jnp.max(of_pieces, -1) if name == "reduce_max" else jnp.min(of_pieces, -1)).reshape(out)


def product_with_ones(array: jax.Array, rows: bool) -> jax.Array:
    """A matrix summed along its rows, or its columns, by a product of each lane's own with ones."""

    def summed(array: jax.Array) -> jax.Array:
        return of_lanes(1, [True], array[None])[0][0]

    def of_lanes(lanes: int, _: list[bool], array: jax.Array) -> tuple[jax.Array, bool]:
        m, n = array.shape[1:]
        ones = lax.optimization_barrier(jnp.ones((lanes, n, 1) if rows else (lanes, 1, m), array.dtype))
        lhs, rhs, axis = (array, ones, 2) if rows else (ones, array, 1)
        return lax.dot_general(lhs, rhs, (((2,), (1,)), ((0,), (0,)))).squeeze(axis), True

    call = custom_vmap(summed)
    call.def_vmap(of_lanes)
    return call(array)
