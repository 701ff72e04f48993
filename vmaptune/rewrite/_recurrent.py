"""A recurrent network's gradients, summed in one product after the loop over time instead of at each step.

JAX adds each time step's product to a gradient that it carries through the loop. A product of eight examples is short,
and zeroing, reading and writing a matrix of weights for each takes as long as the product itself. The factors of all
steps, put one behind the other, make one product of `[times x examples]` rows.

It takes scans without effects, and of what they carry only sums of float32 numbers that nothing else in a step reads.
A sum goes in another order, so that it may differ in its last bits; NaN and infinities come out where they would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from vmaptune.rewrite._products import product_shape
from vmaptune.rewrite._walk import call_instead, exchanged, with_inner

MOST_ROWS = 4096  # times and examples of one product; more leave the cache
LARGE = 2  # times as many numbers as both factors has a matrix that is worth leaving alone in a loop
MOVES = {"transpose", "reshape", "squeeze"}  # of one step's sum, before it is added


class Sum(NamedTuple):
    """A gradient that a loop's body adds to what it carries.

    Attributes:
      carry: its place among what is carried.
      eqns: the equation whose result is added, a product or a sum, what moves it, and the addition.
    """

    carry: int
    eqns: tuple[Any, ...]

    @property
    def source(self) -> Any:
        return self.eqns[0]

    @property
    def moves(self) -> tuple[Any, ...]:
        return self.eqns[1:-1]


def sums_after_loops(jaxpr: Any) -> Any:
    """The jaxpr with the gradients that its scans add up computed after them; the same object if there are none."""
    return exchanged(jaxpr, _with_sums_after)


def _with_sums_after(eqn: Any) -> Any:
    eqn = with_inner(eqn, sums_after_loops)
    if eqn.primitive.name != "scan" or eqn.effects:
        return eqn
    sums = _sums(eqn)
    return call_instead(eqn, "sums_after_loop", (_loop_and_sums, eqn, sums)) if sums else eqn


def _sums(eqn: Any) -> tuple[Sum, ...]:
    """The sums of a scan's body that may wait until its end: products, and sums of what these need anyway."""
    body, length = eqn.params["jaxpr"].jaxpr, eqn.params["length"]
    consts, carried = _counts(eqn)
    uses = Counter(v for e in body.eqns for v in e.invars if isinstance(v, core.Var))
    uses.update(v for v in body.outvars if isinstance(v, core.Var))
    makers = {v: e for e in body.eqns for v in e.outvars}

    def maker(v: Any) -> Any:
        return makers.get(v) if isinstance(v, core.Var) else None

    found = []
    for place, (before, after) in enumerate(zip(body.invars[consts:][:carried], body.outvars, strict=False)):
        adding = maker(after)
        if adding is None or adding.primitive.name != "add_any" or before not in adding.invars or uses[before] > 1:
            continue
        eqns = [adding, maker(next(v for v in adding.invars if v is not before))]
        while eqns[-1] is not None and eqns[-1].primitive.name in MOVES:
            eqns.append(maker(eqns[-1].invars[0]))
        if eqns[-1] is not None and all(uses[v] == 1 for e in eqns for v in e.outvars):
            found.append(Sum(place, tuple(reversed(eqns))))
    fixed = set(body.invars[:consts])
    products = [s for s in found if _is_worth_waiting_for(s.source, fixed, length)]
    there = {*body.invars[consts + carried :], *(v for s in products for v in s.source.invars)}
    sums = [s for s in found if s.source.primitive.name == "reduce_sum" and s.source.invars[0] in there]
    return (*products, *(s for s in sums if s.source.invars[0].aval.dtype == jnp.float32))


def _counts(eqn: Any) -> tuple[int, int]:
    """How many of a scan's operands are the same in every step, and how many are carried from step to step.

    Its parameters say so in another way from version to version of JAX; what it takes apart by steps, or puts together,
    has one axis more outside than inside, in all of them.
    """
    body = eqn.params["jaxpr"].jaxpr

    def by_steps(outside: Any, inside: Any) -> int:
        return sum(a.aval.ndim > b.aval.ndim for a, b in zip(outside, inside, strict=True))

    carried = len(eqn.outvars) - by_steps(eqn.outvars, body.outvars)
    return len(eqn.invars) - by_steps(eqn.invars, body.invars) - carried, carried


def _is_worth_waiting_for(eqn: Any, fixed: set[Any], length: int) -> bool:
    """Whether an equation is a product of what differs from step to step and is small beside the sum."""
    shape = product_shape(eqn)
    return (
        shape is not None
        and not shape.batch
        and all(isinstance(v, core.Var) and v not in fixed for v in eqn.invars)
        and length * shape.rows <= MOST_ROWS
        and eqn.outvars[0].aval.size >= LARGE * sum(v.aval.size for v in eqn.invars)
    )


def _loop_and_sums(eqn: Any, sums: Sequence[Sum], *operands: jax.Array) -> list[jax.Array]:
    """The results of a scan, with some of the sums that it carries computed after it."""
    p, closed = eqn.params, eqn.params["jaxpr"]
    consts, states = _counts(eqn)
    end = consts + states
    waiting = {s.carry for s in sums}
    carried = [place for place in range(states) if place not in waiting]
    xs = dict(zip(closed.jaxpr.invars[end:], operands[end:], strict=True))
    needed = dict.fromkeys(v for s in sums for v in s.source.invars)
    kept = [v for v in needed if v not in xs]
    dropped = {id(e) for s in sums for e in s.eqns}
    outvars = closed.jaxpr.outvars
    body = closed.jaxpr.replace(
        eqns=[e for e in closed.jaxpr.eqns if id(e) not in dropped],
        invars=[v for i, v in enumerate(closed.jaxpr.invars) if i - consts not in waiting],
        outvars=[*(outvars[place] for place in carried), *outvars[states:], *kept],
    )

    def step(carry: Any, x: Any) -> Any:
        out = jax.core.eval_jaxpr(body, closed.consts, *operands[:consts], *carry, *x)
        return out[: len(carried)], out[len(carried) :]

    init = [operands[consts + place] for place in carried]
    finals, ys = lax.scan(step, init, list(operands[end:]), p["length"], reverse=p["reverse"], unroll=p["unroll"])
    stacked = xs | dict(zip(kept, ys[len(ys) - len(kept) :], strict=True))
    results = dict(zip(carried, finals, strict=True))
    for s in sums:
        value = _over_time(s.source, [stacked[v] for v in s.source.invars])
        for move in s.moves:
            value = move.primitive.bind(value, **move.params)
        results[s.carry] = operands[consts + s.carry] + value
    return [*(results[place] for place in range(states)), *ys[: len(ys) - len(kept)]]


def _over_time(eqn: Any, stacked: Sequence[jax.Array]) -> jax.Array:
    """The product, or the sum, of an equation, added up over time, the first axis of its `stacked` operands."""
    if eqn.primitive.name == "reduce_sum":
        return jnp.sum(stacked[0], (0, *(axis + 1 for axis in eqn.params["axes"])))
    lhs, rhs = ((0, *(axis + 1 for axis in axes)) for axes in eqn.params["dimension_numbers"][0])
    return lax.dot_general(
        stacked[0], stacked[1], ((lhs, rhs), ((), ())),
        precision=eqn.params["precision"], preferred_element_type=eqn.params["preferred_element_type"],
    )  # fmt: skip
