"""Matrix products in the layout that a CPU computes fastest: rows times columns, the contracted axes side by side.

A gradient's products come in other layouts: that of a weight matrix is a sum over examples of outer products,
`einsum("km,kn->mn")`, that of a layer's input a product with the transposed weights, `einsum("mk,nk->mn")`. XLA's CPU
compiler hands them to slower loops (3 times slower at 32 examples of 8 units, 1.5 at 64 of 32), into which
computations before it, such as the gather of a batch, are repeated. So a factor is transposed into memory beforehand;
the barriers keep XLA from folding the transpositions into the product again. Of a weight's gradient the library gets
the first factor transposed: JAX puts the output's gradient there, which for a model's first and last layer is the
smaller one. A compiled product may have its factors exchanged, so that it comes out as the weights lie.

It takes float32 numbers. Each result is the sum of its own products and of zeros times zeros: NaN and infinities come
out where they would, and only a sum's last bits may differ. Zeros beside the columns are multiplied with what isn't
finite, and cut off.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend import core

from vmaptune.rewrite._columns import fills_no_vector
from vmaptune.rewrite._walk import alone, call_instead, inner_jaxprs, with_inner

VECTOR = 8  # columns that a compiled product takes at once; the rest of a row goes one by one
MOST_PADDED = 64  # columns, above which the rest is a small part
SLOW = 1.5  # times as long, transposing what lies lane beside lane
MUCH_LONGER = 4  # times as many rows as columns: the product of a convolution's gradient, not of a layer's
TILE = 16  # contracted numbers of a compiled product's tile, twice its rows
TINY = 3  # numbers along an axis, up to which XLA writes a product as a plain loop over numbers
MOST_ROWS = 512  # above, copying the first factor takes what XLA's library of kernels gains by it


@dataclasses.dataclass(frozen=True)
class ProductShape:
    """One `dot_general` of float32 arrays: `[*P, *M, *K]` and `[*P, *K, *N]`, each in any order, to `[*P, *M, *N]`."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    lhs_order: tuple[int, ...]  # the axes of P, M, K
    rhs_order: tuple[int, ...]  # the axes of P, K, N
    batch: int  # how many axes P has
    contracted: int  # how many axes K has
    precision: Any
    preferred_element_type: Any

    @property
    def is_gradient_of_weights(self) -> bool:
        """Whether both factors have the contracted axes first and nothing else is to be reordered."""
        lhs, rhs = (tuple(range(len(s))) for s in (self.lhs, self.rhs))
        return not self.batch and self.lhs_order == lhs[self.contracted :] + lhs[: self.contracted] != lhs and (
            self.rhs_order == rhs
        )  # fmt: skip

    @property
    def exchanged(self) -> ProductShape:
        """The same gradient of weights with its factors exchanged, `[*N, *M]`."""
        lhs, rhs = self.lhs_order, self.rhs_order
        k = self.contracted
        return dataclasses.replace(
            self, lhs=self.rhs, rhs=self.lhs, lhs_order=rhs[k:] + rhs[:k], rhs_order=lhs[-k:] + lhs[:-k]
        )

    @property
    def is_of_matrices(self) -> bool:
        """Whether it is a plain product of two matrices."""
        return len(self.lhs) == len(self.rhs) == 2 and not self.batch and self.contracted == 1

    def better_exchanged(self, slow: float = 1) -> bool:
        """Whether a gradient of weights costs less with its factors exchanged, of which transposing the other one takes
        `slow` times as long.

        JAX computes it transposed, and the optimiser then reads it column by column, twice; but the factor that is to
        be transposed beforehand may be the larger one.
        """
        if not self.is_gradient_of_weights:
            return False
        K, M, N = self.rows, self.exchanged.columns, self.columns
        return slow * K * N <= K * M + 2 * M * N

    @property
    def rows(self) -> int:
        """The length of K."""
        return math.prod(self.rhs[axis] for axis in self.rhs_order[self.batch : self.batch + self.contracted])

    @property
    def length(self) -> int:
        """The length of M."""
        return math.prod(self.lhs[axis] for axis in self.lhs_order[self.batch : -self.contracted])

    @property
    def longest(self) -> int:
        """The longer of K and M."""
        return max(self.rows, self.length)

    @property
    def is_tiny(self) -> bool:
        """Whether XLA writes it as a plain loop, in which no order is faster than another.

        Nothing may keep a transposition of its result apart from it: once barriers are gone, XLA takes the
        transposition into the product of all lanes even where the result would lie in columns then, and ends the
        process as it writes such a product (a failed check, "IsMonotonicWithDim0Major").
        """
        return self.rows <= TINY or max(self.length, self.columns) <= TINY

    @property
    def columns(self) -> int:
        """The length of N."""
        return math.prod(self.rhs[axis] for axis in self.rhs_order[self.batch + self.contracted :])


