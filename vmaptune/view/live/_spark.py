"""A curve in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
LOST = "×"  # not finite


def bounds_of(curves: Sequence[Sequence[float | None]]) -> tuple[float, float, bool]:
    """What all of these curves span, and whether a log scale shows them better: (low, high, log)."""
    finite = [v for curve in curves for v in curve if v is not None and math.isfinite(v)]
    if not finite:
        return 0.0, 1.0, False
    low, high = min(finite), max(finite)
    log = low > 0 and high / low > 20
    return (math.log(low), math.log(high), True) if log else (low, high, False)


def sparkline(curve: Sequence[float | None], width: int, bounds: tuple[float, float, bool] | None = None) -> str:
    """The curve in at most `width` characters: each is the last value of its share of the points."""
    if not curve or width < 1:
        return ""
    low, high, log = bounds or bounds_of([curve])
    points = list(curve)
    if len(points) > width:
        points = [points[math.ceil((i + 1) * len(curve) / width) - 1] for i in range(width)]
    return "".join(_block(value, low, high, log) for value in points)


def _block(value: float | None, low: float, high: float, log: bool) -> str:
    if value is None or not math.isfinite(value) or (log and value <= 0):
        return LOST
    at = math.log(value) if log else value
    share = (at - low) / (high - low) if high > low else 0.0
    return BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))]
