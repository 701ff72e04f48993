"""Weights in one file: Flax's msgpack, which holds data only, under a checksum.

The file is 8 bytes of magic, 8 of the payload's length (little endian), 32 of the SHA-256 of the length and
the payload, then the payload. Loading one runs no code, whatever is in it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmaptune.errors import InputError, StudyError
from vmaptune.store.files import write_whole

_MAGIC = b"VMAPTWT1"
_HEADER = len(_MAGIC) + 8 + 32
_CHUNKED = "__msgpack_chunked_array__"  # Flax's own mark for an array in pieces


def save_weights(path: str | Path, tree: Mapping[Any, Any]) -> None:
    """Writes a nested dict of arrays and scalars, of any dtype with a plain byte layout, whole or not at all.

    Keys are strings, or ints, which become strings. JAX arrays become NumPy arrays. Raises InputError for
    anything else in the tree, StudyError when the file cannot be written.
    """
    from flax import serialization

    if not isinstance(tree, Mapping):
        raise InputError(f"weights must be a dict of arrays, but got {type(tree).__name__}")
    payload = serialization.msgpack_serialize(_plain(tree, ""), in_place=True)
    length = len(payload).to_bytes(8, "little")
    write_whole(path, _MAGIC, length, _digest(length, payload), payload)


def load_weights(path: str | Path) -> dict[str, Any]:
    """The nested dict that `save_weights` was given: NumPy arrays (read-only), dtypes and bits unchanged.

    Raises StudyError when the file is missing, cut, changed by a single bit, or no weights file.
    """
    from flax import serialization

    path = Path(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if raw[: len(_MAGIC)] != _MAGIC:
        raise StudyError(f"{path} is not a weights file of vmaptune, or its beginning is damaged")
    view = memoryview(raw)
    length, digest, payload = view[len(_MAGIC) :][:8], view[len(_MAGIC) + 8 :][:32], view[_HEADER:]
    if len(raw) < _HEADER or int.from_bytes(length, "little") != len(payload):
        raise StudyError(
            f"{path} is damaged: it should hold {_HEADER + int.from_bytes(length, 'little')} bytes but has "
            f"{len(raw)}; restore it from a copy, or train again with the trial's parameters and seed"
        )
    if _digest(length, payload) != digest:
        raise StudyError(
            f"{path} is damaged: its SHA-256 is not the one it was written with; restore it from a copy, "
            "or train again with the trial's parameters and seed"
        )
    try:
        return serialization.msgpack_restore(bytes(payload))
    except Exception as error:  # a dtype that this NumPy does not know, for one
        raise StudyError(f"{path} cannot be decoded: {error}; load it with the versions that wrote it") from error


def _digest(length: bytes | memoryview, payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(length)
    digest.update(payload)
    return digest.digest()


def _plain(tree: Mapping[Any, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(key, bool) or not isinstance(key, str | int) or key == _CHUNKED:
            raise InputError(f"weights{where} has the key {key!r}; keys must be str or int")
        name = str(key)
        if name in found:
            raise InputError(f"weights{where} has both {name!r} and {int(name)}; ints become strings, rename one")
        here = f"{where}[{name!r}]"
        found[name] = _plain(value, here) if isinstance(value, Mapping) else _leaf(value, here)
    return found


def _leaf(value: Any, where: str) -> Any:
    import numpy as np

    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return value
    try:
        array = np.asarray(value) if hasattr(value, "dtype") else None
    except TypeError:  # a typed PRNG key of JAX
        array = None
    if array is None or array.dtype.hasobject or array.dtype.kind in "USMm" or array.dtype.names is not None:
        kind = getattr(value, "dtype", type(value).__name__)
        raise InputError(
            f"weights{where} is {kind}, but only arrays of numbers, scalars and dicts of them can be saved; "
            "give a typed key as jax.random.key_data(key), a list or tuple as a dict by index"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[()] if isinstance(value, np.generic) else array
