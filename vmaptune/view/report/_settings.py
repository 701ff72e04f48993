"""One setting at a time: its axis plot, its isolation plot, and how the rounds closed in on it.

The axis and isolation plots are those of Google's Deep Learning Tuning Playbook (Godbole et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vmaptune.space import Distribution
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._marks import foremost, foremost_words, marks, named
from vmaptune.view.report._picture import Picture, Table, axis_style, base_layout, plain, round_scale, titled
from vmaptune.view.report._scales import ABSENT, SettingAxis, ValueAxis, column, setting_axis, value_axis
from vmaptune.view.words import number

BUCKETS = 10
MOST_COUNTS = 16  # buckets whose trials are counted in the picture: more would overlap
TABLE_TRIALS = 10
MANY_STOPPED = 0.3
SHADE = 0.2  # of a place that lies in every round's box


def axis_of(data: StudyData, name: str) -> SettingAxis:
    """One setting's axis in this study."""
    return setting_axis(name, data.first, data.spaces)


def objective_axis(data: StudyData) -> ValueAxis:
    """The axis of the best value over training, the same in every axis plot."""
    # Where most trials were stopped early, most of them are bad ones.
    keep = 0.75 if data.stopped.mean() > MANY_STOPPED else 0.9
    return value_axis(data.best[data.feasible], data.maximize, keep)


