"""Best against budget: what stopping after so many trials would have given, luck aside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmaptune.search.decide import seed_spread
from vmaptune.store.states import State
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._luck import BAND, on_fresh_seeds
from vmaptune.view.report._picture import Picture, Table, base_layout, plain, titled
from vmaptune.view.report._scales import value_axis
from vmaptune.view.words import number

MOST_BUDGET_POINTS = 400


@dataclass(frozen=True)
class Progress:
    """What stopping after so many of the search's trials would have given. Arrays `[N]`, in the objective's sign."""

    single: np.ndarray  # the best last value so far; NaN before the first
    expected: np.ndarray  # that configuration's mean over fresh seeds; NaN where the seeds' spread is not known
    low: np.ndarray  # a band of it
    high: np.ndarray


def progress(data: StudyData) -> Progress:
    """The best trial so far, after each of the search's trials, and what it would be worth on fresh seeds."""
    cost = np.where(data.complete, data.cost, np.inf)
    leader = np.full(data.n, -1)
    best, first = np.inf, -1
    for i in np.flatnonzero(data.complete):
        if cost[i] < best:
            best, first = cost[i], int(i)
        leader[i:] = first
    again: dict[int, list[float]] = {}
    for row in data.confirming:
        if row.of is not None and row.state == State.COMPLETE and row.value is not None:
            again.setdefault(row.of, []).append(row.value)
    spread = seed_spread(again)
    found = np.full((4, data.n), math.nan)
    for i in np.unique(leader[leader >= 0]).tolist():
        values = cost[(data.round == data.round[i]) & data.complete]
        told = on_fresh_seeds(values, cost[i], spread) if math.isfinite(spread) else (math.nan,) * 3
        found[:, leader == i] = data.sign * np.array([cost[i], *told])[:, None]
    low, high = found[2:] if data.sign > 0 else found[:1:-1]  # minus the larger one is the smaller one
    return Progress(found[0], found[1], low, high)


