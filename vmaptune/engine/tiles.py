"""What is done to the lanes of one device, tile by tile. THE one vmap of the package is here, in `over_lanes`.

The lanes of a device are split into tiles; one tile runs its whole segment before the next one starts, so that its
state stays in the cache, and a tile in which nobody trains is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vmaptune.engine.functions import AHEAD, LaneFunctions, no_sum, pack, real, unpack
from vmaptune.engine.plan import Plan
from vmaptune.rewrite import weights_in_columns

MEASURE_BYTES = 2**26  # of a tile's lanes that are measured together, or an eighth of an accelerator's memory
NEVER = -1  # `bad` of a lane that has not gone wrong


class Result(NamedTuple):
    """What a segment says of its lanes."""

    loss: Any  # [L] float, mean training loss over the segment; NaN for a task without a loss
    bad: Any  # [L] int32, the first step whose loss was not finite, or NEVER
    steps: Any  # [L] int32, training steps done since the lane was filled
    metrics: dict[str, Any]  # each [L] float


class Tile(NamedTuple):
    """What is done to one tile of lanes."""

    busy: Callable[..., Any]  # (carry, *by_lane, *rest) -> bool: whether there is anything to do
    run: Callable[..., Any]  # (consts, carry, *by_lane, *rest) -> (carry, results)
    results: Any  # shapes of one lane's results


def device_of(tile: Tile, plan: Plan) -> Callable[..., Any]:
    """The tiles of one device, one after another: a function of all of the device's lanes.

    Its arguments are the constants, the carry, arrays of all lanes, and numbers that all share as the rest. Each lane
    is read from the carry and written back once; the results of a tile that had nothing to do are 0.
    """

    def device(consts: Any, carry: Any, *more: Any) -> Any:
        rest = [a for a in more if getattr(a, "shape", None) == ()]
        by_lane = more[: len(more) - len(rest)]
        width = plan.tiles * plan.lanes
        results = jax.tree.map(lambda s: jnp.zeros((width, *s.shape), s.dtype), tile.results)

        def one(t: Any, both: Any) -> Any:
            first = t * plan.lanes  # a tile axis would be of length 1 for some plans, for which XLA copies everything

            def of(tree: Any) -> Any:
                return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, first, plan.lanes), tree)

            def put(whole: Any, part: Any) -> Any:
                return jax.tree.map(lambda w, p: lax.dynamic_update_slice_in_dim(w, p, first, 0), whole, part)

            def run(both: Any) -> Any:
                carry, results = both
                new, found = tile.run(consts, of(carry), *of(by_lane), *rest)
                return put(carry, new), put(results, found)

            busy = tile.busy(of(both[0]), *of(by_lane), *rest)
            return lax.cond(busy, run, lambda both: both, both)  # one predicate, so a real branch

        both = (carry, results)
        return one(0, both) if plan.tiles == 1 else lax.fori_loop(0, plan.tiles, one, both)

    return device


def filling(functions: LaneFunctions) -> Tile:
    """One tile's fresh lanes initialised."""

    def fill(consts: Any, lane: Any, arrays: Any, seed: Any, fresh: Any) -> Any:
        first = (functions.held(pack(functions.init.call(consts, arrays, seed))), jnp.int32(0), jnp.int32(NEVER))
        return _either(fresh, first, lane)

    def run(consts: Any, carry: Any, hp: Any, seeds: Any, fresh: Any) -> Any:
        return over_lanes(fill)(consts, carry, hp, seeds, fresh), ()

    return Tile(lambda carry, hp, seeds, fresh: fresh.any(), run, ())


def fill_one_by_one(functions: LaneFunctions) -> Callable[..., Any]:
    """A device's fresh lanes initialised one after another, so that a refill takes no longer than its lanes do."""

    def device(consts: Any, carry: Any, hp: Any, seeds: Any, fresh: Any) -> Any:
        (places,) = jnp.nonzero(fresh, size=len(fresh), fill_value=0)

        def one(i: Any, lanes: Any) -> Any:
            place = places[i]
            arrays, seed = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, place, 0, keepdims=False), (hp, seeds))
            first = (functions.held(pack(functions.init.call(consts, arrays, seed))), jnp.int32(0), jnp.int32(NEVER))
            return jax.tree.map(lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, place, 0), lanes, first)

        return lax.fori_loop(0, fresh.sum(), one, carry), ()

    return device


