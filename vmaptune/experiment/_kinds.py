"""Which kind of model a person's `model()` returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen, nnx

from vmaptune.arguments import Signature
from vmaptune.errors import InputError
from vmaptune.experiment._models import LinenModel, NnxModel, PytreeModel, Rebuilt
from vmaptune.experiment._others import EquinoxModel, HaikuModel, is_equinox, is_haiku
from vmaptune.experiment._places import at, kind
from vmaptune.task import Hyperparameters

NUMBERS = (np.ndarray, np.generic, bool, int, float)
ModelKind = Rebuilt | PytreeModel


def model_kind(function: Callable[..., Any], signature: Signature, hp: Hyperparameters) -> ModelKind:
    """The kind of model that a person's `model()` returns for these settings."""

    def build(hp: Hyperparameters, key: Any) -> Any:
        given = {"hp": hp, "rngs": nnx.Rngs(key), "key": jax.random.key(key) if isinstance(key, int) else key}
        return signature.call(function, given)

    built = build(hp, 0)
    if isinstance(built, nnx.Module):
        return NnxModel(build)
    if isinstance(built, linen.Module):
        return LinenModel(build)
    if is_equinox(built):
        return EquinoxModel(build)
    if is_haiku(built):
        return HaikuModel(build)
    leaves = jax.tree_util.tree_flatten_with_path(built)[0]
    others = [(path, leaf) for path, leaf in leaves if not isinstance(leaf, jax.Array)]
    if leaves and not others:
        return PytreeModel(build)
    returned, way = kind(built), "return the model itself, not its class or a tuple with it"
    numbers = [(path, leaf) for path, leaf in others if isinstance(leaf, NUMBERS)]
    modules = [part for part in built if isinstance(part, nnx.Module)] if isinstance(built, tuple) else []
    if numbers and len(numbers) == len(others) and numbers[0][0] and not modules:  # nearly a tree of jax arrays
        path, leaf = numbers[0]
        returned = f"{returned} whose leaf {jax.tree_util.keystr(path)} is {kind(leaf)}"
        way = "make it one with jnp.asarray, or leave it out of the model if it is not to be trained"
    raise InputError(
        f"model() must return a flax.nnx module, a flax.linen module, an Equinox module, haiku's hk.transform(...) or "
        f"a pytree of jax arrays, but it returned {returned}; {way}{at(function)}"
    )
