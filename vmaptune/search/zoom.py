"""From a round's best trials to the next, finer space. Lower values are better here; callers flip the sign."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from vmaptune.space import Distribution, Space, held_bounds

LEAST_SLICE = 5  # fewer trials say too little about a box
LEAST_BOX = 3  # fewer leave a dimension as it is
UNLIKELY = 0.05  # a zero that was to be expected and is missing (or alone) at this level has been decided
OUTER = 0.10  # of the first space's range: where a trial touches its bound
LEANING_SHARE = 0.40
LEANING_LEVEL = 0.01


@dataclass(frozen=True)
class Scored:
    """A trial as the search sees it."""

    trial: int
    params: dict[str, Any]
    value: float  # lower is better; not finite for an infeasible trial
    rung: float = math.inf  # the steps at which it was stopped early; only values of one rung are compared


@dataclass(frozen=True)
class Leaning:
    """A bound of the first space that the best trials touch."""

    name: str
    side: str  # "lower" or "upper"
    bound: Any
    message: str


def best(scored: Sequence[Scored], k: int) -> list[Scored]:
    """The `k` best: by the rung that they reached, then by the value there, ties by trial id. NaN, +inf and -inf
    never win, and a trial that was stopped early never comes before one that went further."""
    finite = [s for s in scored if math.isfinite(s.value)]
    return sorted(finite, key=lambda s: (-s.rung, s.value, s.trial))[:k]


def slice_of(scored: Sequence[Scored], keep: float) -> list[Scored]:
    """The best fraction of a round, of at least five trials; infeasible ones count, but are never in it."""
    return best(scored, max(LEAST_SLICE, math.ceil(keep * len(scored) - 1e-9)))


def zoom(space: Space, first: Space, slice_: Sequence[Scored], *, margin: float = 0.10, expand: bool = False) -> Space:
    """The space of the next round: it covers the slice, in scaled coordinates, with a margin.

    A dimension is narrowed only as far as the slice gives reason to: `k` points drawn evenly from an interval
    span `(k - 1) / (k + 1)` of it on average, so the slice's span is first stretched by the inverse of that,
    and a dimension that does not matter keeps its width. Then `margin` of the span is added on each side. The
    result stays within the first space, unless `expand` lets it go past a bound on which the slice leans, by
    up to half of its width.

    A list keeps what the slice still holds: a `choice` its options, an `ordinal` a run of neighbours. A zero
    from `or_zero` is a value of its own: it never stretches the box, and is dropped (or becomes the only
    value) when its absence (or its being alone) is unlikely under the probability with which it was drawn.
    """
    if len(slice_) < LEAST_BOX:
        return space
    leans = {(lean.name, lean.side) for lean in leaning(first, slice_)} if expand else set()
    held = _existing(first, slice_)
    return Space.narrowed(
        {
            name: _zoomed(space[name], first[name], held[name], margin, {side for n, side in leans if n == name})
            for name in space
        }
    )


def _existing(space: Space, slice_: Sequence[Scored]) -> dict[str, list[Any]]:
    """The slice's values of each setting, of those trials for which it exists."""
    exists = [space.active(s.params) for s in slice_]
    return {
        name: [s.params[name] for s, there in zip(slice_, exists, strict=True) if there[name]] for name in space
    }  # fmt: skip


def _zoomed(now: Distribution, first: Distribution, values: list[Any], margin: float, leans: set[str]) -> Distribution:
    if now.kind == "choice":
        assert now.options is not None
        held = {(type(v) is bool, v) for v in values}
        if not held:  # a setting that none of the best trials has
            return now
        assert first.options is not None
        return now.with_options([o for o in first.options if (type(o) is bool, o) in held])
    if now.or_zero > 0:
        rest = [v for v in values if v != 0]
        zeros = len(values) - len(rest)
        if zeros == 0 and (1 - now.or_zero) ** len(values) < UNLIKELY:
            now = now.with_zero(0.0)
        elif not rest and now.or_zero ** len(values) < UNLIKELY:
            now = now.with_zero(1.0)
        values = rest
    if len(values) < LEAST_BOX:
        return now
    low, high = _box(first, values, margin, leans)
    if now.kind == "ordinal":
        assert first.options is not None
        return now.with_options(first.options[round(low) : round(high) + 1])
    if leans:
        first = _wider(first, low, high)
    ends = first.from_scaled(np.array([low, high]))
    return now.with_bounds(_number(ends[0], now), _number(ends[1], now))


