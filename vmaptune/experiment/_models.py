"""How a person's model becomes arrays and back: Flax nnx, Flax linen, or a plain pytree of parameters; `_others.py` has
what needs other libraries.

Each kind answers the same three questions for one lane: what are its first arrays (`init`), what object do
`loss` and `metrics` receive (`bind`), and what changed in it besides the parameters (`collect`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen, nnx
from flax.core.scope import union_filters
from jax.extend import core

from vmaptune.errors import InputError
from vmaptune.task import Hyperparameters

Build = Callable[[Hyperparameters, Any], Any]  # (hp, a key or a seed) -> what the person's model() returns


class Drawn(NamedTuple):
    """A model's other variables, where it computes with more that was drawn from its `rngs`: the key to draw it again.

    Such are plain arrays among its attributes and what its functions close over: nothing that a state could hold.
    """

    key: jax.Array
    rest: Any


class Rebuilt:
    """A module: rebuilt in every traced function, with its arrays put back."""

    def __init__(self, build: Build):
        self.build = build

    def init(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any], ask: Callable[..., Any]) -> Any:
        """The first parameters and other variables.

        Args:
          use: calls the model, in training mode, as `loss` does.
          ask: `(model in training mode, model in evaluation mode) -> results`, by which it is found out whether they
            hang on more than these variables.
        """
        params, rest = self._first(hp, key, use)

        def results(key: jax.Array) -> Any:
            drawn = Drawn(key, rest)
            return ask(*(self.bind(hp, params, drawn, key, train) for train in (True, False)))

        jaxpr = jax.make_jaxpr(results)(key).jaxpr
        return params, Drawn(key, rest) if any(hang_on(jaxpr, jaxpr.invars)) else rest

    def bind(self, hp: Hyperparameters, params: Any, rest: Any, key: jax.Array | None, train: bool) -> Any:
        """The model as `loss` and `metrics` receive it."""
        drawn, variables = (rest.key, rest.rest) if isinstance(rest, Drawn) else (0, rest)
        return self._bound(self.build(hp, drawn), params, variables, key, train)

    def collect(self, model: Any, rest: Any) -> Any:
        """What became of the other variables."""
        if isinstance(rest, Drawn):
            return Drawn(rest.key, self._variables(model, rest.rest))
        return self._variables(model, rest)

    def _first(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        raise NotImplementedError

    def _bound(self, module: Any, params: Any, variables: Any, key: jax.Array | None, train: bool) -> Any:
        raise NotImplementedError

    def _variables(self, model: Any, before: Any) -> Any:
        raise NotImplementedError


class NnxModel(Rebuilt):
    """A `flax.nnx` module.

    The module is rebuilt from `hp` inside every traced step and its arrays are put back: a traced setting
    kept on the module as an attribute would otherwise leak out of `nnx.split`. The rebuilt initial values
    are unused, so the compiler removes them.
    """

    def _first(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        module = self.build(hp, key)
        return nnx.state(module, nnx.Param), _other_variables(module)

    def _bound(self, module: Any, params: Any, variables: Any, key: jax.Array | None, train: bool) -> Any:
        nnx.update(module, params, variables)
        self._plain = _plain_arrays(module)
        module.train() if train else module.eval()
        return module

    def _variables(self, model: Any, before: Any) -> Any:
        now = _plain_arrays(model)
        for path, array in self._plain.items():
            if now.get(path) is not array:
                raise InputError(
                    f"model(): what changes while it is called must be an nnx.Variable, but the attribute {path} "
                    f"is a plain array, which no step would find as the last one left it; way out: wrap it, "
                    f"nnx.Variable(...), when the model is made"
                )
        return _other_variables(model)


def _other_variables(module: Any) -> Any:
    """The variables that are no parameters. Plain arrays are none: whether Flax calls them state hangs on its version
    and on tracing. What a call sows into `nnx.Intermediate` is one of its results.
    """
    return nnx.state(module, nnx.All(nnx.Variable, nnx.Not(nnx.Param), nnx.Not(nnx.Intermediate)))


def _plain_arrays(node: Any, path: str = "") -> dict[str, Any]:
    """A module's arrays that are no variables, by their place."""
    if isinstance(node, nnx.Variable):
        return {}
    if isinstance(node, (jax.Array, np.ndarray)):
        return {path: node}
    parts: dict[str, Any] = {}
    if isinstance(node, nnx.Module):
        parts = {f"{path}.{name}".lstrip("."): part for name, part in vars(node).items()}
    elif isinstance(node, dict):
        parts = {f"{path}[{name!r}]": part for name, part in node.items()}
    elif isinstance(node, (list, tuple)):
        parts = {f"{path}[{i}]": part for i, part in enumerate(node)}
    return {place: array for name, part in parts.items() for place, array in _plain_arrays(part, name).items()}


