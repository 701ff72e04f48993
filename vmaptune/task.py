"""The contract that the engine knows: three pure functions of ONE lane, and the settings they receive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vmaptune.arguments import Signature
from vmaptune.errors import InputError

State = Any  # any pytree of arrays
_reads: ContextVar[set[str] | None] = ContextVar("reads", default=None)


@contextmanager
def reads_noted() -> Iterator[set[str]]:
    """The names of the settings that are read meanwhile by a person's code."""
    found: set[str] = set()
    token = _reads.set(found)
    try:
        yield found
    finally:
        _reads.reset(token)


def _note_read(name: str) -> None:
    found = _reads.get()
    if found is not None:
        found.add(name)


@jax.tree_util.register_pytree_node_class
class Hyperparameters(Mapping):
    """One lane's settings: `hp.learning_rate`, `hp["learning_rate"]`, `**hp`.

    A traced setting is a scalar array (float32 or int32), a static one a plain Python value.
    Immutable; a pytree whose leaves are the traced settings.

    `limits` says of a traced setting with finitely many values what it may be: its largest value, or its options,
    of which the array then holds the position. The masked layers of `vt.nn` read it.
    """

    __slots__ = ("_limits", "_values")
    _values: dict[str, Any]
    _limits: dict[str, Any]

    def __init__(self, values: Mapping[str, Any], limits: Mapping[str, Any] | None = None):
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "_limits", dict(limits or {}))

    def with_limits(self, limits: Mapping[str, Any]) -> Hyperparameters:
        """The same settings with other limits."""
        return Hyperparameters(self._values, limits)

    def __getattr__(self, name: str) -> Any:
        try:
            value = self._values[name]
            _note_read(name)
            return value
        except KeyError:
            raise AttributeError(
                f"hp.{name}: the space has no setting of this name (it has: {', '.join(self._values)}); "
                f"add it to the space or correct the name"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"hp.{name} cannot be set: settings are drawn from the space, never changed")

    def __getitem__(self, name: str) -> Any:
        _note_read(name)
        return self._values[name]

    def unread(self) -> dict[str, Any]:
        """The settings by name, for whoever is not the person's code: nothing is taken down as read."""
        return dict(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "hp(" + ", ".join(f"{name}={value!r}" for name, value in self._values.items()) + ")"

    def tree_flatten(self):
        arrays = (jax.Array, np.ndarray, np.generic)
        traced = {
            n: v
            for n, v in self._values.items()
            if isinstance(v, arrays) or getattr(type(v), "is_traced_setting", False)
        }  # fmt: skip
        static = tuple((n, v) for n, v in self._values.items() if n not in traced)
        return tuple(traced.values()), (tuple(self._values), tuple(traced), static, tuple(self._limits.items()))

    @classmethod
    def tree_unflatten(cls, aux, children):
        names, traced, static, limits = aux
        values = dict(zip(traced, children, strict=True)) | dict(static)
        return cls({name: values[name] for name in names}, dict(limits))


@dataclass(frozen=True)
class Task:
    """What the engine trains: three pure functions of one lane. No lane axis, no vmap.

    Arguments called `state`, `hp` and `key` get what their name says, wherever they stand; others without a default get
    theirs by position.

    Args:
      init: `(hp, key) -> state`, any pytree of arrays. The key is consumed.
      step: `(state, hp, key) -> state`; with `has_loss=True`, `(state, loss)` with a scalar loss. The key
        is the trial's own for this step and is consumed.
      evaluate: `(state, hp) -> dict` of scalar metrics.
      has_loss: whether `step` returns its loss. Then a loss that is not finite makes the trial `INFEASIBLE`
        at that step, and the mean over each segment is kept in the curve.
      shared: optional, `(step number, count) -> pytree` of arrays `[count, ...]`: what all lanes take in alike at so
        many steps from this one on, such as the rows of a batch. Step numbers are int32 scalars from 0. It is worked
        out once for the lanes of a tile, which then enter and leave together, and for several steps at once; each step
        gets its own as a fourth argument.
      inputs: optional, `(state, hp, step number, count) -> pytree`, the same for what each lane takes in by itself. Of
        the state it may read only what no step changes. A task has `shared` or `inputs`, not both.

    Raises:
      InputError: both `shared` and `inputs` are given; a function whose arguments are none of these.
    """

    init: Callable[[Hyperparameters, jax.Array], State]
    step: Callable[..., Any]
    evaluate: Callable[[State, Hyperparameters], Mapping[str, Any]]
    has_loss: bool = False
    shared: Callable[[jax.Array, int], Any] | None = None
    inputs: Callable[[State, Hyperparameters, jax.Array, int], Any] | None = None

    def __post_init__(self) -> None:
        if self.shared is not None and self.inputs is not None:
            raise InputError(
                "Task(): a step's fourth argument is either what all lanes have alike or the lane's own, but both "
                "`shared` and `inputs` are given; leave one out"
            )
        takes = ("taken",) if self.shared is not None or self.inputs is not None else ()
        for name, arguments in (
            ("init", ("hp", "key")),
            ("step", ("state", "hp", "key", *takes)),
            ("evaluate", ("state", "hp")),
            ("shared", ("step", "count")),
            ("inputs", ("state", "hp", "step", "count")),
        ):
            function = getattr(self, name)
            if function is None:
                continue
            signature = Signature(f"Task: {name}", arguments)
            signature.check(function)
            if name == "step" and takes and not signature.asks_for(function, "taken"):
                raise InputError(
                    "Task(): with `shared` or `inputs` step must take what they return as a fourth argument without a "
                    "default, but it takes none"
                )
            object.__setattr__(self, name, signature.adapter(function))

    def taken(self, state: State, hp: Hyperparameters, step: jax.Array) -> tuple[Any, ...]:
        """What one step takes in besides state, settings and key: its fourth argument, if it has one."""
        if self.shared is not None:
            several = self.shared(step, 1)
        elif self.inputs is not None:
            several = self.inputs(state, hp, step, 1)
        else:
            return ()
        return (jax.tree.map(lambda array: array[0], several),)


def check_jit_is_on() -> None:
    """Raises InputError where JAX is told to compile nothing, since lanes are trained by compiled programs."""
    if getattr(jax.config, "jax_disable_jit", False):
        raise InputError(
            "jax_disable_jit must be off, because lanes are trained by compiled programs, but it is on; turn it off "
            "(in the environment it is JAX_DISABLE_JIT), and step through a model by calling loss(model, batch) "
            "yourself, on a batch of vt.batches"
        )