def training(functions: LaneFunctions, uneven: bool) -> Tile:
    """A segment of one tile's lanes."""

    def of_task(state: Any) -> Any:
        return unpack(functions.held(state), functions.key_kinds)

    def step(given: Any, lane: Any, own: Any, arrays: Any, seed: Any, limit: Any) -> Any:
        (state, done, bad, total), (consts, alike) = lane, given
        before = of_task(weights_in_columns(state))
        new, loss = functions.step.call(consts, before, arrays, seed, done, alike if functions.lockstep else own)
        new, after = weights_in_columns(functions.held(pack(new))), done + 1
        if uneven:
            new, after, loss = _either(done < limit, (new, after, loss), (state, done, jnp.zeros((), real())))
        if functions.has_loss:
            bad = jnp.where((bad == NEVER) & ~jnp.isfinite(loss), after, bad)
        return new, after, bad, total.plus(loss)

    def inputs(consts: Any, lane: Any, arrays: Any) -> Any:
        state, done, _, _ = lane
        return functions.inputs.call(consts, of_task(state), arrays, done)

    def metrics_of(consts: Any, state: Any, arrays: Any) -> Any:
        return functions.evaluate.call(consts, of_task(state), arrays)

    def measure(_: Any, lane: Any, before: Any, metrics: Any) -> Any:
        state, done, bad, total = lane
        metrics = {name: jnp.where(bad == NEVER, value, jnp.nan) for name, value in metrics.items()}
        # A lane that went wrong is frozen as it was at the segment's start: once a segment, since a choice in each
        # step costs some percent of it, and since its state is spoilt a step before its loss shows it.
        state = _either(bad == NEVER, state, before[0])
        return (state, done, bad), Result(total.total / (done - before[1]).astype(real()), bad, done, metrics)

    def run(consts: Any, carry: Any, hp: Any, seeds: Any, limits: Any, n: Any) -> Any:
        step_consts, evaluate_consts, shared_consts, inputs_consts = consts
        # in lockstep all lanes of a tile that still train have done as many steps, others fewer
        start = carry[1].max()

        def steps(first: Any, count: Any, lanes: Any) -> Any:
            """So many steps, at most `AHEAD` where they take something in."""
            alike = functions.shared.call(shared_consts, start + first)  # [AHEAD, ...] each
            own = over_lanes(inputs)(inputs_consts, lanes, hp)  # [L, AHEAD, ...] each

            def body(t: Any, lanes: Any) -> Any:
                ours, mine = _at(t, alike, 0), _at(t, own, 1)
                return over_lanes(step)((step_consts, ours), lanes, mine, hp, seeds, limits)

            return lax.fori_loop(0, count, body, lanes)

        lanes = (*carry, no_sum((len(limits),)))
        if functions.looks_ahead:
            blocks = (n + AHEAD - 1) // AHEAD
            lanes = lax.fori_loop(0, blocks, lambda k, x: steps(k * AHEAD, jnp.minimum(n - k * AHEAD, AHEAD), x), lanes)
        else:
            lanes = steps(0, n, lanes)
        some = at_once(functions.evaluate_bytes, len(limits))
        metrics = over_lanes_in_turn(metrics_of, some)(evaluate_consts, lanes[0], hp)
        return over_lanes(measure)((), lanes, carry, metrics)

    return Tile(lambda carry, hp, seeds, limits, n: (carry[1] < limits).any(), run, result_shapes(functions))


def over_lanes(function: Callable[..., Any]) -> Callable[..., Any]:
    """THE one vmap: a single lane's function, its first argument alike for all, for the lanes of a tile."""

    def lanes(alike: Any, *by_lane: Any) -> Any:
        if jax.tree.leaves(by_lane)[0].shape[0] == 1:  # an axis of length 1 hides what XLA would see in matrices
            one = function(alike, *jax.tree.map(lambda a: a[0], by_lane))
            return jax.tree.map(lambda a: a[None], one)
        return jax.vmap(lambda *mine: function(alike, *mine))(*by_lane)

    return lanes


def over_lanes_in_turn(function: Callable[..., Any], some: int) -> Callable[..., Any]:
    """The same, `some` lanes after another, a divisor of their number: what takes much memory for each."""

    def lanes(alike: Any, *by_lane: Any) -> Any:
        width = jax.tree.leaves(by_lane)[0].shape[0]
        if some == width:
            return over_lanes(function)(alike, *by_lane)
        split = jax.tree.map(lambda a: a.reshape(width // some, some, *a.shape[1:]), by_lane)
        found = lax.map(lambda mine: over_lanes(function)(alike, *mine), split)
        return jax.tree.map(lambda a: a.reshape(width, *a.shape[2:]), found)

    return lanes


def at_once(lane_bytes: int, lanes: int) -> int:
    """How many of a tile's lanes are measured together, a divisor of their number, where each takes so much memory."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {} if jax.default_backend() != "cpu" else {}
    most = max(1, max(MEASURE_BYTES, stats.get("bytes_limit", 0) // 8) // max(1, lane_bytes))
    return max(n for n in range(1, lanes + 1) if lanes % n == 0 and n <= most)


def _at(t: Any, tree: Any, axis: int) -> Any:
    """Each array's part at place `t` of an axis."""
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, t, axis, keepdims=False), tree)


def _either(good: Any, new: Any, old: Any) -> Any:
    """`new` where `good`, else `old`, array by array."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def result_shapes(functions: LaneFunctions) -> Result:
    """One lane's `Result` as shapes."""
    number, count = jax.ShapeDtypeStruct((), real()), jax.ShapeDtypeStruct((), jnp.int32)
    return Result(number, count, count, functions.evaluate.out)
