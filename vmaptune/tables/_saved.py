"""A fitted table model as JSON beside its study: plain values alone, so that reading it runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.errors import InputError, StudyError
from vmaptune.tables._columns import Columns, Kind

FILE = "table.json"
STUDY = "model"  # the study's directory beside it
ARRAYS = ("middles", "scales")


def save_plain(directory: Path, columns: Columns, kinds: list[Kind], more: dict[str, Any]) -> None:
    """Writes `table.json`: what the columns are, how they are scaled, and `more` in plain values."""
    scaled = dict(vars(columns))
    scaled |= {name: scaled[name].tolist() for name in ARRAYS}
    scaled["quantiles"] = [[at.tolist(), share.tolist()] for at, share in columns.quantiles]
    plain = {"columns": scaled, "kinds": [[kind.name, kind.categories] for kind in kinds], **more}
    (directory / FILE).write_text(json.dumps(plain), encoding="utf-8")


def load_plain(directory: str | Path) -> tuple[Columns, list[Kind], dict[str, Any]]:
    """What `save_plain` wrote.

    Raises:
      InputError: there is none in the directory. StudyError: it cannot be read.
    """
    path = Path(directory) / FILE
    if not path.exists():
        raise InputError(f"{directory}: no {FILE}, so `vmaptune table` did not make it; give the --out of `table`")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        columns = Columns.__new__(Columns)
        vars(columns).update(plain.pop("columns"))
        for name in ARRAYS:
            setattr(columns, name, np.array(getattr(columns, name)))
        columns.quantiles = [(np.array(at), np.array(share)) for at, share in columns.quantiles]
        kinds = [Kind(name, None if c is None else tuple(c)) for name, c in plain.pop("kinds")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path} cannot be read ({error}); make it again by `vmaptune table`") from error
    return columns, kinds, plain
