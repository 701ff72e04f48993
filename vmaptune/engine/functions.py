"""A task's functions for one lane, each traced once.

Arrays that they close over (the data) become arguments, so that they live on the devices once and are no constants of
a program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vmaptune.engine.compiling import products_are_compiled
from vmaptune.engine.crashes import crashed
from vmaptune.engine.plan import Costs
from vmaptune.errors import InputError
from vmaptune.rewrite import (
    NOTHING,
    as_written,
    bytes_at_once,
    evaluated,
    exact_on_cpu,
    fit_for_cpu,
    has_products,
    is_as_written,
    products_are_short,
    rewrites_noted,
    turned,
    what_to_turn,
    with_fast_convolutions,
)
from vmaptune.task import Hyperparameters, Task, check_jit_is_on

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a person's function, another one in each process
AHEAD = 8  # steps whose inputs are worked out together


class Hoisted(NamedTuple):
    """A function traced for one lane: a pure function of flat arrays, and the arrays that it closed over."""

    call: Callable[..., Any]  # (consts, *args) -> out
    consts: tuple[jax.Array, ...]
    out: Any  # pytree of ShapeDtypeStruct
    lower: Callable[[], Any]
    jaxpr: Any  # as traced
    fitted: Any  # as it is computed on this device
    compiled: bool  # whether its products are to be compiled with the program
    rewritten: bool  # whether it is another program than the one that was traced, to the bit
    columns: tuple[bool, ...]  # of each array that it carries from call to call, whether it lies column by column


def hoist(
    function: Callable[..., Any],
    *args: Any,
    compiles: Callable[[Any], bool] = lambda jaxpr: False,
    one_batch: bool = False,
    carried: int = 0,
    exact: bool = False,
) -> Hoisted:
    """Traces `function` for one lane and turns what it closes over into arguments.

    `compiles` says of its jaxpr whether products are to be compiled with the program, where they can be, `one_batch`
    that all lanes train on the same batch, `carried` how many arrays it is given first and returns first, anew, `exact`
    that it is computed to the bit as it was traced.
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    tree = jax.tree.structure(out)
    fitted = closed.jaxpr
    compiled_products = products_are_compiled() and not is_as_written() and compiles(fitted)
    consts = list(closed.consts)
    what, states = NOTHING, list(zip(fitted.invars[:carried], fitted.outvars, strict=False))
    if compiled_products:
        what = what_to_turn(fitted, states, one_batch)
        fitted, more = turned(fitted, what)
        consts += more
    rewritten = bool(what.products) or (compiled_products and has_products(fitted))
    if jax.default_backend() == "cpu":
        same = fitted = exact_on_cpu(fitted, as_written=is_as_written())
        if not exact and not is_as_written():
            fitted = fit_for_cpu(fitted, compiled_products=compiled_products, one_batch=one_batch)
        rewritten = rewritten or fitted is not same

    def call(consts: Any, *values: Any) -> Any:
        flat = evaluated(fitted, consts, *jax.tree.leaves(values))
        return jax.tree.unflatten(tree, flat)

    def lower() -> Any:
        return jax.jit(call).lower(tuple(consts), *args)

    columns = tuple(before in what.columns for before, _ in states)
    return Hoisted(call, tuple(consts), out, lower, closed.jaxpr, fitted, compiled_products, rewritten, columns)


def real() -> Any:
    """The dtype of losses and metrics: float32, or float64 where a person has turned on 64 bits (jax_enable_x64)."""
    return jnp.result_type(float)


class Sum(NamedTuple):
    """A sum of many numbers with what rounding took from it, which the next number gets back.

    Source: Kahan, "Further remarks on reducing truncation errors" (1965). Adding up one by one is wrong by parts in
    10,000 after some thousands of steps.
    """

    total: jax.Array
    excess: jax.Array

    def plus(self, number: jax.Array) -> Sum:
        number = number - self.excess
        total = self.total + number
        excess = (total - self.total) - number
        return Sum(total, jnp.where(jnp.isfinite(total), excess, 0))


def no_sum(shape: tuple[int, ...] = ()) -> Sum:
    """The sum of nothing."""
    return Sum(jnp.zeros(shape, real()), jnp.zeros(shape, real()))


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


def first_state(task: Task, static: Mapping[str, Any], traced: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Any, Any]:
    """A lane's state as shapes, and its `key_kinds`, without its other functions."""
    kinds: list[Any] = []

    def init(arrays: Any, seed: Any) -> Any:
        hp = Hyperparameters({name: arrays.get(name, static.get(name)) for name in (*static, *traced)})
        state = _as_arrays(task.init(hp, jax.random.fold_in(trial_key(seed), 0)))
        kinds.append(key_kinds(state))  # while keys can still be told from other arrays
        return state

    state = jax.eval_shape(init, dict(traced), jax.ShapeDtypeStruct((), jnp.uint32))
    return state, kinds[-1]


