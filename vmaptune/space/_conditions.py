"""Settings that exist only for some choices of others: `when={"optimizer": ["sgd"]}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vmaptune.errors import InputError

Conditions = tuple[tuple[str, tuple[Any, ...]], ...]  # (another setting, its values for which this one exists)


def read_conditions(call: str, when: Any) -> Conditions:
    """`when=` as a tuple; a single value stands for a list of it, and a set is sorted: its own order is another one in
    each process.

    Raises:
      InputError: no dict of settings and values.
    """
    if when is None or when == ():
        return ()
    if not isinstance(when, Mapping) or not when or not all(isinstance(name, str) for name in when):
        raise InputError(
            f'{call}: `when` must name another setting and its values, such as when={{"optimizer": ["sgd"]}}, '
            f"but got {when!r}"
        )
    found = []
    for name, values in when.items():
        if isinstance(values, (set, frozenset)):
            values = sorted(values, key=_canonical)
        values = tuple(values) if isinstance(values, (list, range, np.ndarray)) else (values,)
        values = tuple(v.item() if isinstance(v, np.generic) else v for v in values)
        if not values:
            raise InputError(f"{call}: `when` must name at least one value of {name!r}, but got none")
        found.append((name, values))
    return tuple(found)


def _canonical(value: Any) -> tuple:
    """A sorting key for values of any kinds, the same in every process: numbers by size, then the rest by its text."""
    value = value.item() if isinstance(value, np.generic) else value
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return (0, value, "") if real else (1, 0, f"{type(value).__name__} {value!r}")


def check_conditions(settings: Mapping[str, Any], values_too: bool) -> None:
    """Each setting that a condition names must come earlier in the space and have the values named.

    Raises:
      InputError: it does not.
    """
    seen: list[str] = []
    for name, d in settings.items():
        for other, wanted in d.when:
            if other not in seen:
                where = "comes later: put it before" if other in settings else "is not in the space: add it before"
                raise InputError(
                    f"{name}: `when` must name a setting that comes before it, but {other!r} {where} {name!r}"
                )
            values = settings[other].values()
            if values is None:
                raise InputError(
                    f"{name}: `when` must name a setting with finitely many values, but {other!r} is "
                    f"{settings[other]!r}; use vt.choice or vt.ordinal there"
                )
            missing = [v for v in wanted if not is_one_of(v, values)]
            if values_too and missing:
                raise InputError(
                    f"{name}: `when` must name values of {other!r}, but {missing[0]!r} is none of {list(values)}"
                )
        seen.append(name)


def active(settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, bool]:
    """Which settings exist for these values of the others."""
    found: dict[str, bool] = {}
    for name, d in settings.items():
        found[name] = all(found[other] and is_one_of(params[other], wanted) for other, wanted in d.when)
    return found


def is_one_of(value: Any, values: Iterable[Any]) -> bool:
    """Equality that tells True from 1."""
    return any(v == value and isinstance(v, bool) == isinstance(value, (bool, np.bool_)) for v in values)


def columns_with_absences(settings: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns `[n]` of which the conditional ones become objects, None where the setting does not exist."""
    exists: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name, d in settings.items():
        column = columns[name]
        exists[name] = np.ones(len(column), bool)
        for other, wanted in d.when:
            matches = np.array([is_one_of(v, wanted) for v in found[other].tolist()], bool)
            exists[name] &= exists[other] & matches
        if d.when:
            objects = np.empty(len(column), object)
            objects[:] = [v if there else None for v, there in zip(column.tolist(), exists[name], strict=True)]
            column = objects
        found[name] = column
    return found
