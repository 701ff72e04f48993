"""Settings that shape a model, traced: what the masked layers of `vt.nn` may know of them.

A lane receives a traced choice as the position of its option. `vt.nn.select` reads it; whatever else the code does
with it fails, so that the tracing finds the choice to be static.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from vmaptune.nn import Chosen
from vmaptune.space import Space
from vmaptune.task import Hyperparameters, Task


def limits_of(space: Space) -> dict[str, Any]:
    """The largest value of each setting of whole numbers, the options of each other list."""
    found: dict[str, Any] = {}
    for name, d in space.items():
        if d.options is not None:
            found[name] = int(max(d.options)) if d.is_integer else tuple(d.options)
        elif d.is_integer:
            found[name] = int(d.high or 0)
    found = {name: limit for name, limit in found.items() if isinstance(limit, int) or not space[name].numeric}
    return found


def structured(hp: Mapping[str, Any], limits: Mapping[str, Any]) -> Hyperparameters:
    """Settings as a model receives them: traced choices wrapped, with the limits that masked layers read."""
    plain = hp.unread() if isinstance(hp, Hyperparameters) else hp
    values = {
        name: Chosen(value, limits[name])
        if isinstance(value, jax.Array) and isinstance(limits.get(name), tuple)
        else value
        for name, value in plain.items()
    }
    return Hyperparameters(values, {name: limits[name] for name in values if name in limits})


def with_structure(task: Task, limits: Mapping[str, Any]) -> Task:
    """A task whose functions receive `structured` settings."""
    inputs = task.inputs
    return replace(
        task,
        init=lambda hp, key: task.init(structured(hp, limits), key),
        step=lambda state, hp, key, *more: task.step(state, structured(hp, limits), key, *more),
        evaluate=lambda state, hp: task.evaluate(state, structured(hp, limits)),
        inputs=inputs and (lambda state, hp, step, count: inputs(state, structured(hp, limits), step, count)),
    )
