"""A width, a depth or a batch size that may be a traced number, padded to the largest one of its program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.errors import InputError


@dataclass(frozen=True, eq=False)
class Held:
    """Keeps traced numbers out of a module's state: nnx takes it for a static attribute."""

    value: Any


@dataclass(frozen=True, eq=False)
class Size:
    """How many units there are: a plain number, or a traced one of at most `most`.

    Arrays have `most` units; those from `value` on are padding, which holds zeros and contributes nothing.
    """

    value: Any  # int, or an int32 scalar
    most: int

    def __post_init__(self) -> None:
        if isinstance(self.most, bool) or not isinstance(self.most, (int, np.integer)) or self.most < 1:
            raise InputError(f"vt.nn.Size: `most` must be a whole number of at least 1, but got {self.most!r}")
        if not self.is_traced and not 0 <= self.value <= self.most:
            raise InputError(
                f"vt.nn.Size: `value` must be from 0 to most={self.most}, but got {self.value!r}; "
                f"raise most to the largest value of the setting"
            )

    @property
    def is_traced(self) -> bool:
        """Whether the number is an array, so that there may be padding."""
        return not isinstance(self.value, (int, np.integer))

    def mask(self) -> jax.Array:
        """`[most]` bool: which units are there."""
        return jnp.arange(self.most) < self.value

    def keep(self, array: jax.Array, axis: int = -1) -> jax.Array:
        """The array with zeros in its padding along `axis`; the same object where there is none."""
        if not self.is_traced:
            return array
        axis %= array.ndim
        shape = [self.most if d == axis else 1 for d in range(array.ndim)]
        return jnp.where(self.mask().reshape(shape), array, jnp.zeros((), array.dtype))


def size(hp: Mapping[str, Any], name: str, most: int | None = None) -> Size:
    """The setting `name` as a size: `vt.nn.Linear(64, vt.nn.size(hp, "width"), rngs=rngs)`.

    Where the setting is static it is the plain number, so the layer is as wide as the setting says; where it is
    traced, the layer is as wide as the largest value of the setting in this program, and masked.

    Raises:
      InputError: a traced setting of which no largest value is known (`hp` is not from a space): give `most`.
    """
    value = hp[name]
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return Size(int(value), int(value) if value else 1)
    note(name)
    limit = getattr(hp, "_limits", {}).get(name)
    if most is None and isinstance(limit, tuple):
        limit = max(limit)
    most = limit if most is None else min(most, limit) if isinstance(limit, int) else most
    if most is None:
        raise InputError(
            f"vt.nn.size: no largest value is known of the traced setting {name!r}; pass most=..., the largest value "
            f"that it can have"
        )
    return Size(value, int(most))


_notes: ContextVar[set[str] | None] = ContextVar("notes", default=None)


def note(name: str) -> None:
    """Takes down that a masked layer has read a traced setting."""
    notes = _notes.get()
    if notes is not None:
        notes.add(name)


@contextmanager
def noted() -> Iterator[set[str]]:
    """The traced settings that masked layers read meanwhile: those that could be static as well."""
    found: set[str] = set()
    token = _notes.set(found)
    try:
        yield found
    finally:
        _notes.reset(token)


def as_size(value: Any) -> Size:
    """A size or a plain number as a size."""
    return value if isinstance(value, Size) else Size(value, value)
