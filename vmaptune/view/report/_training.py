"""Over the steps of training: all curves with the best in front, and training against validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from vmaptune.store.states import State
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._marks import foremost, marks, named
from vmaptune.view.report._picture import BEST_DASHES, Picture, Table, base_layout, plain, round_scale, titled
from vmaptune.view.report._scales import value_axis
from vmaptune.view.words import number

MOST_LINES = 300  # behind the best few; the bands speak for the rest
MOST_STEPS = 60  # of one line
BEST_FEW = 5
MOST_MARKS = 30


def curves(data: StudyData) -> Picture:
    """The objective over training of all trials, the winner and the next few in front."""
    c = data.curves
    few = foremost(data, BEST_FEW)
    late = c.value[c.step > c.step.min()] if len(c.step) else c.value
    va = value_axis(late if np.isfinite(late).any() else c.value, data.maximize, keep=0.9)
    traces: list[dict[str, Any]] = []
    ended = data.state != State.RUNNING
    faint = 0.5 if data.n <= 60 else 0.25
    for label, mask, colour, width in (
        ("complete", ended & ~data.infeasible & ~data.stopped, f"@faint/{faint}", 1.0),
        ("stopped early", data.stopped, f"@line3/{faint}", 1.0),
        ("infeasible", data.infeasible, "@warn/0.6", 1.0),
        ("running", ~ended, "@accent/0.5", 1.0),
    ):
        chosen = _even(np.flatnonzero(mask), data, MOST_LINES if label == "complete" else MOST_LINES // 3)
        if not len(chosen):
            continue
        x, y, ends = _strands(data, chosen)
        shown = f"{label} ({len(chosen)} of {int(mask.sum()):,})" if len(chosen) < mask.sum() else label
        traces.append({
            "type": "scatter", "mode": "lines", "x": x, "y": y, "name": shown, "hoverinfo": "skip",
            "line": {"width": width, "color": colour}, "connectgaps": False,
        })  # fmt: skip
        if label == "infeasible" and len(ends):
            at = np.array(ends, float)
            traces.append({
                "type": "scatter", "mode": "markers", "x": at[:, 0], "y": va.clip(at[:, 1])[0], "showlegend": False,
                "hoverinfo": "skip",
                "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": "@warn"}},
            })  # fmt: skip
    band = _band(data)
    if band is not None:
        steps, low, middle, high = band
        traces += [
            {"type": "scatter", "mode": "lines", "x": steps, "y": low, "line": {"width": 0, "color": "@accent"},
             "showlegend": False, "hoverinfo": "skip"},
            {"type": "scatter", "mode": "lines", "x": steps, "y": high, "line": {"width": 0, "color": "@accent"},
             "fill": "tonexty", "fillcolor": "@accent/0.15", "name": "middle 80 % of trials", "hoverinfo": "skip"},
            {"type": "scatter", "mode": "lines", "x": steps, "y": middle, "name": "median",
             "line": {"width": 2, "color": "@ink", "dash": "dot"},
             "hovertemplate": f"median at step %{{x}}: {plain(data.objective)} %{{y:.4g}}<extra></extra>"},
        ]  # fmt: skip
    for k, i in enumerate(reversed(few)):
        k = len(few) - 1 - k
        at = _thin(c.of(i))
        traces.append({
            "type": "scatter", "mode": "lines", "x": c.step[at], "y": c.value[at],
            "name": f"trial {named(data, i)}", "legendrank": 900 + k,
            "line": {"width": 3.5 if i == data.winner else 2, "color": f"@line{k}", "dash": BEST_DASHES[k]},
            "hovertemplate": f"trial {named(data, i)}, step %{{x}}<br>{plain(data.objective)} %{{y:.4g}}"
                             "<extra></extra>",
        })  # fmt: skip
    shapes, notes = _marks(data)
    layout = base_layout(
        430, shapes=shapes, annotations=notes,
        xaxis={"title": titled("training step"), "rangemode": "tozero", "zeroline": False},
        yaxis=va.layout(data.objective), showlegend=True,
    )  # fmt: skip
    if few:
        first, last = c.value[c.of(few[0])][:1], c.value[c.of(few[0])][-1:]
        spoken = (
            f"Curves of {data.objective} over training of {data.n:,} trials. That of trial {named(data, few[0])} "
            f"goes from {_word(first)} to {_word(last)}."
        )
    else:
        spoken = f"Curves of {data.objective} over training of {data.n:,} trials, none of which is complete."
    cut = (
        f" Values {va.cut} {number(va.high if va.cut == 'above' else va.low)} lie outside the picture."
        if va.cut
        else ""
    )
    return Picture(
        "curves", "Training curves", spoken,
        f"Every trial counts in the band; {_front(data, len(few))} in front.{cut}",
        traces, layout, _curve_table(data, few),
    )  # fmt: skip


def train_valid(data: StudyData) -> Picture | None:
    """Training loss against validation: of the best trial over its steps, and of all trials at their end."""
    c = data.curves
    if not np.isfinite(c.loss).any() or data.winner is None:
        return None
    i = data.winner
    at = _thin(c.of(i))
    same = bool(np.isfinite(c.valid_loss[at]).any())
    valid = c.valid_loss if same else c.value
    label = "validation loss" if same else f"validation {data.objective}"
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": c.step[at], "y": c.loss[at], "name": "training loss",
         "line": {"width": 2.5, "color": "@line0", "dash": "dash"},
         "hovertemplate": "step %{x}<br>training loss %{y:.4g}<extra></extra>"},
        {"type": "scatter", "mode": "lines", "x": c.step[at], "y": valid[at], "name": label,
         "line": {"width": 2.5, "color": "@line1"},
         "hovertemplate": f"step %{{x}}<br>{plain(label)} %{{y:.4g}}<extra></extra>"},
    ]  # fmt: skip
    both = np.concatenate([c.loss[at], valid[at]])
    left = value_axis(both, False, keep=1.0)
    ends = np.array([c.start[k + 1] - 1 if c.start[k + 1] > c.start[k] else -1 for k in range(data.n)])
    shown = data.shown[data.complete[data.shown] & (ends[data.shown] >= 0)]
    x, y = c.loss[ends[shown]], valid[ends[shown]]
    xa, ya = value_axis(x, False), value_axis(y, data.maximize and not same)
    numbers = {row.round: k for k, row in enumerate(data.rounds)}
    traces.append({
        "type": "scatter", "mode": "markers", "x": xa.clip(x)[0], "y": ya.clip(y)[0], "xaxis": "x2", "yaxis": "y2",
        "showlegend": False, "customdata": np.column_stack([data.trial[shown], x, y]),
        "marker": {"size": 5, "opacity": 0.8, "color": np.array([numbers[int(r)] for r in data.round[shown]]),
                   **round_scale(len(data.rounds))},
        "hovertemplate": "trial %{customdata[0]}<br>training loss %{customdata[1]:.4g}<br>"
                         f"{plain(label)} %{{customdata[2]:.4g}}<extra></extra>",
    })  # fmt: skip
    every_x, every_y = (np.where(ends >= 0, values[ends], np.nan) for values in (c.loss, valid))
    traces += marks(data, xa.clip(every_x)[0], ya.clip(every_y)[0], every_y, xaxis="x2", yaxis="y2")
    shapes = []
    if same:  # one unit on both axes: the line on which they are equal
        low, high = max(xa.low, ya.low), min(xa.high, ya.high)
        if low < high:
            shapes.append({"type": "line", "xref": "x2", "yref": "y2", "x0": low, "y0": low, "x1": high, "y1": high,
                           "layer": "below", "line": {"color": "@faint", "dash": "dot", "width": 1}})  # fmt: skip
    x2 = {k: v for k, v in xa.layout("").items() if k != "title"}
    layout = base_layout(
        360, showlegend=True, shapes=shapes,
        xaxis={"title": titled("training step"), "domain": [0, 0.45], "rangemode": "tozero", "zeroline": False},
        yaxis=left.layout("loss" if same else f"loss, {data.objective}"),
        xaxis2=x2 | {"title": titled("last training loss"), "domain": [0.58, 1.0], "anchor": "y2"},
        yaxis2=ya.layout(f"last {label}") | {"anchor": "x2"},
    )  # fmt: skip
    last = c.of(i)
    spoken = (
        f"Trial {named(data, i)} ends with a training loss of {_word(c.loss[last][-1:])} and a {label} of "
        f"{_word(valid[last][-1:])}. Beside it, the same two numbers of every complete trial."
    )
    rows = [[str(c.step[k]), number(float(c.loss[k])), number(float(valid[k]))] for k in at]
    return Picture(
        "train-valid", "Training against validation", spoken,
        f"Left: {data.star} over training. Right: every complete trial at its end.{data.thinned}",
        traces, layout, Table(["step", "training loss", label], rows, f"trial {named(data, i)}"),
    )  # fmt: skip


def _front(data: StudyData, count: int) -> str:
    """Which curves are in front."""
    if data.finalists:
        more = count - min(count, len(data.finalists))
        others = f", then the {more} best by {data.last_name}," if more else ""
        return f"the configurations that were confirmed, {data.star} first{others} are"
    return f"the best {count} by {data.last_name} are"


# ---- parts -------------------------------------------------------------------------------------------


def _even(where: np.ndarray, data: StudyData, most: int) -> np.ndarray:
    """At most `most` of these trials, evenly over their ranks."""
    if len(where) <= most:
        return where
    ordered = where[np.argsort(data.rank[where], kind="stable")]
    return np.sort(ordered[np.linspace(0, len(where) - 1, most).astype(int)])


def _thin(at: slice) -> np.ndarray:
    """At most MOST_STEPS points of one curve, its first and last among them."""
    count = at.stop - at.start
    if count <= MOST_STEPS:
        return np.arange(at.start, at.stop)
    return at.start + np.linspace(0, count - 1, MOST_STEPS).astype(int)


def _strands(data: StudyData, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float]]]:
    """Many curves as one line with gaps: one SVG path, however many there are; and where each ends."""
    x, y, ends = [], [], []
    gap = np.array([np.nan])
    for i in chosen:
        at = _thin(data.curves.of(int(i)))
        if not len(at):
            continue
        x += [data.curves.step[at].astype(float), gap]
        values = data.curves.value[at]
        y += [values, gap]
        seen = np.flatnonzero(np.isfinite(values))
        if len(seen):
            ends.append((float(data.curves.step[at][seen[-1]]), float(values[seen[-1]])))
    empty = np.zeros(0)
    return (np.concatenate(x) if x else empty), (np.concatenate(y) if y else empty), ends


def _band(data: StudyData) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """10, 50 and 90 % of all trials alive at each step; None where fewer than 20 are."""
    c = data.curves
    steps, where, counts = np.unique(c.step, return_inverse=True, return_counts=True)
    common = np.flatnonzero(counts >= max(20, 0.2 * counts.max())) if len(counts) else np.zeros(0, int)
    if len(common) < 2:
        return None
    if len(common) > MOST_STEPS:
        common = common[np.linspace(0, len(common) - 1, MOST_STEPS).astype(int)]
    order = np.argsort(where, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])
    worst = -np.inf if data.maximize else np.inf
    rows = []
    for k in common:
        values = c.value[order[starts[k] : starts[k + 1]]]
        rows.append(np.quantile(np.where(np.isfinite(values), values, worst), [0.1, 0.5, 0.9], method="nearest"))
    low, middle, high = np.array(rows).T
    return steps[common].astype(float), low, middle, high


def _marks(data: StudyData) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A line for each change that somebody made to a setting while a model trained."""
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    changes = [d.data for d in data.decisions if d.kind == "adjust" and isinstance(d.data, dict) and "step" in d.data]
    for k, change in enumerate(changes[:MOST_MARKS]):
        shapes.append({"type": "line", "x0": change["step"], "x1": change["step"], "yref": "paper", "y0": 0, "y1": 1,
                       "layer": "below", "line": {"color": "@warn", "width": 1, "dash": "dot"}})  # fmt: skip
        to = change.get("to")
        text = f"{change.get('name')} = {number(to) if isinstance(to, (int, float)) else to}"
        notes.append({
            "x": change["step"], "y": 0.98 - 0.07 * (k % 4), "yref": "paper", "xanchor": "left", "yanchor": "top",
            "text": plain(text), "showarrow": False, "font": {"size": 11, "color": "@warn"}, "bgcolor": "@surface/0.8",
        })  # fmt: skip
    return shapes, notes


def _curve_table(data: StudyData, few: list[int]) -> Table | None:
    if not few:
        return None
    c = data.curves
    longest = max(few, key=lambda i: c.start[i + 1] - c.start[i])
    at = _thin(c.of(longest))
    steps = c.step[at[np.unique(np.linspace(0, len(at) - 1, 8).astype(int))]] if len(at) else []
    rows = []
    for step in steps:
        row = [str(step)]
        for i in few:
            here = c.of(i)
            found = np.flatnonzero(c.step[here] == step)
            row.append(number(float(c.value[here][found[0]])) if len(found) else "")
        rows.append(row)
    return Table(["step", *(f"trial {named(data, i)}" for i in few)], rows, "of the trials in front")


def _word(values: np.ndarray) -> str:
    return number(float(values[0])) if len(values) and np.isfinite(values[0]) else "no finite value"
