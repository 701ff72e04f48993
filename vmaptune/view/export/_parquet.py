"""Parquet: a row for each trial, its curve in list columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]
import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]

from vmaptune.view.export._source import Source
from vmaptune.view.export._tables import columns_of, rows_of


def write_parquet(source: Source, path: Path) -> None:
    """Columns as in the CSV, and `curve.step`, `curve.train_loss`, `curve.value`: a list for each trial."""
    rows = rows_of(source)
    table = {column: _column([row.get(column) for row in rows]) for column in columns_of(source)}
    curves = [source.curve(trial.trial) for trial in source.trials]
    number = pyarrow.list_(pyarrow.float64())
    table["curve.step"] = pyarrow.array([[p.step for p in c] for c in curves], pyarrow.list_(pyarrow.int64()))
    table["curve.train_loss"] = pyarrow.array([[p.loss for p in c] for c in curves], number)
    table["curve.value"] = pyarrow.array([[p.value for p in c] for c in curves], number)
    details = {b"objective": source.objective.encode(), b"direction": source.direction.encode()}
    pyarrow.parquet.write_table(pyarrow.table(table).replace_schema_metadata(details), path)


def _column(values: list[Any]) -> Any:
    """A typed column; text where a list mixes kinds, as a choice of numbers and words does."""
    there = [value for value in values if value is not None]
    kinds = {type(value) for value in there}
    if kinds <= {int, float} and kinds:
        return pyarrow.array(values, pyarrow.int64() if kinds == {int} else pyarrow.float64())
    if kinds == {bool}:
        return pyarrow.array(values, pyarrow.bool_())
    return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())
