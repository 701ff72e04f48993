"""Over the course of a study: where training broke down, rungs, occupancy, the seconds."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np

from vmaptune.store.states import State
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._marks import marks
from vmaptune.view.report._picture import Picture, Table, base_layout, plain, titled
from vmaptune.view.report._scales import column, cut, value_axis
from vmaptune.view.report._settings import axis_of
from vmaptune.view.words import duration

BUCKETS = 8


def infeasible(data: StudyData) -> Picture | None:
    """The share of infeasible trials in each part of each setting; None when no trial was infeasible."""
    if not data.infeasible.any():
        return None
    ended = (data.state != State.RUNNING) & (data.state != State.FAIL)
    parts = []
    for name in data.varied:
        ax = axis_of(data, name)
        c = ax.place(column(data.seen, name))
        zero = (c == ax.zero) if ax.zero is not None else np.zeros(data.n, bool)
        edges, labels = ax.buckets(BUCKETS)
        inside = np.clip(np.searchsorted(edges, c, side="right") - 1, 0, len(labels) - 1)
        groups = [(labels[b], (edges[b] + edges[b + 1]) / 2, edges[b + 1] - edges[b], (inside == b) & ~zero)
                  for b in range(len(labels))]  # fmt: skip
        if zero.any() and ax.zero is not None:
            groups.insert(0, ("0", ax.zero, 0.8 * (ax.low - ax.zero), zero))
        found = []
        for label, at, width, mask in groups:
            mask = mask & ended & np.isfinite(c)
            total, lost = int(mask.sum()), int((mask & data.infeasible).sum())
            if total:
                found.append((label, at, width, total, lost, *wilson(lost, total)))
        spread = max((f[4] / f[3] for f in found), default=0) - min((f[4] / f[3] for f in found), default=0)
        parts.append((spread, name, ax, found))
    parts.sort(key=lambda part: -part[0])
    parts = parts[:6]
    columns = min(3, len(parts))
    lines = -(-len(parts) // columns)
    layout = base_layout(230 * lines + 30)
    layout["margin"] = layout["margin"] | {"t": 28}
    traces, notes, rows = [], [], []
    gap_x, gap_y = 0.07, 0.26 / lines
    highest = min(1.0, max(f[6] for part in parts for f in part[3]) * 1.05)
    for k, (_, name, ax, found) in enumerate(parts):
        suffix = "" if k == 0 else str(k + 1)
        col, line = k % columns, k // columns
        width = (1 - gap_x * (columns - 1)) / columns
        height = (1 - gap_y * (lines - 1)) / lines
        x0, y1 = col * (width + gap_x), 1 - line * (height + gap_y)
        share = np.array([f[4] / f[3] for f in found])
        traces.append({
            "type": "bar", "x": [f[1] for f in found], "y": share, "width": [0.88 * f[2] for f in found],
            "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "marker": {"color": "@warn", "opacity": 0.75},
            "text": [f"{plain(f[0])}: {f[4]} of {f[3]} infeasible" for f in found], "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "error_y": {"type": "data", "symmetric": False, "array": np.array([f[6] for f in found]) - share,
                        "arrayminus": share - np.array([f[5] for f in found]), "color": "@ink", "thickness": 1,
                        "width": 3},
        })  # fmt: skip
        few = base_layout(1, xaxis=ax.layout(), yaxis={})
        ticks, texts = ax.ticks
        every = -(-len(ticks) // 6) if not ax.listed else 1
        if ax.listed:
            room = max(3, 30 // len(texts))
            texts = [plain(cut(html.unescape(t), room)) for t in texts]
        layout[f"xaxis{suffix}"] = few["xaxis"] | {
            "domain": [x0, x0 + width], "anchor": f"y{suffix}", "showgrid": False,
            "tickvals": ticks[::every], "ticktext": texts[::every], "tickangle": 0,
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = few["yaxis"] | {
            "domain": [y1 - height, y1], "anchor": f"x{suffix}", "range": [0, highest], "tickformat": ".0%",
            "nticks": 4, "zeroline": False, "showticklabels": col == 0,
        }  # fmt: skip
        notes.append({"x": x0, "y": y1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
                      "text": f"<b>{plain(name)}</b>", "showarrow": False,
                      "font": {"size": 12, "color": "@ink"}})  # fmt: skip
        rows += [[name, f[0], str(f[3]), str(f[4]), f"{f[4] / f[3]:.0%}"] for f in found]
    layout["annotations"] = notes
    worst = max((f for part in parts for f in part[3]), key=lambda f: f[5])
    where = next(part[1] for part in parts if worst in part[3])
    total = int(data.infeasible.sum())
    spoken = (
        f"{total:,} of {int(ended.sum()):,} trials were infeasible. The clearest region is {where} {worst[0]}, where "
        f"{worst[4]} of {worst[3]} were."
    )
    hidden = f" The {len(parts)} settings that differ most are shown." if len(data.varied) > len(parts) else ""
    return Picture("infeasible", "Where training broke down", spoken,
                   f"The share of infeasible trials in each part of a range, with its 90 % interval.{hidden}",
                   traces, layout, Table(["setting", "values", "trials", "infeasible", "share"], rows))  # fmt: skip


def rungs(data: StudyData) -> Picture | None:
    """What early stopping kept at each rung; None when no trial was stopped."""
    if not data.stopped.any():
        return None
    c = data.curves
    # a trial that ended between two evaluations has no value there
    levels = np.intersect1d(data.steps[data.stopped], c.step)
    if not len(levels):
        return None
    rows, x, y, custom, colours, symbols = [], [], [], [], [], []
    marked: list[dict[str, Any]] = []
    at_rungs = []
    for k, level in enumerate(levels):
        mark_x, mark_y = np.full(data.n, math.nan), np.full(data.n, math.nan)
        at_rungs.append((mark_x, mark_y))
        here: list[tuple[int, float]] = []
        for i in range(data.n):
            at = c.of(i)
            found = np.flatnonzero(c.step[at] == level)
            if len(found):
                here.append((i, float(c.value[at][found[0]])))
        gone = sum(bool(data.stopped[i]) and data.steps[i] == level for i, _ in here)
        rows.append([str(level), str(len(here)), str(gone), str(len(here) - gone)])
        for i, value in here:
            mark_x[i] = _beside(data, i, k, bool(data.stopped[i]) and data.steps[i] == level)
            mark_y[i] = value
        for i, value in here[:: max(1, len(here) // 500)]:
            out = bool(data.stopped[i]) and data.steps[i] == level
            x.append(_beside(data, i, k, out))
            y.append(value)
            custom.append([int(data.trial[i]), int(level)])
            colours.append("@faint" if out else "@accent")
            symbols.append("circle-open" if out else "circle")
    values = np.array(y, float)
    va = value_axis(values, data.maximize)
    traces: list[dict[str, Any]] = []
    for name, colour, symbol in (("stopped here", "@faint", "circle-open"), ("went on", "@accent", "circle")):
        mask = np.array([q == colour for q in colours])
        traces.append({
            "type": "scatter", "mode": "markers", "name": name, "x": np.array(x)[mask], "y": va.clip(values[mask])[0],
            "customdata": np.array(custom)[mask], "marker": {"size": 6, "symbol": symbol, "color": colour},
            "hovertemplate": f"trial %{{customdata[0]}} at step %{{customdata[1]}}<br>{plain(data.objective)} then "
                             f"%{{y:.4g}}<extra>{name}</extra>",
        })  # fmt: skip
    for mark_x, mark_y in at_rungs:
        marked += marks(data, mark_x, va.clip(mark_y)[0], mark_y, size=13)
    traces += marked
    ticks = [f"step {level}<br>{row[1]} → {row[3]}" for level, row in zip(levels, rows, strict=True)]
    room = max(0.0, 1.5 - len(levels) / 2)  # one rung alone would be drawn out over the whole width
    layout = base_layout(
        360, showlegend=True, yaxis=va.layout(f"{data.objective} at that step"),
        xaxis={"tickvals": list(range(len(levels))), "ticktext": ticks, "showgrid": False, "zeroline": False,
               "range": [-0.6 - room, len(levels) - 0.4 + room]},
    )  # fmt: skip
    layout["margin"] = layout["margin"] | {"b": 64}
    saved = 1 - data.steps.sum() / max(1, data.steps.max() * data.n)
    spoken = (
        f"Early stopping at {len(levels)} rungs: "
        + "; ".join(f"{r[1]} trials reached step {r[0]}, {r[3]} went on" for r in rows)
        + f". It saved {saved:.0%} of the steps."
    )
    return Picture("rungs", "Early stopping", spoken,
                   f"The {data.objective} at each rung; stopping saved {saved:.0%} of the steps.",
                   traces, layout, Table(["step", "reached", "stopped", "went on"], rows))  # fmt: skip


def _beside(data: StudyData, i: int, rung: int, out: bool) -> float:
    """Where a trial stands beside a rung's place: those that were stopped there left, the others right."""
    return rung + (-0.18 if out else 0.18) + 0.26 * (math.fmod(float(data.trial[i]) * 0.618034, 1.0) - 0.5)


