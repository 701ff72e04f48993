"""One group's compiled segment. THE one vmap of the package is here, in `over_lanes`.

A segment is: fresh lanes initialised (an executable of its own, run only when there are some), `n` training steps of
every lane, one evaluation of every lane. The lanes of a device are split into tiles; one tile runs its whole segment
before the next one starts, so that its state stays in the cache, and a tile in which nobody trains is passed over.
The functions of the task are traced once each, for a single lane; arrays that they close over (the data) become
arguments, so that they live on the devices once and are no constants of the program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmaptune.engine.compiling import compiled, products_are_compiled
from vmaptune.engine.devices import lane_mesh
from vmaptune.engine.plan import Costs, Plan
from vmaptune.errors import InputError
from vmaptune.rewrite import fit_for_cpu, products_are_short, weights_in_columns, with_fast_convolutions
from vmaptune.task import Hyperparameters, Task

SharedArrays = dict[tuple[int, Any], tuple[Any, Any]]

NEVER = -1  # `bad` of a lane that has not gone wrong


class Result(NamedTuple):
    """What a segment says of its lanes."""

    loss: Any  # [L] float32, mean training loss over the segment; NaN for a task without a loss
    bad: Any  # [L] int32, the first step whose loss was not finite, or NEVER
    steps: Any  # [L] int32, training steps done since the lane was filled
    metrics: dict[str, Any]  # each [L] float32


TABLE = ("seed", "limit", "fresh")  # a lane's numbers besides its settings


class Hoisted(NamedTuple):
    """A function traced for one lane: a pure function of flat arrays, and the arrays that it closed over."""

    call: Callable[..., Any]  # (consts, *args) -> out
    consts: tuple[jax.Array, ...]
    out: Any  # pytree of ShapeDtypeStruct
    lower: Callable[[], Any]
    jaxpr: Any  # as traced
    fitted: Any  # as it is computed on this device
    compiled: bool  # whether its products are to be compiled with the program


def hoist(
    function: Callable[..., Any],
    *args: Any,
    compiles: Callable[[Any], bool] = lambda jaxpr: False,
    one_batch: bool = False,
) -> Hoisted:
    """Traces `function` for one lane and turns what it closes over into arguments.

    `compiles` says of its jaxpr whether products are to be compiled with the program, where they can be, `one_batch`
    that all lanes train on the same batch.
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    tree = jax.tree.structure(out)
    fitted = closed.jaxpr
    compiled_products = products_are_compiled() and compiles(fitted)
    if jax.default_backend() == "cpu":
        fitted = fit_for_cpu(fitted, compiled_products=compiled_products, one_batch=one_batch)

    def call(consts: Any, *values: Any) -> Any:
        flat = jax.core.eval_jaxpr(fitted, consts, *jax.tree.leaves(values))
        return jax.tree.unflatten(tree, flat)

    def lower() -> Any:
        return jax.jit(call).lower(tuple(closed.consts), *args)

    return Hoisted(call, tuple(closed.consts), out, lower, closed.jaxpr, fitted, compiled_products)


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def pack(tree: Any) -> Any:
    """Typed PRNG keys become plain uint32 arrays: at a program's boundary all state is plain arrays."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def key_kinds(tree: Any) -> Any:
    """For each array of a tree the implementation of its keys, or "" where it holds none."""
    return jax.tree.map(lambda x: jax.random.key_impl(x) if is_key(x) else "", tree)


def unpack(tree: Any, kinds: Any) -> Any:
    """The inverse of `pack`, with the `key_kinds` of the unpacked tree."""
    return jax.tree.map(lambda x, kind: jax.random.wrap_key_data(x, impl=kind) if kind else x, tree, kinds)


def trial_key(seed: Any) -> jax.Array:
    """The key of a trial: `jax.random.key(seed)`, threefry. Its lane has no part in it."""
    return jax.random.key(seed, impl="threefry2x32")


class LaneFunctions:
    """A task's three functions, traced for one lane of a group."""

    def __init__(self, task: Task, static: Mapping[str, Any], traced: Mapping[str, jax.ShapeDtypeStruct]):
        order = (*static, *traced)

        def settings(arrays: Mapping[str, Any]) -> Hyperparameters:
            return Hyperparameters({name: arrays.get(name, static.get(name)) for name in order})

        def init(arrays: Any, seed: Any) -> Any:
            state = _as_arrays(task.init(settings(arrays), jax.random.fold_in(trial_key(seed), 0)))
            kinds.append(key_kinds(state))  # while keys can still be told from other arrays
            return state

        def step(state: Any, arrays: Any, seed: Any, done: Any, alike: Any) -> Any:
            key = jax.random.fold_in(trial_key(seed), done + 1)
            out = task.step(state, settings(arrays), key, *((alike,) if task.shared else ()))
            state, loss = out if task.has_loss else (out, jnp.float32(jnp.nan))
            return _as_arrays(state), jnp.asarray(loss, jnp.float32)

        def evaluate(state: Any, arrays: Any) -> Any:
            metrics = task.evaluate(state, settings(arrays))
            return {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

        kinds: list[Any] = []
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        arrays = dict(traced)
        self.has_loss = task.has_loss
        self.traced = arrays
        self.init = hoist(init, arrays, seed)
        self.state = self.init.out
        self.key_kinds = kinds[-1]
        self.lockstep = task.shared is not None
        self.shared = hoist(task.shared or (lambda done: ()), count)
        self.step = hoist(
            step, self.state, arrays, seed, count, self.shared.out,
            compiles=products_are_short, one_batch=self.lockstep,
        )  # fmt: skip
        self._check_state()
        # the experiment exchanges a training step's convolutions itself, before differentiation
        self.evaluate = hoist(
            with_fast_convolutions(evaluate), self.state, arrays, compiles=lambda _: self.step.compiled
        )

    def _check_state(self) -> None:
        before, after = self.state, self.step.out[0]
        trees: list[Any] = [jax.tree.structure(before), jax.tree.structure(after)]
        same = trees[0] == trees[1]
        differ = [
            f"{jax.tree_util.keystr(path)}: {a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
            for (path, a), b in zip(
                jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=same
            )
            if (a.shape, a.dtype) != (b.shape, b.dtype)
        ]
        if not same or differ:
            raise InputError(
                "step() must return a state of the same structure, shapes and dtypes as init()'s, but "
                + ("; ".join(differ[:4]) if same else f"{jax.tree.structure(before)} became "
                   f"{jax.tree.structure(after)}")
            )  # fmt: skip

    @cached_property
    def _costs(self) -> Costs:
        state = sum(int(np.prod(s.shape, dtype=np.int64)) * s.dtype.itemsize for s in jax.tree.leaves(self.state))
        step, evaluate = _analysis(self.step), _analysis(self.evaluate)
        touched = step.get("bytes accessed", 0.0) - 4.0 * sum(c.size for c in self.step.consts)
        return Costs(
            state_bytes=state,
            step_bytes=int(min(max(touched, 0.0) / 8, 2**40)),
            step_flops=float(step.get("flops", 1.0)),
            evaluate_flops=float(evaluate.get("flops", 1.0)),
        )

    def costs(self) -> Costs:
        """Operations and bytes of one lane, from the lowered functions; nothing is compiled."""
        return self._costs


def _as_arrays(tree: Any) -> Any:
    """Python numbers in a state become arrays, and weak types strong ones: a scan's carry must not change."""
    return jax.tree.map(lambda x: x if is_key(x) else lax.convert_element_type(x, x.dtype),
                        jax.tree.map(jnp.asarray, tree))  # fmt: skip


def _analysis(function: Hoisted) -> dict[str, float]:
    analysis = function.lower().cost_analysis()
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else {}
    return analysis or {}


class Program:
    """A group's compiled segment for `plan.width` lanes.

    `run(state, table, n)` returns the new state and its results, which `read` makes a `Result`; the old state's
    buffers are given up to it. Every array has the lane axis first, `[L]`, split over the plan's devices: lane `i` lies
    on device `i // (tiles * lanes)`, in its tile `i // lanes % tiles`. What a call is told of its lanes is one array,
    and what it says of them is another: the way to a device and back takes as long for each array, however small.

    Args:
      uneven: whether a lane may reach its limit within a segment; it is frozen there then. It costs some
        percent of a step, so it is left out where segments divide all trials' steps.
    """

    def __init__(
        self,
        functions: LaneFunctions,
        traced: Mapping[str, jax.ShapeDtypeStruct],
        plan: Plan,
        shared: SharedArrays | None = None,
        *,
        uneven: bool = True,
    ):
        self.functions, self.plan, self.traced, self.uneven = functions, plan, dict(traced), uneven
        self.mesh = lane_mesh(plan.devices)
        self.by_lane = NamedSharding(self.mesh, P("lanes"))
        self.everywhere = NamedSharding(self.mesh, P())
        parts = (functions.init, functions.step, functions.evaluate, functions.shared)
        shared = shared if shared is not None else {}
        self.consts = _on_devices(tuple(p.consts for p in parts), self.everywhere, shared)
        self._state = jax.eval_shape(pack, functions.state)  # one lane's
        self._results, self._result_tree = jax.tree.flatten(_result_shapes(functions))
        self.compile_seconds = 0.0
        self.memory_bytes = 0
        self._fill, self._train = self._compile()
        self._counts: dict[int, jax.Array] = {}

    def parts(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """The two functions to compile and their arguments' shapes: the one that fills, the one that trains."""
        table = _shape((self.plan.width, len(TABLE) + len(self.traced)), jnp.uint32, self.by_lane)
        state, n = self.state_shapes(), _shape((), jnp.int32, self.everywhere)
        # an accelerator would be idle with one lane
        cpu = jax.default_backend() == "cpu"
        fill = _fill_one_by_one(self.functions) if cpu else _device(_filling(self.functions), self.plan)
        train = _device(_training(self.functions, self.uneven), self.plan)

        def fill_of(consts: Any, state: Any, table: Any) -> Any:
            hp, seeds, _, fresh = self._columns(table)
            carry, _ = fill(consts, self._carry(state), hp, seeds, fresh)
            return jax.tree.leaves(carry)

        def train_of(consts: Any, state: Any, table: Any, n: Any) -> Any:
            hp, seeds, limits, _ = self._columns(table)
            carry, result = train(consts, self._carry(state), hp, seeds, limits, n)
            results = jnp.stack([lax.bitcast_convert_type(column, jnp.uint32) for column in jax.tree.leaves(result)], 1)
            return jax.tree.leaves(carry), results

        return [
            (self._sharded(fill_of, 3), (self.consts[0], state, table)),
            (self._sharded(train_of, 4), (self.consts[1:], state, table, n)),
        ]

    def _columns(self, table: Any) -> tuple[Any, Any, Any, Any]:
        """Settings by name, seeds, limits and fresh lanes, each `[L]`, from the `table` that a call is told."""
        seeds, limits, fresh, *hp = (table[:, k] for k in range(table.shape[1]))
        settings = {
            name: lax.bitcast_convert_type(column, shape.dtype)
            for column, (name, shape) in zip(hp, self.traced.items(), strict=True)
        }
        return settings, seeds, lax.bitcast_convert_type(limits, jnp.int32), fresh != 0

    def _compile(self) -> tuple[Any, Any]:
        """The two executables: one fills fresh lanes, the other trains and measures."""
        started = time.perf_counter()
        fill, train = (function.lower(*shapes) for function, shapes in self.parts())
        # Filling runs once a trial and is long, straight code: optimising it fully takes longer than it ever runs. (At
        # level 0 it compiles faster still, but a refill then takes as long as tens of training steps.)
        quick = {"xla_backend_optimization_level": 2} if jax.default_backend() == "cpu" else None
        both = (
            fill.compile(compiler_options=quick),
            compiled(train, products=self.functions.step.compiled),
        )
        memory = both[1].memory_analysis()
        if memory is not None:
            self.memory_bytes = int(memory.temp_size_in_bytes + memory.argument_size_in_bytes)
        self.compile_seconds = time.perf_counter() - started
        return both

    def _sharded(self, device: Callable[..., Any], count: int) -> Any:
        """A device's function of `count` arguments over all devices; the second one's buffers are given up."""
        specs = [P(), P("lanes"), P("lanes"), P()][:count]
        whole = jax.shard_map(device, mesh=self.mesh, in_specs=tuple(specs), out_specs=P("lanes"), check_vma=False)
        return jax.jit(whole, donate_argnums=1)

    def state_shapes(self) -> list[Any]:
        """A state of `plan.width` lanes as shapes: the arrays of the task's packed state, then the steps done and the
        first bad step. It is a plain list, since models' own trees take the host longer than a call does."""
        lane = [*jax.tree.leaves(self._state), *[jax.ShapeDtypeStruct((), jnp.int32)] * 2]
        return [_shape((self.plan.width, *s.shape), s.dtype, self.by_lane) for s in lane]

    def task_state(self, state: Any) -> Any:
        """The task's part of a state, as the task's own tree, packed."""
        return jax.tree.unflatten(jax.tree.structure(self._state), state[:-2])

    def _carry(self, state: Any) -> Any:
        return (self.task_state(state), *state[-2:])

    def empty(self) -> Any:
        """A state of zeros, to be filled by a first segment in which every lane is fresh."""
        return [self.put(np.zeros(s.shape, s.dtype)) for s in self.state_shapes()]

    def put(self, arrays: Any) -> Any:
        """A host array `[L, ...]`, or a tree of them, on the devices that hold its lanes."""
        return jax.device_put(arrays, self.by_lane)

    def table(self, hp: Mapping[str, Any], seeds: Any, limits: Any, fresh: Any = False) -> Any:
        """What a call is told of its lanes, `[L, D + 3]` uint32 on the devices.

        Args:
          hp: the traced settings by name, `[L]` each, of their dtypes (numbers of four bytes).
          seeds: `[L]` uint32.
          limits: `[L]`, the steps at which lanes end; a lane with a limit that it has reached, such as 0, is idle.
          fresh: `[L]` bool, the lanes to initialise.
        """
        table = np.empty((self.plan.width, len(TABLE) + len(self.traced)), np.uint32)
        table[:, 0], table[:, 1], table[:, 2] = seeds, np.asarray(limits, np.int32).view(np.uint32), fresh
        for k, (name, shape) in enumerate(self.traced.items(), len(TABLE)):
            table[:, k] = np.asarray(hp[name], shape.dtype).view(np.uint32)
        return self.put(table)

    def run(self, state: Any, table: Any, n: int, *, fill: bool = False) -> tuple[Any, Any]:
        """Dispatches one segment of `n` steps, with `fill` after its fresh lanes were initialised; returns at once."""
        if fill:
            state = self._fill(self.consts[0], state, table)
        if n not in self._counts:
            self._counts[n] = jax.device_put(np.int32(n), self.everywhere)
        return self._train(self.consts[1:], state, table, self._counts[n])

    def read(self, results: Any) -> Result:
        """A call's results on the host; waits for them."""
        rows = np.ascontiguousarray(np.asarray(results).T)  # [number of results, L]
        found = [row.view(s.dtype) for row, s in zip(rows, self._results, strict=True)]
        return jax.tree.unflatten(self._result_tree, found)


class Tile(NamedTuple):
    """What is done to one tile of lanes."""

    busy: Callable[..., Any]  # (carry, *by_lane, *rest) -> bool: whether there is anything to do
    run: Callable[..., Any]  # (consts, carry, *by_lane, *rest) -> (carry, results)
    results: Any  # shapes of one lane's results


def _device(tile: Tile, plan: Plan) -> Callable[..., Any]:
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


def _filling(functions: LaneFunctions) -> Tile:
    """One tile's fresh lanes initialised."""

    def fill(consts: Any, lane: Any, arrays: Any, seed: Any, fresh: Any) -> Any:
        first = (pack(functions.init.call(consts, arrays, seed)), jnp.int32(0), jnp.int32(NEVER))
        return _either(fresh, first, lane)

    def run(consts: Any, carry: Any, hp: Any, seeds: Any, fresh: Any) -> Any:
        return over_lanes(fill)(consts, carry, hp, seeds, fresh), ()

    return Tile(lambda carry, hp, seeds, fresh: fresh.any(), run, ())


def _fill_one_by_one(functions: LaneFunctions) -> Callable[..., Any]:
    """A device's fresh lanes initialised one after another, so that a refill takes no longer than its lanes do."""

    def device(consts: Any, carry: Any, hp: Any, seeds: Any, fresh: Any) -> Any:
        (places,) = jnp.nonzero(fresh, size=len(fresh), fill_value=0)

        def one(i: Any, lanes: Any) -> Any:
            place = places[i]
            arrays, seed = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, place, 0, keepdims=False), (hp, seeds))
            first = (pack(functions.init.call(consts, arrays, seed)), jnp.int32(0), jnp.int32(NEVER))
            return jax.tree.map(lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, place, 0), lanes, first)

        return lax.fori_loop(0, fresh.sum(), one, carry), ()

    return device