def product_shape(eqn: Any) -> ProductShape | None:
    """The record of an equation that is a product of float32 arrays with something to contract, or None."""
    if eqn.primitive.name != "dot_general" or eqn.params.get("out_sharding") is not None:
        return None
    lhs, rhs = (v.aval for v in eqn.invars)
    (lhs_k, rhs_k), (lhs_p, rhs_p) = eqn.params["dimension_numbers"]
    if not lhs_k or {lhs.dtype, rhs.dtype} != {jnp.dtype(jnp.float32)}:
        return None
    lhs_m = [axis for axis in range(lhs.ndim) if axis not in (*lhs_k, *lhs_p)]
    rhs_n = [axis for axis in range(rhs.ndim) if axis not in (*rhs_k, *rhs_p)]
    if not lhs_m or not rhs_n or 0 in (*lhs.shape, *rhs.shape):
        return None
    p = eqn.params
    return ProductShape(
        tuple(lhs.shape), tuple(rhs.shape), (*lhs_p, *lhs_m, *lhs_k), (*rhs_p, *rhs_k, *rhs_n), len(lhs_p), len(lhs_k),
        p["precision"], p["preferred_element_type"],
    )  # fmt: skip


def product(shape: ProductShape, padding: tuple[int, int], lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The product of `shape`, `[*P, *M, *N]`, with so many zeros beside K and N while it is computed."""
    P = [lhs.shape[axis] for axis in shape.lhs_order[: shape.batch]]
    M = [lhs.shape[axis] for axis in shape.lhs_order[shape.batch : -shape.contracted]]
    N = [rhs.shape[axis] for axis in shape.rhs_order[shape.batch + shape.contracted :]]
    moved = shape.lhs_order != tuple(range(lhs.ndim))
    first = _in_order(lhs, shape.lhs_order, (*P, math.prod(M), shape.rows))
    second = _in_order(rhs, shape.rhs_order, (*P, shape.rows, math.prod(N)))
    first, second = with_zeros(first, second, padding)
    batch, last = tuple(range(len(P))), len(P)
    out = lax.dot_general(
        first, second, (((last + 1,), (last,)), (batch, batch)),
        precision=shape.precision, preferred_element_type=shape.preferred_element_type,
    )  # fmt: skip
    if padding[1]:
        out = lax.slice_in_dim(out, 0, math.prod(N), axis=-1)
    return (lax.optimization_barrier(out) if moved else out).reshape(*P, *M, *N)


def with_zeros(first: jax.Array, second: jax.Array, padding: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The factors `[..., M, K]` and `[..., K, N]` with so many zeros beside K, of both, and N."""
    k, n = padding
    if k:
        first = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, k)])
    if k or n:
        second = jnp.pad(second, [(0, 0)] * (second.ndim - 2) + [(0, k), (0, n)])
    return first, second