def axis(data: StudyData, name: str) -> Picture:
    """Every trial's best value over training against one setting."""
    ax, va = axis_of(data, name), objective_axis(data)
    values = column(data.seen, name)
    where = ax.scattered(values, data.trial)
    shown = data.shown
    seen = shown[np.isfinite(data.best[shown]) & np.isfinite(where[shown])]
    full, early = seen[~data.stopped[seen]], seen[data.stopped[seen]]
    lost = shown[data.infeasible[shown] & np.isfinite(where[shown])]
    size = 7 if len(shown) < 400 else 5 if len(shown) < 1500 else 4
    traces: list[dict[str, Any]] = []
    for label, these, symbols in (
        ("trial", full, ("circle", "triangle-up")),
        ("stopped early", early, ("circle-open",) * 2),
    ):
        if not len(these):
            continue
        y, outside = va.clip(data.best[these])
        beyond = "triangle-up" if va.cut == "above" else "triangle-down"
        marker = {
            "size": size, "opacity": 0.85, "color": _round_position(data)[these],
            **round_scale(len(data.rounds)), "line": {"width": 0.5, "color": "@surface"},
            "symbol": [beyond if o else symbols[0] for o in outside] if outside.any() else symbols[0],
        }  # fmt: skip
        traces.append(_points(data, ax, name, these, where, y, label) | {"marker": marker})
    if len(lost):
        traces.append(
            _points(data, ax, name, lost, where, _strip(data.trial[lost]), "infeasible")
            | {"yaxis": "y2", "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 1.4, "color": "@warn"}}}
        )
    traces += marks(data, where, va.clip(data.best)[0], data.best)
    top = 0.87 if len(lost) else 1.0
    shapes, notes, bound_words = _boxes_and_bounds(data, ax, name, top)
    layout = base_layout(
        320,
        xaxis=ax.layout() | {"title": titled(name), "anchor": "y"},
        yaxis=va.layout(data.best_name) | {"domain": [0, top]},
        shapes=shapes,
        annotations=notes,
    )
    if len(lost):
        layout["yaxis2"] = axis_style() | {
            "domain": [0.91, 1.0], "range": [-1, 1], "tickvals": [0], "ticktext": ["infeasible"], "showgrid": False,
            "zeroline": False, "ticks": "", "fixedrange": True, "tickfont": {"color": "@warn", "size": 11},
        }  # fmt: skip
    infeasible = int(data.infeasible.sum())
    best = "" if data.winner is None else (
        f" {data.star.capitalize()} has {name} = {ax.words(values[data.winner])}."
    )  # fmt: skip
    spoken = (
        f"Scatter plot of the {data.best_name} over training of {data.n:,} trials against {name}, "
        f"{infeasible:,} of them infeasible.{best} {_zoom_words(data, ax, name)}{bound_words}"
    )
    return Picture(f"axis-{name}", name, spoken, bound_words.strip(), traces, layout, _best_table(data, name, ax))


def isolation(data: StudyData, name: str) -> Picture:
    """The best trial of each bucket of one setting: what it can do when all others are chosen well."""
    ax = axis_of(data, name)
    values = column(data.seen, name)
    c = ax.place(values)
    edges, labels = ax.buckets(BUCKETS)
    buckets = np.clip(np.searchsorted(edges, c, side="right") - 1, -1, len(labels) - 1)
    buckets[~np.isfinite(c)] = -1  # trials in which the hyperparameter does not exist
    members = [(labels[b], (edges[b], edges[b + 1]), np.flatnonzero((buckets == b) & ~_at_zero(ax, c)))
               for b in range(len(labels))]  # fmt: skip
    if ax.zero is not None:
        half = 0.4 * (ax.low - ax.zero)
        members.insert(0, ("0", (ax.zero - half, ax.zero + half), np.flatnonzero(_at_zero(ax, c))))
    rows, x, y, dots, ids, low_high, counts = [], [], [], [], [], [], []
    others_x, others_y = [], []
    for label, (a, b), inside in members:
        good = inside[data.feasible[inside]]
        good = good[np.argsort(data.sign * data.best[good], kind="stable")]
        share = f"{data.infeasible[inside].mean():.0%}" if len(inside) else ""
        counts.append({
            "x": (a + b) / 2, "y": 1, "yref": "paper", "yanchor": "bottom", "text": f"{len(inside):,}",
            "showarrow": False, "font": {"size": 10, "color": "@muted"},
        })  # fmt: skip
        if not len(good):
            rows.append([label, str(len(inside)), share, "", ""])
            continue
        i = int(good[0])
        gap = 0.06 * (b - a)
        x += [a + gap, b - gap, None]
        y += [data.best[i], data.best[i], None]
        dots.append((c[i], data.best[i]))
        ids.append((data.trial[i], len(inside)))
        low_high.append(label)
        others_x += [c[j] for j in good[1:4]]
        others_y += [data.best[j] for j in good[1:4]]
        rows.append([label, str(len(inside)), share, number(float(data.best[i])), named(data, i)])
    tops = np.array([d[1] for d in dots]) if dots else np.zeros(0)
    va = value_axis(np.concatenate([tops, others_y]) if dots else tops, data.maximize, keep=0.97)
    dots_y, _ = va.clip(tops)
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers", "x": others_x, "y": va.clip(np.array(others_y, float))[0],
         "hoverinfo": "skip", "marker": {"size": 5, "color": "@faint"}, "name": "the next three"},
        {"type": "scatter", "mode": "lines", "x": x, "y": [v if v is None else float(va.clip(np.array([v]))[0][0])
         for v in y], "hoverinfo": "skip", "line": {"width": 3, "color": "@accent"}},
        {"type": "scatter", "mode": "markers", "x": [d[0] for d in dots], "y": dots_y,
         "customdata": np.array(ids, float).reshape(-1, 2), "text": [plain(t) for t in low_high],
         "marker": {"size": 9, "color": "@accent", "line": {"width": 1, "color": "@surface"}},
         "hovertemplate": f"{plain(name)}: %{{text}}<br>{plain(data.best_name)} %{{y:.4g}} (trial "
                          "%{customdata[0]})<br>of %{customdata[1]} trials<extra></extra>"},
    ]  # fmt: skip
    traces += marks(data, c, va.clip(data.best)[0], data.best, size=13)
    layout = base_layout(
        280, xaxis=ax.layout() | {"title": titled(name)}, yaxis=va.layout(data.best_name),
        annotations=counts if len(counts) <= MOST_COUNTS else [],
    )  # fmt: skip
    if dots:
        best = int(np.argmin(data.sign * tops))
        worst = int(np.argmax(data.sign * tops))
        spoken = (
            f"The {data.best_name} in each range of {name}: {number(float(tops[best]))} at best, for "
            f"{low_high[best]}; {number(float(tops[worst]))} at worst, for {low_high[worst]}."
        )
    else:
        spoken = f"No trial is complete, so there is no {data.best_name} for any range of {name}."
    headers = [name, "trials", "infeasible", data.best_name, "trial"]
    return Picture(f"isolation-{name}", name, spoken, "", traces, layout, Table(headers, rows))


