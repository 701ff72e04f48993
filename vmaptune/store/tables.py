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
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to compute


def trials_csv(reader: Reading, path: str | Path | None = None) -> str:
    """Every trial once, by id: `trial, round, state, reason, seed, steps, value`, then each `params.<name>`
    in the space's order. Numbers are exact, None is empty.

    Returns the text, and writes it to `path`, whole or not at all. Raises StudyError when that fails.
    """
    trials = reader.trials()
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [getattr(trial, column) for column in _COLUMNS] + [trial.params.get(name) for name in names] for trial in trials
    ]
    text = _csv([*_COLUMNS, *(f"params.{name}" for name in names)], rows)
    if path is not None:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    return text


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
    writer.writerow([_csv_cell(column) for column in columns])
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _csv_cell(value: Any) -> str:
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
