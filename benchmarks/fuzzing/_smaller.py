"""A smaller case that fails in the same way as a given one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fuzzing._processes import Failure, Limits, alone, failure_of

MOST_TRIES = 24
SIMPLE: dict[str, Any] = {
    "via": "experiment", "kind": "pytree", "order": "own", "optimizer": "sgd", "loss": "mse", "trials": 3,
    "plan": {"devices": 1, "lanes": 2, "tiles": 1, "every": 1}, "head": {"form": "x@w", "bias": False, "mean": False},
    "valid": 8, "mode": "compiled",
}  # fmt: skip


def candidates(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Cases that lack one layer of a case, or have one thing as simple as can be."""
    layers = spec["layers"]
    for i in range(len(layers)):
        yield {**spec, "layers": layers[:i] + layers[i + 1 :]}
    for i, (name, settings, wrap) in enumerate(layers):
        if wrap:
            yield {**spec, "layers": [*layers[:i], [name, settings, None], *layers[i + 1 :]]}
    for name, value in SIMPLE.items():
        if spec[name] != value:
            yield {**spec, name: value}


def smaller(failure: Failure, limits: Limits) -> Failure:
    """The failure of the smallest case found in a few tries; each runs in a process of its own."""
    best, tries = failure, 0
    if failure.spec is None:
        return failure
    again = True
    while again:
        again = False
        assert best.spec is not None
        for spec in candidates(best.spec):
            tries += 1
            if tries > MOST_TRIES:
                return best
            found = alone({"spec": spec}, limits)
            if found["verdict"] == failure.verdict and found["stage"] not in ("draw", "plain"):
                best, again = failure_of({"spec": spec}, found), True
                break
    return best