def _box(first: Distribution, values: list[Any], margin: float, leans: set[str]) -> tuple[float, float]:
    """The box around the slice, in scaled coordinates."""
    c = first.to_scaled(np.array(values) if first.options is None else values)
    k = len(c)
    low, high = float(c.min()), float(c.max())
    centre, half = (low + high) / 2, (high - low) / 2
    half *= (k + 1) / (k - 1) * (1 + 2 * margin)
    box_low, box_high = min(low, centre - half), max(high, centre + half)
    first_low, first_high = first.scaled_bounds
    room_low, room_high = first_low, first_high
    if "lower" in leans:
        room_low -= half
        box_low = min(box_low, low - half)
    if "upper" in leans:
        room_high += half
        box_high = max(box_high, high + half)
    return max(box_low, room_low), min(box_high, room_high)


def _wider(first: Distribution, low: float, high: float) -> Distribution:
    """The first space with room for a box that leaves it; never past 0 where the first space was above it."""
    if first.options is not None:
        return first
    scaled_low, scaled_high = first.scaled_bounds
    wide = first.with_bounds(-math.inf, math.inf) if first.step is None else first
    if first.step is not None or first.is_integer:
        unit = {"randint": lambda c: c, "uniform": lambda c: c}.get(first.kind, lambda c: 10.0**c)
        step = first.step or 1
        assert first.low is not None
        assert first.high is not None
        new_low = first.low - step * max(0, round((first.low - unit(low)) / step))
        new_high = first.high + step * max(0, round((unit(high) - first.high) / step))
    else:
        new_low, new_high = wide.from_scaled(np.array([min(low, scaled_low), max(high, scaled_high)]))
    assert first.low is not None
    if first.low >= 0 and first.kind != "reverseloguniform":
        new_low = max(new_low, 0 if first.kind in ("uniform", "randint") else 1 if first.is_integer else new_low)
    new_low, new_high = held_bounds(first, new_low, new_high)
    return first.with_bounds(_number(new_low, first), _number(new_high, first))


def _number(value: Any, like: Distribution) -> int | float:
    return int(value) if like.is_integer else float(value)


def inside(space: Space, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Which settings lie in a round's space, `[N]`; what does not exist lies in every range."""
    found = np.ones(len(rows), bool)
    for name, d in space.items():
        values = [row.get(name) for row in rows]
        if d.options is not None:
            held = {(type(o) is bool, o) for o in d.options}
            found &= np.array([v is None or (type(v) is bool, v) in held for v in values], bool)
            continue
        assert d.low is not None
        assert d.high is not None
        at = np.array([math.nan if v is None else v for v in values], np.float64)
        in_range = (d.or_zero < 1) & (at >= d.low) & (at <= d.high)
        found &= np.isnan(at) | in_range | ((at == 0) & (d.or_zero > 0))
    return found


def leaning(first: Space, slice_: Sequence[Scored]) -> list[Leaning]:
    """The bounds of the first space on which the slice leans.

    A bound is leaned on when at least 40 % of the slice lies in the outer tenth of the range (at the bound
    itself, for settings with finitely many values), and so many there would come about by chance in fewer
    than one draw in a hundred under the first space's own law (a binomial tail).
    """
    found = []
    held = _existing(first, slice_)
    for name, d in first.items():
        if d.kind == "choice" or len(slice_) < LEAST_BOX:
            continue
        values = [v for v in held[name] if not (d.or_zero > 0 and v == 0)]
        if len(values) < LEAST_BOX or (d.options is not None and len(d.options) < 3):
            continue
        low, high = d.scaled_bounds
        if high <= low:
            continue
        c = d.to_scaled(np.array(values) if d.options is None else values)
        for side, bound_at, is_near in (
            ("lower", low, c <= low + OUTER * (high - low)),
            ("upper", high, c >= high - OUTER * (high - low)),
        ):
            share = OUTER
            if d.n_values is not None:
                is_near = np.isclose(c, bound_at)
                share = _share_at(d, side)
            near = int(is_near.sum())
            if near < LEANING_SHARE * len(values) or _tail(near, len(values), share) >= LEANING_LEVEL:
                continue
            bound = (d.options[0 if side == "lower" else -1] if d.options is not None
                     else d.low if side == "lower" else d.high)  # fmt: skip
            found.append(
                Leaning(name, side, bound, f"{name}: the best trials touch the {side} bound {bound}: widen it")
            )
    return found


def _share_at(d: Distribution, side: str) -> float:
    """The probability of the value at a bound, for a setting with finitely many values and no zero."""
    plain = d.with_zero(0.0)
    u = plain.to_unit([(plain.values() or (0,))[0 if side == "lower" else -1]])[0]
    return float(2 * (u if side == "lower" else 1 - u))


def _tail(at_least: int, n: int, p: float) -> float:
    """P(X >= at_least) for X ~ Binomial(n, p)."""
    return float(special.bdtrc(at_least - 1, n, p)) if at_least > 0 else 1.0
