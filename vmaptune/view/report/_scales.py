"""Axes as a person would draw them: where a value lies, and which ticks stand there.

A setting's axis is in its own scaled coordinates (log10 x, -log10(1 - x), x, or the position in a list), so that
what was drawn evenly looks even. A zero from `or_zero` has a place of its own at the left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmaptune.space import Distribution, Space
from vmaptune.view.report._picture import plain, titled
from vmaptune.view.words import number

GOLDEN = 0.6180339887498949
MOST_TICKS = 12
ABSENT = object()  # in the place of the value of a setting that does not exist in a trial: None may be an option


@dataclass(frozen=True)
class SettingAxis:
    """One setting's axis."""

    name: str
    d: Distribution
    low: float  # of the ordinary values, in scaled coordinates
    high: float
    zero: float | None  # where the zero of `or_zero` lies
    range: tuple[float, float]
    ticks: tuple[list[float], list[str]]

    @property
    def listed(self) -> bool:
        """Whether the values are a list of options rather than a range."""
        return self.d.options is not None

    def place(self, values: Sequence[Any]) -> np.ndarray:
        """Coordinates, `[n]`; NaN for a setting that is off in a trial."""
        c = np.full(len(values), math.nan)
        known = [i for i, v in enumerate(values) if self._there(v)]
        if self.zero is not None:
            zeros = [i for i in known if values[i] == 0]
            c[zeros] = self.zero
            known = [i for i in known if values[i] != 0]
        if known:
            kept = [values[i] for i in known]
            c[known] = self.d.to_scaled(kept if self.listed else np.asarray(kept, np.float64))
        return c

    def _there(self, value: Any) -> bool:
        return value is not ABSENT and (value is not None or (self.listed and None in (self.d.options or ())))

    def scattered(self, values: Sequence[Any], trials: np.ndarray) -> np.ndarray:
        """`place`, with points that would cover each other moved a little aside, always in the same way."""
        c = self.place(values)
        shift = np.mod(trials * GOLDEN, 1.0) - 0.5
        if self.listed:
            return c + 0.5 * shift
        if self.zero is not None:
            c = np.where(c == self.zero, c + 0.5 * shift * (self.low - self.zero), c)
        return c

    def box(self, d: Distribution) -> list[tuple[float, float]]:
        """Where a round's space for this setting lies: one interval, or one for each run of options."""
        if self.listed:
            at = sorted(int(i) for i in self.d.to_scaled(list(d.options or ())))
            runs: list[list[int]] = []
            for i in at:
                if runs and runs[-1][1] == i - 1:
                    runs[-1][1] = i
                else:
                    runs.append([i, i])
            return [(a - 0.5, b + 0.5) for a, b in runs]
        low, high = d.scaled_bounds
        boxes = [] if d.or_zero >= 1 else [(low, high)]
        if self.zero is not None and d.or_zero > 0:
            half = 0.35 * (self.low - self.zero)
            boxes.append((self.zero - half, self.zero + half))
        return boxes

    def words(self, value: Any) -> str:
        """A value of this setting in a table."""
        if not self._there(value):
            return "off"
        if isinstance(value, float) and self.d.kind == "reverseloguniform" and value:
            return f"{value:.6g}"
        return number(value) if isinstance(value, (int, float)) else str(value)

    def buckets(self, most: int) -> tuple[np.ndarray, list[str]]:
        """Edges of equal buckets over the ordinary range, `[k + 1]`, and a name for each."""
        count = self.d.with_zero(0.0).n_values
        if self.listed:
            options = self.d.options or ()
            return np.arange(len(options) + 1) - 0.5, [self.words(o) for o in options]
        if count is not None and count <= most and self.d.kind in ("uniform", "randint") and count > 1:
            half = (self.high - self.low) / (count - 1) / 2
            edges = np.linspace(self.low - half, self.high + half, count + 1)
            return edges, [self.words(v) for v in self.d.with_zero(0.0).values() or ()]
        edges = np.linspace(self.low, self.high, most + 1)
        ends = [self._unscaled(e) for e in edges]
        return edges, [f"{ends[i]} to {ends[i + 1]}" for i in range(most)]

    def _unscaled(self, c: float) -> str:
        kind = self.d.kind
        if kind in ("loguniform", "lograndint"):
            return short(10.0**c)
        if kind == "reverseloguniform":
            return f"{1 - 10.0**-c:.4g}"
        return short(c)

    def layout(self) -> dict[str, Any]:
        """What Plotly is told of this axis."""
        values, texts = self.ticks
        # Its numbers are scaled ones; the ticks are the only ones that a person should read.
        return {"range": list(self.range), "tickvals": values, "ticktext": texts, "zeroline": False}


def setting_axis(name: str, first: Space, spaces: Sequence[Space] = ()) -> SettingAxis:
    """The axis of one setting, wide enough for every round's space."""
    d = first[name]
    low, high = d.scaled_bounds
    if d.options is None:
        for space in spaces:
            a, b = space[name].scaled_bounds
            low, high = min(low, a), max(high, b)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    width = high - low
    zero = low - 0.12 * width if d.or_zero > 0 and d.options is None else None
    if d.options is not None:
        ends = (low - 0.6, high + 0.6)
    else:
        ends = ((zero - 0.08 * width) if zero is not None else low - 0.03 * width, high + 0.03 * width)
    values, texts = _ticks(d, low, high)
    if zero is not None:
        values, texts = [zero, *values], ["0", *texts]
    return SettingAxis(name, d, low, high, zero, ends, (values, texts))


