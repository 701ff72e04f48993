"""What `--enqueue` names: configurations of a file or of another study, in the plain values that a ledger keeps."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space import Distribution, Space
from vmaptune.store.ledger import LedgerReader
from vmaptune.store.states import State
from vmaptune.store.tables import PLACE, csv_cell

MOST = 8  # configurations that are taken of trials that were not confirmed
PARAMS = "params."
WRITTEN = "what `best`, `trials`, `export --to csv` or `export --to json` write, or a JSON list of configurations"


def configurations(where: Any, space: Space, direction: str) -> list[dict[str, Any]] | None:
    """The configurations to try first, or None where there are none.

    Args:
      where: a list of them; the path of a file that this package or a person wrote (CSV or JSON), or of a study. Of a
        study, or of a table of trials, the finalists are taken, the best first; where none were confirmed, the best
        eight complete trials.
      direction: of a file that doesn't say it.

    Raises:
      InputError: there is nothing at the path, or no configuration in it.
    """
    if where is None:
        return None
    if not isinstance(where, (str, Path)):
        if isinstance(where, (Mapping, bytes)) or not isinstance(where, Iterable):
            raise InputError(
                f"enqueue must be a list of configurations, a file or a study, but got {where!r}; put it in a list"
            )
        return [_plain(one) for one in where] or None
    path = Path(where)
    if path.is_dir():
        with LedgerReader.open(path) as reader, reader.snapshot():
            meta = reader.meta()
            rows = [
                {"trial": t.trial, "state": str(t.state), "value": t.value, PARAMS: t.params} for t in reader.trials()
            ]
        found = _of_study(meta, rows)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise InputError(
                f"--enqueue {path} cannot be read: {reason}; name a study's directory, or a file: {WRITTEN}"
            ) from None
        try:
            found = _of_json(json.loads(text), direction)
        except json.JSONDecodeError:
            found = _of_csv(text, space, direction)
    if not found:
        raise InputError(f"--enqueue {path} holds no configuration; name a study's directory, or a file: {WRITTEN}")
    return [_plain(one) for one in found]


def _of_study(meta: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    finalists = (meta.get("result") or {}).get("finalists")
    return [f["params"] for f in finalists] if finalists else _of_table(rows, meta.get("direction", "minimize"))


def _of_json(found: Any, direction: str) -> list[Any]:
    """What JSON says: all of a study, its result, its best, a table of trials, or configurations as they are."""
    if isinstance(found, Mapping):
        if isinstance(found.get("meta"), Mapping) and isinstance(found.get("trials"), list):
            return _of_study(found["meta"], [{**t, PARAMS: t["params"]} for t in found["trials"]])
        for holder in (found, found.get("best")):
            if isinstance(holder, Mapping) and holder.get("finalists"):
                return [f["params"] for f in holder["finalists"]]
            if isinstance(holder, Mapping) and isinstance(holder.get("params"), Mapping):
                return [holder["params"]]
        return [found]
    if isinstance(found, list) and all(isinstance(one, Mapping) for one in found):
        return _of_table([_row(one) for one in found], direction)
    raise InputError(f"--enqueue: JSON must hold configurations, name -> value, but got {found!r}; give {WRITTEN}")


def _of_csv(text: str, space: Space, direction: str) -> list[Any]:
    lines = csv.DictReader(io.StringIO(text))
    if not any(name.removeprefix(PARAMS) in space for name in lines.fieldnames or ()):
        return []
    rows = []
    for line in lines:
        row: dict[str, Any] = _row({name: cell for name, cell in line.items() if name is not None})
        row[PARAMS] = {
            name: _of_cell(space.get(name), cell)
            for name, cell in row[PARAMS].items()
            if cell or (name in space and space[name].contains(None))
        }
        for name in ("value", PLACE):
            with suppress(TypeError, ValueError):
                row[name] = float(row[name]) if row.get(name) else None
        rows.append(row)
    return _of_table(rows, direction)


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, its configuration apart from what else is said of the trial."""
    if isinstance(one.get("params"), Mapping):
        return {**one, PARAMS: one["params"]}
    named = {name.removeprefix(PARAMS): v for name, v in one.items() if str(name).startswith(PARAMS)}
    return {**one, PARAMS: named or dict(one)}


def _of_table(rows: Sequence[Mapping[str, Any]], direction: str) -> list[Any]:
    """The finalists' configurations, the best first; else the best complete trials'; all of them in a table that says
    of none what it came to."""
    confirmed = [row for row in rows if row.get(PLACE)]
    if confirmed:
        return [row[PARAMS] for row in sorted(confirmed, key=lambda row: row[PLACE])]
    if not any("value" in row and "trial" in row for row in rows):
        return [row[PARAMS] for row in rows]
    sign = -1.0 if direction == "maximize" else 1.0
    values = [
        row["value"] if row.get("state", State.COMPLETE) == State.COMPLETE and _is_finite(row["value"]) else None
        for row in rows
    ]
    found: list[Any] = []
    for value, row in sorted(zip(values, rows, strict=True), key=lambda p: math.inf if p[0] is None else sign * p[0]):
        if value is not None and len(found) < MOST and row[PARAMS] not in found:
            found.append(row[PARAMS])
    return found


def _of_cell(d: Distribution | None, cell: str) -> Any:
    """What a cell of CSV says of a hyperparameter; the text itself where that is no value of it."""
    for option in (d.options or ()) if d is not None else ():
        if cell in (csv_cell(option), str(option)):  # `export` writes a None as a word
            return option
    for number in (int, float):
        with suppress(ValueError):
            return number(cell)
    return cell


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """As a ledger gives it back: lists for tuples, Python's numbers for NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
