"""One group's compiled segment.

A segment is: fresh lanes initialised, where there are some, `n` training steps of every lane, one evaluation of every
lane.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmaptune.engine.compiling import compiled
from vmaptune.engine.crashes import JOURNAL
from vmaptune.engine.devices import lane_mesh
from vmaptune.engine.functions import LaneFunctions, pack
from vmaptune.engine.plan import Plan
from vmaptune.engine.tiles import Result, device_of, fill_one_by_one, filling, result_shapes, training

SharedArrays = dict[tuple[int, Any], tuple[Any, Any]]

TABLE = ("seed", "limit", "fresh")  # a lane's numbers besides its settings


class Program:
    """A group's compiled segment for `plan.width` lanes.

    `run(state, table, n)` returns the new state and its results, which `read` makes a `Result`; the old state's
    buffers are given up to it. Every array has the lane axis first, `[L]`, split over the plan's devices: lane `i` lies
    on device `i // (tiles * lanes)`, in its tile `i // lanes % tiles`. What a call is told of its lanes is one array,
    and what it says of them is another: the way to a device and back takes as long for each array, however small.

    Args:
      uneven: whether a lane may reach its limit within a segment; it is frozen there then. It costs some
        percent of a step, so it is left out where segments divide all trials' steps.
      compile: whether it is compiled at once, else by `compile` before it runs.
    """

    def __init__(
        self,
        functions: LaneFunctions,
        traced: Mapping[str, jax.ShapeDtypeStruct],
        plan: Plan,
        shared: SharedArrays | None = None,
        *,
        uneven: bool = True,
        compile: bool = True,
    ):
        self.functions, self.plan, self.traced, self.uneven = functions, plan, dict(traced), uneven
        self.mesh = lane_mesh(plan.devices)
        self.by_lane = NamedSharding(self.mesh, P("lanes"))
        self.everywhere = NamedSharding(self.mesh, P())
        parts = (functions.init, functions.step, functions.evaluate, functions.shared, functions.inputs)
        shared = shared if shared is not None else {}
        self.consts = _on_devices(tuple(p.consts for p in parts), self.everywhere, shared)
        self._state = jax.eval_shape(pack, functions.state)  # one lane's
        self._results, self._result_tree = jax.tree.flatten(result_shapes(functions))
        self._told: dict[tuple[int, bool], jax.Array] = {}
        self.memory_bytes = 0
        started = time.perf_counter()
        function, shapes = self.segment()
        self._lowered: Any = function.lower(*shapes)
        self.compile_seconds = time.perf_counter() - started
        if compile:
            self.compile()

    def segment(self) -> tuple[Any, tuple[Any, ...]]:
        """The function to compile, which fills fresh lanes if told to, trains and measures; its arguments' shapes.

        Filling has no executable of its own: its call would take as long as filling several lanes.
        """
        table = _shape((self.plan.width, len(TABLE) + len(self.traced)), jnp.uint32, self.by_lane)
        state, told = self._held_shapes(), _shape((2,), jnp.int32, self.everywhere)
        # an accelerator would be idle with one lane
        cpu = jax.default_backend() == "cpu"
        fill = fill_one_by_one(self.functions) if cpu else device_of(filling(self.functions), self.plan)
        train = device_of(training(self.functions, self.uneven), self.plan)

        def segment(consts: Any, state: Any, table: Any, told: Any) -> Any:
            hp, seeds, limits, fresh = self._columns(table)

            def filled(carry: Any) -> Any:
                return fill(consts[0], carry, hp, seeds, fresh)[0]

            n, fresh_ones = told
            carry = lax.cond(fresh_ones != 0, filled, lambda carry: carry, self._carry(state))
            carry, result = train(consts[1:], carry, hp, seeds, limits, n)
            words = [lax.bitcast_convert_type(column, jnp.uint32) for column in jax.tree.leaves(result)]
            results = jnp.concatenate([each.reshape(len(each), -1) for each in words], 1)  # 8 bytes are two words
            return jax.tree.leaves(carry), results

        specs = (P(), P("lanes"), P("lanes"), P())
        whole = jax.shard_map(segment, mesh=self.mesh, in_specs=specs, out_specs=P("lanes"), check_vma=False)
        return jax.jit(whole, donate_argnums=1), (self.consts, state, table, told)

    def _columns(self, table: Any) -> tuple[Any, Any, Any, Any]:
        """Settings by name, seeds, limits and fresh lanes, each `[L]`, from the `table` that a call is told."""
        seeds, limits, fresh, *hp = (table[:, k] for k in range(table.shape[1]))
        settings = {
            name: lax.bitcast_convert_type(column, shape.dtype)
            for column, (name, shape) in zip(hp, self.traced.items(), strict=True)
        }
        return settings, seeds, lax.bitcast_convert_type(limits, jnp.int32), fresh != 0

    def compile(self) -> Program:
        """Compiles what was lowered, unless it is. Python has no part in it, so that it holds up no other thread."""
        if self._lowered is None:
            return self
        started = time.perf_counter()
        if self.functions.step.compiled:
            with JOURNAL.compiling(self.functions.text):
                self._segment = compiled(self._lowered, products=True)
        else:
            self._segment = compiled(self._lowered, products=False)
        self._lowered = None
        memory = self._segment.memory_analysis()
        if memory is not None:
            self.memory_bytes = int(memory.temp_size_in_bytes + memory.argument_size_in_bytes)
        self.compile_seconds += time.perf_counter() - started
        return self

    def state_shapes(self) -> list[Any]:
        """A state of `plan.width` lanes as shapes: the arrays of the task's packed state, then the steps done and the
        first bad step. It is a plain list, since models' own trees take the host longer than a call does. The devices
        may hold some of them transposed."""
        return self._shapes_of(self._state)

    def _held_shapes(self) -> list[Any]:
        return self._shapes_of(jax.eval_shape(self.functions.held, self._state))

    def _shapes_of(self, state: Any) -> list[Any]:
        lane = [*jax.tree.leaves(state), *[jax.ShapeDtypeStruct((), jnp.int32)] * 2]
        return [_shape((self.plan.width, *s.shape), s.dtype, self.by_lane) for s in lane]

    def on_host(self, state: Any, lanes: Any = slice(None)) -> list[np.ndarray]:
        """A state's arrays of `state_shapes`, of some lanes or of all, however the devices hold them: copies, which no
        call takes."""
        return self._exchanged([np.asarray(a)[lanes] for a in jax.device_get(state)])

    def on_devices(self, leaves: Any) -> list[Any]:
        """The inverse of `on_host`."""
        return [self.put(a) for a in self._exchanged(leaves)]

    def _exchanged(self, leaves: Any) -> list[np.ndarray]:
        """Copies of a state's arrays, from the task's form to the one that lanes hold, or back."""
        return [np.array(a, order="C") for a in (*self.functions.held(list(leaves[:-2])), *leaves[-2:])]

    def task_state(self, state: Any) -> Any:
        """The task's part of a state, as the task's own tree, packed."""
        return jax.tree.unflatten(jax.tree.structure(self._state), state[:-2])

    def _carry(self, state: Any) -> Any:
        return (self.task_state(state), *state[-2:])

    def empty(self) -> Any:
        """A state of zeros, to be filled by a first segment in which every lane is fresh."""
        return [self.put(np.zeros(s.shape, s.dtype)) for s in self._held_shapes()]

    def put(self, arrays: Any) -> Any:
        """A host array `[L, ...]`, or a tree of them, on the devices that hold its lanes."""
        return jax.device_put(arrays, self.by_lane)

    def table(self, hp: Mapping[str, Any], seeds: Any, limits: Any, fresh: Any = False) -> np.ndarray:
        """What a call is told of its lanes, `[L, D + 3]` uint32, on the host: put beforehand, it takes a call longer.

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
        return table

    def run(self, state: Any, table: Any, n: int, *, fill: bool = False) -> tuple[Any, Any]:
        """Dispatches one segment of `n` steps, with `fill` after its fresh lanes were initialised; returns at once."""
        told = (n, fill)
        if told not in self._told:
            self._told[told] = jax.device_put(np.array(told, np.int32), self.everywhere)
        return self._segment(self.consts, state, table, self._told[told])

    def read(self, results: Any) -> Result:
        """A call's results on the host; waits for them."""
        rows = np.ascontiguousarray(np.asarray(results).T)  # [words of the results, L]
        ends = np.cumsum([s.dtype.itemsize // 4 for s in self._results])
        words = np.split(rows, ends[:-1])
        found = [np.ascontiguousarray(w.T).view(s.dtype)[:, 0] for w, s in zip(words, self._results, strict=True)]
        return jax.tree.unflatten(self._result_tree, found)


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
