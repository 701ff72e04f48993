"""The scales: what a setting's values are, how likely each is, and where it lies in the unit interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space._conditions import Conditions, read_conditions

MAX_VALUES = 1_000_000  # of a finite setting


@dataclass(frozen=True)
class Scale:
    """A coordinate in which a setting is drawn evenly."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


LINEAR = Scale(lambda x: x, lambda c: c)
LOG = Scale(np.log10, lambda c: 10.0**c)
REVERSE_LOG = Scale(lambda x: -np.log10(1.0 - x), lambda c: 1.0 - 10.0**-c)
SCALES = {
    "uniform": LINEAR, "loguniform": LOG, "reverseloguniform": REVERSE_LOG, "randint": LINEAR,
    "lograndint": LOG,
}  # fmt: skip
INTEGERS = ("randint", "lograndint")
LISTED = ("choice", "ordinal")


@dataclass(frozen=True)
class Distribution:
    """The law of one setting. Made by `uniform`, `loguniform`, ...; never changed, only replaced."""

    kind: str
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    options: tuple[Any, ...] | None = None
    or_zero: float = 0.0
    static: bool = False
    when: Conditions = ()  # the settings and their values for which this one exists

    # ---- what it is ----------------------------------------------------------------------------------

    @property
    def numeric(self) -> bool:
        """Whether every value is a number, so that the setting can be traced."""
        return self.options is None or all(_is_number(v) for v in self.options)

    @property
    def is_integer(self) -> bool:
        """Whether every value is a whole number."""
        if self.options is not None:
            return self.numeric and all(isinstance(v, int) for v in self.options)
        return self.kind in INTEGERS

    @property
    def n_values(self) -> int | None:
        """How many values there are, the zero of `or_zero` included; None when they are not finitely many."""
        count = self._count()
        if count is None:
            return None
        zero_is_another = self.or_zero > 0 and not (self.options is None and self._in_range(0))
        return count + int(zero_is_another)

    def values(self) -> tuple[Any, ...] | None:
        """All values, when there are finitely many."""
        count = self._count()
        if count is None:
            return None
        listed = self.options if self.options is not None else tuple(
            _plain(v) for v in self._from_index(np.arange(count))
        )  # fmt: skip
        zero = 0 if self.is_integer else 0.0
        return (zero, *listed) if self.or_zero > 0 and zero not in listed else listed

    def contains(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        if self.options is not None:
            return any(v == value and isinstance(v, bool) == isinstance(value, bool) for v in self.values() or ())
        if not _is_number(value):
            return False
        if self.or_zero > 0 and value == 0:
            return True
        there = self.or_zero < 1 and self._in_range(value)
        return there and (self._count() is None or bool(self._from_index(self._index([value]))[0] == value))

    def __repr__(self) -> str:
        if self.options is not None:
            parts = [repr(list(self.options))]
        else:
            parts = [repr(self.low), repr(self.high)]
            if self.step is not None and not (self.kind == "randint" and self.step == 1):
                parts.append(f"step={self.step!r}")
        if self.or_zero:
            parts.append(f"or_zero={self.or_zero!r}")
        if self.static:
            parts.append("static=True")
        if self.when:
            parts.append(f"when={ {name: list(values) for name, values in self.when}!r}")
        return f"{self.kind}({', '.join(parts)})"

    # ---- sample <-> unit interval --------------------------------------------------------------------

    def from_unit(self, u: np.ndarray) -> np.ndarray:
        """Values for points of the unit interval: `[n]` to `[n]`, float64, int64 or objects.

        `[0, or_zero)` is the zero; the rest is spread over the range in the setting's scale.
        """
        u = np.clip(np.asarray(u, np.float64), 0.0, 1.0)
        p = self.or_zero
        if p >= 1:
            return self._zeros(len(u))
        t = np.clip((u - p) / (1 - p), 0.0, 1.0)
        count = self._count()
        if count is None:
            lo, hi = self.scaled_bounds
            values = self.from_scaled(lo + t * (hi - lo))
        else:
            values = self._from_index(self._index_at(t, count))
        return np.where(u < p, self._zeros(len(u)), values) if p else values

    def to_unit(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """The inverse of `from_unit`: `[n]` to float64 `[n]`. Values of a finite setting map to the middle of
        their share, a zero of `or_zero` to `or_zero / 2`."""
        p = self.or_zero
        zero = np.array([self._is_zero(v) for v in values], bool)
        count = self._count()
        t = np.zeros(len(zero))
        if not zero.all():
            rest = [v for v, z in zip(values, zero, strict=True) if not z]
            if count is None:
                lo, hi = self.scaled_bounds
                c = self.to_scaled(np.asarray(rest, np.float64))
                t[~zero] = (c - lo) / (hi - lo) if hi > lo else 0.5
            else:
                index = self._index(rest)
                t[~zero] = (self._edge(index, count) + self._edge(index + 1, count)) / 2
        return np.where(zero, p / 2, p + (1 - p) * np.clip(t, 0.0, 1.0))

    # ---- the scale, which a zoom works in ------------------------------------------------------------

    def to_scaled(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Coordinates in which the setting is drawn evenly: log10 x, -log10(1 - x), x, or the position."""
        if self.options is not None:
            return self._index(values).astype(np.float64)
        return SCALES[self.kind].forward(np.asarray(values, np.float64))

    def from_scaled(self, coordinates: np.ndarray) -> np.ndarray:
        """Values for coordinates, within the bounds; integers, steps and positions are rounded."""
        c = np.asarray(coordinates, np.float64)
        if self.options is not None:
            return self._from_index(np.clip(np.round(c), 0, len(self.options) - 1).astype(int))
        assert self.low is not None
        assert self.high is not None
        values = SCALES[self.kind].backward(c)
        if self.step is not None:
            values = self.low + np.round((values - self.low) / self.step) * self.step
        if self.kind in INTEGERS:
            values = np.round(values).astype(np.int64)
        return np.clip(values, self.low, self.high)

    @property
    def scaled_bounds(self) -> tuple[float, float]:
        """The range in scaled coordinates; for a list, its first and last position."""
        if self.options is not None:
            return 0.0, float(len(self.options) - 1)
        lo, hi = self.to_scaled(np.array([self.low, self.high], np.float64))
        return float(lo), float(hi)

    # ---- others like it ------------------------------------------------------------------------------

    def with_bounds(self, low: Any, high: Any) -> Distribution:
        """The same law over another range."""
        return replace(self, low=low, high=high)

    def with_zero(self, p: float) -> Distribution:
        """The same law with another probability of the zero."""
        return replace(self, or_zero=float(p))

    def with_options(self, options: Sequence[Any]) -> Distribution:
        """The same kind of list with other values."""
        return replace(self, options=tuple(options))

    @property
    def neutral(self) -> Any:
        """The value in the middle of the scale, where a setting that does not exist must still be a number."""
        value = self.with_zero(0.0).from_unit(np.array([0.5]))[0]
        return value.item() if isinstance(value, np.generic) else value

    def to_json(self) -> dict[str, Any]:
        """A dict that `distribution_from_json` reads."""
        entries = {"kind": self.kind, "low": self.low, "high": self.high, "step": self.step, "options": self.options,
                   "or_zero": self.or_zero, "static": self.static, "when": self.when}  # fmt: skip
        return {name: value for name, value in entries.items() if value not in (None, ()) and value is not False}

    # ---- inside --------------------------------------------------------------------------------------

    def _count(self) -> int | None:
        if self.options is not None:
            return len(self.options)
        assert self.low is not None
        assert self.high is not None
        if self.kind == "lograndint":
            return int(self.high) - int(self.low) + 1
        if self.step is not None:
            return round((self.high - self.low) / self.step) + 1
        return 1 if self.low == self.high else None

    def _edge(self, index: np.ndarray, count: int) -> np.ndarray:
        """Where the shares of these values in the unit interval begin; 1 for the one after the last."""
        if self.kind == "lograndint":
            assert self.low is not None
            first, last = np.log(np.array([0.0, float(count)]) + (float(self.low) - 0.5))
            return (np.log(index + (float(self.low) - 0.5)) - first) / (last - first)
        return index / count

    def _index_at(self, t: np.ndarray, count: int) -> np.ndarray:
        """Which value's share each point `t` of the unit interval lies in: the law's inverse, and a step where it was
        rounded across an edge."""
        if self.kind == "lograndint":
            assert self.low is not None
            first, last = np.log(np.array([0.0, float(count)]) + (float(self.low) - 0.5))
            near = np.exp(first + t * (last - first)) - (float(self.low) - 0.5)
        else:
            near = t * count
        index = np.clip(near.astype(np.int64), 0, count - 1)
        index -= (index > 0) & (self._edge(index, count) > t)
        index += (index < count - 1) & (self._edge(index + 1, count) <= t)
        return index

    def _from_index(self, index: np.ndarray) -> np.ndarray:
        if self.options is not None:
            if self.numeric and all(abs(v) < 2**53 for v in self.options if isinstance(v, int)):
                return np.array(self.options, np.int64 if self.is_integer else np.float64)[index]
            objects = np.empty(len(self.options), object)
            objects[:] = self.options
            return objects[index]
        assert self.low is not None
        assert self.high is not None
        values = self.low + np.asarray(index) * (self.step if self.step is not None else 1)
        values = values.astype(np.int64 if self.kind in INTEGERS else np.float64)
        return np.clip(values, self.low, self.high)

    def _index(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        if self.options is not None:
            positions = {(type(v) is bool, v): i for i, v in enumerate(self.options)}
            return np.array([positions[type(v) is bool, _plain(v)] for v in values], int)
        assert self.low is not None
        step = self.step if self.step is not None else 1
        return np.round((np.asarray(values, np.float64) - self.low) / step).astype(np.int64)

    def _in_range(self, value: float) -> bool:
        assert self.low is not None
        assert self.high is not None
        return self.low <= value <= self.high

    def _is_zero(self, value: Any) -> bool:
        return self.or_zero > 0 and _is_number(value) and value == 0

    def _zeros(self, n: int) -> np.ndarray:
        return np.zeros(n, np.int64 if self.is_integer else np.float64)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


# ---- the constructors --------------------------------------------------------------------------------


def uniform(
    low: float,
    high: float,
    *,
    step: float | None = None,
    or_zero: float = 0.0,
    static: bool = False,
    when: Mapping[str, Any] | None = None,
) -> Distribution:
    """Evenly over `[low, high]`; with `step`, over `low, low + step, ..., high`.

    `or_zero=p` makes it exactly 0 with probability p. `static=True` makes it a plain value that groups
    trials; it then needs a `step`. `when={"optimizer": ["sgd"]}` makes it a setting that exists only for those values
    of another one, which comes before it in the space.

    Raises:
      InputError: bounds that are no finite numbers or are swapped; a step that does not divide the range.
    """
    return _ranged("uniform", low, high, step, or_zero, static, when)


def loguniform(
    low: float, high: float, *, or_zero: float = 0.0, static: bool = False, when: Mapping[str, Any] | None = None
) -> Distribution:
    """Evenly in log x over `[low, high]`, `low > 0`: each decade is as likely. For learning rates.

    Raises:
      InputError: as `uniform`, or `low` is not above 0.
    """
    return _ranged("loguniform", low, high, None, or_zero, static, when)


def reverseloguniform(
    low: float, high: float, *, or_zero: float = 0.0, static: bool = False, when: Mapping[str, Any] | None = None
) -> Distribution:
    """Evenly in log(1 - x) over `[low, high]`, `high < 1`: 0.9 to 0.99 is as likely as 0.99 to 0.999.

    For averages: momentum, the betas, a discount. Over [0.9, 0.9999] the median is 0.9968.

    Raises:
      InputError: as `uniform`, or `high` is not below 1.
    """
    return _ranged("reverseloguniform", low, high, None, or_zero, static, when)


def randint(
    low: int,
    high: int,
    *,
    step: int | None = None,
    or_zero: float = 0.0,
    static: bool = False,
    when: Mapping[str, Any] | None = None,
) -> Distribution:
    """Each whole number of `low, ..., high` as likely; with `step`, of `low, low + step, ..., high`.

    Raises:
      InputError: as `uniform`, or bounds that are not whole numbers.
    """
    return _ranged("randint", low, high, step if step is not None else 1, or_zero, static, when)


def lograndint(
    low: int, high: int, *, or_zero: float = 0.0, static: bool = False, when: Mapping[str, Any] | None = None
) -> Distribution:
    """Whole numbers from `low` to `high`, evenly in log x: log-uniform over [low - 1/2, high + 1/2], rounded.

    So P(k) is log((k + 1/2) / (k - 1/2)) over log((high + 1/2) / (low - 1/2)).

    Raises:
      InputError: as `randint`, or `low` is below 1.
    """
    return _ranged("lograndint", low, high, None, or_zero, static, when)


def choice(options: Sequence[Any], *, static: bool = False, when: Mapping[str, Any] | None = None) -> Distribution:
    """One of the options, each as likely, in no order: strings, numbers, bools, None, or tuples of them.

    Raises:
      InputError: no options, an option twice, or one that is none of those.
    """
    return _listed("choice", options, static, when)


def ordinal(values: Sequence[Any], *, static: bool = False, when: Mapping[str, Any] | None = None) -> Distribution:
    """One of the values, each as likely, in their order: a zoom keeps a run of neighbours.

    Raises:
      InputError: as `choice`, or numbers that do not increase.
    """
    return _listed("ordinal", values, static, when)


def distribution_from_json(entries: dict[str, Any]) -> Distribution:
    """The inverse of `Distribution.to_json`."""
    values = dict(entries)
    if values.get("options") is not None:
        values["options"] = tuple(_tuples(v) for v in values["options"])
    if values.get("when"):
        values["when"] = _tuples(values["when"])
    try:
        distribution = Distribution(**values)
    except TypeError as error:
        raise InputError(f"a space on disk must hold known settings, but got {entries!r}") from error
    if distribution.kind not in (*SCALES, *LISTED):
        raise InputError(f"a space on disk must hold known kinds, but got {distribution.kind!r}")
    return distribution


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _ranged(kind: str, low: Any, high: Any, step: Any, or_zero: Any, static: bool, when: Any) -> Distribution:
    call = f"{kind}({low!r}, {high!r})"
    integer = kind in INTEGERS
    for name, value in (("low", low), ("high", high)):
        if not _is_number(value) or not _is_finite(value):
            raise InputError(f"{call}: `{name}` must be a finite number, but got {value!r}")
        if integer and value != int(value):
            raise InputError(
                f"{call}: `{name}` must be a whole number, but got {value!r}; use vt.uniform or vt.loguniform"
            )
    low, high = (int(v) if integer else float(v) for v in (low, high))
    if low > high:
        raise InputError(f"{call}: `low <= high` must hold, but got low={low!r}, high={high!r}; swap them")
    if kind in ("loguniform", "lograndint") and low <= 0:
        raise InputError(
            f"{call}: `low` must be above 0 on a log scale, but got {low!r}; take a small positive number, or "
            f"add or_zero=0.1 where 0 itself is worth trying"
        )
    if kind == "reverseloguniform" and high >= 1:
        raise InputError(f"{call}: `high` must be below 1 on a log scale of 1 - x, but got {high!r}; take 0.999, say")
    if step is not None:
        step = _checked_step(call, step, low, high, integer)
    if not _is_number(or_zero) or not 0 <= or_zero <= 1:
        raise InputError(f"{call}: `or_zero` must be a probability from 0 to 1, but got {or_zero!r}")
    distribution = Distribution(kind, low, high, step, None, float(or_zero), bool(static), read_conditions(call, when))
    count = distribution.n_values
    if static and count is None:
        raise InputError(
            f"{call}: a static setting makes one program for each of its values, so it must have finitely many; "
            f"give it a step=, or use vt.ordinal([...])"
        )
    return distribution


def _checked_step(call: str, step: Any, low: Any, high: Any, integer: bool) -> Any:
    if not _is_number(step) or not math.isfinite(step) or step <= 0 or (integer and step != int(step)):
        what = "a whole number above 0" if integer else "a number above 0"
        raise InputError(f"{call}: `step` must be {what}, but got {step!r}")
    parts = (high - low) / step
    if abs(parts - round(parts)) > 1e-9 * max(1.0, parts):
        raise InputError(
            f"{call}: `step` must divide high - low, but {high - low!r} is not a multiple of {step!r}; "
            f"take high={low + math.floor(parts) * step!r}, say"
        )
    if parts > MAX_VALUES:
        raise InputError(
            f"{call}: `step` must leave at most {MAX_VALUES:,} values, but got {step!r}; take a larger one, or "
            f"vt.uniform or vt.loguniform without one"
        )
    return int(step) if integer else float(step)


def _listed(kind: str, options: Any, static: bool, when: Any) -> Distribution:
    if isinstance(options, (str, bytes)) or not isinstance(options, (list, tuple, range, np.ndarray)):
        raise InputError(f"{kind}() must be given a list of values, but got {options!r}")
    values = tuple(_plain(v) for v in options)
    if not values:
        raise InputError(f"{kind}([]): there must be at least one value to draw, but the list is empty")
    for value in values:
        _check_option(kind, value)
    seen = set()
    for value in values:
        key = (isinstance(value, bool), value)
        if key in seen:
            raise InputError(f"{kind}(): each value must be there once, but {value!r} is there twice")
        seen.add(key)
    numbers = [v for v in values if _is_number(v)]
    if kind == "ordinal" and len(numbers) == len(values) and list(numbers) != sorted(numbers):
        raise InputError(f"ordinal({list(values)}): numbers must increase; sort them, or use vt.choice")
    return Distribution(
        kind, options=values, static=bool(static), when=read_conditions(f"{kind}({list(values)})", when)
    )


def _check_option(kind: str, value: Any) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_option(kind, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{kind}(): a value must be finite, but got {value!r}")
    elif not (value is None or isinstance(value, (str, int, float, bool))):
        raise InputError(
            f"{kind}(): a value must be a string, a number, a bool, None or a tuple of them, so that the ledger "
            f"can hold it, but got {value!r}; give it a name and look that up in model()"
        )
