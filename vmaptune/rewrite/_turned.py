"""Two-dimensional arrays of a training step with the examples innermost, as `[units, examples]`.

XLA takes a compiled product's columns in vectors. A layer of `[examples, units]` has as many columns as units: eight
fill half a vector, ten classes are padded to sixteen, and a batch that all lanes share makes their weights lie lane
beside lane. Turned, each product has as many columns as the batch has examples, and a shared batch is one factor of a
product whose rows are the units of all lanes. A softmax and its gradient fill vectors as well.

So every product of a batch and weights is computed transposed, `W' X'`, in `[units, examples]`, and what is computed
from it number by number, or summed, on the transposed arrays. Weights and an optimiser's averages are held transposed,
and a weights' gradient, which JAX computes transposed, comes out like them. To be transposed in memory remain the
layers' activations and the weights, once a step each, as it is without turning. Bias gradients, sums along the rows
then, are products with ones.

It takes products of float32 numbers, and between them what is named below. Each number is computed of the same numbers
as before, so that NaN, infinities and ties stay where they are; only a sum's last bits may differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from vmaptune.rewrite._columns import ALIKE
from vmaptune.rewrite._products import (
    VECTOR,
    ProductShape,
    columns_of_zeros,
    product_shape,
    with_zeros,
    zeros_contracted,
)
from vmaptune.rewrite._reductions import product_with_ones
from vmaptune.rewrite._walk import alone, inner_jaxprs, results_of

FEWEST = 32  # examples, two vectors of 512 bits, unless there are as few units

# Primitives that compute each number from numbers at its own place.
BY_NUMBER = {
    "abs", "add", "add_any", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "div",
    "eq", "erf", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem",
    "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
    "optimization_barrier", "layout_constraint", "erf_inv",
}  # fmt: skip
REDUCING = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
RANDOM = {"random_bits", "bitcast_convert_type"}  # what random numbers are made by, from bits
INLINED = ALIKE - {"remat", "remat2", "checkpoint"}


@dataclasses.dataclass(frozen=True)
class Turned:
    """What is turned in a jaxpr and in what it calls.

    Attributes:
      products: the results of products of a batch and weights, to be computed transposed.
      columns: the variables, rank 2, that are computed transposed, or lie so in the state.
    """

    products: frozenset[Any] = frozenset()
    columns: frozenset[Any] = frozenset()

    def lays(self, var: Any) -> bool:
        """Whether a variable's array lies column by column."""
        return isinstance(var, core.Var) and var in self.columns


NOTHING = Turned()


def what_to_turn(jaxpr: Any, states: Iterable[Any], one_batch: bool = False) -> Turned:
    """What to turn in the jaxpr of one lane's training step.

    Args:
      states: the pairs of variables `(before, after)` that hold the state, which is carried from step to step.
      one_batch: whether all lanes train on the same batch.
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
    # an input's gradient that leaves the layers, for an embedding say, would be transposed back
    of_layers = {alike.first(product.eqn.outvars[0])[0] for product in layers}
    if any(alike.first(product.eqn.outvars[0])[0] not in of_layers for product in products):
        return NOTHING
    columns = alike.columns()
    # masks of random numbers have to be transposed, as a batch of each lane's own has: together as much as it gains
    if not one_batch and _masks(jaxpr, columns):
        return NOTHING
    return Turned(frozenset(p.eqn.outvars[0] for p in products), columns)


def turned(jaxpr: Any, what: Turned) -> tuple[Any, list[Any]]:
    """The jaxpr with `what` turned, the same function, and the arrays for the constants that it has beside the
    jaxpr's own, after them; what the jaxpr calls is inlined where turning concerns it."""
    if not what.products:
        return jaxpr, []
    n = len(jaxpr.constvars)

    def call(*values: Any) -> list[Any]:
        variables = (*jaxpr.constvars, *jaxpr.invars)
        given = [_Matrix(across=a.T) if what.lays(v) else _Matrix(a) for v, a in zip(variables, values, strict=True)]
        return [m.rows for m in _evaluated(jaxpr, what, given[:n], given[n:])]

    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in (*jaxpr.constvars, *jaxpr.invars)]
    closed = jax.make_jaxpr(call)(*avals)
    found = closed.jaxpr
    constvars = [*found.invars[:n], *found.constvars]
    return found.replace(constvars=constvars, invars=found.invars[n:]), list(closed.consts)


class _Matrix:
    """An array and, if it has two axes, the same transposed; each is there once it was asked for."""

    def __init__(self, rows: Any = None, across: Any = None):
        self._rows, self._across, self._moved = rows, across, None

    @property
    def lies_across(self) -> bool:
        return self._rows is None

    @property
    def rows(self) -> Any:
        if self._rows is None:
            self._rows = self._across.T
        return self._rows

    @property
    def across(self) -> Any:
        if self._across is None:
            self._across = self._rows.T
        return self._across

    def factor(self, across: bool, lies_across: bool, padding: int = 0) -> Any:
        """The array, or its transpose, for a product: row by row in memory, where it may lie the other way; with so
        many columns of zeros if it is moved, since a copy that pads is slow."""
        if across == lies_across:
            return self.across if across else self.rows
        lying = self.across if lies_across else self.rows
        if padding:
            return lax.optimization_barrier(alone(_transposed, jnp.pad(lying, ((0, padding), (0, 0)))))
        if self._moved is None:
            self._moved = lax.optimization_barrier(alone(_transposed, lying))
        return self._moved


