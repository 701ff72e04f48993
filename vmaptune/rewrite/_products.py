"""Matrix products of a gradient that contract the rows of both factors, in a layout that a CPU's kernels take.

The gradient of a weight matrix is the sum over examples of an outer product, `einsum("km,kn->mn")`. XLA's CPU kernel
library takes products whose first factor has its contracted axis last; this form goes to a slower loop of XLA's own (3
times slower at 32 examples of 8 units, 1.5 at 64 of 32), and computations before it, such as the gather of a batch, are
repeated inside of it. With the first factor transposed into memory beforehand it is taken. The barriers keep XLA from
folding the transpositions into the product again. The first factor is the smaller of the two where it matters most:
JAX puts the output's gradient there, which for a model's first and last layer is smaller than the layer's input.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vmaptune.rewrite._walk import call_instead

MOST_ROWS = 512  # above, as in a convolution's gradient, copying the first factor takes what the product gains


@dataclasses.dataclass(frozen=True)
class ProductShape:
    """One `dot_general` that contracts the leading axes of both factors: `[*K, *M]`, `[*K, *N]` to `[*M, *N]`."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    contracted: int  # how many axes K has
    precision: Any
    preferred_element_type: Any


def product_shape(eqn: Any) -> ProductShape | None:
    """The record of an equation that is such a product of float32 matrices, or None."""
    if eqn.primitive.name != "dot_general" or eqn.params.get("out_sharding") is not None:
        return None
    lhs, rhs = (v.aval for v in eqn.invars)
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    leading = tuple(range(len(lhs_contract)))
    if lhs_batch or rhs_batch or not leading or tuple(lhs_contract) != leading or tuple(rhs_contract) != leading:
        return None
    if {lhs.dtype, rhs.dtype} != {jnp.dtype(jnp.float32)} or lhs.ndim == len(leading) or rhs.ndim == len(leading):
        return None
    if math.prod(lhs.shape[: len(leading)]) > MOST_ROWS:
        return None
    p = eqn.params
    return ProductShape(tuple(lhs.shape), tuple(rhs.shape), len(leading), p["precision"], p["preferred_element_type"])


def product(shape: ProductShape, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The product of `shape`: lhs `[*K, *M]`, rhs `[*K, *N]`, result `[*M, *N]`."""
    K = math.prod(shape.lhs[: shape.contracted])
    first = lax.optimization_barrier(lhs.reshape(K, -1).T)  # [M, K]
    out = lax.dot_general(
        first, rhs.reshape(K, -1), (((1,), (0,)), ((), ())),
        precision=shape.precision, preferred_element_type=shape.preferred_element_type,
    )  # fmt: skip
    return lax.optimization_barrier(out).reshape(*shape.lhs[shape.contracted :], *shape.rhs[shape.contracted :])


def faster_product(eqn: Any) -> Any:
    """The equation to compute in the place of a product of this form, equal to rounding; others as they are."""
    shape = product_shape(eqn)
    return eqn if shape is None else call_instead(eqn, "product_of_rows", (product, shape))
