"""Models of libraries that this package works with and does not need: Equinox and haiku.

Neither is imported here: whoever has such a model has imported its library.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vmaptune.errors import InputError
from vmaptune.experiment._models import Rebuilt, hang_on
from vmaptune.task import Hyperparameters


def is_equinox(model: Any) -> bool:
    """Whether it is an `equinox.Module`, such as flowjax's distributions are."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(model, equinox.Module)


def is_haiku(model: Any) -> bool:
    """Whether it is what `hk.transform` or `hk.transform_with_state` returns."""
    haiku = sys.modules.get("haiku")
    return haiku is not None and isinstance(model, (haiku.Transformed, haiku.TransformedWithState))


class EquinoxModel(Rebuilt):
    """An Equinox module. Its floating-point arrays are the parameters, but for a setting that it keeps as it is, such
    as a dropout rate; its other arrays are kept beside them, and all else is rebuilt. It is put into inference mode
    where it is measured."""

    def bind(self, hp: Hyperparameters, params: Any, rest: Any, key: jax.Array | None, train: bool) -> Any:
        """The model as `loss` and `metrics` receive it."""
        self._hp = hp
        return super().bind(hp, params, rest, key, train)

    def _first(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        module = self.build(hp, key)
        self._check_numbers(module, hp, key)
        leaves, tree = jax.tree.flatten(module)
        params = [leaf if _is_parameter(leaf, hp) else None for leaf in leaves]
        rest = [leaf for leaf in leaves if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return jax.tree.unflatten(tree, params), rest

    def _bound(self, module: Any, params: Any, variables: Any, key: jax.Array | None, train: bool) -> Any:
        leaves, tree = jax.tree.flatten(module)
        trained, others = iter(jax.tree.leaves(params)), iter(variables)
        leaves = [
            next(trained) if _is_parameter(leaf, self._hp)
            else next(others) if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jnp.inexact)
            else leaf
            for leaf in leaves
        ]  # fmt: skip
        module = jax.tree.unflatten(tree, leaves)
        return module if train else sys.modules["equinox"].nn.inference_mode(module)

    def _variables(self, model: Any, before: Any) -> Any:
        return before

    def _check_numbers(self, module: Any, hp: Hyperparameters, key: jax.Array) -> None:
        """Raises InputError for a number that is computed from settings alone: whether it is to be trained, such as a
        temperature, or not, such as a rate, nobody can tell."""
        paths = jax.tree_util.tree_flatten_with_path(module)[0]
        numbers = [(i, path) for i, (path, leaf) in enumerate(paths) if _is_parameter(leaf, hp) and leaf.shape == ()]
        if not numbers or not jax.tree.leaves(hp):
            return

        def made(hp: Hyperparameters, key: jax.Array) -> list[Any]:
            leaves = jax.tree.leaves(self.build(hp, key))
            return [leaves[i] for i, _ in numbers]

        jaxpr = jax.make_jaxpr(made)(hp, key).jaxpr
        of_settings, of_key = hang_on(jaxpr, jaxpr.invars[:-1]), hang_on(jaxpr, jaxpr.invars[-1:])
        for (_, path), settings, drawn in zip(numbers, of_settings, of_key, strict=True):
            if settings and not drawn:
                raise InputError(
                    f"model(): {jax.tree_util.keystr(path)} is a number made from settings alone, so that it can't be "
                    f"told whether it is to be trained; way out: keep the setting itself in the module, which is not "
                    f"trained, or an array of shape (1,), which is"
                )


def _is_parameter(leaf: Any, hp: Hyperparameters) -> bool:
    is_array = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return is_array and not any(leaf is value for value in hp.unread().values())


class BoundHaiku:
    """What `loss` and `metrics` receive for a haiku model: call it as the function that was transformed.

    `model(x)` runs `apply` with the lane's parameters, state and key; the state is carried on from training calls.
    """

    def __init__(self, transformed: Any, params: Any, state: Any, key: jax.Array | None, train: bool):
        self.transformed, self.state, self.train_mode = transformed, state, train
        self.first: Any = None  # parameters and state as the first call initialises them
        self._params, self._key, self._calls = params, key, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rng = None if self._key is None else jax.random.fold_in(self._key, self._calls)
        more = (rng,) if "rng" in inspect.signature(self.transformed.apply).parameters else ()  # hk.without_apply_rng
        self._calls += 1
        stateful = type(self.transformed).__name__ == "TransformedWithState"
        if self._params is None:
            made = self.transformed.init(rng, *args, **kwargs)
            self._params, self.state = made if stateful else (made, {})
            self.first = (self._params, self.state)
        if not stateful:
            return self.transformed.apply(self._params, *more, *args, **kwargs)
        out, state = self.transformed.apply(self._params, self.state, *more, *args, **kwargs)
        if self.train_mode:
            self.state = state
        return out

    @property
    def params(self) -> Any:
        if self._params is None:
            raise InputError(
                "model.params: a haiku model's parameters are made by its first call, model(x), so call it before they "
                "are read"
            )
        return self._params


class HaikuModel(Rebuilt):
    """What `hk.transform` returns; its parameters are initialised by the first call that `loss` makes."""

    def _first(self, hp: Hyperparameters, key: jax.Array, use: Callable[[Any], Any]) -> tuple[Any, Any]:
        bound = BoundHaiku(self.build(hp, key), None, None, key, True)
        use(bound)
        if bound.first is None:
            raise InputError("loss() must call the haiku model at least once: its first call initialises it")
        return bound.first

    def _bound(self, module: Any, params: Any, variables: Any, key: jax.Array | None, train: bool) -> Any:
        return BoundHaiku(module, params, variables, key, train)

    def _variables(self, model: Any, before: Any) -> Any:
        return model.state
