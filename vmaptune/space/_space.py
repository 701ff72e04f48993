"""The settings of an experiment, each with its distribution."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space._conditions import active, check_conditions, columns_with_absences
from vmaptune.space._designs import Seed, unit_points
from vmaptune.space._distributions import Distribution, choice, distribution_from_json
from vmaptune.space._held import as_held, is_drawn_real, nearest

RESERVED = ("keys", "items", "values", "get")  # what a mapping of settings has already


class Space(Mapping[str, Distribution]):
    """Name -> distribution, in the order given. Immutable; `replace` makes another.

    Args:
      settings: a dict, or pairs; a plain value stands for a setting with that one value.

    Raises:
      InputError: no settings, a name twice, or one that Python can't spell as `hp.name`; a condition (`when=`) on
        a setting that does not come before, or on a value that it does not have.
    """

    def __init__(self, settings: Mapping[str, Any] | Iterable[tuple[str, Any]]):
        self._set(settings, first=True)

    def _set(self, settings: Mapping[str, Any] | Iterable[tuple[str, Any]], first: bool) -> None:
        pairs = list(settings.items()) if isinstance(settings, Mapping) else list(settings)
        if not pairs:
            raise InputError('a space must hold at least one setting, e.g. {"learning_rate": vt.loguniform(...)}')
        found: dict[str, Distribution] = {}
        for name, value in pairs:
            _check_name(name)
            if name in found:
                raise InputError(f"the setting {name!r} must be named once, but it is named twice; rename one")
            found[name] = value if isinstance(value, Distribution) else _constant(name, value)
        check_conditions(found, values_too=first)
        self._settings = found

    @classmethod
    def narrowed(cls, settings: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Space:
        """A space made from another one, whose conditions may be on values that are left no more."""
        space = cls.__new__(cls)
        space._set(settings, first=False)
        return space

    def __getitem__(self, name: str) -> Distribution:
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __repr__(self) -> str:
        return f"Space({self._settings!r})"

    def sample(self, n: int, seed: Seed, method: str = "random") -> dict[str, np.ndarray]:
        """`n` settings as host arrays by name, each `[n]`: float64, int64 or objects.

        The same seed gives the same values everywhere. A setting with a condition is None where it does not exist.
        Methods: random, sobol, halton, grid (`unit_points`).

        Raises:
          InputError: `n` below 1, or an unknown method.
        """
        return self.from_unit(unit_points(n, len(self), seed, method))

    def from_unit(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Settings for points of the unit cube, `[n, D]`."""
        points = np.asarray(points, np.float64)
        columns = {name: d.from_unit(points[:, i]) for i, (name, d) in enumerate(self.items())}
        return columns_with_absences(self._settings, columns)

    def rows(self, columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Columns `[n]` that `sample` or `from_unit` drew as configurations in plain Python values: real numbers as
        lanes hold them, the float32 next to each."""
        lists = {}
        for name, column in columns.items():
            if is_drawn_real(self[name]):
                there = np.array([v is not None for v in column], bool)
                held = as_held(self[name], np.asarray(column[there], np.float64))
                column = np.array(column, object)
                column[there] = held
            lists[name] = column.tolist()
        return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def held(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration whose drawn real numbers are the ones that lanes hold, whatever the bounds."""
        drawn = {n for n, d in self.items() if is_drawn_real(d)}
        return {n: float(nearest(v)) if n in drawn and v is not None else v for n, v in params.items()}

    def to_unit(self, samples: Mapping[str, Any]) -> np.ndarray:
        """The inverse of `from_unit`: points of the unit cube, `[n, D]`. What does not exist is at 0.5."""
        n = len(next(iter(samples.values())))
        rows = [self.active({name: samples[name][i] for name in self}) for i in range(n)] if self.conditional else []
        points = np.full((n, len(self)), 0.5)
        for column, (name, d) in enumerate(self.items()):
            if not d.when:
                points[:, column] = d.to_unit(samples[name])
                continue
            there = np.array([row[name] for row in rows], bool)
            if there.any():
                points[there, column] = d.to_unit([v for v, t in zip(samples[name], there, strict=True) if t])
        return points

    @property
    def conditional(self) -> bool:
        """Whether some setting exists only for some values of others."""
        return any(d.when for d in self.values())

    def active(self, params: Mapping[str, Any]) -> dict[str, bool]:
        """Which settings exist for these values: name -> bool."""
        return active(self._settings, params)

    def lane_values(self, params: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """What a lane receives of the traced settings `names`: numbers, the position for an option that is none, and
        the middle of its range for a setting that does not exist, so that code which does not read it computes with
        a harmless one."""
        exists = self.active(params) if self.conditional else {}
        found = {name: params[name] if exists.get(name, True) else self[name].neutral for name in names}
        return {n: v if self[n].numeric else int(self[n].to_scaled([v])[0]) for n, v in found.items()}

    def replace(self, **distributions: Any) -> Space:
        """The same space with other distributions for some of its settings."""
        return Space.narrowed({**self, **distributions})

    def to_json(self) -> list[list[Any]]:
        """Pairs that `Space.from_json` reads, in order."""
        return [[name, d.to_json()] for name, d in self.items()]

    @classmethod
    def from_json(cls, pairs: Iterable[Any]) -> Space:
        """The inverse of `to_json`."""
        return cls.narrowed([(name, distribution_from_json(entries)) for name, entries in pairs])


def _constant(name: str, value: Any) -> Distribution:
    try:
        return choice([value])
    except InputError as error:
        raise InputError(
            f"the setting {name!r} must be a distribution (vt.loguniform(...), ...) or a plain value, but got "
            f"{value!r}: {error}"
        ) from None


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise InputError(f"a setting's name must be a string, but got {name!r}")
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name in RESERVED:
        raise InputError(
            f"a setting's name must be one that Python can spell as hp.name, not a keyword, not one of "
            f"{', '.join(RESERVED)}, and not begin with an underscore, but got {name!r}; "
            f"{_suggestion(name)!r} would do"
        )


def _suggestion(name: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in name).strip("_") or "setting"
    kept = kept if kept[0].isalpha() else f"x{kept}"
    return f"{kept}_" if keyword.iskeyword(kept) or kept in RESERVED or not kept.isidentifier() else kept
