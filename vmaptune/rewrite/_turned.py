"""Two-dimensional arrays of a training step with the examples innermost, as `[units, examples]`.

XLA takes a compiled product's columns in vectors. A layer of `[examples, units]` has as many columns as units: eight
fill half a vector, ten classes are padded to sixteen, and a batch that all lanes share makes their weights lie lane
beside lane. Turned, each product has as many columns as the batch has examples, and a shared batch is one factor of a
product whose rows are the units of all lanes. A softmax and its gradient fill vectors as well.

So every product of a batch and weights is computed transposed, `W' X'`, in `[units, examples]`. What is computed from
it number by number lies so too, weights and an optimiser's averages lie column by column, and a weights' gradient,
which JAX computes transposed, comes out like them. To be transposed in memory remain the layers' activations and the
weights, once a step each, as it is without turning. Bias gradients, sums along the rows then, are products with ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend import core

from vmaptune.rewrite._columns import ALIKE
from vmaptune.rewrite._products import VECTOR, ProductShape, product_shape
from vmaptune.rewrite._walk import alone, call_instead, inner_jaxprs

FEWEST = 32  # examples, two vectors of 512 bits, unless there are as few units

# Primitives that compute each number from numbers at its own place.
BY_NUMBER = {
    "abs", "add", "add_any", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "div",
    "eq", "erf", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem",
    "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
    "optimization_barrier", "layout_constraint",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Turned:
    """What is turned in a jaxpr and in what it calls.

    Attributes:
      products: the results of products of a batch and weights, to be computed transposed.
      columns: the variables, rank 2, whose arrays lie column by column.
    """

    products: frozenset[Any] = frozenset()
    columns: frozenset[Any] = frozenset()

    def exchange(self, eqn: Any) -> Any:
        """The equation to compute in the place of one that turning concerns; the same object for any other."""
        if eqn.primitive.name == "reduce_sum" and _sums_examples(eqn) and eqn.invars[0] in self.columns:
            return call_instead(eqn, "sum_of_examples", (sum_of_examples,))
        if eqn.primitive.name != "dot_general":
            return eqn
        lie = tuple(v in self.columns for v in eqn.invars)
        turned = eqn.outvars[0] in self.products
        shape = product_shape(eqn) if turned or any(lie) else None
        if shape is None or not _is_flat(shape):
            return eqn
        return call_instead(eqn, "turned_product", (flat_product, shape, turned, lie))


NOTHING = Turned()


def what_to_turn(jaxpr: Any, states: Iterable[Any]) -> Turned:
    """What to turn in the jaxpr of one lane's training step.

    Args:
      states: the pairs of variables `(before, after)` that hold the state, which is carried from step to step.
    """
    states = [(a, b) for a, b in states if isinstance(b, core.Var)]
    products = _products_of_batches(jaxpr, {before for before, _ in states})
    layers = [product for product in products if product.layer]
    if not layers or any(p.examples % VECTOR or p.examples < min(FEWEST, p.units) for p in products):
        return NOTHING
    alike = _Alike()
    for before, after in states:
        alike.join(before, after)
    alike.join_all(jaxpr)
    for product in products:
        alike.lay(product.eqn.outvars[0])
    for product in layers:
        alike.lay(product.eqn.invars[1])
    return Turned(frozenset(p.eqn.outvars[0] for p in products), alike.columns())


def flat_product(shape: ProductShape, turned: bool, columns: tuple[bool, bool], lhs: jax.Array, rhs: jax.Array) -> Any:
    """The product of `shape`, of two matrices that lie row by row or in `columns`, `[M, N]`; computed transposed and
    laid column by column if `turned`."""
    first = _lying(lhs, shape.lhs_order == (0, 1), columns[0], turned)
    second = _lying(rhs, shape.rhs_order == (0, 1), columns[1], turned)
    out = lax.dot_general(
        *((second, first) if turned else (first, second)), (((1,), (0,)), ((), ())),
        precision=shape.precision, preferred_element_type=shape.preferred_element_type,
    )  # fmt: skip
    out = lax.optimization_barrier(out)  # a transposition after it would become a product of another form
    return out.T if turned else out


def _lying(array: jax.Array, in_order: bool, columns: bool, turned: bool) -> jax.Array:
    """A factor in the order that the product wants, row by row in memory."""
    wanted = array if in_order != turned else array.T
    if in_order != turned and not columns:
        return wanted
    if in_order == turned and columns:  # it lies so already: the barrier keeps XLA from a product of another form
        return lax.optimization_barrier(wanted)

    def moved(array: jax.Array) -> jax.Array:
        return array.T

    return lax.optimization_barrier(alone(moved, wanted.T))


def sum_of_examples(array: jax.Array) -> jax.Array:
    """`[examples, units]`, laid column by column, summed to `[units]` by a product of each lane's own with ones."""

    def summed(array: jax.Array) -> jax.Array:
        return of_lanes(1, [True], array[None])[0][0]

    def of_lanes(lanes: int, _: list[bool], array: jax.Array) -> tuple[jax.Array, bool]:
        ones = lax.optimization_barrier(jnp.ones((lanes, array.shape[1], 1), array.dtype))
        out = lax.dot_general(lax.optimization_barrier(array.mT), ones, (((2,), (1,)), ((0,), (0,))))
        return out[..., 0], True

    call = custom_vmap(summed)
    call.def_vmap(of_lanes)
    return call(array)


