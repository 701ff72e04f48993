"""Configurations that a person gives: checked against the space, and what is missing in them drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space._conditions import is_one_of
from vmaptune.space._designs import Seed, unit_points
from vmaptune.space._distributions import Distribution
from vmaptune.space._space import Space

OFF = 1e-9  # relative: by how much a written number may differ from one of finitely many
WRONG = object()


def completed(space: Space, configurations: Iterable[Mapping[str, Any]], seed: Seed) -> list[dict[str, Any]]:
    """Whole configurations, in the order given, with the numbers that lanes hold.

    A hyperparameter that is missing, or None without None being one of its values, is drawn from its own law; one
    whose condition (`when=`) does not hold is None.

    Args:
      configurations: name -> value, each with some of the space's hyperparameters.
      seed: of what is drawn.

    Raises:
      InputError: no list of configurations; a hyperparameter that the space does not have; a value that it cannot
        take, or for which there is no place under the others.
    """
    if isinstance(configurations, (Mapping, str, bytes)) or not isinstance(configurations, Iterable):
        raise InputError(
            f"enqueue must be a list of configurations, such as [{{{next(iter(space))!r}: ...}}], but got "
            f"{configurations!r}"
        )
    given = list(configurations)
    if not given:
        return []
    units = unit_points(len(given), len(space), seed)
    drawn = {name: d.from_unit(units[:, i]) for i, (name, d) in enumerate(space.items())}
    rows = [
        _completed(space, one, {name: _plain(values[i]) for name, values in drawn.items()}, f"enqueue: number {i + 1}")
        for i, one in enumerate(given)
    ]
    columns = {name: np.empty(len(rows), object) for name in space}
    for name, column in columns.items():
        column[:] = [row[name] for row in rows]
    return space.rows(columns)


def _completed(space: Space, given: Any, drawn: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a configuration, name -> value, but got {given!r}")
    for name in given:
        if name not in space:
            raise InputError(
                f"{where}: the space has no hyperparameter {name!r}; it has: {', '.join(space)}; leave {name!r} out"
            )
    found: dict[str, Any] = {}
    for name, d in space.items():
        value = _listed(given.get(name))
        missing = name not in given or (value is None and not d.contains(None))
        off = [(other, wanted) for other, wanted in d.when if not is_one_of(found[other], wanted)]
        if not missing and value is not None:
            unsaid = [other for other, _ in d.when if other not in given]
            if unsaid:
                raise InputError(
                    f"{where}: {name} exists for some values of {unsaid[0]} only, which is not given; give "
                    f"{unsaid[0]} too, or leave {name} out"
                )
            if off:
                other, wanted = off[0]
                raise InputError(
                    f"{where}: {name} exists where {other} is one of {list(wanted)}, but {other} is {found[other]!r} "
                    f"and {name} is {value!r}; leave {name} out"
                )
        if off:
            found[name] = None
        elif missing:
            found[name] = drawn[name]
        else:
            found[name] = _value_of(d, value)
            if found[name] is WRONG:
                raise InputError(
                    f"{where}: {name} must be a value of {d!r}, but got {value!r}; take one of those, widen the space, "
                    f"or leave {name} out to have it drawn"
                )
    return found


def _value_of(d: Distribution, value: Any) -> Any:
    """A value as the hyperparameter itself has it, WRONG where it cannot take it."""
    if d.options is not None:
        return next((o for o in d.options if o == value and isinstance(o, bool) == isinstance(value, bool)), WRONG)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return WRONG
    if d.or_zero > 0 and value == 0:
        return 0 if d.is_integer else 0.0
    if d.low is None or d.high is None or d.or_zero >= 1 or not d.low <= value <= d.high:
        return WRONG
    if d.n_values is None:
        return float(value)
    near = _plain(d.from_unit(d.to_unit([value]))[0])
    return near if abs(near - value) <= OFF * abs(value) else WRONG


def _listed(value: Any) -> Any:
    """A plain value, with tuples for lists: JSON has no tuples."""
    value = _plain(value)
    return tuple(map(_listed, value)) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
