"""CSV and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmaptune.store.tables import CONFIRMED, PLACE, finalists_of, format_rows
from vmaptune.view.export._source import Source

COLUMNS = ("trial", "round", "kind", "of", "state", "reason", "seed", "steps", "value", "winner")


def columns_of(source: Source) -> list[str]:
    """The columns of a row for each trial."""
    return [
        *COLUMNS,
        *(f"params.{name}" for name in source.space),
        *(f"metrics.{name}" for name in source.metric_names()),
        *([PLACE, *CONFIRMED] if finalists_of(source.meta) else []),
    ]


def cell(value: Any) -> Any:
    """A hyperparameter's value in a table, where an empty cell says that the hyperparameter does not exist."""
    return "None" if value is None else value


def rows_of(source: Source) -> list[dict[str, Any]]:
    """A row for each trial, by column."""
    finalists = finalists_of(source.meta)
    return [
        {
            **{column: getattr(trial, column) for column in COLUMNS if column not in ("kind", "state", "winner")},
            "kind": source.kind_of(trial),
            "state": str(trial.state),
            "winner": trial.trial == source.confirmed,
            **{f"params.{name}": cell(value) for name, value in trial.params.items()},
            **{f"metrics.{name}": value for name, value in trial.metrics.items()},
            **finalists.get(trial.trial, {}),
        }
        for trial in source.trials
    ]


def write_csv(source: Source, path: Path) -> None:
    """Exact numbers; a text that a spreadsheet would take for a formula gets an apostrophe."""
    text = format_rows(rows_of(source), columns_of(source), "csv")
    path.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))


def write_json(source: Source, path: Path) -> None:
    """All of the ledger as strict JSON; a number that is not finite is null."""
    everything = {
        "meta": source.meta,
        "rounds": [_fields(row) for row in source.rounds],
        "groups": [_fields(row) for row in source.groups],
        "decisions": [_fields(row) for row in source.decisions],
        "trials": [
            {**_fields(trial), "curve": [_fields(point, without=("trial",)) for point in source.curve(trial.trial)]}
            for trial in source.trials
        ],
    }
    path.write_text(json.dumps(_strict(everything), allow_nan=False, indent=1), encoding="utf-8")


def _fields(row: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(row) if f.name not in without]
    return {name: getattr(row, name) for name in names}


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, str) else value
