"""The walk over a jaxpr that exchanges equations for faster ones, in it and in what it calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

try:
    from jax.experimental.xla_metadata import set_xla_metadata
except ImportError:  # pragma: no cover - where a future JAX keeps it elsewhere, calls are inlined
    set_xla_metadata = None  # type: ignore[assignment]

# Primitives whose jaxprs are what they compute, so that one may be exchanged for an equal one. A custom derivative's
# rule lies in other parameters, and stays.
CALLS = {
    "jit", "call", "closed_call", "scan", "while", "cond", "remat2", "custom_jvp_call", "custom_vjp_call",
}  # fmt: skip

KEPT = 1024  # traced implementations; those of long gone models are let go
Exchange = Callable[[Any], Any]  # an equation -> the one to take its place, or the same object
_as_written: ContextVar[bool] = ContextVar("as_written", default=False)
_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


@contextmanager
def as_written(wanted: bool = True) -> Iterator[None]:
    """Within it, what this thread traces stays as the person wrote it, if `wanted`."""
    before = _as_written.set(wanted or _as_written.get())
    try:
        yield
    finally:
        _as_written.reset(before)


@contextmanager
def rewrites_noted() -> Iterator[list[str]]:
    """Within it, this thread notes by name what it rewrites before differentiation, in the list that it gives."""
    found: list[str] = []
    before = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(before)


def note_rewrite(name: str) -> None:
    """Notes that something was rewritten, where anybody wants to know."""
    noted = _noted.get()
    if noted is not None:
        noted.append(name)


def is_as_written() -> bool:
    """Whether `as_written` holds here."""
    return _as_written.get()


def exchanged(jaxpr: Any, exchange: Exchange) -> Any:
    """The jaxpr with its equations exchanged; the same object if there is nothing to exchange."""
    eqns = [_equation(eqn, exchange) for eqn in jaxpr.eqns]
    if all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True)):
        return jaxpr
    return jaxpr.replace(eqns=eqns)


def with_exchanged(function: Callable[..., Any], exchange: Exchange) -> Callable[..., Any]:
    """`function` with the equations of its jaxpr exchanged, as `rewritten` is."""
    return rewritten(function, lambda closed: closed.replace(jaxpr=exchanged(closed.jaxpr, exchange)))


def rewritten(function: Callable[..., Any], rewrite: Callable[[Any], Any]) -> Callable[..., Any]:
    """`function` with its jaxpr, a closed one, rewritten.

    The JAX arrays among the arguments are traced, at each call, as `jax.jit` traces them; everything else (numbers,
    strings, NumPy arrays) reaches `function` as it is.
    """

    @functools.wraps(function)
    def fast(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        traced = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        rest: list[Any] = []  # the results' leaves, None in the place of an array
        trees: list[Any] = []

        def flat(*arrays: Any) -> list[Any]:
            whole = list(leaves)
            for i, array in zip(traced, arrays, strict=True):
                whole[i] = array
            args, kwargs = jax.tree.unflatten(tree, whole)
            out, out_tree = jax.tree.flatten(function(*args, **kwargs))
            rest[:], trees[:] = [None if isinstance(leaf, jax.Array) else leaf for leaf in out], [out_tree]
            return [leaf for leaf in out if isinstance(leaf, jax.Array)]

        closed = jax.make_jaxpr(flat)(*(leaves[i] for i in traced))
        closed = rewrite(closed)
        arrays = iter(evaluated(closed.jaxpr, closed.consts, *(leaves[i] for i in traced)))
        return jax.tree.unflatten(trees[0], [next(arrays) if leaf is None else leaf for leaf in rest])

    return fast


def evaluated(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    """The results of a jaxpr, all of them arrays: one that hangs on no argument comes as a plain number otherwise."""
    results = jax.core.eval_jaxpr(jaxpr, consts, *args)
    return [
        x if hasattr(x, "dtype") else jnp.asarray(x, v.aval.dtype) for x, v in zip(results, jaxpr.outvars, strict=True)
    ]


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs that an equation computes."""
    if eqn.primitive.name in CALLS:
        for value in eqn.params.values():
            for one in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(one, (core.ClosedJaxpr, core.Jaxpr)):
                    yield getattr(one, "jaxpr", one)


def results_of(jaxpr: Any, eqn: Any, values: Sequence[Any], exchange: Exchange = lambda eqn: eqn) -> list[Any]:
    """The results of one equation of a jaxpr for its operands' values, with it and what it calls exchanged."""
    given = {v: value for v, value in zip(eqn.invars, values, strict=True) if isinstance(v, core.Var)}
    one = jaxpr.replace(constvars=[], invars=list(given), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return evaluated(exchanged(one, exchange), (), *given.values())


def call_instead(eqn: Any, name: str, implementation: tuple[Any, ...]) -> Any:
    """An equation that calls `implementation(*operands)`, jitted under `name`, in the place of `eqn`.

    The implementation returns an array, or a tuple of them where the equation has several results.
    """
    call = _jitted(name, tuple(v.aval.dtype for v in eqn.outvars), *implementation)
    operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    traced = jax.make_jaxpr(call)(*operands)
    if traced.consts or len(traced.jaxpr.eqns) != 1 or len(traced.jaxpr.eqns[0].invars) != len(operands):
        return eqn  # not one call of the operands alone, as a future JAX might trace it; XLA's own is right as well
    (new,) = traced.jaxpr.eqns
    return new.replace(invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info, ctx=eqn.ctx)


def with_inner(eqn: Any, rewrite: Callable[[Any], Any]) -> Any:
    """The equation with each of the jaxprs that it computes rewritten; the same object if none changes."""
    if eqn.primitive.name not in CALLS:
        return eqn
    params = {name: _param(value, rewrite) for name, value in eqn.params.items()}
    if all(params[name] is value for name, value in eqn.params.items()):
        return eqn
    return eqn.replace(params=params)


def _equation(eqn: Any, exchange: Exchange) -> Any:
    new = exchange(eqn)
    return new if new is not eqn else with_inner(eqn, lambda jaxpr: exchanged(jaxpr, exchange))


def _param(value: Any, rewrite: Callable[[Any], Any]) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        jaxpr = rewrite(value.jaxpr)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, core.Jaxpr):
        return rewrite(value)
    if isinstance(value, (tuple, list)):
        new = [_param(v, rewrite) for v in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else type(value)(new)
    return value


@functools.lru_cache(maxsize=KEPT)
def _jitted(name: str, dtypes: tuple[Any, ...], function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """`function(*first, ...)` as one `jit` equation; the same one for the same record, which is traced once."""

    def call(*operands: Any) -> Any:
        out = function(*first, *operands)
        results = out if isinstance(out, (tuple, list)) else (out,)
        # a key has no other type
        return [
            r if r.dtype == dtype else lax.convert_element_type(r, dtype)
            for r, dtype in zip(results, dtypes, strict=True)
        ]

    call.__name__ = name
    return jax.jit(call)


def alone(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`function(*arrays)` as a call that XLA does not inline, so that neither what comes before is computed again in
    it nor what comes after in its loop. Barriers don't do that: XLA drops them before it fuses."""
    if set_xla_metadata is None:
        return function(*arrays)
    with set_xla_metadata(inlineable="false"):
        return jax.jit(function)(*arrays)
