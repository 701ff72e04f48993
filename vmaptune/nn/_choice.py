"""A choice per lane: which activation, which normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vmaptune.errors import InputError
from vmaptune.nn._sizes import note

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "elu", "selu", "celu", "softplus", "sigmoid", "leaky_relu", "relu6",
               "hard_tanh", "mish", "identity")  # fmt: skip


@jax.tree_util.register_pytree_node_class
class Chosen:
    """A traced choice: the position of a lane's option. Only `select` reads it."""

    is_traced_setting = True

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.position,), self.options

    @classmethod
    def tree_unflatten(cls, options: Any, children: Any) -> Chosen:
        return cls(children[0], options)

    def __init__(self, position: jax.Array, options: tuple[Any, ...]):
        self.position, self.options = position, options

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("a traced choice has no value of its own: use vt.nn.select or vt.nn.activation")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = __str__ = __len__ = _refuse
    __iter__ = __getitem__ = __format__ = __call__ = _refuse

    def __repr__(self) -> str:
        return f"<one of {', '.join(map(repr, self.options))}>"


def select(hp: Mapping[str, Any], name: str, functions: Mapping[Any, Callable[..., Any]]) -> Callable[..., Any]:
    """The function that the setting `name` picks: `vt.nn.select(hp, "norm", {"layer": self.layer, "none": same})`.

    Where the setting is static, that function alone. Where it is traced (each lane has its own choice in one
    program), all of them are computed and the lane's own is taken; they must return arrays of one shape. What a
    lane didn't choose reaches neither its values nor, through the arrays that the functions are given, its gradients,
    be it infinite or NaN (a `sqrt` at 0). A function that closes over weights has a gradient of its own for them: give
    it the weights as arguments where that may be infinite.

    Raises:
      InputError: an option without a function.
    """
    value = hp[name]
    if not isinstance(value, Chosen):
        return _function(functions, value, name)
    note(name)
    chosen = [_function(functions, option, name) for option in value.options]

    def selected(*args: Any, **kwargs: Any) -> Any:
        out: Any = None
        for i, function in enumerate(chosen):
            args_of_one, kwargs_of_one = _gated((args, kwargs), value.position == i)
            other = function(*args_of_one, **kwargs_of_one)
            if not i:
                out = other
                continue
            out = jax.tree.map(lambda a, b, i=i: jnp.where(value.position == i, b, a), out, other)
        return out

    return selected


def activation(hp: Mapping[str, Any], name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation that the setting `name` picks by its name in `jax.nn`: `vt.nn.activation(hp, "activation")`.

    Raises:
      InputError: no activation of that name.
    """
    return select(hp, name, {key: getattr(jax.nn, key) for key in ACTIVATIONS})


def _gated(given: Any, chosen: jax.Array) -> Any:
    """The same arguments, whose gradients are passed on where an option was `chosen`; elsewhere they are 0, whatever
    the option's function makes of them: an infinite derivative times the 0 that nobody asks for would be NaN."""

    def gate(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jnp.where(chosen, leaf, jax.lax.stop_gradient(leaf))

    # modules are given as they are: functions change their state
    return jax.tree.map(gate, given, is_leaf=lambda part: not isinstance(part, (tuple, list, dict)))


def _function(functions: Mapping[Any, Callable[..., Any]], option: Any, name: str) -> Callable[..., Any]:
    try:
        return functions[option]
    except KeyError:
        raise InputError(
            f"{name}: each option must have a function, but {option!r} has none (there are: "
            f"{', '.join(map(repr, functions))}); add one, or correct the option"
        ) from None
