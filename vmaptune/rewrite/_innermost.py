"""Convolutional layers with the examples innermost, as `[channels, *spatial, examples]`.

A model has its examples first, `[examples, *spatial, channels]`, and few channels: eight fill a vector of 256 bits and
waste half of one of 512, one channel seven eighths. The copies that an im2col makes are of as few numbers each, and so
are what a pooling or its gradient reads. With the examples last all of these run along the examples.

A convolution that is computed so (`_convolution.py:convolve_innermost`) takes and returns such arrays, and what lies
between two of them is computed on them as it lies: number by number, by poolings, by sums over some axes. What has no
such form gets the array as the model has it: a rule of differentiation too, unless all that it computes goes number by
number. All this is done before differentiation, so that gradients lie the same way.

Each number is computed of the same numbers as before, so that NaN, infinities and ties stay where they are; a pooling
over channels or examples, of which the window's order says who wins a tie, is not computed so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from vmaptune.rewrite._convolution import ends_exchanged
from vmaptune.rewrite._turned import BY_NUMBER as _BY_NUMBER
from vmaptune.rewrite._turned import REDUCING
from vmaptune.rewrite._walk import Exchange, alone, results_of

BY_NUMBER = _BY_NUMBER - {"layout_constraint"}  # of which the parameter is a layout of all axes
INLINED = {"jit", "closed_call"}
RULES = 3  # that may lie in each other

Computes = Callable[[Any], Callable[..., Any] | None]


def ends(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A value for each axis, for the array with its first and its last axis exchanged."""
    return values if len(values) < 2 else (values[-1], *values[1:-1], values[0])


def examples_innermost(closed: Any, computes: Computes, exchange: Exchange) -> Any:
    """The closed jaxpr of the same function, with layers computed with the examples innermost.

    Args:
      computes: what computes an equation with the examples innermost in its first operand and in its result, or None.
      exchange: as `exchanged` takes it, for all other equations.
    """

    def call(*values: Any) -> list[Any]:
        walk = _Walk(computes, exchange)
        return [m.rows for m in walk.evaluated(closed.jaxpr, closed.consts, [_Array(value) for value in values])]

    return jax.make_jaxpr(call)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars))


class _Array:
    """An array and the same with the examples innermost; each is there once it was asked for."""

    def __init__(self, rows: Any = None, innermost: Any = None):
        self._rows, self._innermost = rows, innermost
        self.lies_innermost = rows is None

    @property
    def rows(self) -> Any:
        if self._rows is None:
            self._rows = _moved(self._innermost)
        return self._rows

    @property
    def innermost(self) -> Any:
        if self._innermost is None:
            self._innermost = _moved(self._rows)
        return self._innermost


def _moved(array: Any) -> Any:
    """The array with its ends exchanged, in memory: what reads it would read with strides else, several times."""
    return alone(ends_exchanged, array) if np.ndim(array) > 1 else array


class _Broadcast(_Array):
    """A smaller array along some axes of a shape, written out as it is asked for."""

    def __init__(self, array: Any, shape: tuple[int, ...], axes: tuple[int, ...]):
        super().__init__()
        self.lies_innermost = False
        self._array, self._shape, self._axes = array, shape, axes

    @property
    def rows(self) -> Any:
        if self._rows is None:
            self._rows = lax.broadcast_in_dim(self._array, self._shape, self._axes)
        return self._rows

    @property
    def innermost(self) -> Any:
        if self._innermost is None:
            places = ends(tuple(range(len(self._shape))))
            axes = [places[axis] for axis in self._axes]
            order = sorted(range(len(axes)), key=axes.__getitem__)
            array = lax.transpose(self._array, order) if order != list(range(len(order))) else self._array
            self._innermost = lax.broadcast_in_dim(array, ends(self._shape), sorted(axes))
        return self._innermost


