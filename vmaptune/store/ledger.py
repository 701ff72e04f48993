"""The ledger: one SQLite file that holds all that is known of a study. One process writes, any number read.

`Ledger` writes (and reads), `LedgerReader` reads; the records are in rows.py, the tables in schema.py.
"""

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from vmaptune.errors import InputError, StudyError
from vmaptune.store.encoding import encode_float, encode_text, to_json
from vmaptune.store.reader import LedgerReader, Reading, check, connect, has_file
from vmaptune.store.rows import (
    CurvePoint,
    DecisionRow,
    GroupRow,
    Progress,
    RoundRow,
    TrialResult,
    TrialRow,
)
from vmaptune.store.schema import APPLICATION_ID, FILE_NAME, FINISHED, SCHEMA_VERSION, TABLES
from vmaptune.store.states import State

try:
    import fcntl
except ImportError:  # not on Windows, where two writers are not told apart
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FILE_NAME",
    "FINISHED",
    "SCHEMA_VERSION",
    "CurvePoint",
    "DecisionRow",
    "GroupRow",
    "Ledger",
    "LedgerReader",
    "Progress",
    "RoundRow",
    "State",
    "TrialResult",
    "TrialRow",
]


class Ledger(Reading):
    """The one writer of a study. Each method is atomic; `transaction` makes one commit of many.

    Every method raises StudyError when the file cannot be written, and then nothing of its call is kept.
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        super().__init__(directory, connection)
        self._lock = lock

    @classmethod
    def create(cls, directory: str | Path, meta: Mapping[str, Any]) -> Self:
        """A new study in `directory`, which is made with its parents.

        Raises InputError when a study is there already, or when the directory cannot be made or written.
        """
        directory = Path(directory)
        path = directory / FILE_NAME
        if has_file(path):
            raise _already_there(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _lock(directory)
        except (OSError, ValueError) as error:
            raise _no_directory(directory, error) from error
        try:
            if has_file(path):  # another process was faster
                raise _already_there(directory)
            try:
                with path.open("xb"):
                    pass
            except OSError as error:
                raise _no_directory(directory, error) from error
            try:
                return cls._make(directory, meta, lock)
            except BaseException:
                for suffix in ("", "-wal", "-shm"):  # ours, and empty
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                raise
        except BaseException:
            _unlock(lock)
            raise

    @classmethod
    def _make(cls, directory: Path, meta: Mapping[str, Any], lock: int | None) -> Self:
        ledger = cls(directory, _open_for_writing(directory), lock)
        try:
            with ledger.transaction():
                ledger._run(f"PRAGMA application_id = {APPLICATION_ID}")
                ledger._run(f"PRAGMA user_version = {SCHEMA_VERSION}")
                for statement in TABLES.values():
                    ledger._run(statement)
                for key, value in meta.items():
                    ledger.set_meta(key, value)
        except BaseException:
            ledger._connection.close()
            raise
        return ledger

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """An existing study, to go on writing it. Raises what `LedgerReader.open` raises, and InputError when
        another process is writing it."""
        directory = Path(directory)
        LedgerReader.open(directory).close()
        try:
            lock = _lock(directory)
        except OSError as error:
            raise _no_directory(directory, error) from error
        connection = None
        try:
            connection = _open_for_writing(directory)
            check(directory, connection)
            return cls(directory, connection, lock)
        except BaseException:
            if connection is not None:
                connection.close()
            _unlock(lock)
            raise

    def close(self) -> None:
        # Without a log the study is one plain file, and its readers make none beside it. When one of them is
        # reading now, the log's files stay: that is harmless.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        super().close()
        _unlock(self._lock)
        self._lock = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are kept together, or none of them when an exception leaves the block.

        Use one for a segment: a killed process then leaves whole segments behind. May be nested; an inner one
        can be undone alone.
        """
        inner = self._connection.in_transaction
        self._run("SAVEPOINT inner_block" if inner else "BEGIN IMMEDIATE")
        try:
            yield
            self._run("RELEASE inner_block" if inner else "COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself rolls back on some errors, a full disk for one
                with suppress(sqlite3.Error):
                    if inner:
                        self._connection.execute("ROLLBACK TO inner_block")
                        self._connection.execute("RELEASE inner_block")
                    else:
                        self._connection.execute("ROLLBACK")
            raise

    def set_meta(self, key: str, value: Any) -> None:
        """Sets one entry; one that is there is replaced. FINISHED: True ends the study."""
        self._run(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)",
            encode_text(key),
            to_json(value, f"meta {key}"),
        )

    def add_round(self, round: int, kind: str, space_json: Any, trials: int, info: Any = None) -> None:
        """A round begins: `kind` is "search" or "confirm", `trials` the number planned."""
        self._run(
            "INSERT INTO rounds (round, kind, space, trials, started, finished, info) VALUES (?, ?, ?, ?, ?, ?, ?)",
            int(round),
            kind,
            to_json(space_json, "space"),
            int(trials),
            time.time(),
            None,
            to_json(info, "info"),
        )

    def finish_round(self, round: int, info: Any = None) -> None:
        """A round ends now. `info` replaces what `add_round` was given, unless it is None."""
        kept = None if info is None else to_json(info, "info")
        sql = "UPDATE rounds SET finished = ?, info = coalesce(?, info) WHERE round = ?"
        self._update(sql, [(time.time(), kept, int(round))], "round")

    def add_trials(self, rows: Iterable[TrialRow]) -> None:
        """New trials. Raises StudyError when one of their ids is taken."""
        self._many(
            "INSERT INTO trials (trial, round, grp, state, reason, seed, steps, value, params, of, metrics) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    int(row.trial),
                    int(row.round),
                    int(row.group),
                    str(State(row.state)),
                    encode_text(row.reason),
                    int(row.seed),
                    int(row.steps),
                    encode_float(row.value),
                    to_json(dict(row.params), "params"),
                    None if row.of is None else int(row.of),
                    to_json(dict(row.metrics), "metrics"),
                )
                for row in rows
            ],
        )

    def add_curve_points(self, points: Iterable[CurvePoint]) -> None:
        """Points of curves. One that is there (a resumed study repeats a segment) is replaced."""
        self._many(
            "INSERT OR REPLACE INTO curves (trial, step, loss, value, metrics) VALUES (?, ?, ?, ?, ?)",
            [
                (
                    int(point.trial),
                    int(point.step),
                    encode_float(point.loss),
                    encode_float(point.value),
                    to_json(dict(point.metrics), "metrics"),
                )
                for point in points
            ],
        )

    def finish_trials(self, results: Iterable[TrialResult]) -> None:
        """How trials ended. Raises StudyError when one of them was never added."""
        self._update(
            "UPDATE trials SET state = ?, reason = ?, steps = ?, value = ?, metrics = ? WHERE trial = ?",
            [
                (
                    str(State(result.state)),
                    encode_text(result.reason),
                    int(result.steps),
                    encode_float(result.value),
                    to_json(dict(result.metrics), "metrics"),
                    int(result.trial),
                )
                for result in results
            ],
            "trial",
        )

    def add_group(
        self, group: int, static: Any, plan: Any, compile_seconds: float | None = None, info: Any = None
    ) -> None:
        """A group and the plan by which it runs; one that is there (planned anew) is replaced."""
        self._run(
            "INSERT OR REPLACE INTO groups (grp, static, plan, compile_seconds, info) VALUES (?, ?, ?, ?, ?)",
            int(group),
            to_json(static, "static"),
            to_json(plan, "plan"),
            encode_float(compile_seconds),
            to_json(info, "info"),
        )

    def add_decision(self, round: int | None, kind: str, data: Any) -> None:
        """A decision with all that it needs to be taken again."""
        self._run(
            "INSERT INTO decisions (round, kind, data, time) VALUES (?, ?, ?, ?)",
            None if round is None else int(round),
            encode_text(kind),
            to_json(data, "data"),
            time.time(),
        )

    def _run(self, sql: str, *values: Any) -> None:
        try:
            self._connection.execute(sql, values)
        except (sqlite3.Error, OverflowError) as error:
            raise _unwritable(self.directory, error) from error

    def _many(self, sql: str, rows: list[tuple[Any, ...]]) -> int:
        """Runs one statement for each row, all or none. Returns how many rows of the table it touched."""
        with self.transaction():
            try:
                return self._connection.executemany(sql, rows).rowcount if rows else 0
            except (sqlite3.Error, OverflowError) as error:
                raise _unwritable(self.directory, error) from error

    def _update(self, sql: str, rows: list[tuple[Any, ...]], what: str) -> None:
        """`_many` for an UPDATE whose last value is the row's id. Raises StudyError when a row is missing."""
        with self.transaction():
            touched = self._many(sql, rows)
            if touched != len(rows):
                ids = ", ".join(str(row[-1]) for row in rows[:8])
                raise _unwritable(
                    self.directory,
                    f"{len(rows) - touched} of {len(rows)} have no row in it ({what} {ids}, ...)",
                )