def occupancy(data: StudyData) -> Picture | None:
    """Which share of the lanes held a trial, over time; None when the ledger does not say."""
    times: list[float] = []
    shares: list[float] = []
    areas = lengths = 0.0
    begun = data.all_rounds[0].started
    rows = []
    for row in data.all_rounds:
        points = data.meta.get(f"occupancy.{row.round}")
        if not points or len(points) < 2:
            continue
        at = row.started - begun + np.array([p[0] for p in points], float)
        busy = np.clip(np.array([p[1] for p in points], float), 0, 1)
        times += [at[0], *at.tolist(), at[-1]]
        shares += [0.0, *busy.tolist(), 0.0]  # between the rounds nothing trains
        stretch = np.diff(at)
        areas += float(stretch @ busy[:-1])
        lengths += float(stretch.sum())
        mean = float(stretch @ busy[:-1] / stretch.sum()) if stretch.sum() > 0 else float(busy.mean())
        name = f"round {row.round + 1}" if row.kind == "search" else "confirmation"
        rows.append([name, f"{stretch.sum():.1f}", f"{mean:.0%}"])
    if not rows or lengths <= 0:
        return None
    mean = areas / lengths
    traces = [{"type": "scatter", "mode": "lines", "x": times, "y": shares, "fill": "tozeroy",
               "fillcolor": "@accent/0.2", "line": {"color": "@accent", "width": 1.5, "shape": "hv"},
               "hovertemplate": "%{x:.1f} s: %{y:.0%} of the lanes busy<extra></extra>"}]  # fmt: skip
    layout = base_layout(
        240,
        xaxis={"title": titled("seconds since the first round began"), "zeroline": False, "rangemode": "tozero"},
        yaxis={"title": titled("lanes with a trial"), "tickformat": ".0%", "range": [0, 1.03], "zeroline": False},
    )
    spoken = f"Over {len(rows)} rounds, {mean:.0%} of the lane-steps were spent on a trial. " + "; ".join(
        f"{row[0]}: {row[2]}" for row in rows
    )
    return Picture("occupancy", "Lanes busy over time", spoken + ".",
                   f"{mean:.0%} on average while training; between the rounds the next one is drawn and compiled.",
                   traces, layout, Table(["", "seconds", "lanes with a trial"], rows))  # fmt: skip