def _is_flat(shape: ProductShape) -> bool:
    return len(shape.lhs) == len(shape.rhs) == 2 and not shape.batch and shape.contracted == 1


def _sums_examples(eqn: Any) -> bool:
    aval = eqn.invars[0].aval
    return (
        aval.ndim == 2 and tuple(eqn.params["axes"]) == (0,) and aval.dtype == jnp.float32 and math.prod(aval.shape) > 0
    )


class _Product(NamedTuple):
    """A product of a batch and weights: a layer's own, or the one that gives its input's gradient."""

    eqn: Any
    shape: ProductShape
    layer: bool

    @property
    def examples(self) -> int:
        return self.shape.lhs[0]

    @property
    def units(self) -> int:
        return self.shape.columns


def _products_of_batches(jaxpr: Any, state: set[Any]) -> list[_Product]:
    """Those of a jaxpr and of what it calls: the first factor comes of data, the second of the `state` alone."""
    own = {v for v in jaxpr.invars if v in state or not v.aval.shape}
    found = []
    for eqn in jaxpr.eqns:
        of_state = [isinstance(v, core.Literal) or v in own for v in eqn.invars]
        if all(of_state):
            own.update(eqn.outvars)
        if eqn.primitive.name in ALIKE:
            for inner in inner_jaxprs(eqn):
                if len(inner.invars) == len(eqn.invars):
                    mine = {v for v, s in zip(inner.invars, of_state, strict=True) if s}
                    found += _products_of_batches(inner, mine)
        shape = product_shape(eqn)
        if shape is not None and _is_flat(shape) and of_state == [False, True] and shape.lhs_order == (0, 1):
            found.append(_Product(eqn, shape, shape.rhs_order == (0, 1)))
    return found


class _Alike:
    """Matrices whose arrays lie alike, or one as the other transposed, each class with one order of memory."""

    def __init__(self) -> None:
        self._above: dict[Any, tuple[Any, bool]] = {}  # a variable's next of its class, and whether it lies crosswise
        self._columns: dict[Any, bool] = {}  # a class' first one: whether it lies column by column

    def first(self, var: Any) -> tuple[Any, bool]:
        """The first one of a variable's class, and whether the variable lies across to it."""
        across = False
        while var in self._above:
            var, crosswise = self._above[var]
            across ^= crosswise
        return var, across

    def join(self, a: Any, b: Any, across: bool = False) -> None:
        if not (_is_matrix(a) and _is_matrix(b)):
            return
        (a, across_a), (b, across_b) = self.first(a), self.first(b)
        if a is not b:
            self._above[b] = (a, across ^ across_a ^ across_b)

    def join_all(self, jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name == "optimization_barrier":
                for a, b in zip(eqn.invars, eqn.outvars, strict=True):
                    self.join(b, a)
            elif name in BY_NUMBER:
                out = eqn.outvars[0]
                for v in eqn.invars:
                    if v.aval.shape == out.aval.shape:
                        self.join(out, v)
            elif name == "transpose" and tuple(eqn.params["permutation"]) == (1, 0):
                self.join(eqn.outvars[0], eqn.invars[0], across=True)
            elif name in ALIKE:
                for inner in inner_jaxprs(eqn):
                    if len(inner.invars) == len(eqn.invars):
                        for a, b in zip((*eqn.invars, *eqn.outvars), (*inner.invars, *inner.outvars), strict=True):
                            self.join(a, b)
                        self.join_all(inner)

    def lay(self, var: Any) -> None:
        """Lays a variable's class so that it lies column by column, unless the class is laid."""
        if _is_matrix(var):
            first, across = self.first(var)
            self._columns.setdefault(first, not across)

    def columns(self) -> frozenset[Any]:
        found = {var for var, columns in self._columns.items() if columns}
        for var in self._above:
            first, across = self.first(var)
            if first in self._columns and self._columns[first] != across:
                found.add(var)
        return frozenset(found)


def _is_matrix(var: Any) -> bool:
    return isinstance(var, core.Var) and len(getattr(var.aval, "shape", ())) == 2
