"""Numbers as a person would write them."""

from __future__ import annotations

import math
from typing import Any

NOTHING_TRAINED = (
    "No setting trained to a finite result: lower the upper end of the learning rate, look for log(0) or a division by "
    "zero in the loss, or train for fewer steps."
)


def number(value: Any, digits: int = 4) -> str:
    """A number with a few significant digits; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{digits}g}"


def setting(value: Any) -> str:
    """A setting's value, with enough digits to be used: 0.9995 is not 1."""
    if isinstance(value, float) and 0.9 < value < 1:
        return f"1 - {number(1 - value)}  ({value:.8g})"
    return number(value) if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count: float) -> str:
    """Bytes as KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def counted(count: int, what: str) -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