def seconds(data: StudyData) -> Picture | None:
    """Where the study's time went; None before it has ended."""
    spent = (data.result or {}).get("seconds")
    if not spent:
        return None
    total = float(spent.get("total", 0.0))
    parts = [(name, float(value)) for name, value in spent.items() if name != "total"]
    parts.append(("the rest", max(0.0, total - sum(v for _, v in parts))))
    fills = ["@line0", "@line2", "@line1", "@line3", "@line4"]
    patterns = ["", "/", "x", ".", "-"]
    traces = []
    for k, (name, value) in enumerate(parts):
        share = value / total if total else 0.0
        traces.append({
            "type": "bar", "orientation": "h", "x": [value], "y": [0], "name": f"{name} {duration_or_less(value)}",
            "marker": {"color": "@faint" if name == "the rest" else fills[k % len(fills)],
                       "line": {"width": 1, "color": "@surface"},
                       "pattern": {"shape": patterns[k % len(patterns)], "solidity": 0.15, "fillmode": "overlay",
                                   "fgcolor": "@surface"}},
            "hovertemplate": f"{plain(name)}: {duration_or_less(value)} ({share:.0%})<extra></extra>",
        })  # fmt: skip
    layout = base_layout(
        150, barmode="stack", showlegend=True, margin={"l": 16, "r": 16, "t": 30, "b": 46},
        xaxis={"title": titled("seconds"), "zeroline": False},
        yaxis={"showticklabels": False, "ticks": "", "showline": False},
    )  # fmt: skip
    layout["legend"] = layout["legend"] | {"traceorder": "normal"}
    rows = [[name, f"{value:.2f}", f"{value / total:.0%}" if total else ""] for name, value in parts]
    spoken = f"Of {duration_or_less(total)} in all: " + ", ".join(f"{n} {duration_or_less(v)}" for n, v in parts) + "."
    return Picture("seconds", "Where the seconds went", spoken, "", traces, layout,
                   Table(["part", "seconds", "share"], rows))  # fmt: skip


def wilson(count: int, total: int, z: float = 1.645) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927); 90 % by default."""
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def duration_or_less(value: float) -> str:
    """As `duration`, with tenths below ten seconds."""
    return f"{value:.1f}s" if value < 10 else duration(value)
