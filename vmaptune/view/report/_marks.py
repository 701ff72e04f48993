"""The winner and the other confirmed configurations, marked alike in every picture and table."""

from __future__ import annotations

from typing import Any

import numpy as np

from vmaptune.view.report._gather import StudyData
from vmaptune.view.words import number

STAR, DIAMOND = "★", "◇"
CONFIRMED = "confirmed too"  # the name of the diamonds' trace


def marks(
    data: StudyData, x: np.ndarray, y: np.ndarray, shown: np.ndarray, size: int = 15, **more: Any
) -> list[dict[str, Any]]:
    """The diamonds and the star over a scatter of `x` against `y`, each `[N]`.

    Args:
      shown: values `[N]` that a pointer over a mark is told, as they are where `y` was moved onto the picture's edge.
      more: what else each trace gets, such as its axes.
    """
    traces: list[dict[str, Any]] = []
    places = [i for i in data.finalists if i != data.winner]
    for name, where, marker in (
        (CONFIRMED, places, {"symbol": "diamond-open", "size": 0.7 * size, "color": "@star", "line": {"width": 2}}),
        (data.star, [] if data.winner is None else [data.winner],
         {"symbol": "star", "size": size, "color": "@star", "line": {"width": 1.2, "color": "@surface"}}),
    ):  # fmt: skip
        at = np.array([i for i in where if np.isfinite(x[i]) and np.isfinite(y[i])], int)
        if len(at):
            traces.append({
                "type": "scatter", "mode": "markers", "x": x[at], "y": y[at], "name": name, "showlegend": False,
                "text": [f"trial {named(data, i)}<br>{number(float(shown[i]))}" for i in at.tolist()],
                "hovertemplate": "%{text}<extra></extra>", "marker": marker, **more,
            })  # fmt: skip
    return traces


def named(data: StudyData, i: int) -> str:
    """A trial's number, with its mark where its configuration won or was confirmed."""
    of = data.first_of[i]
    if of == data.winner:
        return f"{data.trial[i]} {STAR} {data.star}"
    place = data.places.get(of)
    return f"{data.trial[i]}" + (f" {DIAMOND} place {place}" if place else "")


def key(data: StudyData) -> str:
    """What the marks mean, as plain text."""
    text = f"{STAR} is {data.star}"
    return text + (f", {DIAMOND} are the other configurations that were confirmed" if len(data.finalists) > 1 else "")


def why_not_lowest(data: StudyData) -> str:
    """Why the star is not the best dot of a picture of best values; nothing where it is."""
    i = data.winner
    if i is None or not np.isfinite(data.best[i]):
        return ""
    seen = np.where(data.feasible, data.sign * data.best, np.inf)
    first = int(seen.argmin())
    if not seen[first] < seen[i]:
        return ""
    what = "higher" if data.maximize else "lower"
    trial, own, its = data.trial[first], number(float(data.best[i])), number(float(data.best[first]))
    text = (
        f"Trial {trial}'s dot is {what} than the star's ({its} against {own}), but a dot is one training, partly luck"
    )
    if not data.finalists:
        return f"{text}; the star is the best at its end, which is what was ranked."
    again = data.confirmed.get(data.first_of[first])
    if again is None:
        return f"{text}: its neighbours did not do as well, so it was not among those that were confirmed."
    if data.first_of[first] == i:
        return f"{text}, and of the same configuration."
    mine = data.confirmed[i]["value"]
    return f"{text}: over fresh seeds it came to {number(again['value'])}, the winner to {number(mine)}."


def foremost(data: StudyData, most: int) -> list[int]:
    """Positions of the trials that a table shows: those that were confirmed, the winner first, then the best by what
    they came to at their end."""
    first = data.finalists or ([] if data.winner is None else [data.winner])
    return [*first, *(i for i in data.order.tolist() if i not in first)][:most]


def foremost_words(data: StudyData, count: int) -> str:
    """What a table of `foremost` says of itself."""
    if data.finalists:
        return f"{count} trials: the confirmed ones, then the best by {data.last_name}"
    return f"the {count} best trials by {data.last_name}"