def budget(data: StudyData) -> Picture:
    """What stopping after so many trials would have given: the best single value, and what it is on fresh seeds."""
    found = progress(data)
    changes = np.flatnonzero(np.diff(found.single, prepend=math.nan) != 0)  # the first and each better one
    keep = np.unique(np.concatenate([np.linspace(0, data.n - 1, MOST_BUDGET_POINTS).astype(int), changes]))
    keep = keep[np.isfinite(found.single[keep])]
    x = keep + 1.0
    single, expected, low, high = (v[keep] for v in (found.single, found.expected, found.low, found.high))
    mean, ends = _confirmed(data)
    late = x > max(2.0, 0.01 * data.n)  # the first few fall far, and would flatten the rest
    late = late if late.any() else ~late
    seen = np.concatenate([v[late] for v in (single, low, high)])
    va = value_axis(np.append(seen, [] if mean is None else ends), data.maximize, keep=1.0)
    known = bool(np.isfinite(expected).any())
    traces: list[dict[str, Any]] = []
    if known:
        traces += [
            {"type": "scatter", "mode": "lines", "x": x, "y": va.clip(low)[0], "hoverinfo": "skip",
             "showlegend": False, "line": {"width": 0, "color": "@accent", "shape": "hv"}},
            {"type": "scatter", "mode": "lines", "x": x, "y": va.clip(high)[0], "hoverinfo": "skip", "fill": "tonexty",
             "fillcolor": "@accent/0.18", "line": {"width": 0, "color": "@accent", "shape": "hv"},
             "name": f"{BAND} band of it"},
            {"type": "scatter", "mode": "lines", "x": x, "y": va.clip(expected)[0],
             "name": "that configuration on fresh seeds, expected",
             "line": {"width": 2.5, "color": "@accent", "shape": "hv"}, "customdata": np.column_stack([low, high]),
             "hovertemplate": "after %{x} trials<br>expected on fresh seeds: %{y:.4g}<br>"
                              "%{customdata[0]:.4g} to %{customdata[1]:.4g}<extra></extra>"},
        ]  # fmt: skip
    traces.append(
        {"type": "scatter", "mode": "lines", "x": x, "y": va.clip(single)[0], "name": f"best {data.last_name} so far",
         "line": {"width": 1.5 if known else 2.5, "color": "@muted", "shape": "hv",
                  "dash": "dot" if known else "solid"},
         "customdata": single,
         "hovertemplate": f"after %{{x}} trials<br>best {plain(data.last_name)} %{{customdata:.4g}}<extra></extra>"}
    )  # fmt: skip
    if mean is not None:
        at = float(np.clip(mean, va.low, va.high))
        traces.append({
            "type": "scatter", "mode": "markers", "x": [data.n + len(data.confirming)], "y": [at],
            "name": f"{data.star}, confirmed",
            "error_y": {"type": "data", "symmetric": False, "array": [max(0.0, ends[1] - mean)],
                        "arrayminus": [max(0.0, mean - ends[0])], "color": "@star"},
            "marker": {"symbol": "star", "size": 14, "color": "@star"},
            "hovertemplate": f"{plain(data.confirmed_name)}: {number(mean)} ({number(ends[0])} to {number(ends[1])})"
                             "<extra></extra>",
        })  # fmt: skip
    rounds = [where for row in data.rounds if len(where := np.flatnonzero(data.round == row.round))]
    starts = [int(where[0]) for where in rounds]
    shapes = [
        {"type": "line", "x0": s, "x1": s, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
         "line": {"color": "@faint", "width": 1, "dash": "dot"}}
        for s in starts[1:]
    ]  # fmt: skip
    notes = [
        {"x": s, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "left",
         "text": str(r + 1) if r else "round 1", "showarrow": False, "font": {"size": 11, "color": "@muted"},
         "xshift": -2}
        for r, s in enumerate(starts)
    ]  # fmt: skip
    layout = base_layout(
        360, xaxis={"title": titled("trials"), "rangemode": "tozero", "zeroline": False},
        yaxis=va.layout(data.objective), shapes=shapes, annotations=notes, showlegend=True,
    )  # fmt: skip
    layout["legend"] = layout["legend"] | {"y": 1.08}
    rows = [
        [f"round {r + 1}", str(e), *(number(float(v[e - 1])) if np.isfinite(v[e - 1]) else "" for v in
         (found.single, found.expected, found.low, found.high))]
        for r, e in enumerate([*starts[1:], data.n])
    ]  # fmt: skip
    spoken = f"What stopping after a number of trials would have given. The best {data.last_name} so far: " + "; ".join(
        f"{row[2] or 'none'} after {row[1]} trials" + (f", expected on fresh seeds {row[3]}" if row[3] else "")
        for row in rows
    )
    caption = (
        "For whoever had stopped then: the best single value is partly luck; the line is what its configuration is "
        "worth on fresh seeds, by the spread of the confirmed ones' seeds and the values of its round."
        if known else "Single values, so the end of this line is partly luck: nothing was trained on several seeds."
    )  # fmt: skip
    head = ["after", "trials", f"best {data.last_name}", "expected on fresh seeds", "from", "to"]
    return Picture("budget", "Best against budget", spoken + ".", caption, traces, layout, Table(head, rows))


def _confirmed(data: StudyData) -> tuple[float | None, tuple[float, float]]:
    """The winner's mean over fresh seeds, and its 95 % interval (or its spread, in studies of before)."""
    best = (data.result or {}).get("best") or {}
    value, spread, low, high = (best.get(n) for n in ("value", "value_std", "low", "high"))
    if not best.get("repeats") or not isinstance(value, float) or not math.isfinite(value):
        return None, (math.nan, math.nan)
    if isinstance(low, float) and isinstance(high, float):
        return value, (low, high)
    reach = spread if isinstance(spread, float) and math.isfinite(spread) else 0.0
    return value, (value - reach, value + reach)