def _transposed(array: jax.Array) -> jax.Array:
    return array.T


def _evaluated(jaxpr: Any, what: Turned, consts: Any, args: Any) -> list[_Matrix]:
    """The results of a jaxpr."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(var: Any) -> _Matrix:
        return _Matrix(var.val) if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        results = _turned_equation(eqn, what, operands)
        if results is None:
            results = [_Matrix(value) for value in results_of(jaxpr, eqn, [m.rows for m in operands])]
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _turned_equation(eqn: Any, what: Turned, operands: list[_Matrix]) -> list[_Matrix] | None:
    """The results of an equation that turning concerns; None for any other."""
    name, out = eqn.primitive.name, eqn.outvars[0] if eqn.outvars else None
    if name in INLINED:
        (*_, inner) = (None, *inner_jaxprs(eqn))
        concerned = any(map(what.lays, (*eqn.invars, *eqn.outvars))) or any(m.lies_across for m in operands)
        if inner is None or len(inner.invars) != len(eqn.invars) or not concerned:
            return None
        return _evaluated(inner, what, _consts_of(eqn), operands)
    if name == "dot_general":
        lie = tuple(map(what.lays, eqn.invars))
        shape = product_shape(eqn) if out in what.products or any(lie) else None
        if shape is None or not shape.is_of_matrices:
            return None
        return [_product(shape, out in what.products, lie, operands)]
    if name == "transpose" and _is_matrix(eqn.invars[0]) and tuple(eqn.params["permutation"]) == (1, 0):
        (m,) = operands
        return [_Matrix(across=m.rows) if not m.lies_across else _Matrix(rows=m.across)]
    if name in REDUCING and _is_matrix(eqn.invars[0]) and operands[0].lies_across:
        axes = tuple(sorted(1 - axis for axis in eqn.params["axes"]))
        if name == "reduce_sum" and axes == (1,) and eqn.invars[0].aval.dtype == jnp.float32:
            return [_Matrix(product_with_ones(operands[0].across, rows=True))]
        return [_Matrix(eqn.primitive.bind(operands[0].across, **{**eqn.params, "axes": axes}))]
    if not what.lays(out):
        return None
    if name == "layout_constraint":  # it lies so
        return operands
    if name == "broadcast_in_dim" and len(eqn.invars) == 1:
        shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
        value = operands[0].across if len(axes) == 2 else operands[0].rows
        axes = tuple(axes) if len(axes) == 2 else tuple(1 - axis for axis in axes)
        return [_Matrix(across=lax.broadcast_in_dim(value, (shape[1], shape[0]), axes))]
    if name in BY_NUMBER and all(v.aval.ndim in (0, 2) for v in eqn.invars):
        values = [m.across if v.aval.ndim == 2 else m.rows for m, v in zip(operands, eqn.invars, strict=True)]
        found = eqn.primitive.bind(*values, **eqn.params)
        return [_Matrix(across=value) for value in (found if eqn.primitive.multiple_results else [found])]
    return None


def _consts_of(eqn: Any) -> list[_Matrix]:
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            return [_Matrix(const) for const in value.consts]
    return []


def _product(shape: ProductShape, turned: bool, columns: tuple[bool, ...], operands: list[_Matrix]) -> _Matrix:
    """The product of two matrices, of which some lie across in memory; computed transposed if `turned`."""
    (lhs, rhs), (lhs_lies, rhs_lies) = operands, columns
    first = lhs.factor((shape.lhs_order != (0, 1)) != turned, lhs_lies)
    second = rhs.factor((shape.rhs_order != (0, 1)) != turned, rhs_lies, 0 if turned else columns_of_zeros(shape))
    a, b = (second, first) if turned else (first, second)
    a, b = with_zeros(a, b, (zeros_contracted(a.shape[0], a.shape[1], b.shape[1]), 0))
    out = lax.dot_general(
        a, b, (((1,), (0,)), ((), ())),
        precision=shape.precision, preferred_element_type=shape.preferred_element_type,
    )  # fmt: skip
    if not turned:
        out = out[:, : shape.columns]
    if not shape.is_tiny:
        out = lax.optimization_barrier(out)  # a transposition after it would become a product of another form
    return _Matrix(across=out) if turned else _Matrix(out)


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
        if eqn.primitive.name in INLINED:
            for inner in inner_jaxprs(eqn):
                if len(inner.invars) == len(eqn.invars):
                    mine = {v for v, s in zip(inner.invars, of_state, strict=True) if s}
                    found += _products_of_batches(inner, mine)
        shape = product_shape(eqn)
        if shape is not None and shape.is_of_matrices and of_state == [False, True] and shape.lhs_order == (0, 1):
            found.append(_Product(eqn, shape, shape.rhs_order == (0, 1)))
    return found


def _masks(jaxpr: Any, columns: frozenset[Any]) -> bool:
    """Whether variables in `columns` are random numbers."""
    return any(
        any(_masks(inner, columns) for inner in inner_jaxprs(eqn)) if eqn.primitive.name in INLINED
        else eqn.primitive.name in RANDOM and not columns.isdisjoint(eqn.outvars)
        for eqn in jaxpr.eqns
    )  # fmt: skip


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
            elif name in INLINED:
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
