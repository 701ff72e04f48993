"""Rows of a few entries, as a classifier's logits are, in an order of memory in which reducing them is fast.

A vector of a CPU holds 8 or 16 numbers. Ten classes that lie innermost fill none, so the largest logit, the
exponentials, their sum and the gradient are computed almost number by number (a quarter of the step of a small
classifier); with the examples innermost, each of them fills vectors. A constraint on the array whose rows are
reduced is enough: XLA's layout assignment hands it on to everything elementwise around it. The last layer's weights
and their moments are the same: laid column by column in a training step, they lie so in the whole loop over steps.

It takes arrays of any type, the results of any equation. A layout says where numbers lie in memory, never which they
are: NaN, infinities, -0.0 and subnormal numbers stay as they are, and ties are decided as before.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend import core

try:
    from jax.experimental.layout import Layout, with_layout_constraint
except ImportError:  # a JAX that has them elsewhere: rows stay as they are
    Layout = None  # type: ignore[assignment, misc]

from vmaptune.rewrite._walk import inner_jaxprs, with_inner

VECTOR, FEW = 8, 16  # entries, as many as a vector holds
OF_ROWS = {"reduce_max", "reduce_min", "argmax", "argmin"}  # where a softmax or a choice begins
CONSTRAINT = "layout_constraint"
ALIKE = {"jit", "closed_call", "remat2", "custom_jvp_call"}  # as inlined


def short_rows_in_columns(jaxpr: Any) -> Any:
    """The jaxpr with arrays whose short rows are reduced laid column by column; the same object if there are none."""
    wanted = _reduced(jaxpr) if Layout is not None else set()
    eqns = []
    for old in jaxpr.eqns:
        eqn = with_inner(old, short_rows_in_columns)
        constraints = []
        for i, var in enumerate(eqn.outvars):
            if var in wanted and eqn.primitive.name != CONSTRAINT:
                inside, constraint = _constraint(var.aval)
                eqn = eqn.replace(outvars=[*eqn.outvars[:i], inside, *eqn.outvars[i + 1 :]])
                constraints.append(constraint.replace(outvars=[var], source_info=old.source_info, ctx=old.ctx))
        eqns += [eqn, *constraints]
    same = len(eqns) == len(jaxpr.eqns) and all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True))
    return jaxpr if same else jaxpr.replace(eqns=eqns)


def _constraint(aval: Any) -> tuple[Any, Any]:
    """A variable that nothing else has, and the equation that lays its array column by column."""
    # JAX keeps traces by function, and with a trace its variables: a function of each call's own makes new ones.
    traced = jax.make_jaxpr(lambda array: _in_columns(array))(jax.ShapeDtypeStruct(aval.shape, aval.dtype)).jaxpr
    (inside,), (constraint,) = traced.invars, traced.eqns
    return inside, constraint


def _reduced(jaxpr: Any) -> set[Any]:
    """The variables of a jaxpr, its arguments among them, whose short rows it reduces."""
    found: list[Any] = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in OF_ROWS and _has_short_rows(eqn):
            found.append(eqn.invars[0])
        for inner in inner_jaxprs(eqn) if eqn.primitive.name in ALIKE else ():
            if len(inner.invars) == len(eqn.invars):  # a future JAX might have it otherwise
                reduced = _reduced(inner)
                found += [outer for outer, mine in zip(eqn.invars, inner.invars, strict=True) if mine in reduced]
    return {var for var in found if not isinstance(var, core.Literal)}


def _has_short_rows(eqn: Any) -> bool:
    aval = eqn.invars[0].aval
    last = aval.ndim - 1
    return last > 0 and tuple(eqn.params["axes"]) == (last,) and 1 < aval.shape[last] <= min(FEW, aval.shape[last - 1])


def fills_no_vector(shape: tuple[int, ...]) -> bool:
    """Whether columns of an array of this shape fill vectors, and its rows don't."""
    return len(shape) > 1 and VECTOR < shape[-1] < FEW <= shape[-2] and not shape[-2] % VECTOR


def weights_in_columns(tree: Any) -> Any:
    """A tree of arrays with those laid column by column of which the rows fill no vector; the same numbers."""
    if Layout is None or jax.default_backend() != "cpu":
        return tree
    return jax.tree.map(lambda x: _in_columns(x) if fills_no_vector(x.shape) else x, tree)


def _in_columns(array: jax.Array) -> jax.Array:
    n = array.ndim
    return with_layout_constraint(array, Layout((*range(n - 2), n - 1, n - 2)))