def gradient_of_weights(shape: ProductShape, one_batch: bool, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The product of `shape`, a gradient of weights, by its factors exchanged.

    Where all lanes have `one_batch`, activations lie lane beside lane, in an order that is slower to transpose: there,
    only for the layer that reads the batch, or where that costs less all the same.
    """

    def exchanged(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        n = rhs.ndim - shape.contracted
        out = product(shape.exchanged, zeros_beside(shape.exchanged), rhs, lhs)
        return out.transpose(*range(n, out.ndim), *range(n))

    def of_lanes(lanes: int, batched: list[bool], lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, bool]:
        plain = batched[1] and not shape.better_exchanged(1 if lanes == 1 else SLOW)
        of_one = partial(product, shape, zeros_beside(shape)) if plain else exchanged
        return jax.vmap(of_one, in_axes=[0 if each else None for each in batched])(lhs, rhs), True

    if not one_batch:
        return exchanged(lhs, rhs)
    call = custom_vmap(exchanged)
    call.def_vmap(of_lanes)
    return call(lhs, rhs)


def _in_order(array: jax.Array, order: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The array with its axes in another order, in memory as well; untouched if they are in that order."""
    if order == tuple(range(array.ndim)):
        return array.reshape(shape)

    def moved(array: jax.Array) -> jax.Array:
        return array.transpose(order).reshape(shape)

    # What lies in columns is in order already, as XLA finds if it sees it. Transposing the result of a
    # product with the bias and the activation in the same loop takes 5 times as long.
    return lax.optimization_barrier(moved(array) if fills_no_vector(array.shape) else alone(moved, array))


def has_products(jaxpr: Any) -> bool:
    """Whether a jaxpr, or what it calls, holds a matrix product."""
    return any(eqn.primitive.name == "dot_general" or any(map(has_products, inner_jaxprs(eqn))) for eqn in jaxpr.eqns)


def products_are_short(jaxpr: Any) -> bool:
    """Whether it pays to compile the products of a jaxpr, and of what it calls, with the program.

    One of more than `MOST_ROWS` rows doesn't: a convolution's have thousands, and what is copied for a compiled product
    takes more than it gains. Nor one of other numbers than float32 that would need zeros to be compiled in little
    memory: it is not exchanged, so it gets none.
    """
    return all(_is_short(eqn) for eqn in jaxpr.eqns) and all(
        products_are_short(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn)
    )


def _is_short(eqn: Any) -> bool:
    if eqn.primitive.name != "dot_general":
        return True
    shape = product_shape(eqn)
    if shape is not None:
        return shape.longest <= MOST_ROWS
    (lhs_k, _), (lhs_p, _) = eqn.params["dimension_numbers"]
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    k, p = (math.prod(lhs[axis] for axis in axes) for axes in (lhs_k, lhs_p))
    return 0 in (k, p) or not zeros_contracted(math.prod(lhs) // (k * p), k, math.prod(rhs) // (k * p))


def faster_product(eqn: Any, compiled: bool = False, one_batch: bool = False) -> Any:
    """The equation to compute in the place of a product, equal to rounding; others as they are.

    Args:
      compiled: whether XLA compiles products with the program; each one is put in order then. Its library of kernels
        takes most as they are.
      one_batch: whether all lanes train on the same batch.
    """
    shape = product_shape(eqn)
    if shape is None or shape.is_tiny:
        return eqn
    if not compiled:
        wanted = shape.is_gradient_of_weights and shape.rows <= MOST_ROWS
        return call_instead(eqn, "product_of_rows", (product, shape, (0, 0))) if wanted else eqn
    if shape.better_exchanged():
        return call_instead(eqn, "product_of_rows", (gradient_of_weights, shape, one_batch))
    in_order = (shape.lhs_order, shape.rhs_order) == (tuple(range(len(shape.lhs))), tuple(range(len(shape.rhs))))
    padding = zeros_beside(shape)
    return eqn if in_order and not any(padding) else call_instead(eqn, "product_of_rows", (product, shape, padding))


def long_products_as_they_are_used(jaxpr: Any) -> Any:
    """The jaxpr with long products that are used transposed, and not otherwise, computed so.

    A gradient comes with the result's own axes first, `[M, N]` where `[N, M]` is wanted: of a convolution's patches,
    which have thousands of columns and are read again at once, that is slow.
    """
    inner = [with_inner(eqn, long_products_as_they_are_used) for eqn in jaxpr.eqns]
    uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, core.Var))
    uses.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
    makers = {eqn.outvars[0]: i for i, eqn in enumerate(inner) if _is_long(eqn)}
    eqns: list[Any] = list(inner)
    for i, eqn in enumerate(inner):
        maker = makers.get(eqn.invars[0]) if eqn.primitive.name == "transpose" else None
        if maker is not None and tuple(eqn.params["permutation"]) != (1, 0):
            continue
        if maker is None or uses[eqn.invars[0]] > 1:
            continue
        old, (lhs_k, rhs_k) = inner[maker], inner[maker].params["dimension_numbers"][0]
        params = old.params | {"dimension_numbers": ((rhs_k, lhs_k), ((), ()))}
        eqns[maker], eqns[i] = old.replace(invars=old.invars[::-1], outvars=eqn.outvars, params=params), None
    same = all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True))
    return jaxpr if same else jaxpr.replace(eqns=[eqn for eqn in eqns if eqn is not None])


def _is_long(eqn: Any) -> bool:
    """Whether an equation is a product of two matrices with many more rows than columns."""
    shape = product_shape(eqn)
    if shape is None or not shape.is_of_matrices:
        return False
    rows, columns = eqn.outvars[0].aval.shape
    return rows > MOST_ROWS and rows >= MUCH_LONGER * columns


def zeros_beside(shape: ProductShape) -> tuple[int, int]:
    """How many zeros a compiled product gets beside K and beside N."""
    return zeros_contracted(shape.length, shape.rows, shape.columns), columns_of_zeros(shape)


def zeros_contracted(m: int, k: int, n: int) -> int:
    """How many zeros a compiled product `[m, k] x [k, n]` gets beside the contracted axis.

    XLA cuts a product into tiles and rests, and leaves no loop where less than two tiles fill an axis. Where that is so
    of all three, the product is written out whole: LLVM takes more than 4 GiB for most of 10 to 15 rows, 18 to 31
    contracted numbers and 20 to 31 columns. Two whole tiles of contracted numbers are a loop. Lanes may come beside the
    rows, or the columns, of a factor that is each one's own, so that fewer of them count too.
    """
    return 2 * TILE - k if m < TILE < k < 2 * TILE and n < 4 * TILE and n % (2 * TILE) else 0


def columns_of_zeros(shape: ProductShape) -> int:
    """How many columns of zeros beside its own a compiled product computes faster with."""
    return -shape.columns % VECTOR if VECTOR // 2 < shape.columns < MOST_PADDED else 0
