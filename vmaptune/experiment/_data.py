"""The data of an experiment: arrays in memory, checked before anything compiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vmaptune.errors import InputError


@dataclass(frozen=True)
class Data:
    """The parts of a data set, each a pytree of arrays that share their first axis (the examples).

    Args:
      train: `(x, y)`, a dict, or any pytree of arrays `[N_train, ...]`; batches are rows of it.
      valid: the same structure, `[N_valid, ...]`; metrics are measured on it, and rank the trials.
      test: optional, the same structure; only the confirmed winner is measured on it, once.

    Raises:
      InputError: lengths that differ, no examples, NaN or infinity, values that are not numbers.
    """

    train: Any
    valid: Any
    test: Any = None

    def __post_init__(self) -> None:
        for part in ("train", "valid", "test"):
            value = getattr(self, part)
            if value is None and part == "test":
                continue
            object.__setattr__(self, part, _checked(part, value))
        structures = {
            part: jax.tree.map(lambda a: f"{a.dtype}{list(a.shape[1:])}", getattr(self, part))
            for part in ("train", "valid", "test")
            if getattr(self, part) is not None
        }
        for part, structure in structures.items():
            if structure != structures["train"]:
                raise InputError(
                    f"Data(): `{part}` must look like `train` but for its length, "
                    f"but train's rows are {structures['train']} and {part}'s are {structure}; "
                    f"give it the same arrays, in the same order and with the same dtypes"
                )

    def size(self, part: str) -> int:
        """The number of examples of a part."""
        return jax.tree.leaves(getattr(self, part))[0].shape[0]


def row_shapes(data: Data) -> dict[str, Any] | None:
    """What one needs to know of data to build a model without them; None where they lie in more than tuples, lists and
    dicts."""

    def plain(node: Any) -> bool:
        if type(node) in (tuple, list):
            return all(map(plain, node))
        if type(node) is dict:
            return all(isinstance(key, str) for key in node) and all(map(plain, node.values()))
        return isinstance(node, np.ndarray)

    if not plain(data.train):
        return None
    return {"n": data.size("train"), "row": jax.tree.map(lambda a: [a.dtype.name, *a.shape[1:]], data.train)}


def stand_in(rows: dict[str, Any]) -> Data:
    """Zeros in the place of data, by their `row_shapes`."""

    def part(node: Any) -> Any:
        if isinstance(node, list) and node and isinstance(node[0], str):
            return np.zeros((rows["n"], *node[1:]), node[0])
        if isinstance(node, dict):
            return {key: part(value) for key, value in node.items()}
        return type(node)(map(part, node))

    return Data(train=part(rows["row"]), valid=part(rows["row"]))


def _checked(part: str, value: Any) -> Any:
    paths, tree = jax.tree_util.tree_flatten_with_path(value)
    if not paths:
        raise InputError(f"Data(): `{part}` must hold at least one array, but got {value!r}")
    arrays = []
    for path, leaf in paths:
        name = part + jax.tree_util.keystr(path)
        array = np.asarray(leaf)
        if array.dtype.name == "bfloat16":
            raise InputError(
                f"Data(): `{name}` must hold numbers that NumPy can compute with, but its dtype is {array.dtype}; give "
                f'it as float32 (.astype(np.float32)), and precision="bfloat16" to the Experiment where products are '
                f"to be rounded"
            )
        if array.dtype == object or array.dtype.kind in "USMmV":
            raise InputError(
                f"Data(): `{name}` must hold numbers, but its dtype is {array.dtype}; "
                f"turn categories and texts into integers first"
            )
        if array.ndim == 0:
            raise InputError(
                f"Data(): `{name}` must have examples along its first axis, but it is a scalar; "
                f"turn lists into arrays (np.asarray) first"
            )
        array = _narrowed(name, array)
        if array.dtype.kind in "fc":
            bad = ~np.isfinite(array)
            if bad.any():
                raise InputError(
                    f"Data(): `{name}` must be finite, but {int(bad.sum())} of its {array.size} values are "
                    f"NaN or infinite, in {int(bad.reshape(len(array), -1).any(1).sum())} of its "
                    f"{len(array)} examples; fill them in or drop those examples"
                )
        arrays.append(array)
    lengths = {part + jax.tree_util.keystr(p): len(a) for (p, _), a in zip(paths, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise InputError(
            f"Data(): every array of `{part}` must have the same number of examples, but {listed}; "
            f"cut or fill them to one length"
        )
    if 0 in lengths.values():
        raise InputError(
            f"Data(): `{part}` must hold at least one example, but it is empty; check how the data is split"
        )
    return jax.tree.unflatten(tree, arrays)


def _narrowed(name: str, array: np.ndarray) -> np.ndarray:
    """64-bit numbers as JAX keeps them: 32 bits, unless a person has turned on 64. A float that is too large becomes
    infinite."""
    if getattr(jax.config, "jax_enable_x64", False):
        return array
    narrow = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32, "complex128": np.complex64}
    to = np.dtype(narrow.get(array.dtype.name, array.dtype))
    if to.kind in "iu" and to != array.dtype and array.size:
        low, high = np.iinfo(to).min, np.iinfo(to).max
        if array.min() < low or array.max() > high:
            raise InputError(
                f"Data(): `{name}` must fit into 32 bits, from {low} to {high}, but its values go from "
                f"{array.min()} to {array.max()}; number them from 0, or turn them into floats"
            )
    with np.errstate(over="ignore"):
        return array.astype(to, copy=False)
