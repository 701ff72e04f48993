"""What a lane can hold of a hyperparameter: float32 and int32, whatever the bits of the model's own numbers.

A drawn real number becomes the float32 next to it before it is written down, so the ledger names what the lane
receives. A number that a person has written stays as written, as long as float32 tells it from 0, 1 and its neighbours.
Numbers below `LEAST` count as 0: compiled programs flush denormal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space._distributions import INTEGERS, Distribution

LEAST, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))
INTEGER_LEAST, INTEGER_MOST = -(2**31), 2**31 - 1
NEAR_1 = 0.1  # by which share of its distance to 1 a written number may be off
TOLD = 1e-3  # by which share of it, or of its distance to 1, a written number may differ from the one that is held
STATIC = "static=True, which makes a program for each value"


def nearest(values: Any) -> np.ndarray:
    """The float32 numbers nearest to these, as float64; denormal ones are 0."""
    with np.errstate(over="ignore"):
        found = np.asarray(values, np.float64).astype(np.float32).astype(np.float64)
    return np.where(np.abs(found) < LEAST, 0.0, found)


def is_drawn_real(d: Distribution) -> bool:
    """Whether its values are real numbers without end, which a lane always receives as float32."""
    return d.options is None and d.kind not in INTEGERS and d.n_values is None


def as_held(d: Distribution, values: np.ndarray) -> np.ndarray:
    """Drawn values `[n]` as lanes hold them: within the bounds, and a zero of `or_zero` stays one.

    Bounds that float32 cannot hold, which no experiment has, leave the values as they are.
    """
    assert d.low is not None
    assert d.high is not None
    if not is_drawn_real(d) or _trouble(d.low) or _trouble(d.high):
        return values
    low, high = np.float32(d.low), np.float32(d.high)
    low = low if float(low) >= d.low else np.nextafter(low, np.float32(np.inf))
    high = high if float(high) <= d.high else np.nextafter(high, np.float32(-np.inf))
    found = nearest(values)
    held = np.clip(found, float(low), float(high)) if low <= high else found
    return np.where(np.asarray(values) == 0, 0.0, held) if d.or_zero else held


def check_held(name: str, d: Distribution) -> None:
    """That lanes can hold all values of a hyperparameter, which is traced where it can be.

    Raises:
      InputError: a whole number beyond int32; a real one that float32 cannot hold, or cannot tell from another one.
    """
    if not d.numeric or d.static:
        return
    if d.is_integer:
        for value in d.options if d.options is not None else (d.low, d.high):
            check_value(name, d, value)
        return
    if is_drawn_real(d):
        for bound in (d.low, d.high):
            check_value(name, d, bound)
        if np.float32(d.low) == np.float32(d.high):
            raise InputError(
                f"{name}: float32, which lanes compute in, must tell the bounds apart, but in {d!r} both are "
                f"{float(np.float32(d.low))!r}; take a wider range, or one value"
            )
        return
    values: Sequence[Any] = d.values() or ()
    if d.options is not None:
        for value in values:
            check_value(name, d, value)
    held = nearest(values)
    for i in np.flatnonzero((held == 0) | (np.abs(held - 1) < 1e-6) | ~np.isfinite(held)):  # of up to a million
        check_value(name, d, values[int(i)])
    order = np.argsort(held, kind="stable")
    (same,) = np.nonzero(np.diff(held[order]) == 0)
    if len(same):
        one, other = (values[int(i)] for i in order[same[0] : same[0] + 2])
        raise InputError(
            f"{name}: float32, which lanes compute in, must tell the values apart, but {one!r} and {other!r} of {d!r} "
            f"are one number in it; take values that lie further apart"
        )


def check_value(name: str, d: Distribution, value: Any) -> None:
    """That a lane can hold one value of a hyperparameter.

    Raises:
      InputError: it cannot.
    """
    if d.is_integer:
        if not INTEGER_LEAST <= value <= INTEGER_MOST:
            raise InputError(
                f"{name}: a whole number must lie between {INTEGER_LEAST} and {INTEGER_MOST}, since lanes hold it as "
                f"int32, but {d!r} has {value!r}; take smaller numbers, vt.uniform or vt.loguniform, or {STATIC}"
            )
        return
    listed = not is_drawn_real(d)
    why = _trouble(value) or (_off(value) if listed else None)
    if why:
        raise InputError(
            f"{name}: lanes hold a real number as float32, but {value!r} of {d!r} {why}"
            + (f", or {STATIC}" if listed else "")
        )


def held_number(name: str, d: Distribution, value: Any) -> Any:
    """A number that a person gives a traced hyperparameter while it trains, as written; near 0 or 1, where that says
    something else than float32 holds, the number that it holds.

    Raises:
      InputError: a lane cannot hold it.
    """
    if d.is_integer:
        check_value(name, d, value)
        return value
    why = _trouble(value)
    if why:
        raise InputError(f"{name}: lanes hold a real number as float32, but {value!r} {why}")
    held = float(nearest(value))
    return value if abs(held - value) <= TOLD * min(abs(value), abs(1 - value)) else held


def held_bounds(d: Distribution, low: float, high: float) -> tuple[float, float]:
    """A wider range than a hyperparameter's own, as far as lanes can hold it."""
    assert d.low is not None
    assert d.high is not None
    least, most = (INTEGER_LEAST, INTEGER_MOST) if d.is_integer else (-MOST, MOST)
    least = LEAST if d.kind == "loguniform" else least
    most = BELOW_1 if d.kind == "reverseloguniform" else most
    return max(low, min(least, d.low)), min(high, max(most, d.high))


def _trouble(value: Any) -> str | None:
    """What float32 makes of a number that it cannot hold, and the way out; None where it can."""
    try:
        exact = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        exact = float("inf") if value > 0 else float("-inf")
    held = float(nearest(exact))
    if not np.isfinite(held):
        return f"becomes infinite; {MOST:.6g} is the largest"
    if held == 0 and value != 0:
        return f"becomes 0; take {LEAST:.3g} or more, 0 itself, or or_zero="
    if held == 1 and value != 1:
        return f"becomes exactly 1; float32 resolves 1 - x down to 6e-08, so take {BELOW_1:.8g} or less, or pass 1 - x"
    return None


def _off(value: Any) -> str | None:
    """What is wrong with a written number that float32 holds as another one."""
    held = float(nearest(value))
    if isinstance(value, int) and held != value:
        return f"becomes {held:.0f}, since its list has numbers that are not whole; take values below {2**24}"
    if abs(held - value) > NEAR_1 * abs(1 - value):
        return f"becomes 1 - {1 - held:.3g}; write that, or pass 1 - x"
    return None
