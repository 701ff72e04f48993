"""Several settings at once: parallel coordinates, a pair, importance, and the picture against grids."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._marks import foremost, foremost_words, marks, named
from vmaptune.view.report._picture import SEQUENTIAL, Picture, Table, base_layout, plain, titled
from vmaptune.view.report._scales import ABSENT, column, value_axis
from vmaptune.view.report._settings import axis_of, distinct
from vmaptune.view.words import number

FINE_TICKS = 48  # of an axis of the parallel coordinates
LEAST_TO_COMPARE = 4  # trials, with a grid
MOST_LINES = 1_200  # of the parallel coordinates
# Plotly draws a line of a larger colour over one of a smaller, whatever their order.
INFEASIBLE, CONFIRMED, WINNER = -0.25, 1.25, 1.5  # beside 0 for the worst to 1 for the best


def _colours() -> list[tuple[float, str]]:
    """The colours of those three, and of all between the worst and the best."""
    edges = [(INFEASIBLE, "@warn"), (-0.1, "@warn"), *((1 - at, colour) for at, colour in SEQUENTIAL[::-1]),
             (1.15, "@good"), (1.35, "@good"), (1.4, "@star"), (WINNER, "@star")]  # fmt: skip
    return [((at - INFEASIBLE) / (WINNER - INFEASIBLE), colour) for at, colour in edges]


COLOURS = _colours()


def parallel(data: StudyData) -> Picture:
    """One line a trial through all settings and the objective; drag along an axis to choose."""
    shown = _drawn(data)
    dimensions: list[dict[str, Any]] = []
    for name in data.by_importance[::-1]:
        ax = axis_of(data, name)
        c = ax.scattered(column(data.seen, name), data.trial)
        off = ax.range[0] - 0.1 * (ax.range[1] - ax.range[0])
        gone = ~np.isfinite(c)
        low = off if gone.any() else ax.range[0]
        values, texts = ax.ticks
        if gone.any():
            values, texts = [off, *values], ["off", *texts]
        dimensions.append(_dimension(name, np.where(gone, off, c)[shown], [low, ax.range[1]], values, texts))
    va = value_axis(data.best[data.feasible], data.maximize)
    clipped, _ = va.clip(data.best)
    low, high = (math.log10(va.low), math.log10(va.high)) if va.log else (va.low, va.high)
    y = np.log10(clipped) if va.log else clipped
    room = 0.12 * (high - low)
    worst = low - room if data.maximize else high + room
    value_range = [worst, high] if data.maximize else [low, worst]
    layout_ticks = va.layout("")
    ticks, texts = list(layout_ticks["tickvals"]), list(layout_ticks["ticktext"])
    if va.log:
        ticks = [math.log10(t) for t in ticks]
    if data.infeasible.any():
        ticks, texts = [*ticks, worst], [*texts, "infeasible"]
    at_end = np.where(data.infeasible, worst, y)[shown]
    dimensions.append(_dimension(data.best_name, at_end, value_range, ticks, texts))
    colour = np.where(data.infeasible, INFEASIBLE, 1 - data.rank)
    colour[data.finalists] = CONFIRMED
    if data.winner is not None:
        colour[data.winner] = WINNER
    trace = {
        "type": "parcoords", "dimensions": dimensions, "labelangle": 0 if len(dimensions) <= 7 else -20,
        "customdata": data.trial[shown],
        "line": {"color": colour[shown], "cmin": INFEASIBLE, "cmax": WINNER, "colorscale": COLOURS,
                 "showscale": False},
        "labelfont": {"size": 12, "color": "@ink"}, "tickfont": {"size": 11, "color": "@muted"},
        "rangefont": {"size": 1, "color": "@surface/0"},
        "unselected": {"line": {"color": "@faint", "opacity": 0.08}},
    }  # fmt: skip
    layout = base_layout(430, margin={"l": 56, "r": 64, "t": 56 if len(dimensions) <= 7 else 84, "b": 24})
    some = f" {len(shown):,} of {data.n:,} trials are drawn, the best among them." if len(shown) < data.n else ""
    spoken = (
        f"Parallel coordinates: one line for each of {len(shown):,} trials through {len(data.varied)} settings, "
        f"ending at its {data.best_name}. The controls below choose a part of any axis from the keyboard."
    )
    caption = (
        f"The stronger a line, the better its {data.last_name}; {data.star} is orange"
        f"{', the other configurations that were confirmed green' if len(data.finalists) > 1 else ''}. Drag along an "
        f"axis to choose a part of it, drag the part to move it, click beside it to let it go; several axes may be "
        f"brushed at once.{some}"
    )
    return Picture("parallel", "All settings at once", spoken, caption, [trace], layout, None)


def _dimension(
    name: str, values: np.ndarray, ends: Sequence[float], ticks: Sequence[float], texts: Sequence[str]
) -> dict[str, Any]:
    """One axis of the parallel coordinates.

    Plotly lets a brush stop only near a tick where ticks are given. So there are fine ones between the named
    ones, each with a text of its own that cannot be seen (equal texts would be one tick), and a brush may stop
    anywhere.
    """
    low, high = ends
    step = (high - low) / FINE_TICKS
    fine = [c for c in np.linspace(low, high, FINE_TICKS + 1) if all(abs(c - t) > step / 2 for t in ticks)]
    named = [(float(t), html.unescape(text)) for t, text in zip(ticks, texts, strict=True)]  # these are no HTML
    every = sorted([*named, *((float(c), "") for c in fine)])
    return {
        "label": plain(name), "values": values, "range": [low, high], "tickvals": [c for c, _ in every],
        "ticktext": [text + _unseen(k) for k, (_, text) in enumerate(every)],
    }  # fmt: skip


def _unseen(k: int) -> str:
    """A number in characters of no width."""
    return f"{k:b}".replace("0", "\u200b").replace("1", "\u200c")


def parallel_words(data: StudyData) -> dict[str, Any]:
    """What the page says of trials that were brushed: the same trials in the same order, in words."""
    names = data.by_importance[::-1]
    axes = {name: axis_of(data, name) for name in names}
    shown = _drawn(data)
    rows = [
        [*(axes[n].words(data.seen[i].get(n, ABSENT)) for n in names),
         "infeasible" if data.infeasible[i] else number(float(data.best[i]))]
        for i in shown
    ]  # fmt: skip
    return {
        "names": [*names, data.best_name], "trials": [named(data, i) for i in shown], "rows": rows,
        "rank": [float(data.rank[i] + data.infeasible[i]) for i in shown],
    }  # fmt: skip


def _drawn(data: StudyData) -> np.ndarray:
    """The trials of the parallel coordinates, from the worst to the best; those that were confirmed come last."""
    marked = [*data.finalists[:0:-1], *([] if data.winner is None else [data.winner])]
    shown = np.setdiff1d(data.shown[(data.feasible | data.infeasible)[data.shown]], marked)
    shown = shown[np.argsort(-data.rank[shown] - 1.0 * data.infeasible[shown], kind="stable")]
    shown = np.concatenate([shown, np.array(marked, int)])
    if len(shown) <= MOST_LINES:
        return shown
    rest = shown[: -MOST_LINES // 4]
    even = rest[np.linspace(0, len(rest) - 1, MOST_LINES - MOST_LINES // 4).astype(int)]
    return np.concatenate([even, shown[-(MOST_LINES // 4) :]])


def pair(data: StudyData, x_name: str | None = None, y_name: str | None = None) -> Picture | None:
    """The two settings that matter most (or any two) against each other, coloured by how good the trial was."""
    names = data.by_importance
    if x_name is None or y_name is None:
        if len(names) < 2:
            return None
        x_name, y_name = names[0], names[1]
    xa, ya = axis_of(data, x_name), axis_of(data, y_name)
    x = xa.scattered(column(data.seen, x_name), data.trial)
    y = ya.scattered(column(data.seen, y_name), data.trial + 1)
    shown = data.shown[np.isfinite(x[data.shown]) & np.isfinite(y[data.shown])]
    good = shown[data.feasible[shown]]
    good = good[np.argsort(-data.rank[good], kind="stable")]
    lost = shown[data.infeasible[shown]]
    hover = (
        f"trial %{{customdata[0]}}<br>{plain(x_name)} = %{{customdata[2]}}<br>{plain(y_name)} = %{{customdata[3]}}"
        f"<br>{plain(data.best_name)} %{{customdata[1]:.4g}}<extra></extra>"
    )
    size = 8 if len(shown) < 400 else 6 if len(shown) < 1500 else 4

    def custom(these: np.ndarray) -> list[list[Any]]:
        return [
            [int(data.trial[i]), float(data.best[i]) if np.isfinite(data.best[i]) else None,
             plain(xa.words(data.seen[i].get(x_name, ABSENT))), plain(ya.words(data.seen[i].get(y_name, ABSENT)))]
            for i in these
        ]  # fmt: skip

    traces: list[dict[str, Any]] = []
    if len(lost):
        traces.append({
            "type": "scatter", "mode": "markers", "x": x[lost], "y": y[lost], "name": "infeasible",
            "customdata": custom(lost), "hovertemplate": hover.split("<br>" + plain(data.best_name))[0]
            + "<br>infeasible<extra></extra>",
            "marker": {"symbol": "x-thin", "size": size, "line": {"width": 1.3, "color": "@warn"}},
        })  # fmt: skip
    traces.append({
        "type": "scatter", "mode": "markers", "x": x[good], "y": y[good], "customdata": custom(good),
        "hovertemplate": hover, "name": "trial",
        "marker": {"size": size, "color": data.rank[good], "cmin": 0, "cmax": 1, "colorscale": SEQUENTIAL,
                   "line": {"width": 0.5, "color": "@faint"}, "showscale": True,
                   "colorbar": {"thickness": 10, "outlinewidth": 0, "tickvals": [0, 0.5, 1], "len": 0.9,
                                "ticktext": ["best", "median", "worst"], "tickfont": {"color": "@muted"}}},
    })  # fmt: skip
    traces += marks(data, x, y, data.best, size=17)
    shapes = [
        {"type": "rect", "x0": a, "x1": b, "y0": c, "y1": d, "fillcolor": f"@round{r}/0.03", "layer": "below",
         "line": {"color": f"@round{r}", "width": 1.2, "dash": "dot" if r < len(data.spaces) - 1 else "solid"}}
        for r, space in enumerate(data.spaces)
        for a, b in xa.box(space[x_name])
        for c, d in ya.box(space[y_name])
    ]  # fmt: skip
    layout = base_layout(
        460,
        xaxis=xa.layout() | {"title": titled(x_name)},
        yaxis=ya.layout() | {"title": titled(y_name), "automargin": True},
        shapes=shapes,
    )  # fmt: skip
    layout["margin"] = layout["margin"] | {"l": 76}
    best = "" if data.winner is None else (
        f" {data.star.capitalize()} lies at {xa.words(data.seen[data.winner].get(x_name, ABSENT))} and "
        f"{ya.words(data.seen[data.winner].get(y_name, ABSENT))}."
    )  # fmt: skip
    spoken = (
        f"Scatter plot of {y_name} against {x_name}, {len(good):,} feasible and {len(lost):,} infeasible trials.{best}"
    )
    caption = (
        f"The stronger the colour, the better the trial's {data.last_name}; × is infeasible; the outlines are the "
        f"rounds' spaces.{data.thinned}"
    )
    rows = [
        [named(data, i), xa.words(data.seen[i].get(x_name, ABSENT)), ya.words(data.seen[i].get(y_name, ABSENT)),
         number(float(data.best[i])), number(float(data.final[i]))]
        for i in foremost(data, 10)
    ]  # fmt: skip
    return Picture("pair", f"{x_name} and {y_name}", spoken, caption, traces, layout,
                   Table(["trial", x_name, y_name, data.best_name, data.last_name], rows,
                         foremost_words(data, len(rows))))  # fmt: skip


def importance(data: StudyData) -> Picture | None:
    """How much each setting matters, with its uncertainty; None with too few trials to say."""
    found = data.importance
    if not found:
        return None
    names = [i.name for i in reversed(found)]
    known = {i.name: i for i in found}
    near = {i.name: i for i in data.importance_near}
    share = np.array([known[n].share for n in names])
    traces: list[dict[str, Any]] = [{
        "type": "bar", "orientation": "h", "x": share, "y": names, "name": "in the first round",
        "marker": {"color": ["@accent" if known[n].matters else "@faint" for n in names]},
        "error_x": {"type": "data", "symmetric": False,
                    "array": [max(0, known[n].high - known[n].share) for n in names],
                    "arrayminus": [max(0, known[n].share - known[n].low) for n in names], "color": "@ink",
                    "thickness": 1.4, "width": 5},
        "hovertemplate": "%{y}: %{x:.0%}<extra>in the first round</extra>",
    }]  # fmt: skip
    traces.append({
        "type": "scatter", "mode": "markers", "x": [known[n].floor for n in names], "y": names,
        "name": "what chance alone would show", "hovertemplate": "%{y}: chance reaches %{x:.0%}<extra></extra>",
        "marker": {"symbol": "line-ns", "size": 20, "line": {"width": 2.5, "color": "@warn"}},
    })  # fmt: skip
    if near:
        traces.append({
            "type": "scatter", "mode": "markers", "x": [near[n].share for n in names], "y": names,
            "name": "in the last round", "hovertemplate": "%{y}: %{x:.0%}<extra>in the last round</extra>",
            "marker": {"symbol": "diamond-open", "size": 11, "line": {"width": 2}, "color": "@ink"},
        })  # fmt: skip
    longest = max(len(n) for n in names)
    layout = base_layout(
        130 + 38 * len(names), showlegend=True, bargap=0.45,
        margin={"l": 24 + 7 * longest, "r": 24, "t": 16, "b": 52},
        xaxis={"title": titled("share of importance"), "tickformat": ".0%", "range": [0, 1.02], "zeroline": False},
        yaxis={"showgrid": False, "ticks": "", "tickfont": {"size": 13, "color": "@ink"}, "type": "category"},
    )  # fmt: skip
    top = found[0]
    idle = [i.name for i in found if not i.matters]
    spoken = (
        f"{top.name} matters most, with {top.share:.0%} of the importance (90 % interval {top.low:.0%} to "
        f"{top.high:.0%})."
        + (f" No more than chance would show: {', '.join(idle)}." if idle else " Every setting shows more than chance.")
    )
    rows = [
        [i.name, f"{i.share:.0%}", f"{i.low:.0%} to {i.high:.0%}", f"{i.floor:.0%}", "yes" if i.matters else "not seen",
         f"{near[i.name].share:.0%}" if near else ""]
        for i in found
    ]  # fmt: skip
    return Picture(
        "importance", "Importance", spoken,
        f"PED-ANOVA: how far the trials with the best {data.last_name} lie from all of them, each setting by itself. "
        "Whiskers: 90 % of resampled studies. Grey: no more than chance would show.",
        traces, layout,
        Table(["setting", "share", "90 % interval", "chance", "matters", "in the last round"], rows),
    )  # fmt: skip


def random_not_grid(data: StudyData) -> Picture | None:
    """How many values of the most important setting the search tried, and how many a grid of as many trials would have.

    After Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 2012, figure 1.
    """
    names = data.by_importance
    if len(names) < 2:
        return None
    x_name = next((n for n in names if data.first[n].options is None), names[0])
    y_name = next(n for n in names if n != x_name)
    where = np.arange(data.n)
    if len(where) < LEAST_TO_COMPARE:
        return None
    n, settings = len(where), len(names)
    tried = distinct([data.params[int(i)].get(x_name) for i in where])
    per_axis = max(1, math.floor(n ** (1 / settings) + 1e-9))
    most = data.first[x_name].n_values
    grid_values = min(per_axis, most) if most is not None else per_axis
    xa, ya = axis_of(data, x_name), axis_of(data, y_name)
    few = where[np.unique(np.linspace(0, n - 1, 400).astype(int))]
    x = xa.scattered(column([data.seen[i] for i in few], x_name), data.trial[few])
    y = ya.scattered(column([data.seen[i] for i in few], y_name), data.trial[few] + 1)
    even = (np.arange(per_axis) + 0.5) / per_axis
    gx = np.unique(xa.place(list(data.first[x_name].from_unit(even))))
    gy = np.unique(ya.place(list(data.first[y_name].from_unit(even))))
    grid_x, grid_y = (v.ravel() for v in np.meshgrid(gx, gy))
    top = np.full(1, 1.0)

    def points(px: np.ndarray, py: np.ndarray, k: str) -> list[dict[str, Any]]:
        rug = np.unique(px[np.isfinite(px)])
        return [
            {"type": "scatter", "mode": "markers", "x": px, "y": py, "xaxis": f"x{k}", "yaxis": f"y{k}",
             "hoverinfo": "skip", "marker": {"size": 6, "color": "@accent", "opacity": 0.8}},
            {"type": "scatter", "mode": "markers", "x": rug, "y": np.repeat(top, len(rug)), "xaxis": f"x{k}",
             "yaxis": f"y{'3' if k == '' else '4'}", "hoverinfo": "skip",
             "marker": {"symbol": "line-ns", "size": 14, "line": {"width": 1.2, "color": "@warn"}}},
        ]  # fmt: skip

    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": "", "showline": False,
            "range": [0, 2], "domain": [0.88, 1.0], "fixedrange": True}  # fmt: skip
    one = f"{tried:,} values of {x_name} tried"
    two = f"a grid of as many trials: {grid_values}"
    layout = base_layout(
        380,
        xaxis=xa.layout() | {"title": titled(x_name), "domain": [0, 0.46], "anchor": "y"},
        yaxis=ya.layout() | {"title": titled(y_name), "domain": [0, 0.85], "automargin": True},
        xaxis2=xa.layout() | {"title": titled(x_name), "domain": [0.54, 1.0], "anchor": "y2"},
        yaxis2=ya.layout() | {"domain": [0, 0.85], "anchor": "x2", "showticklabels": False},
        yaxis3=bare | {"anchor": "x"},
        yaxis4=bare | {"anchor": "x2"},
        annotations=[
            {"x": at, "y": 1.0, "xref": "paper", "yref": "paper", "text": f"<b>{plain(text)}</b>", "showarrow": False,
             "yanchor": "bottom", "xanchor": "left", "font": {"size": 13, "color": "@ink"}}
            for at, text in ((0.0, one), (0.54, two))
        ],
    )  # fmt: skip
    layout["margin"] = layout["margin"] | {"t": 36, "l": 76}
    spoken = (
        f"The search's {n:,} trials tried {tried:,} different values of {x_name}, the most important setting with "
        f"a range. A grid of as many trials over {settings} settings would have tried {grid_values}."
    )
    return Picture(
        "random-not-grid", "Why not a grid", spoken,
        f"As many trials as the search had, as it drew them and as a grid over {settings} settings ({per_axis} values "
        f"of each). The marks above are the different values of {x_name}.",
        [*points(x, y, ""), *points(grid_x, grid_y, "2")], layout,
        Table(["", f"values of {x_name}"], [["this study", str(tried)], ["a grid", str(grid_values)]]),
    )  # fmt: skip
