"""How a person's model becomes arrays and back: Flax nnx, Flax linen, or a plain pytree of parameters.

Each kind answers the same three questions for one lane: what are its first arrays (`init`), what object do
`loss` and `metrics` receive (`bind`), and what changed in it besides the parameters (`collect`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

from vmaptune.errors import InputError
from vmaptune.experiment._places import at, kind
from vmaptune.task import Hyperparameters

Build = Callable[[Hyperparameters, nnx.Rngs], Any]


class NnxModel:
    """A `flax.nnx` module.

    The module is rebuilt from `hp` inside every traced step and its arrays are put back: a traced setting
    kept on the module as an attribute would otherwise leak out of `nnx.split`. The rebuilt initial values
    are unused, so the compiler removes them.
    """

    def __init__(self, build: Build):
        self.build = build

    def init(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        module = self.build(hp, nnx.Rngs(key))
        return self._split(module)

    def bind(self, hp: Hyperparameters, params: Any, rest: Any, key: jax.Array | None, train: bool) -> Any:
        module = self.build(hp, nnx.Rngs(0))
        nnx.update(module, params, rest)
        module.train() if train else module.eval()
        return module

    def collect(self, module: Any, rest: Any) -> Any:
        return self._split(module)[1]

    @staticmethod
    def _split(module: Any) -> tuple[Any, Any]:
        return nnx.state(module, nnx.Param), nnx.state(module, nnx.Not(nnx.Param))


class BoundLinen:
    """What `loss` and `metrics` receive for a linen module: call it as the module itself.

    `model(x, train=True)` runs `module.apply` with the lane's variables; `method=` picks another method.
    Collections other than `params` (batch statistics, say) are carried on from training calls.
    """

    def __init__(self, module: linen.Module, variables: Any, key: jax.Array | None, train: bool):
        self.module, self.variables, self.train_mode = module, variables, train
        self._key, self._calls = key, 0

    def __call__(self, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        rngs: Any = None
        if self._key is not None:
            call_key = jax.random.fold_in(self._key, self._calls)
            rngs = {"params": call_key, "dropout": jax.random.fold_in(call_key, 1)}
        self._calls += 1
        if self.variables is None:
            out, self.variables = self.module.init_with_output(rngs, *args, method=method, **kwargs)
            return out
        collections = [name for name in self.variables if name != "params"]
        if not (self.train_mode and collections):
            return self.module.apply(self.variables, *args, rngs=rngs, method=method, **kwargs)
        out, changed = self.module.apply(self.variables, *args, rngs=rngs, method=method, mutable=collections, **kwargs)
        self.variables = {**self.variables, **changed}
        return out

    @property
    def params(self) -> Any:
        return self.variables["params"]


class LinenModel:
    """A `flax.linen` module; its variables are initialised by the first call that `loss` makes."""

    def __init__(self, build: Build):
        self.build = build

    def init(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        bound = BoundLinen(self.build(hp, nnx.Rngs(0)), None, key, True)
        use(bound)
        if bound.variables is None:
            raise InputError("loss() must call the linen model at least once: its first call initialises it")
        variables = dict(bound.variables)
        return variables.pop("params", {}), variables

    def bind(self, hp: Hyperparameters, params: Any, rest: Any, key: jax.Array | None, train: bool) -> Any:
        return BoundLinen(self.build(hp, nnx.Rngs(0)), {"params": params, **rest}, key, train)

    def collect(self, bound: Any, rest: Any) -> Any:
        return {name: bound.variables[name] for name in rest}


class PytreeModel:
    """A pytree of parameter arrays: `loss` and `metrics` receive the pytree itself."""

    def __init__(self, build: Build):
        self.build = build

    def init(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        return self.build(hp, nnx.Rngs(key)), ()

    def bind(self, hp: Hyperparameters, params: Any, rest: Any, key: jax.Array | None, train: bool) -> Any:
        return params

    def collect(self, params: Any, rest: Any) -> Any:
        return rest


ModelKind = NnxModel | LinenModel | PytreeModel


def model_kind(build: Build, built: Any) -> ModelKind:
    """The kind of model that `model()` returned."""
    if isinstance(built, nnx.Module):
        return NnxModel(build)
    if isinstance(built, linen.Module):
        return LinenModel(build)
    leaves = jax.tree.leaves(built)
    if leaves and all(isinstance(leaf, jax.Array) for leaf in leaves):
        return PytreeModel(build)
    raise InputError(
        f"model() must return a flax.nnx module, a flax.linen module or a pytree of jax arrays, "
        f"but it returned {kind(built)}; return the model itself, not its class or a tuple with it{at(build)}"
    )
