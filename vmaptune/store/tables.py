"""Trials and other rows as text: CSV, JSON, and a table for the terminal."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmaptune.errors import InputError
from vmaptune.store.files import write_whole
from vmaptune.store.reader import Reading

FORMATS = ("table", "csv", "json")
_COLUMNS = ("trial", "round", "state", "reason", "seed", "steps", "value")
PLACE = "place"  # the column that says which finalist a trial's configuration was, 1 for the winner
CONFIRMED = {  # columns of a finalist's first trial -> what a study's result calls them
    "confirmed_mean": "value", "confirmed_std": "value_std", "confirmed_low": "low", "confirmed_high": "high",
    "confirmed_seeds": "repeats", "confirmed_chance": "chance",
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to compute


def trials_csv(reader: Reading, path: str | Path | None = None) -> str:
    """Every trial once, by id: `trial, round, state, reason, seed, steps, value`, then each `params.<name>`
    in the space's order; of a finished study that confirmed, then what `finalists_of` says. Numbers are exact, None is
    empty.

    Returns the text, and writes it to `path`, whole or not at all. Raises StudyError when that fails.
    """
    trials, finalists = reader.trials(), finalists_of(reader.meta())
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [getattr(trial, column) for column in _COLUMNS] + [trial.params.get(name) for name in names] for trial in trials
    ]
    more = [PLACE, *CONFIRMED] if finalists else []
    for trial, row in zip(trials, rows, strict=True):
        row += [finalists.get(trial.trial, {}).get(column) for column in more]
    text = _csv([*_COLUMNS, *(f"params.{name}" for name in names), *more], rows)
    if path is not None:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    return text


def finalists_of(meta: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """What a finished study's fresh seeds said, by the trial whose configuration was confirmed: its place among the
    finalists, the mean over its fresh seeds with its 95 % interval, their spread and number, and its chance of being
    the best of them. Empty where nothing was confirmed, or by an earlier version."""
    found = (meta.get("result") or {}).get("finalists") or []
    return {
        one["trial"]: {PLACE: i + 1} | {column: one.get(name) for column, name in CONFIRMED.items()}
        for i, one in enumerate(found)
    }


def format_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], format: str = "table") -> str:
    """The given columns of `rows` as text, ready to print; a column that a row lacks is empty.

    `table` is aligned, with numbers of 5 significant digits; `csv` is exact; `json` is a list of objects,
    exact, with null for what is not finite. Raises InputError for another format.
    """
    cells = [[row.get(column) for column in columns] for row in rows]
    if format == "table":
        return _table(columns, cells).removesuffix("\n")
    if format == "csv":
        return _csv(columns, cells).removesuffix("\n")
    if format == "json":
        plain = [dict(zip(columns, map(_json_value, line), strict=True)) for line in cells]
        return json.dumps(plain, indent=2, allow_nan=False)
    raise InputError(f"format must be one of {', '.join(FORMATS)}, but got {format!r}")


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([csv_cell(column) for column in columns])
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def csv_cell(value: Any) -> str:
    """A value as a cell of CSV: numbers are exact, None is empty, and what a spreadsheet would compute is quoted."""
    value = _scalar(value)
    if value is None:
        return ""
    if isinstance(value, str):
        text = str(value)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return repr(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[_table_cell(value) for value in row] for row in rows]
    titles = [_table_cell(column) for column in columns]
    lines = [titles, *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    right = [any(_is_number(row[index]) for row in rows) for index in range(len(titles))]
    return "".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def _table_cell(value: Any) -> str:
    value = _scalar(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    text = str(value)
    # A control character could move the cursor or colour the terminal.
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _json_value(value: Any) -> Any:
    value = _scalar(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _is_number(value: Any) -> bool:
    value = _scalar(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scalar(value: Any) -> Any:
    """A scalar of NumPy or JAX as a plain number, anything else as it is."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value
