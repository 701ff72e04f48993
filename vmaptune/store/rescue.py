"""What can be saved of a damaged study, into a new one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmaptune.errors import InputError, StudyError
from vmaptune.store.carving import carved
from vmaptune.store.encoding import from_json, to_json
from vmaptune.store.ledger import Ledger
from vmaptune.store.lock import holder
from vmaptune.store.reader import has_file
from vmaptune.store.schema import COLUMNS, COUNTED, FILE_NAME, FINISHED
from vmaptune.store.tables import trials_csv
from vmaptune.store.weights import load_weights

RESCUED = "rescued"  # the meta entry that says of what a study was saved, and what is missing
NEEDED = ("options", "space", "objective", "direction", "result")  # meta entries that views are made from


@dataclass(frozen=True)
class Rescued:
    """What came of it."""

    kept: Mapping[str, int]  # rows of each table
    lost: Mapping[str, int | None]  # None where nobody knows how many there were
    missing: tuple[str, ...]  # meta entries of `NEEDED` that are gone
    models: tuple[str, ...]
    lost_models: tuple[str, ...]


def rescue(directory: str | Path, target: str | Path) -> Rescued:
    """Writes every row of a damaged study whose checksum is right, and every whole model, into a new study.

    The damaged one is only read. The new one can be looked at, reported and exported; it can't be gone on with.

    Raises:
      InputError: there is no study, it is being written, or `target` holds one. StudyError: no row can be saved.
    """
    directory, target = Path(directory), Path(target)
    path = directory / FILE_NAME
    if not has_file(path):
        raise InputError(f"{directory} holds no study: there is no {FILE_NAME} in it; give the directory of one")
    writer = holder(directory)
    if writer:
        raise InputError(f"{directory} is being written by another run ({writer}); stop it first")
    log = path.with_name(f"{FILE_NAME}-wal")
    try:
        file = path.read_bytes()
        rows = carved(file, log.read_bytes() if log.exists() else b"")
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from error
    tally = rows.pop("tally").get(1)
    trials, rows["curves"] = rows["trials"], {k: row for k, row in rows["curves"].items() if k[0] in rows["trials"]}
    if not trials and file[60:64] == b"\0\0\0\1":
        raise StudyError(f"{path} is of the first schema, whose rows have no checksums: what is whole cannot be told")
    if not trials:
        raise StudyError(f"{path}: no trial's row is whole, so there is nothing to rescue in it; look for a copy")
    meta = {key: from_json(text) for key, (_, text) in rows["meta"].items()}
    kept = {table: len(rows[table]) for table in COUNTED}
    written = dict(zip(COLUMNS["tally"], tally, strict=True)) if tally else {}
    lost = {t: max(0, written[t] - kept[t]) if written else None for t in COUNTED}
    _add_lost_rounds(rows, meta)
    found = Rescued(kept, lost, tuple(n for n in NEEDED if n not in meta), *_models(directory))
    note = {"of": str(directory), "kept": kept, "lost": lost}
    with Ledger.create(target, {}) as ledger, ledger.transaction():
        for table in COUNTED:
            ledger.adopt(table, rows[table].values())
        ledger.set_meta(RESCUED, note)
        if meta.get(FINISHED) is not True or "result" not in meta:
            ledger.set_meta(FINISHED, False)
            ledger.set_meta("state", RESCUED)
    with Ledger.open(target) as ledger:
        trials_csv(ledger, target / "trials.csv")
    for name in found.models:
        (target / "best").mkdir(exist_ok=True)
        shutil.copyfile(directory / "best" / name, target / "best" / name)
    return found


def _add_lost_rounds(rows: dict[str, dict[Any, tuple[Any, ...]]], meta: Mapping[str, Any]) -> None:
    """Rounds whose own row is gone, as far as their trials tell."""
    trials = [dict(zip(COLUMNS["trials"], row, strict=True)) for row in rows["trials"].values()]
    for number in range(max(t["round"] for t in trials) + 1):
        of_round = [t for t in trials if t["round"] == number]
        if number in rows["rounds"]:
            continue
        kind = "confirm" if of_round and all(t["of"] is not None for t in of_round) else "search"
        space = to_json(meta.get("space") if kind == "search" else None)
        first = min((t["seq"] for t in of_round), default=1)
        info = to_json({RESCUED: True})
        rows["rounds"][number] = (number, kind, space, len(of_round), 0.0, None, info, first, None)


def _models(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the models that are whole, and of the others. Nothing behind a link."""
    whole, damaged = [], []
    folder = directory / "best"
    for path in sorted(folder.glob("*.weights")) if folder.is_dir() and not folder.is_symlink() else []:
        try:
            if path.is_symlink():
                continue
            load_weights(path)
            whole.append(path.name)
        except StudyError:
            damaged.append(path.name)
    return tuple(whole), tuple(damaged)