def _open_for_writing(directory: Path) -> sqlite3.Connection:
    connection = None
    try:
        connection = connect((directory / FILE_NAME).absolute().as_uri())
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise _unwritable(directory, error) from error


def _lock(directory: Path) -> int | None:
    """Marks the directory as ours until the process ends. Raises InputError when another process has it."""
    if fcntl is None:
        return None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"{directory} is being written by another run; wait for it, stop it, or choose another --out"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _already_there(directory: Path) -> InputError:
    try:
        with LedgerReader.open(directory) as reader, reader.snapshot():
            counts = ", ".join(f"{count} {state}" for state, count in reader.counts().items() if count)
            end = "finished" if reader.finished() else "not finished"
            there = f"a study ({end}; trials: {counts or 'none'})"
    except (InputError, StudyError) as error:
        there = f"a {FILE_NAME} that is no readable study ({error})"
    return InputError(f"{directory} already holds {there}; choose another --out, or delete {directory} first")


def _no_directory(directory: Path, error: Exception) -> InputError:
    if isinstance(error, InputError):  # it is a ValueError too
        return error
    reason = getattr(error, "strerror", None) or error
    where = getattr(error, "filename", None) or directory
    return InputError(f"{directory} cannot be used as a study's directory: {where}: {reason}; choose another --out")


def _unwritable(directory: Path, why: object) -> StudyError:
    return StudyError(
        f"{directory / FILE_NAME} cannot be written: {why}; what was committed before is kept. "
        "Check the disk's space and rights"
    )
