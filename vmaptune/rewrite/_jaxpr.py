"""Puts fast convolutions and poolings in the place of XLA's.

It works on the jaxpr before differentiation, so that the gradient's equations are slices and products as well. Only
equations are exchanged; everything else, custom derivative rules included, stays as it was traced. What a custom rule
itself computes is not seen here: if it holds convolutions, `with_fast_convolutions` around the gradient reaches them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from vmaptune.rewrite._choose import INNERMOST, Choice
from vmaptune.rewrite._columns import short_rows_in_columns
from vmaptune.rewrite._convolution import ConvShape, convolve, convolve_innermost, supported
from vmaptune.rewrite._innermost import INLINED, ends, examples_innermost
from vmaptune.rewrite._picking import pick, pick_shape
from vmaptune.rewrite._pooling import PoolShape, pool, poolable
from vmaptune.rewrite._walk import call_instead, exchanged, inner_jaxprs, is_as_written, note_rewrite, rewritten

CONVOLUTION = "conv_general_dilated"
POOLS = {"reduce_window_max": "max", "reduce_window_sum": "sum"}
Choose = Callable[[ConvShape], str]


def with_fast_convolutions(
    function: Callable[..., Any], choose: Choose | None = None, *, pools: bool = True
) -> Callable[..., Any]:
    """`function` with its convolutions and poolings computed as slices and matrix products.

    Results agree with the function's own to rounding; a function that holds neither has its own jaxpr evaluated.
    Apply it before `jax.grad`, and to the function of one lane. The JAX arrays among the arguments are traced, at each
    call, as `jax.jit` traces them; everything else (numbers, strings, NumPy arrays) reaches `function` as it is.

    `choose` takes a `ConvShape` and returns "innermost", "im2col", "shifted", "depthwise" or, to leave it as it is,
    "xla"; without it a heuristic decides, of a model as a whole. From an "innermost" one to the next, what lies between
    keeps the examples innermost. `pools` says whether poolings are exchanged too.
    """

    def rewrite(closed: Any) -> Any:
        if is_as_written():
            return closed
        shapes = find_convolutions(closed)
        choice = elsewhere = choose if choose is not None else Choice()
        if isinstance(choice, Choice) and _are_within_reach(closed.jaxpr) and choice.of_model(shapes) == INNERMOST:
            choice = _innermost

        def faster(eqn: Any) -> Any:
            return _faster(eqn, elsewhere, pools)

        if choice is _innermost or any(choice(shape) == INNERMOST for shape in shapes):
            new = examples_innermost(closed, lambda eqn: _on_innermost(eqn, choice, pools), faster)
        else:
            new = closed.replace(jaxpr=exchanged(closed.jaxpr, faster))
        if jax.default_backend() == "cpu":
            new = new.replace(jaxpr=short_rows_in_columns(new.jaxpr))
        if new.jaxpr is not closed.jaxpr:
            note_rewrite("before differentiation")
        return new

    return rewritten(function, rewrite)


def find_convolutions(closed_jaxpr: Any) -> list[ConvShape]:
    """The distinct convolutions of a jaxpr and of what it calls, in the order of their first appearance."""
    jaxpr = getattr(closed_jaxpr, "jaxpr", closed_jaxpr)
    found: dict[ConvShape, None] = {}
    for eqn in jaxpr.eqns:
        shape = conv_shape(eqn)
        if shape is not None:
            found[shape] = None
        for inner in inner_jaxprs(eqn):
            found.update(dict.fromkeys(find_convolutions(inner)))
    return list(found)


def conv_shape(eqn: Any) -> ConvShape | None:
    """The record of an equation that is a convolution of one dtype, or None."""
    if eqn.primitive.name != CONVOLUTION or eqn.params.get("out_sharding") is not None:
        return None
    lhs, rhs = (v.aval for v in eqn.invars)
    if lhs.dtype != rhs.dtype:
        return None
    p, dims = eqn.params, eqn.params["dimension_numbers"]
    result = p["preferred_element_type"]
    return ConvShape(
        lhs=tuple(lhs.shape),
        rhs=tuple(rhs.shape),
        dtype=lhs.dtype.name,
        lhs_spec=tuple(dims.lhs_spec),
        rhs_spec=tuple(dims.rhs_spec),
        out_spec=tuple(dims.out_spec),
        window_strides=tuple(p["window_strides"]),
        padding=tuple((int(low), int(high)) for low, high in p["padding"]),
        lhs_dilation=tuple(p["lhs_dilation"]),
        rhs_dilation=tuple(p["rhs_dilation"]),
        feature_group_count=p["feature_group_count"],
        batch_group_count=p["batch_group_count"],
        precision=p["precision"],
        preferred_element_type=None if result is None else np.dtype(result).name,
    )


def pool_shape(eqn: Any) -> PoolShape | None:
    """The record of an equation that is a pooling by maximum or sum, or None."""
    kind = POOLS.get(eqn.primitive.name)
    if kind is None or eqn.params.get("out_sharding") is not None:
        return None
    operand, p = eqn.invars[0].aval, eqn.params
    return PoolShape(
        kind=kind,
        operand=tuple(operand.shape),
        dtype=operand.dtype.name,
        window_dimensions=tuple(p["window_dimensions"]),
        window_strides=tuple(p["window_strides"]),
        padding=tuple((int(low), int(high)) for low, high in p["padding"]),
        base_dilation=tuple(p["base_dilation"]),
        window_dilation=tuple(p["window_dilation"]),
    )


def _faster(eqn: Any, choose: Choose, pools: bool) -> Any:
    """The equation to compute in the place of a convolution, a pooling or a pick; others as they are."""
    conv = conv_shape(eqn)
    if conv is not None:
        method = choose(conv)
        return eqn if method == "xla" else call_instead(eqn, f"convolution_{method}", (convolve, conv, method))
    window = pool_shape(eqn) if pools else None
    if window is not None:
        return call_instead(eqn, f"{window.kind}_pool", (pool, window)) if poolable(window) else eqn
    picked = pick_shape(eqn)
    return eqn if picked is None else call_instead(eqn, "pick", (pick, picked))


def _are_within_reach(jaxpr: Any) -> bool:
    """Whether no convolution lies in a loop, a branch or a rule of its own, where the walk does not go."""
    return all(
        _are_within_reach(inner) if eqn.primitive.name in INLINED else not find_convolutions(inner)
        for eqn in jaxpr.eqns
        for inner in inner_jaxprs(eqn)
    )


def _innermost(shape: ConvShape) -> str:
    return INNERMOST


def _on_innermost(eqn: Any, choose: Choose, pools: bool) -> Callable[..., Any] | None:
    """What computes an equation, the examples innermost in its first operand and in its result, if there is something
    to do so: a convolution, if that is its method, or a pooling."""
    conv = conv_shape(eqn)
    if conv is not None:
        wanted = supported(conv) and conv.has_channels_last and conv.feature_group_count == 1
        wanted = wanted and choose(conv) == INNERMOST
        return partial(convolve_innermost, conv) if wanted else None
    window = pool_shape(eqn) if pools else None
    if window is None or not poolable(window):
        return None
    if window.window_dimensions[0] > 1 or window.window_dimensions[-1] > 1:
        return None  # with its ends exchanged, a window's first maximum would be another one
    sizes: dict[str, Any] = {name: ends(size) for name, size in vars(window).items() if isinstance(size, tuple)}
    return partial(pool, dataclasses.replace(window, **sizes))
