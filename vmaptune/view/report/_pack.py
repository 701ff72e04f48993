"""Pictures as compact text: numeric arrays once, as typed arrays, all gzipped; the page's script unpacks them."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

LEAST = 24  # shorter arrays are plain JSON


class Pool:
    """The arrays of all pictures: each different one is stored once."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._chunks: list[bytes] = []
        self._table: list[list[Any]] = []
        self._at = 0

    def add(self, array: np.ndarray) -> int:
        """The array's number. Floats keep 32 bits, which is more than a screen shows; whole numbers too."""
        if array.dtype.kind == "f":
            kind, stored = "f4", array.astype("<f4")
        else:
            kind, stored = "i4", array.astype("<i4")
        raw = stored.tobytes()
        key = kind.encode() + raw
        if key not in self._known:
            self._known[key] = len(self._table)
            self._table.append([kind, self._at, len(stored)])
            self._chunks.append(raw)
            self._at += len(raw)
        return self._known[key]

    def encode(self, node: Any) -> Any:
        """The same tree in plain JSON types, with arrays as `{"$a": number}` and columns as `{"$c": [...]}`."""
        if isinstance(node, Mapping):
            return {str(k): self.encode(v) for k, v in node.items()}
        if isinstance(node, np.ndarray):
            return self._array(node)
        if isinstance(node, np.generic):
            return self.encode(node.item())
        if isinstance(node, float):
            return node if math.isfinite(node) else None
        if isinstance(node, (list, tuple)):
            return [self.encode(v) for v in node]
        return node

    def _array(self, array: np.ndarray) -> Any:
        if array.dtype.kind not in "fiu" or len(array) < LEAST:
            return self.encode(array.tolist())
        if array.ndim == 2:
            return {"$c": [self._array(_whole(column)) for column in array.T]}
        return {"$a": self.add(array)}

    def table(self) -> list[list[Any]]:
        return self._table

    def bytes(self) -> bytes:
        return b"".join(self._chunks)


def _whole(column: np.ndarray) -> np.ndarray:
    """Ids that came to be floats beside floats, as whole numbers again."""
    whole = column.dtype.kind == "f" and np.isfinite(column).all() and (column == np.round(column)).all()
    if whole and np.abs(column).max(initial=0) < 2**31:
        return column.astype(np.int64)
    return column


def packed(raw: bytes) -> str:
    """Gzipped, base64. The same bytes give the same text."""
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


def packed_json(value: Any) -> str:
    """`packed` JSON."""
    return packed(
        json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        )
    )
