"""What is saved of a damaged study: rows that are proved by their checksums, none that is not."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from interrupted import OPTIONS, TASK, Crash
from ledgers import write_study

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.errors import InputError, StudyError
from vmaptune.store.carving import carved
from vmaptune.store.ledger import Ledger, LedgerReader
from vmaptune.store.rescue import rescue
from vmaptune.store.schema import COUNTED, select
from vmaptune.store.weights import save_weights

NUMBERS = [0, 1, -1, 127, 2**15, -(2**23), 2**31 - 1, 2**40, -(2**47) - 5, 2**62, 0.0, 3.0, 0.1, 1e300, 5e-324]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished study with long rows, of every width of number, and models."""
    out = tmp_path_factory.mktemp("study") / "s"
    write_study(out)
    with Ledger.open(out) as ledger:
        ledger.set_meta("result", {"best": {"trial": 0, "value": 0.25, "params": {"a": 1e-3}}})
        ledger.set_meta("finished", True)
        ledger.set_meta("long", {"text": "äöü" * 5000, "numbers": NUMBERS})
        for i, number in enumerate(NUMBERS):
            ledger.add_decision(None, "number" * (1 + 400 * (i % 3)), number)
    for name in ("best", "trial-3"):
        save_weights(out / "best" / f"{name}.weights", {"w": np.arange(5.0)})
    return out


def rows_of(directory: Path) -> dict[str, set]:
    """Every row as SQLite tells it."""
    with LedgerReader.open(directory) as reader:
        return {table: {tuple(row) for row in reader._rows(table)} for table in (*COUNTED, "tally")}


def damaged(study: Path, place: Path, file: str, content: bytes) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(study, place)
    (place / file).write_bytes(content)
    return place


def test_rows_are_read_as_sqlite_reads_them(study):
    found = carved((study / "study.db").read_bytes(), b"")
    assert {table: set(rows.values()) for table, rows in found.items()} == rows_of(study)
    connection = sqlite3.connect(study / "study.db")
    for table in COUNTED:
        assert len(found[table]) == len(connection.execute(select(table)).fetchall()) > 0
    connection.close()


@pytest.mark.parametrize("page_size", [512, 8192, 65536])
def test_pages_of_any_size(study, tmp_path, page_size):
    connection = sqlite3.connect(study / "study.db")
    other = sqlite3.connect(tmp_path / "other.db")
    connection.backup(other)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute(f"PRAGMA page_size = {page_size}")
    other.execute("VACUUM")
    other.close()
    connection.close()
    content = (tmp_path / "other.db").read_bytes()
    assert int.from_bytes(content[16:18], "big") in (page_size, 1)
    found = carved(content, b"")
    assert {table: set(rows.values()) for table, rows in found.items()} == rows_of(study)


def test_the_log_of_a_killed_writer_is_read_too(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    with pytest.raises(MemoryError):
        vt.run(tmp_path / "task.py", out=tmp_path / "s", listener=Crash(30), **OPTIONS)
    ledger = Ledger.open(tmp_path / "s")
    ledger.set_meta("state", "elsewhere")
    shutil.copytree(tmp_path / "s", tmp_path / "killed")
    ledger.close()
    log = (tmp_path / "killed" / "study.db-wal").read_bytes()
    file = (tmp_path / "killed" / "study.db").read_bytes()
    assert log
    found = carved(file, log)
    assert {table: set(rows.values()) for table, rows in found.items()} == rows_of(tmp_path / "killed")
    assert json.loads(found["meta"]["state"][1]) == "elsewhere"


def test_whatever_the_damage_only_true_rows_are_saved(study, tmp_path):
    whole = (study / "study.db").read_bytes()
    true = rows_of(study)
    draw = random.Random(4)
    saved = refused = 0
    for i in range(60):
        bad = bytearray(whole)
        if i % 3 == 0:
            bad = bad[: draw.randrange(len(bad))]
        elif i % 3 == 1:
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        else:  # a page or two of noise
            start = draw.randrange(len(bad))
            bad[start : start + 6000] = draw.randbytes(len(bad[start : start + 6000]))
        place = damaged(study, tmp_path / "bad", "study.db", bytes(bad))
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        try:
            found = rescue(place, tmp_path / "new")
        except StudyError:
            refused += 1
            assert not (tmp_path / "new").exists()
            continue
        saved += 1
        there = rows_of(tmp_path / "new")
        assert there["trials"] <= true["trials"]
        assert there["curves"] <= true["curves"]
        assert there["decisions"] <= true["decisions"]
        assert len(there["trials"]) == found.kept["trials"]
        assert {row for row in there["meta"] if row[0] not in ("rescued", "finished", "state")} <= true["meta"]
        if found.lost["trials"] is not None:
            assert found.kept["trials"] + found.lost["trials"] == len(true["trials"])
        assert main(["trials", str(tmp_path / "new"), "--format", "csv"]) == 0
        assert main(["status", str(tmp_path / "new")]) == 0
    assert saved > 40
    assert refused > 0


def test_a_rescued_study_tells_what_is_missing_and_cannot_be_gone_on_with(study, tmp_path, capsys):
    whole = (study / "study.db").read_bytes()
    with LedgerReader.open(study) as reader:
        at = whole.index(json.dumps(reader.trial(2).params, separators=(",", ":")).encode())
    bad = bytearray(whole)
    bad[at + 3] ^= 1
    place = damaged(study, tmp_path / "bad", "study.db", bytes(bad))
    (place / "best" / "trial-3.weights").write_bytes(b"VMAPTWT1")
    (place / "best" / "linked.weights").symlink_to(study / "best" / "best.weights")
    before = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    assert main(["trials", str(place)]) == 1
    assert f"vmaptune rescue {place} --to NEW" in capsys.readouterr().err
    assert main(["rescue", str(place), "--to", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "trials, 1 lost" in said
    assert "1 models; damaged: trial-3.weights" in said
    assert {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()} == before
    new = vt.load(tmp_path / "new")
    assert 2 not in {t.trial for t in new.trials()}
    assert {t for t, _ in new.ledger.curves()} <= {t.trial for t in new.trials()}
    assert new.meta["rescued"]["lost"]["trials"] == 1
    assert new.result == vt.load(study).result
    assert new.ledger.finished()
    assert [p.name for p in (tmp_path / "new" / "best").iterdir()] == ["best.weights"]
    assert main(["export", str(tmp_path / "new"), "--to", "csv"]) == 0
    with Ledger.open(tmp_path / "new") as ledger:
        ledger.set_meta("finished", False)
        ledger.set_meta("state", "rescued")
    assert main(["status", str(tmp_path / "new")]) == 0
    assert main(["resume", str(tmp_path / "new")]) == 2
    assert "cannot be gone on with" in capsys.readouterr().err


def test_what_cannot_be_rescued_is_said(study, tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        rescue(tmp_path, tmp_path / "new")
    with pytest.raises(InputError, match="already holds a study"):
        rescue(study, study)
    (tmp_path / "study.db").write_bytes(random.Random(0).randbytes(50_000))
    with pytest.raises(StudyError, match="no trial's row is whole"):
        rescue(tmp_path, tmp_path / "new")
    with pytest.raises(StudyError, match="first schema"):
        rescue(Path(__file__).parent / "studies" / "schema1", tmp_path / "new")
    with Ledger.open(study), pytest.raises(InputError, match="is being written by another run"):
        rescue(study, tmp_path / "new")
    assert not (tmp_path / "new").exists()