def _ticks(d: Distribution, low: float, high: float) -> tuple[list[float], list[str]]:
    if d.options is not None:
        every = -(-len(d.options) // MOST_TICKS)
        at = range(0, len(d.options), every)
        return [float(i) for i in at], [plain(_option(d.options[i])) for i in at]
    if d.kind in ("loguniform", "lograndint"):
        return log_ticks(low, high, whole=d.is_integer)
    if d.kind == "reverseloguniform":
        return reverse_ticks(low, high)
    return linear_ticks(low, high, whole=d.is_integer)


def log_ticks(low: float, high: float, whole: bool = False) -> tuple[list[float], list[str]]:
    """Ticks between two powers of ten: 0.001, 0.01, ...; 2s and 5s too where there is room."""
    span = high - low
    digits = (1, 2, 3, 4, 5, 6, 7, 8, 9) if span < 0.6 else (1, 2, 5) if span < 1.4 else (1, 3) if span < 2.6 else (1,)
    values = [
        digit * 10.0**power
        for power in range(math.floor(low) - 1, math.ceil(high) + 1)
        for digit in digits
        if low - 1e-9 <= math.log10(digit) + power <= high + 1e-9
    ]
    if whole:
        values = [v for v in values if v >= 1 and abs(v - round(v)) < 1e-9]
    if len(values) < 2:
        return _fallback(low, high, lambda c: f"{10.0**c:.4g}")
    every = -(-len(values) // MOST_TICKS)
    values = values[::every]
    return [math.log10(v) for v in values], [short(v) for v in values]


def reverse_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ticks on a log scale of 1 - x: 0.9, 0.99, 0.999; 0.5 and 0.95 too where there is room."""
    gaps = (1, 2, 5) if high - low < 1.4 else (1, 3) if high - low < 2.6 else (1,)
    found = []
    for power in range(math.floor(low), math.ceil(high) + 2):
        for gap in gaps:
            c = power - math.log10(gap)
            if low - 1e-9 <= c <= high + 1e-9:
                found.append((c, f"{1 - gap * 10.0**-power:.{max(1, power)}f}" if c > 1e-9 else "0"))
    if len(found) < 2:
        return _fallback(low, high, lambda c: f"{1 - 10.0**-c:.{math.ceil(c) + 2}f}")
    found.sort()
    return [c for c, _ in found], [text.rstrip("0") if "." in text else text for _, text in found]


def linear_ticks(low: float, high: float, whole: bool = False, most: int = 7) -> tuple[list[float], list[str]]:
    """About `most` round numbers."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    at = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    return [float(v) for v in at], [short(float(v)) for v in at]


def _fallback(low: float, high: float, words: Callable[[float], str]) -> tuple[list[float], list[str]]:
    at = [low + share * (high - low) for share in (0.05, 0.5, 0.95)]
    return at, [words(c) for c in at]


def short(value: float) -> str:
    """A tick's number: 0.001, 0.0003, 1e-5, 20,000."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4 * 0.99 or abs(value) >= 1e6:
        text = f"{value:.2e}"
        mantissa, power = text.split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _option(value: Any) -> str:
    text = short(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    return cut(text, 18)


def cut(text: str, most: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


# ---- the objective's axis ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ValueAxis:
    """The objective's axis, cut where the worst trials would flatten the rest."""

    log: bool
    low: float  # values, not logarithms
    high: float
    cut: str | None  # "above" or "below": where values lie outside

    def clip(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values moved onto the picture's edge, and which ones were."""
        outside = (values > self.high) if self.cut == "above" else (values < self.low) if self.cut else values != values
        return np.clip(values, self.low, self.high), outside & np.isfinite(values)

    def layout(self, title: str) -> dict[str, Any]:
        """What Plotly is told of this axis."""
        base: dict[str, Any] = {"title": titled(title), "zeroline": False}
        if not self.log:
            at, texts = linear_ticks(self.low, self.high, most=5)
            pad = 0.05 * (self.high - self.low)
            return base | {"range": [self.low - pad, self.high + pad], "tickvals": at, "ticktext": texts}
        low, high = math.log10(self.low), math.log10(self.high)
        at, texts = log_ticks(low, high)
        pad = 0.05 * (high - low)
        return base | {
            "type": "log", "range": [low - pad, high + pad],
            "tickvals": [10.0**c for c in at], "ticktext": texts,
        }  # fmt: skip


def value_axis(values: np.ndarray, maximize: bool, keep: float = 0.9) -> ValueAxis:
    """An axis on which the best `keep` of the values are seen, logarithmic where they span much."""
    finite = np.sort(values[np.isfinite(values)])
    if not len(finite):
        return ValueAxis(False, 0.0, 1.0, None)
    best, worst = (finite[-1], finite[0]) if maximize else (finite[0], finite[-1])
    edge = float(np.quantile(finite, 1 - keep if maximize else keep))
    cut = None
    if abs(worst - best) > 1.6 * abs(edge - best) and edge != best:
        cut, worst = ("below" if maximize else "above"), edge + 0.15 * (edge - best)
    low, high = float(min(best, worst)), float(max(best, worst))
    if high <= low:
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
    log = not maximize and low > 0 and high / low > 8
    return ValueAxis(log, low, high, cut)


def column(params: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """One setting of all trials; ABSENT where it does not exist."""
    return [p.get(name, ABSENT) for p in params]