def zoom(data: StudyData) -> Picture:
    """How each round's space lies in the first one, setting by setting."""
    names = data.varied
    rounds = len(data.rounds)
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    x, y, texts = [], [], []
    rows = []
    for k, name in enumerate(reversed(names)):
        ax = axis_of(data, name)
        low, high = ax.range
        for r, space in enumerate(data.spaces):
            bar = k + 0.44 - 0.62 * (r + 0.5) / rounds
            half = 0.26 / rounds
            for a, b in ax.box(space[name]):
                a, b = ((max(a, low) - low) / (high - low), (min(b, high) - low) / (high - low))
                shapes.append({
                    "type": "rect", "x0": a, "x1": max(b, a + 0.003), "y0": bar - half, "y1": bar + half,
                    "fillcolor": f"@round{r}", "line": {"width": 0}, "layer": "above",
                })  # fmt: skip
                x.append((a + b) / 2)
                y.append(bar)
                texts.append(f"round {r + 1}: {plain(_bounds(space[name]))}")
            rows.append([name, str(r + 1), _bounds(space[name])])
        shapes.append({"type": "line", "x0": 0, "x1": 1, "y0": k - 0.5, "y1": k - 0.5,
                       "line": {"color": "@grid", "width": 1}, "layer": "below"})  # fmt: skip
        for at, text in zip(*_few(ax), strict=True):
            notes.append({
                "x": (at - low) / (high - low), "y": k - 0.48, "text": text, "showarrow": False, "yanchor": "bottom",
                "font": {"size": 10, "color": "@muted"},
            })  # fmt: skip
        for i in [*data.finalists[1:], *([] if data.winner is None else [data.winner])]:
            c = ax.place([data.seen[i].get(name, ABSENT)])[0]
            if math.isfinite(c):
                at, won = (c - low) / (high - low), i == data.winner
                shapes.append({"type": "line", "x0": at, "x1": at, "y0": k - 0.2, "y1": k + (0.46 if won else 0.4),
                               "line": {"color": "@star", "width": 2.5 if won else 1,
                                        "dash": "solid" if won else "dot"}})  # fmt: skip
    traces = [
        {"type": "scatter", "mode": "markers", "x": x, "y": y, "text": texts, "hoverinfo": "text",
         "marker": {"size": 14, "color": "@accent", "opacity": 0}}
    ]  # fmt: skip
    longest = max(len(name) for name in names)
    layout = base_layout(
        max(200, 40 + 66 * len(names)),
        margin={"l": 24 + 7 * longest, "r": 20, "t": 8, "b": 12},
        xaxis={"range": [-0.01, 1.01], "showgrid": False, "showticklabels": False, "zeroline": False, "ticks": "",
               "showline": False, "fixedrange": True},
        yaxis={"range": [-0.51, len(names) - 0.5], "tickvals": list(range(len(names))), "showgrid": False,
               "ticktext": [plain(n) for n in reversed(names)], "zeroline": False, "ticks": "", "showline": False,
               "tickfont": {"size": 13, "color": "@ink"}, "fixedrange": True},
        shapes=shapes,
        annotations=notes,
    )  # fmt: skip
    narrowed = [n for n in names if data.spaces[-1][n] != data.first[n]]
    what = f"narrowed or moved {', '.join(narrowed)}" if narrowed else "kept every range as it was"
    spoken = f"The space of each of {rounds} rounds, for {len(names)} settings. The rounds {what}."
    caption = (
        "Each bar is a round's range, on the setting's own scale; the line is "
        + data.star
        + (", the dotted ones are the other configurations that were confirmed." if len(data.finalists) > 1 else ".")
    )
    if any(data.outside):
        shares = ", ".join(f"{100 * share:.0f}" for share in data.outside[1:])
        words = (
            f" Of the trials of the rounds after the first, {shares} % lie outside: the search hoped for more there."
        )
        caption, spoken = caption + words, spoken + words
    return Picture("zoom", "How the rounds closed in", spoken, caption, traces, layout,
                   Table(["setting", "round", "space"], rows))  # fmt: skip


# ---- parts -------------------------------------------------------------------------------------------


def _points(
    data: StudyData, ax: SettingAxis, name: str, these: np.ndarray, where: np.ndarray, y: np.ndarray, label: str
) -> dict[str, Any]:
    """A scatter of these trials, with what a pointer over one of them says."""
    values = column(data.seen, name)
    trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": where[these], "y": y, "name": label}
    value = f"<br>{plain(data.best_name)} %{{customdata[1]:.4g}}" if label != "infeasible" else "<br>infeasible"
    if ax.listed:
        trace["text"] = [plain(ax.words(values[i])) for i in these]
        trace["customdata"] = np.column_stack([data.trial[these], data.best[these]])
        shown = "%{text}"
    else:
        mine = np.array([math.nan if values[i] is None else float(values[i]) for i in these])
        trace["customdata"] = np.column_stack([data.trial[these], data.best[these], mine])
        shown = "%{customdata[2]:.6g}" if ax.d.kind == "reverseloguniform" else "%{customdata[2]:.4g}"
    note = "" if label == "trial" else f" ({label})"
    trace["hovertemplate"] = f"trial %{{customdata[0]}}{note}<br>{plain(name)} = {shown}{value}<extra></extra>"
    return trace


