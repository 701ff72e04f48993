"""A trained network of a table, in NumPy: it compiles nothing, and a row's prediction hangs on that row alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LAYER_NORM_EPSILON = 1e-6  # Flax's
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(x / 2)),
    "tanh": np.tanh,
}


class Network:
    """What `TableNetwork` computes, in float64, of saved weights.

    Args:
      weights: name -> array, as a study saves them.
      hp: the configuration; its width and depth say how much of padded arrays is there.
    """

    def __init__(self, weights: Mapping[str, Any], hp: Mapping[str, Any]):
        self.hp = dict(hp)
        self.arrays = {
            _plain(name): np.asarray(array, np.float64) for name, array in weights.items() if _is_param(name)
        }
        width = int(self.hp["width"])
        for name, array in self.arrays.items():
            if name.startswith("blocks"):
                self.arrays[name] = array[tuple(slice(width) for _ in array.shape)]
        self.arrays["first.kernel"] = self.arrays["first.kernel"][:, :width]
        self.arrays["first.bias"] = self.arrays["first.bias"][:width]
        self.arrays["last.kernel"] = self.arrays["last.kernel"][:width]

    def __call__(self, x: Mapping[str, np.ndarray]) -> np.ndarray:
        """`[n]` standardised targets, or `[n, classes]` probabilities."""
        a, hp = self.arrays, self.hp
        embedded = [a[f"embeddings.{i}.embedding"][x["codes"][:, i]] for i in range(x["codes"].shape[1])]
        h = np.concatenate([x[hp["scaling"]], x["rest"], *embedded], 1)
        h = h @ a["first.kernel"] + a["first.bias"]
        for i in range(int(hp["depth"])):
            block = f"blocks.blocks.{i}"
            out = h
            if hp["norm"] == "layer":
                out = h - h.mean(1, keepdims=True)
                out /= np.sqrt((out**2).mean(1, keepdims=True) + LAYER_NORM_EPSILON)
                out = out * a[f"{block}.norm.scale"] + a[f"{block}.norm.bias"]
            out = ACTIVATIONS[hp["activation"]](out @ a[f"{block}.linear.kernel"] + a[f"{block}.linear.bias"])
            h = h + out if hp["block"] == "residual" else out
        out = h @ a["last.kernel"] + a["last.bias"]
        if out.shape[1] == 1:
            return out[:, 0]
        out = np.exp(out - out.max(1, keepdims=True))
        return out / out.sum(1, keepdims=True)


def _is_param(name: str) -> bool:
    return name.startswith("['params']")


def _plain(name: str) -> str:
    """`['params']['blocks']['blocks'][0]['linear']['kernel']...` as `blocks.blocks.0.linear.kernel`."""
    return ".".join(part for part in re.findall(r"\['?(\w+)'?\]", name)[1:] if part != "value")
