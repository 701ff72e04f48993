"""The winner's weights as safetensors, which most libraries read: a header in JSON, then the arrays' bytes.

Source: the format's own description, https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from vmaptune.errors import StudyError
from vmaptune.store.files import inside
from vmaptune.store.weights import load_weights
from vmaptune.view.export._source import Source

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "complex64": "C64", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def write_weights(source: Source, path: Path) -> None:
    """Each array by its place in the model, such as `params.first.kernel`; variables are in `rest`.

    Raises:
      StudyError: the study has kept no weights, or such as the format has no name for.
    """
    if "best" not in (source.meta.get("weights") or {}):
        raise StudyError(f"{source.directory}: the study has no saved model, which it keeps when it ends")
    saved = load_weights(inside(source.directory, "best") / "best.weights")
    arrays = {name: np.asarray(value) for name, value in _named(saved).items()}
    unknown = [f"{name} is {array.dtype}" for name, array in arrays.items() if array.dtype.name not in DTYPES]
    if unknown:
        raise StudyError(f"{source.directory}: safetensors has no such numbers: {', '.join(unknown)}")
    header: dict[str, object] = {"__metadata__": {"study": source.name, "trial": str(source.meta["weights"]["best"])}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes())


def _named(saved: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`['params']['layers'][0].value` as `params.layers.0`, unless two arrays would have one name."""
    short = {name: _short(name) for name in saved}
    return {short[n] if list(short.values()).count(short[n]) == 1 else n: array for n, array in saved.items()}


def _short(name: str) -> str:
    parts = [a or b for a, b in re.findall(r"\[['\"]?([^\]'\"]+)['\"]?\]|\.(\w+)", name)]
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "value" else parts) or name
