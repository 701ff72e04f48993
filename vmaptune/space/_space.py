"""The settings of an experiment, each with its distribution."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space._designs import Seed, unit_points
from vmaptune.space._distributions import Distribution, choice, distribution_from_json

RESERVED = ("keys", "items", "values", "get")  # what a mapping of settings has already


class Space(Mapping[str, Distribution]):
    """Name -> distribution, in the order given. Immutable; `replace` makes another.

    Args:
      settings: a dict, or pairs; a plain value stands for a setting with that one value.

    Raises:
      InputError: no settings, a name twice, or one that Python can't spell as `hp.name`.
    """

    def __init__(self, settings: Mapping[str, Any] | Iterable[tuple[str, Any]]):
        pairs = list(settings.items()) if isinstance(settings, Mapping) else list(settings)
        if not pairs:
            raise InputError('a space must hold at least one setting, e.g. {"learning_rate": vt.loguniform(...)}')
        found: dict[str, Distribution] = {}
        for name, value in pairs:
            _check_name(name)
            if name in found:
                raise InputError(f"the setting {name!r} must be named once, but it is named twice; rename one")
            found[name] = value if isinstance(value, Distribution) else _constant(name, value)
        self._settings = found

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

        The same seed gives the same values everywhere. Methods: random, sobol, halton, grid (`unit_points`).

        Raises:
          InputError: `n` below 1, or an unknown method.
        """
        return self.from_unit(unit_points(n, len(self), seed, method))

    def from_unit(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Settings for points of the unit cube, `[n, D]`."""
        points = np.asarray(points, np.float64)
        return {name: d.from_unit(points[:, i]) for i, (name, d) in enumerate(self.items())}

    def to_unit(self, samples: Mapping[str, Any]) -> np.ndarray:
        """The inverse of `from_unit`: points of the unit cube, `[n, D]`."""
        return np.stack([d.to_unit(samples[name]) for name, d in self.items()], axis=1)

    def replace(self, **distributions: Any) -> Space:
        """The same space with other distributions for some of its settings."""
        return Space({**self, **distributions})

    def to_json(self) -> list[list[Any]]:
        """Pairs that `Space.from_json` reads, in order."""
        return [[name, d.to_json()] for name, d in self.items()]

    @classmethod
    def from_json(cls, pairs: Iterable[Any]) -> Space:
        """The inverse of `to_json`."""
        return cls([(name, distribution_from_json(entries)) for name, entries in pairs])


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
