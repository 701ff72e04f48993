"""Curves in a terminal: dots of Braille, two by four to a character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vmaptune.view.live._spark import bounds_of
from vmaptune.view.words import number

Points = Sequence[tuple[int, float | None]]  # (step, value)
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a character
MARK = {"adjust": "│", "snapshot": "┊", "rollback": "╎"}


def plot(
    curves: Sequence[tuple[str, Points]], steps: int, width: int, height: int, marks: Sequence[tuple[int, str]] = ()
) -> list[Any]:
    """Lines of rich text, `height` of them and an axis: each curve in its style, over steps 0 to `steps`.

    All curves share the y axis, a log one where that shows more. `marks` are (step, kind) of what a person did.
    """
    from rich.text import Text

    low, high, log = bounds_of([[value for _, value in points] for _, points in curves])
    left = max(len(number(math.exp(v) if log else v, 3)) for v in (low, high)) + 1
    wide = max(4, width - left - 1)
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for style, points in curves:
        _draw(cells, style, points, max(1, steps), wide, height, (low, high, log))
    columns = {min(wide - 1, int(step / max(1, steps) * wide)): kind for step, kind in marks}
    lines = []
    for row in range(height):
        at = {0: high, height - 1: low}.get(row)
        label = number(math.exp(at) if log else at, 3) if at is not None else ""
        line = Text.assemble((label.rjust(left - 1) + " ┤" if label else " " * left + "│", "dim"))
        for column in range(wide):
            if (row, column) in cells:
                bits, style = cells[row, column]
                line.append(chr(0x2800 + bits), style=style)
            elif column in columns:
                line.append(MARK.get(columns[column], "│"), style="yellow")
            else:
                line.append(" ")
        lines.append(line)
    axis = Text(" " * left + "└" + "─" * wide, style="dim")
    return [*lines, axis, Text(" " * left + " 0" + f"{steps:,} steps".rjust(wide - 1), style="dim")]


def _draw(
    cells: dict[tuple[int, int], tuple[int, str]], style: str, points: Points, steps: int, width: int, height: int,
    bounds: tuple[float, float, bool],
) -> None:  # fmt: skip
    """Sets the dots of one curve, its points joined by lines; a gap where a value is not finite."""
    low, high, log = bounds
    before: tuple[int, int] | None = None
    for step, value in points:
        if value is None or not math.isfinite(value) or (log and value <= 0):
            before = None
            continue
        share = ((math.log(value) if log else value) - low) / (high - low) if high > low else 0.0
        x = min(2 * width - 1, max(0, round(step / steps * (2 * width - 1))))
        y = min(4 * height - 1, max(0, round((1 - share) * (4 * height - 1))))
        for px, py in _between(before or (x, y), (x, y)):
            key = (py // 4, px // 2)
            bits, _ = cells.get(key, (0, style))
            cells[key] = (bits | DOTS[py % 4][px % 2], style)
        before = (x, y)


def _between(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line, its ends included."""
    count = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
    return [
        (round(a[0] + (b[0] - a[0]) * i / count), round(a[1] + (b[1] - a[1]) * i / count)) for i in range(count + 1)
    ]