class LaneFunctions:
    """A task's three functions, traced for one lane of a group.

    `plain` says that they are computed as the person wrote them; else they are rewritten to run faster, unless that
    fails: then they are plain too, and `failure` is why. `rewritten` says whether there was anything to rewrite. An
    initial state never is.
    """

    def __init__(
        self,
        task: Task,
        static: Mapping[str, Any],
        traced: Mapping[str, jax.ShapeDtypeStruct],
        *,
        plain: bool = False,
    ):
        check_jit_is_on()
        self.plain, self.failure = plain or is_as_written(), None
        try:
            with as_written(self.plain), rewrites_noted() as noted:
                self._trace(task, static, traced)
            parts = (self.step, self.evaluate, self.shared, self.inputs)
            self.rewritten = bool(noted) or any(part.rewritten for part in parts)
            if self.step.compiled and crashed(self.text):
                raise RuntimeError("compiling it ended a process on this machine before")
        except Exception as error:
            if self.plain:
                raise
            self.plain, self.rewritten = True, False
            with as_written():  # what fails here as well is the person's own error
                self._trace(task, static, traced)
            self.failure = error

    def _trace(self, task: Task, static: Mapping[str, Any], traced: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        order = (*static, *traced)

        def settings(arrays: Mapping[str, Any]) -> Hyperparameters:
            return Hyperparameters({name: arrays.get(name, static.get(name)) for name in order})

        def init(arrays: Any, seed: Any) -> Any:
            state = _as_arrays(task.init(settings(arrays), jax.random.fold_in(trial_key(seed), 0)))
            kinds.append(key_kinds(state))  # while keys can still be told from other arrays
            return state

        def inputs(state: Any, arrays: Any, done: Any) -> Any:
            return task.inputs(state, settings(arrays), done, AHEAD) if task.inputs else ()

        def taken(state: Any, arrays: Any, done: Any) -> Any:
            found = task.taken(state, settings(arrays), done)
            return found[0] if found else ()

        def step(state: Any, arrays: Any, seed: Any, done: Any, taken: Any) -> Any:
            key = jax.random.fold_in(trial_key(seed), done + 1)
            out = task.step(state, settings(arrays), key, *((taken,) if task.shared or task.inputs else ()))
            state, loss = out if task.has_loss else (out, jnp.nan)
            return _as_arrays(state), jnp.asarray(loss, real())

        def evaluate(state: Any, arrays: Any) -> Any:
            metrics = task.evaluate(state, settings(arrays))
            return {name: jnp.asarray(value, real()) for name, value in metrics.items()}

        kinds: list[Any] = []
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        arrays = dict(traced)
        self.has_loss = task.has_loss
        self.traced = arrays
        self.init = hoist(init, arrays, seed, exact=True)
        self.state = self.init.out
        self.key_kinds = kinds[-1]
        self.lockstep = task.shared is not None
        self.looks_ahead = task.shared is not None or task.inputs is not None
        self.shared = hoist(lambda done: task.shared(done, AHEAD) if task.shared else (), count)
        self.inputs = hoist(inputs, self.state, arrays, count)
        self._taken = lambda: hoist(taken, self.state, arrays, count)
        several = self.shared.out if self.lockstep else self.inputs.out
        of_one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), several)
        self.step = hoist(
            step, self.state, arrays, seed, count, of_one,
            compiles=products_are_short, one_batch=self.lockstep, carried=len(jax.tree.leaves(self.state)),
        )  # fmt: skip
        self._check_state()
        # the experiment exchanges a training step's convolutions itself, before differentiation
        self.evaluate = hoist(
            with_fast_convolutions(evaluate), self.state, arrays, compiles=lambda _: self.step.compiled
        )

    def held(self, state: Any) -> Any:
        """A packed state as lanes hold it: matrices that lie column by column in a step are held transposed.

        The leaves may have axes before their own, and may be NumPy arrays; the same function is its own inverse.
        """
        flat, structure = jax.tree.flatten(state)
        flat = [a.swapaxes(-1, -2) if t else a for a, t in zip(flat, self.step.columns, strict=True)]
        return jax.tree.unflatten(structure, flat)

    def _check_state(self) -> None:
        before, after = (_by_path(state) for state in (self.state, self.step.out[0]))
        differ = [f"{path}: {a} became {after[path]}" for path, a in before.items() if after.get(path, a) != a]
        differ += [f"{path}: {a} is gone" for path, a in before.items() if path not in after]
        differ += [f"{path}: {a} is new" for path, a in after.items() if path not in before]
        trees: list[Any] = [jax.tree.structure(self.state), jax.tree.structure(self.step.out[0])]
        if not differ and trees[0] != trees[1]:
            differ = ["what is no array in it is another"]
        if differ:
            more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
            way = (
                "; way out: a model's variable must be there from the start, so make it when the model is made, "
                "or return what a call is to tell; what is sown goes into nnx.Intermediate or linen's 'intermediates'"
                if any(each.startswith("['rest']") for each in differ) else ""
            )  # fmt: skip
            raise InputError(
                f"step() must return a state of the same structure, shapes and dtypes as init()'s, but "
                f"{'; '.join(differ[:4])}{more}{way}"
            )

    @cached_property
    def text(self) -> str:
        """The functions as they are computed, the same text in every process."""
        parts = (self.init, self.step, self.evaluate, self.shared, self.inputs)
        return "\n".join(ADDRESS.sub("", str(part.fitted)) for part in parts)

    @cached_property
    def taken(self) -> Hoisted:
        """What one step takes in, for whoever trains step by step."""
        with as_written(self.plain):
            return self._taken()

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

    @cached_property
    def evaluate_bytes(self) -> int:
        """What measuring one lane keeps in memory at once, at the most."""
        return bytes_at_once(self.evaluate.jaxpr)

    def costs(self) -> Costs:
        """Operations and bytes of one lane, from the lowered functions; nothing is compiled."""
        return self._costs


def _by_path(tree: Any) -> dict[str, str]:
    """The dtype and shape of each array of a tree, by its place."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flat}


def _as_arrays(tree: Any) -> Any:
    """Python numbers in a state become arrays, and weak types strong ones: a scan's carry must not change."""
    return jax.tree.map(lambda x: x if is_key(x) else lax.convert_element_type(x, x.dtype),
                        jax.tree.map(jnp.asarray, tree))  # fmt: skip


def _analysis(function: Hoisted) -> dict[str, float]:
    analysis = function.lower().cost_analysis()
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else {}
    return analysis or {}