def _training(functions: LaneFunctions, uneven: bool) -> Tile:
    """A segment of one tile's lanes."""

    def step(given: Any, lane: Any, arrays: Any, seed: Any, limit: Any) -> Any:
        (state, done, bad, total), (consts, alike) = lane, given
        before = unpack(weights_in_columns(state), functions.key_kinds)
        new, loss = functions.step.call(consts, before, arrays, seed, done, alike)
        new, after = weights_in_columns(pack(new)), done + 1
        if uneven:
            new, after, loss = _either(done < limit, (new, after, loss), (state, done, jnp.float32(0)))
        if functions.has_loss:
            bad = jnp.where((bad == NEVER) & ~jnp.isfinite(loss), after, bad)
        return new, after, bad, total + loss

    def measure(consts: Any, lane: Any, before: Any, arrays: Any) -> Any:
        state, done, bad, total = lane
        metrics = functions.evaluate.call(consts, unpack(state, functions.key_kinds), arrays)
        metrics = {name: jnp.where(bad == NEVER, value, jnp.nan) for name, value in metrics.items()}
        # A lane that went wrong is frozen as it was at the segment's start: once a segment, since a choice in each
        # step costs some percent of it, and since its state is spoilt a step before its loss shows it.
        state = _either(bad == NEVER, state, before[0])
        return (state, done, bad), Result(total / (done - before[1]), bad, done, metrics)

    def run(consts: Any, carry: Any, hp: Any, seeds: Any, limits: Any, n: Any) -> Any:
        step_consts, evaluate_consts, shared_consts = consts
        # in lockstep all lanes of a tile that still train have done as many steps, others fewer
        start = carry[1].max()

        def body(t: Any, both: Any) -> Any:
            lanes, alike = both
            lanes = over_lanes(step)((step_consts, alike), lanes, hp, seeds, limits)
            # worked out a step ahead: as part of the step, the compiler would repeat it for each use
            return lanes, functions.shared.call(shared_consts, start + t + 1)

        lanes = (*carry, jnp.zeros(len(limits), jnp.float32))
        lanes, _ = lax.fori_loop(0, n, body, (lanes, functions.shared.call(shared_consts, start)))
        return over_lanes(measure)(evaluate_consts, lanes, carry, hp)

    return Tile(lambda carry, hp, seeds, limits, n: (carry[1] < limits).any(), run, _result_shapes(functions))


def over_lanes(function: Callable[..., Any]) -> Callable[..., Any]:
    """THE one vmap: a single lane's function, its first argument alike for all, for the lanes of a tile."""

    def lanes(alike: Any, *by_lane: Any) -> Any:
        return jax.vmap(lambda *mine: function(alike, *mine))(*by_lane)

    return lanes


def _either(good: Any, new: Any, old: Any) -> Any:
    """`new` where `good`, else `old`, array by array."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def _result_shapes(functions: LaneFunctions) -> Result:
    """One lane's `Result` as shapes."""
    number, count = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    return Result(number, count, count, functions.evaluate.out)


def _shape(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _on_devices(consts: Any, sharding: Any, shared: SharedArrays) -> Any:
    """Constants on every device; one copy for all programs that close over the same array."""

    def one(array: Any) -> Any:
        key = (id(array), sharding)
        if key not in shared:
            shared[key] = (
                array,
                jax.device_put(array, sharding),
            )  # the array is kept, so its id stays its own
        return shared[key][1]

    return jax.tree.map(one, consts)
