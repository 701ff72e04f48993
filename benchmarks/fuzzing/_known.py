"""Cases of faults that were found once, written in the layers of the random ones."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "seed": 1, "mode": "compiled", "kind": "pytree", "via": "experiment", "order": "own",
    "plan": {"devices": 2, "lanes": 2, "tiles": 1, "every": 2}, "batch": 32, "steps": 4, "trials": 4, "examples": 48,
    "valid": 32, "input": {"kind": "normal", "shape": [16]}, "outputs": 5, "loss": "cross entropy", "optimizer": "adam",
    "layers": [], "head": {"form": "x@w", "bias": True, "mean": False},
}  # fmt: skip
THREE = {"devices": 1, "lanes": 3, "tiles": 1, "every": 2}


def dense(units: int, form: str = "x@w") -> list[Any]:
    return ["dense", {"units": units, "form": form, "bias": True}, None]


def act(kind: str) -> list[Any]:
    return ["activation", {"kind": kind}, None]


def flow(kind: str) -> list[Any]:
    return ["flow", {"kind": kind, "times": 2, "form": "x@w"}, None]


def conv(channels: int, kernel: int = 3) -> list[Any]:
    return ["conv", {"channels": channels, "kernel": [kernel, kernel], "stride": [1, 1], "padding": "SAME",
                     "dilation": 1, "groups": "one", "channels_first": False, "bias": True}, None]  # fmt: skip


def pool(*window: int) -> list[Any]:
    return ["pool", {"kind": "max", "window": [*window], "stride": [*window], "padding": "VALID"}, None]


def recurrent(batch: int, times: int, features: int, units: int, outputs: int, head: str) -> dict[str, Any]:
    cell = {"cell": "tanh", "units": units, "form": "x@w", "per_example": False, "last": True, "unroll": 1}
    return {"batch": batch, "order": "shared", "input": {"kind": "normal", "shape": [times, features]},
            "outputs": outputs, "layers": [["recurrent", cell, None]],
            "head": {"form": head, "bias": True, "mean": False}}  # fmt: skip


def network(features: int, hidden: int, batch: int) -> dict[str, Any]:
    return {"batch": batch, "input": {"kind": "normal", "shape": [features]}, "outputs": 1, "loss": "mse",
            "plan": THREE, "layers": [dense(hidden), act("tanh")]}  # fmt: skip


IMAGES = {"kind": "whole numbers", "shape": [8, 8, 1]}
CHANGES: dict[str, dict[str, Any]] = {
    "two heads": {"outputs": 20, "loss": "two heads"},
    "two heads as written elsewhere": {"outputs": 20, "loss": "two heads", "mode": "library",
                                       "plan": {"devices": 1, "lanes": 2, "tiles": 2, "every": 2}},
    "two results of jit": {"layers": [dense(6), flow("jit of two")]},
    "two results of scan": {"layers": [dense(6), flow("scan of two")]},
    "two results of sort": {"layers": [["split", {"units": 6, "form": "x@w", "bias": True, "meet": "sort"}, None]]},
    "two results of a rule": {"layers": [dense(6), act("rule of pairs")]},
    "two results of a barrier": {"layers": [dense(6), flow("barrier")]},
    "batch norm of one channel": {"kind": "nnx", "input": {"kind": "normal", "shape": [8, 8, 1]},
                                  "layers": [["nnxnorm", {"kind": "BatchNorm"}, None]]},
    "muon 64 x 32": {"input": {"kind": "normal", "shape": [64]}, "layers": [dense(32)], "optimizer": "muon"},
    "attention pooling": {"batch": 16, "input": {"kind": "normal", "shape": [20, 6]},
                          "layers": [["attentionpool", {"units": 8, "out": 1, "tanh": True}, None]]},
    "recurrent, w @ h": recurrent(8, 5, 6, 16, 2, "vmap w@x"),
    "recurrent, inner": recurrent(32, 5, 6, 8, 3, "inner"),
    "recurrent, (w @ h.T).T": recurrent(8, 5, 4, 8, 2, "(w@x.T).T"),
    "memory 12 x 24 x 24": {"batch": 12, "input": {"kind": "normal", "shape": [24]}, "layers": [dense(24), act("tanh")],
                            "plan": THREE},
    "memory 28, 12, 24": network(28, 12, 24),
    "memory 15, 24, 28": network(15, 24, 28),
    "memory 13, 24, 31": network(13, 24, 31),
    "ties in pooling over channels": {"input": IMAGES, "layers": [conv(4), act("quantised"), pool(2, 2, 2), conv(4)]},
    "ties in pooling": {"input": IMAGES, "layers": [conv(4), act("quantised"), pool(2, 2, 1), conv(4)]},
    "a rule that centres": {"input": IMAGES, "layers": [conv(4), act("centred rule"), conv(4)]},
}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {name: BASE | changes for name, changes in CHANGES.items()}
