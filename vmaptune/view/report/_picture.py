"""A picture of the report: a Plotly figure as plain data, with the words for those who don't see it.

Colours are written as `@name` or `@name/alpha` and resolved when the picture is drawn, so that one picture serves
light and dark. The palette is Okabe and Ito's, which survives colour-blindness; in print the same things also
differ by shape, dash or place.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BEST_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
LIGHT = {
    "ink": "#1c2430", "muted": "#5b6675", "faint": "#9aa5b1", "grid": "#e3e7ec", "surface": "#ffffff",
    "accent": "#0072b2", "warn": "#b8420a", "good": "#00795a", "star": "#d55e00",
    "line0": "#0072b2", "line1": "#d55e00", "line2": "#00795a", "line3": "#a9467f", "line4": "#7a5c00",
    "seq0": "#08204a", "seq1": "#2f5d9c", "seq2": "#7ea6d0", "seq3": "#d5dde6",
    "round_first": "#a3b1bf", "round_last": "#083d7f",
}  # fmt: skip
DARK = {
    "ink": "#e8edf3", "muted": "#a9b4c1", "faint": "#6d7886", "grid": "#2b333d", "surface": "#171c22",
    "accent": "#56b4e9", "warn": "#ff9152", "good": "#3fc79a", "star": "#ffb000",
    "line0": "#56b4e9", "line1": "#ff9152", "line2": "#3fc79a", "line3": "#e59ac6", "line4": "#f0e442",
    "seq0": "#fff3b0", "seq1": "#f0b64a", "seq2": "#8a6f62", "seq3": "#3a4250",
    "round_first": "#5a6675", "round_last": "#9fd4ff",
}  # fmt: skip
SEQUENTIAL: list[tuple[float, str]] = [(0.0, "@seq0"), (0.1, "@seq1"), (0.4, "@seq2"), (1.0, "@seq3")]


@dataclass(frozen=True)
class Table:
    """The numbers behind a picture."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """One figure. `data` and `layout` are Plotly's, NumPy arrays allowed."""

    name: str  # an HTML id
    title: str
    spoken: str  # what the picture shows, in a sentence or two
    caption: str  # how to read it
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: Table | None = None

    @property
    def height(self) -> int:
        return int(self.layout["height"])


def plain(text: object) -> str:
    """Text that Plotly shows as it is: its labels are a small HTML."""
    return html.escape(str(text), quote=False)


def base_layout(height: int, **more: Any) -> dict[str, Any]:
    """A quiet layout; `xaxis...` and `yaxis...` entries get the house's lines and fonts."""
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 64, "r": 16, "t": 16, "b": 52},
        "paper_bgcolor": "@surface", "plot_bgcolor": "@surface",
        "font": {"family": FONT, "size": 12, "color": "@ink"},
        "hoverlabel": {"bgcolor": "@surface", "bordercolor": "@faint", "font": {"color": "@ink", "family": FONT}},
        "showlegend": False,
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": "@ink"},
                   "traceorder": "normal", "bgcolor": "@surface/0"},
        "modebar": {"bgcolor": "@surface/0", "color": "@faint", "activecolor": "@accent"},
    }  # fmt: skip
    for key, value in more.items():
        if key.startswith(("xaxis", "yaxis")):
            value = axis_style() | value
        layout[key] = value
    return layout


def axis_style() -> dict[str, Any]:
    """Thin lines, muted numbers."""
    return {
        "gridcolor": "@grid", "linecolor": "@faint", "tickcolor": "@faint", "zerolinecolor": "@grid",
        "tickfont": {"color": "@muted", "size": 11}, "showline": True, "ticks": "outside", "ticklen": 4,
    }  # fmt: skip


def titled(text: str) -> dict[str, Any]:
    """An axis title."""
    return {"text": plain(text), "standoff": 8, "font": {"size": 12, "color": "@ink"}}


def themes(rounds: int) -> dict[str, dict[str, str]]:
    """Both palettes, with a colour for each round from pale to strong."""
    found = {}
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        steps = {
            f"round{r}": _mix(colours["round_first"], colours["round_last"], r / max(1, rounds - 1))
            for r in range(rounds)
        }
        found[name] = colours | steps
    return found


def round_scale(rounds: int) -> dict[str, Any]:
    """Marker settings for colouring by the round's position."""
    scale: list[list[Any]]
    if rounds == 1:
        scale = [[0.0, "@round0"], [1.0, "@round0"]]
    else:
        scale = [[r / (rounds - 1), f"@round{r}"] for r in range(rounds)]
    return {"colorscale": scale, "cmin": 0, "cmax": max(1, rounds - 1), "showscale": False}


def _mix(a: str, b: str, share: float) -> str:
    parts = [(int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in parts)


def resolve(node: Any, colours: Mapping[str, str], key: str = "") -> Any:
    """The same data with colours in place of their names; only where a colour stands."""
    if isinstance(node, Mapping):
        return {k: resolve(v, colours, k) for k, v in node.items()}
    if isinstance(node, (list, tuple)):
        return [resolve(v, colours, key) for v in node]
    if isinstance(node, str) and node.startswith("@") and key.endswith(("color", "colorscale")):
        name, _, alpha = node[1:].partition("/")
        colour = colours[name]
        if not alpha:
            return colour
        rgb = ", ".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
        return f"rgba({rgb}, {alpha})"
    return node


def to_figure(picture: Picture, rounds: int) -> Any:
    """The picture as a `plotly.graph_objects.Figure`, in light colours.

    Raises:
      InputError: Plotly is not installed.
    """
    from vmaptune.view.report._plotly import graph_objects

    go = graph_objects()
    colours = themes(rounds)["light"]
    data = [_arrays_kept(resolve(dict(trace), colours)) for trace in picture.data]
    layout = resolve(dict(picture.layout), colours)
    layout["title"] = {"text": plain(picture.title), "x": 0.02, "font": {"size": 15}}
    layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] + 36}
    layout["height"] = picture.height + 36
    return go.Figure(data=data, layout=layout)


def _arrays_kept(trace: dict[str, Any]) -> dict[str, Any]:
    return {k: (v.astype(np.float64) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v)
            for k, v in trace.items()}  # fmt: skip
