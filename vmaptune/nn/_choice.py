"""A choice per lane: which activation, which normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmaptune.errors import InputError

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "elu", "selu", "celu", "softplus", "sigmoid", "leaky_relu", "relu6",
               "hard_tanh", "mish", "identity")  # fmt: skip


def select(hp: Mapping[str, Any], name: str, functions: Mapping[Any, Callable[..., Any]]) -> Callable[..., Any]:
    """The function that the setting `name` picks: `vt.nn.select(hp, "norm", {"layer": self.layer, "none": same})`.

    Where the setting is static, that function alone. Where it is traced (each lane has its own choice in one
    program), all of them are computed and the lane's own is taken; they must return arrays of one shape.

    Raises:
      InputError: an option without a function.
    """
    value = hp[name]
    if not isinstance(value, jax.Array):
        return _function(functions, value, name)
    options = getattr(hp, "_limits", {}).get(name)
    if not isinstance(options, tuple):
        raise InputError(f"vt.nn.select: the options of the traced setting {name!r} are not known; let it be static")
    chosen = [_function(functions, option, name) for option in options]

    def selected(*args: Any, **kwargs: Any) -> Any:
        out = chosen[0](*args, **kwargs)
        for i, function in enumerate(chosen[1:], 1):
            other = function(*args, **kwargs)
            out = jax.tree.map(lambda a, b, i=i: jnp.where(value == i, b, a), out, other)
        return out

    return selected


def activation(hp: Mapping[str, Any], name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation that the setting `name` picks by its name in `jax.nn`: `vt.nn.activation(hp, "activation")`.

    Raises:
      InputError: no activation of that name.
    """
    return select(hp, name, {key: getattr(jax.nn, key) for key in ACTIVATIONS})


def _function(functions: Mapping[Any, Callable[..., Any]], option: Any, name: str) -> Callable[..., Any]:
    try:
        return functions[option]
    except KeyError:
        raise InputError(
            f"{name}: each option must have a function, but {option!r} has none (there are: "
            f"{', '.join(map(repr, functions))}); add one, or correct the option"
        ) from None