def hang_on(jaxpr: Any, inputs: Any) -> list[bool]:
    """Of each result whether it is computed from some of these inputs; it may say so of one that isn't, never the other
    way round."""
    from_inputs = set(inputs)
    for eqn in jaxpr.eqns:
        if any(isinstance(v, core.Var) and v in from_inputs for v in eqn.invars):
            from_inputs.update(eqn.outvars)
    return [isinstance(v, core.Var) and v in from_inputs for v in jaxpr.outvars]


class BoundLinen:
    """What `loss` and `metrics` receive for a linen module: call it as the module itself.

    `model(x, train=True)` runs `module.apply` with the lane's variables; `method=` picks another method, as does
    `model.encode(x)`, and `mutable=` returns collections as `apply` does. Collections other than `params` (batch
    statistics, say) are carried on from training calls.
    """

    def __init__(self, module: linen.Module, variables: Any, key: jax.Array | None, train: bool):
        self.module, self.variables, self.train_mode = module, variables, train
        self.first: Any = None  # the variables as the first call initialises them
        self._key, self._calls = key, 0

    def __call__(self, *args: Any, method: Any = None, mutable: Any = (), **kwargs: Any) -> Any:
        rngs: Any = None
        if self._key is not None:
            call_key = jax.random.fold_in(self._key, self._calls)
            rngs = {"params": call_key, "dropout": jax.random.fold_in(call_key, 1)}
        self._calls += 1
        if self.variables is None:
            out, self.variables = self.module.init_with_output(rngs, *args, method=method, **kwargs)
            self.first = self.variables
            if not mutable:
                return out
        carried = [name for name in self.variables if name != "params"] if self.train_mode else []
        if not carried and not mutable:
            return self.module.apply(self.variables, *args, rngs=rngs, method=method, **kwargs)
        wanted = union_filters(carried, mutable or False)
        out, changed = self.module.apply(self.variables, *args, rngs=rngs, method=method, mutable=wanted, **kwargs)
        self.variables = {**self.variables, **{name: changed[name] for name in carried if name in changed}}
        return (out, changed) if mutable else out

    def __getattr__(self, name: str) -> Any:
        """The module's own: a method runs with the lane's variables, as `method=` does."""
        module = self.__dict__.get("module")
        if module is None or name.startswith("__"):
            raise AttributeError(name)
        if name in ("apply", "init", "init_with_output", "bind"):
            raise InputError(
                f"model.{name}: the linen model that loss and metrics receive has its variables, so call it, model(x), "
                f"without {name}() and without them"
            )
        method = getattr(type(module), name, None)
        if callable(method) and name not in {f.name for f in dataclasses.fields(module)}:
            return lambda *args, **kwargs: self(*args, method=method, **kwargs)
        return getattr(module, name)

    @property
    def params(self) -> Any:
        if self.variables is None:
            raise InputError(
                "model.params: a linen model's parameters are made by its first call, model(x), so call it before they "
                "are read"
            )
        return self.variables["params"]


class LinenModel(Rebuilt):
    """A `flax.linen` module; its variables are initialised by the first call that `loss` makes."""

    def _first(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        bound = BoundLinen(self.build(hp, key), None, key, True)
        use(bound)
        if bound.first is None:
            raise InputError("loss() must call the linen model at least once: its first call initialises it")
        variables = dict(bound.first)
        return variables.pop("params", {}), variables

    def _bound(self, module: Any, params: Any, variables: Any, key: jax.Array | None, train: bool) -> Any:
        return BoundLinen(module, {"params": params, **variables}, key, train)

    def _variables(self, model: Any, before: Any) -> Any:
        return {name: model.variables[name] for name in before}


class PytreeModel:
    """A pytree of parameter arrays: `loss` and `metrics` receive the pytree itself."""

    def __init__(self, build: Build):
        self.build = build

    def init(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any], ask: Callable[..., Any]) -> Any:
        """The first parameters and other variables, of which it has none."""
        return self.build(hp, key), ()

    def bind(self, hp: Hyperparameters, params: Any, rest: Any, key: jax.Array | None, train: bool) -> Any:
        """The model as `loss` and `metrics` receive it."""
        return params

    def collect(self, params: Any, rest: Any) -> Any:
        """What became of the other variables."""
        return rest