class _Walk:
    """Computes the equations of a jaxpr one by one."""

    def __init__(self, computes: Computes, exchange: Exchange):
        self._computes, self._exchange = computes, exchange

    def evaluated(self, jaxpr: Any, consts: Any, args: list[_Array]) -> list[_Array]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*map(_Array, consts), *args), strict=True))

        def read(var: Any) -> _Array:
            return _Array(var.val) if isinstance(var, core.Literal) else known[var]

        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            results = self._innermost(jaxpr, eqn, operands)
            if results is None:
                results = [_Array(x) for x in results_of(jaxpr, eqn, [m.rows for m in operands], self._exchange)]
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _innermost(self, jaxpr: Any, eqn: Any, operands: list[_Array]) -> list[_Array] | None:
        """The results of an equation that is computed with the examples innermost; None for any other."""
        name, params = eqn.primitive.name, eqn.params
        if name in INLINED and isinstance(params.get("jaxpr"), core.ClosedJaxpr):
            return self.evaluated(params["jaxpr"].jaxpr, params["jaxpr"].consts, operands)
        if name == "broadcast_in_dim" and len(operands) == 1 and len(params["shape"]) > 2:
            return [_Broadcast(operands[0].rows, params["shape"], params["broadcast_dimensions"])]
        lie = [v.aval.shape for v, m in zip(eqn.invars, operands, strict=True) if m.lies_innermost]
        compute = self._computes(eqn)
        if compute is not None and (lie or not _is_pool(name)):
            return [_Array(innermost=compute(operands[0].innermost, *(m.rows for m in operands[1:])))]
        if not lie:
            return None
        shape = lie[0]
        first, places = operands[0], ends(tuple(range(len(shape))))
        if name in BY_NUMBER and all(v.aval.ndim in (0, len(shape)) for v in (*eqn.invars, *eqn.outvars)):
            out = eqn.primitive.bind(*(m.innermost for m in operands), **params)
            return [_Array(innermost=x) for x in (out if eqn.primitive.multiple_results else [out])]
        if name == "custom_jvp_call" and _is_by_number(jaxpr, eqn, shape):
            # it is for arrays of this shape, and asks for no more than that all have it
            given = [
                lax.reshape(m.innermost, shape) if v.aval.shape else m.rows
                for v, m in zip(eqn.invars, operands, strict=True)
            ]
            found = results_of(jaxpr, eqn, given, self._exchange)
            return [_Array(innermost=x.reshape(ends(x.shape))) for x in found]
        if name in REDUCING and first.lies_innermost:
            left = set(range(len(shape))) - set(params["axes"])
            if len(left) > 1 and not {0, len(shape) - 1} <= left:
                return None  # what is left would come in another order
            axes = tuple(sorted(places[axis] for axis in params["axes"]))
            out = eqn.primitive.bind(first.innermost, **{**params, "axes": axes})
            return [_Array(innermost=out) if len(left) > 1 else _Array(out)]
        if name == "pad" and first.lies_innermost:
            return [_Array(innermost=lax.pad(first.innermost, operands[1].rows, ends(params["padding_config"])))]
        if name == "concatenate":
            return [_Array(innermost=lax.concatenate([m.innermost for m in operands], places[params["dimension"]]))]
        return None


def _is_pool(name: str) -> bool:
    return name.startswith("reduce_window")


def _is_by_number(jaxpr: Any, eqn: Any, shape: tuple[int, ...], rules: frozenset[str] = frozenset()) -> bool:
    """Whether an equation of a jaxpr, and all that it and its rule of differentiation compute, goes number by number
    over one shape; `rules` are those that lead to it, as they are written."""
    if any(v.aval.shape not in ((), shape) for v in (*eqn.invars, *eqn.outvars)):
        return False
    if any(isinstance(v, core.Literal) and np.ndim(v.val) for v in eqn.invars):
        return False  # numbers that differ from place to place
    inner = [value for value in eqn.params.values() if isinstance(value, core.ClosedJaxpr)]
    if eqn.primitive.name == "custom_jvp_call":
        rule = _with_rule(jaxpr, eqn)
        written = f"{rule.jaxpr} {rule.consts}"
        if len(rules) == RULES and written not in rules:
            return False
        inner += [] if written in rules else [rule]
        rules |= {written}
    elif eqn.primitive.name not in INLINED:
        return eqn.primitive.name in BY_NUMBER or eqn.primitive.name == "broadcast_in_dim"
    return bool(inner) and all(
        not any(map(np.ndim, closed.consts))
        and all(_is_by_number(closed.jaxpr, each, shape, rules) for each in closed.jaxpr.eqns)
        for closed in inner
    )


def _with_rule(jaxpr: Any, eqn: Any) -> Any:
    """The jaxpr of what an equation of a jaxpr computes, by its rule, while it is differentiated."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    moving = [i for i, aval in enumerate(avals) if jnp.issubdtype(aval.dtype, jnp.inexact)]

    def differentiated(values: Any, tangents: Any) -> Any:
        def function(*moved: Any) -> Any:
            there = dict(zip(moving, moved, strict=True))
            return results_of(jaxpr, eqn, [there.get(i, value) for i, value in enumerate(values)])

        return jax.jvp(function, [values[i] for i in moving], tangents)

    return jax.make_jaxpr(differentiated)(avals, [avals[i] for i in moving])
