"""How much a computation keeps at once, from its jaxpr."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.extend import core


def bytes_at_once(jaxpr: Any) -> int:
    """The most bytes of results that lie in memory together while a jaxpr is computed equation by equation.

    Each result is kept from its equation to the last one that reads it. What the jaxpr is given is not counted, nor
    what XLA leaves out by computing several equations in one pass, so that it takes about as much or less.
    """
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last |= dict.fromkeys((v for v in eqn.invars if isinstance(v, core.Var)), i)
    last |= dict.fromkeys((v for v in jaxpr.outvars if isinstance(v, core.Var)), len(jaxpr.eqns))
    held: dict[Any, int] = {}
    most = now = 0
    for i, eqn in enumerate(jaxpr.eqns):
        made = {v: _bytes(v.aval) for v in eqn.outvars if last.get(v, -1) >= i}
        held |= made
        now += sum(made.values())
        most = max(most, now + max(map(bytes_at_once, _inner(eqn)), default=0))
        for v in {v for v in (*eqn.invars, *eqn.outvars) if isinstance(v, core.Var) and last.get(v) == i}:
            now -= held.pop(v, 0)
    return most


def _inner(eqn: Any) -> list[Any]:
    values = [one for value in eqn.params.values() for one in (value if isinstance(value, (tuple, list)) else (value,))]
    return [getattr(one, "jaxpr", one) for one in values if isinstance(one, (core.ClosedJaxpr, core.Jaxpr))]


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)) * itemsize