def _round_position(data: StudyData) -> np.ndarray:
    numbers = {row.round: k for k, row in enumerate(data.rounds)}
    return np.array([numbers[int(r)] for r in data.round])


def _strip(trials: np.ndarray) -> np.ndarray:
    """Heights in the strip of infeasible trials, so that they don't cover each other."""
    return 0.7 * (2 * np.mod(trials * 0.7548776662466927, 1.0) - 1)


def _at_zero(ax: SettingAxis, c: np.ndarray) -> np.ndarray:
    return c == ax.zero if ax.zero is not None else np.zeros(len(c), bool)


def _boxes_and_bounds(
    data: StudyData, ax: SettingAxis, name: str, top: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    """The rounds' boxes, the first space's bounds, and a warning where the best trials touch one."""
    shapes: list[dict[str, Any]] = []
    for r, space in enumerate(data.spaces[1:], start=1):
        for a, b in ax.box(space[name]):
            shapes.append({
                "type": "rect", "xref": "x", "yref": "paper", "x0": a, "x1": b, "y0": 0, "y1": top,
                "fillcolor": f"@round{r}/{SHADE / (len(data.spaces) - 1):.3f}", "line": {"width": 0}, "layer": "below",
            })  # fmt: skip
    notes: list[dict[str, Any]] = []
    words = ""
    leans = {lean.side: lean for lean in data.leanings if lean.name == name}
    if ax.d.kind == "choice":
        return shapes, notes, words
    room = 0.5 if ax.listed else 0.0  # a list ends beside its last value, not in the midst of its points
    low, high = ax.d.scaled_bounds
    for side, at in (("lower", low - room), ("upper", high + room)):
        warned = side in leans
        shapes.append({
            "type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": top, "layer": "below",
            "line": {"color": "@warn" if warned else "@faint", "width": 2.5 if warned else 1,
                     "dash": "solid" if warned else "dot"},
        })  # fmt: skip
        if warned:
            notes.append({
                "x": at, "xref": "x", "y": top, "yref": "paper", "yanchor": "top", "showarrow": False,
                "xanchor": "left" if side == "lower" else "right", "text": "best trials touch<br>this bound: widen it",
                "font": {"color": "@warn", "size": 11}, "bgcolor": "@surface/0.85",
                "xshift": 4 if side == "lower" else -4,
                "align": "left" if side == "lower" else "right",
            })  # fmt: skip
            words += f" The best trials touch its {side} bound {ax.words(leans[side].bound)}: widen it."
    return shapes, notes, words


def _zoom_words(data: StudyData, ax: SettingAxis, name: str) -> str:
    if len(data.spaces) < 2:
        return ""
    return f"The first round drew from {_bounds(data.first[name])}, the last from {_bounds(data.spaces[-1][name])}."


def _bounds(d: Distribution) -> str:
    """A distribution's range in words."""
    if d.options is not None:
        return ", ".join(str(o) for o in d.options)
    if d.or_zero >= 1:
        return "0 only"
    digits = "{:.6g}" if d.kind == "reverseloguniform" else "{:.4g}"
    text = f"{digits.format(d.low)} to {digits.format(d.high)}"
    return f"0, or {text}" if d.or_zero > 0 else text


def _few(ax: SettingAxis) -> tuple[list[float], list[str]]:
    values, texts = ax.ticks
    if ax.listed or len(values) <= 6:
        return values, texts
    every = -(-len(values) // 6)
    return values[::every], texts[::every]


def _best_table(data: StudyData, name: str, ax: SettingAxis) -> Table:
    rows = [
        [named(data, i), ax.words(data.seen[i].get(name, ABSENT)), number(float(data.best[i])),
         number(float(data.final[i])), str(data.round[i] + 1)]
        for i in foremost(data, TABLE_TRIALS)
    ]  # fmt: skip
    return Table(["trial", name, data.best_name, data.last_name, "round"], rows, foremost_words(data, len(rows)))


def distinct(values: Sequence[Any]) -> int:
    """How many different values there are."""
    return len({(type(v) is bool, v) for v in values})
