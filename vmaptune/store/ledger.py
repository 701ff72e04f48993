"""The ledger: one SQLite file that holds all that is known of a study. One process writes, any number read.

`Ledger` writes (and reads), `LedgerReader` reads; the records are in rows.py, the tables in schema.py.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from vmaptune.errors import InputError, StudyError
from vmaptune.store.encoding import encode_float, encode_text, to_json
from vmaptune.store.files import inside
from vmaptune.store.lock import Lock, held_by_another
from vmaptune.store.migrations import migrate
from vmaptune.store.reader import LedgerReader, Reading, check, check_tally, connect, has_file
from vmaptune.store.rows import (
    CurvePoint,
    DecisionRow,
    GroupRow,
    Progress,
    RoundRow,
    TrialResult,
    TrialRow,
)
from vmaptune.store.schema import (
    APPLICATION_ID,
    COLUMNS,
    COUNTED,
    FILE_NAME,
    FINISHED,
    SCHEMA_VERSION,
    TABLES,
    insert,
    row_sum,
)
from vmaptune.store.states import State

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

    def __init__(self, directory: Path, connection: sqlite3.Connection, lock: Lock) -> None:
        super().__init__(directory, connection)
        self._lock = lock
        self._tally = dict.fromkeys(COUNTED, 0)
        self._changed = False  # in the transaction that is open
        self.seq = 0  # the number of the last row written

    @classmethod
    def create(cls, directory: str | Path, meta: Mapping[str, Any]) -> Self:
        """A new study in `directory`, which is made with its parents.

        Raises InputError when a study is there already, or when the directory cannot be made or written.
        """
        directory = Path(directory)
        path = directory / FILE_NAME
        if has_file(path):
            raise taken(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(directory)
        except (OSError, ValueError) as error:
            raise _no_directory(directory, error) from error
        try:
            if has_file(path):  # another process was faster
                raise already_there(directory)
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
            lock.release()
            raise

    @classmethod
    def _make(cls, directory: Path, meta: Mapping[str, Any], lock: Lock) -> Self:
        ledger = cls(directory, _open_for_writing(directory), lock)
        try:
            with ledger.transaction():
                ledger._run(f"PRAGMA application_id = {APPLICATION_ID}")
                ledger._run(f"PRAGMA user_version = {SCHEMA_VERSION}")
                for statement in TABLES.values():
                    ledger._run(statement)
                ledger._changed = True
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
        inside(directory, FILE_NAME)
        try:
            lock = Lock.take(directory)
        except OSError as error:
            raise _no_directory(directory, error) from error
        connection = None
        try:
            connection = _open_for_writing(directory)
            version = check(directory, connection)
            if version < SCHEMA_VERSION:
                migrate(connection, version)
            ledger = cls(directory, connection, lock)
            check_tally(ledger)
            _, ledger.seq, *counts = ledger._rows("tally")[0]
            ledger._tally = dict(zip(COUNTED, counts, strict=True))
            return ledger
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            lock.release()
            raise _unwritable(directory, error) from error
        except BaseException:
            if connection is not None:
                connection.close()
            lock.release()
            raise

    def close(self) -> None:
        # Without a log the study is one plain file, and its readers make none beside it. When one of them is
        # reading now, the log's files stay: that is harmless.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        super().close()
        self._lock.release()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are kept together, or none of them when an exception leaves the block.

        Use one for a segment: a killed process then leaves whole segments behind. May be nested; an inner one
        can be undone alone.
        """
        inner = self._connection.in_transaction
        before = dict(self._tally)
        self._run("SAVEPOINT inner_block" if inner else "BEGIN IMMEDIATE")
        try:
            yield
            if self._changed and not inner:
                self._put("tally", [(1, self.seq, *self._tally.values())], replace=True)
                self._changed = False
            self._run("RELEASE inner_block" if inner else "COMMIT")
        except BaseException:
            self._tally = before
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
        row = (encode_text(key), to_json(value, f"meta {key}"))
        with self.transaction():
            there = self._query("SELECT count(*) FROM meta WHERE key = ?", row[0])[0][0]
            if there:
                self._run("UPDATE meta SET value = ?, sum = ? WHERE key = ?", row[1], row_sum("meta", row), row[0])
                self._changed = True
            else:
                self._add("meta", [row])

    def add_round(self, round: int, kind: str, space_json: Any, trials: int, info: Any = None) -> None:
        """A round begins: `kind` is "search" or "confirm", `trials` the number planned."""
        row = (int(round), kind, to_json(space_json, "space"), int(trials), time.time(), None, to_json(info, "info"))
        self._add("rounds", [(*row, self._next(), None)])

    def finish_round(self, round: int) -> None:
        """A round ends now."""
        self._end("rounds", {int(round): {"finished": time.time()}}, "round")

    def add_trials(self, rows: Iterable[TrialRow]) -> None:
        """New trials. Raises StudyError when one of their ids is taken."""
        new = []
        for row in rows:
            seq = self._next()
            new.append(
                (
                    int(row.trial), int(row.round), int(row.group), str(State(row.state)), encode_text(row.reason),
                    int(row.seed), int(row.steps), encode_float(row.value), to_json(dict(row.params), "params"),
                    None if row.of is None else int(row.of), to_json(dict(row.metrics), "metrics"), seq,
                    seq if State(row.state).ended else None,
                )
            )  # fmt: skip
        self._add("trials", new)

    def add_curve_points(self, points: Iterable[CurvePoint]) -> None:
        """Points of curves, in the order in which they were measured. One that is there is replaced."""
        rows = [
            (
                int(point.trial), int(point.step), encode_float(point.loss), encode_float(point.value),
                to_json(dict(point.metrics), "metrics"), self._next(),
            )
            for point in points
        ]  # fmt: skip
        with self.transaction():
            for row in rows:
                if self._query("SELECT 1 FROM curves WHERE trial = ? AND step = ?", *row[:2]):
                    self._run("DELETE FROM curves WHERE trial = ? AND step = ?", *row[:2])
                    self._tally["curves"] -= 1
            self._add("curves", rows)

    def finish_trials(self, results: Iterable[TrialResult]) -> None:
        """How trials ended. Raises StudyError when one of them was never added."""
        self._end(
            "trials",
            {
                int(result.trial): {
                    "state": str(State(result.state)),
                    "reason": encode_text(result.reason),
                    "steps": int(result.steps),
                    "value": encode_float(result.value),
                    "metrics": to_json(dict(result.metrics), "metrics"),
                }
                for result in results
            },
            "trial",
        )

    def add_group(
        self, group: int, static: Any, plan: Any, compile_seconds: float | None = None, info: Any = None
    ) -> None:
        """A group and the plan by which it runs; one that is there (planned anew) is replaced."""
        row = (int(group), to_json(static, "static"), to_json(plan, "plan"), encode_float(compile_seconds),
               to_json(info, "info"), self._next())  # fmt: skip
        with self.transaction():
            if self._query("SELECT 1 FROM groups WHERE grp = ?", row[0]):
                self._run("DELETE FROM groups WHERE grp = ?", row[0])
                self._tally["groups"] -= 1
            self._add("groups", [row])

    def add_decision(self, round: int | None, kind: str, data: Any) -> None:
        """A decision with all that it needs to be taken again."""
        with self.transaction():
            number = self._query("SELECT coalesce(max(id), 0) + 1 FROM decisions")[0][0]
            row = (number, None if round is None else int(round), encode_text(kind), to_json(data, "data"),
                   time.time(), self._next())  # fmt: skip
            self._add("decisions", [row])

    def renew(self, meta: Mapping[str, Any]) -> None:
        """Forgets everything and begins again with `meta`; for a study in which nothing was trained yet."""
        with self.transaction():
            for table in COUNTED:
                self._run(f"DELETE FROM {table}")
                self._tally[table] = 0
            self._changed = True
            for key, value in meta.items():
                self.set_meta(key, value)

    def roll_back(self, seq: int) -> None:
        """Takes back every row after the one numbered `seq`, except groups and their plans: rounds, trials,
        points and decisions are gone, and what had ended since is open again."""
        with self.transaction():
            self._changed = True
            for table in ("curves", "decisions", "trials", "rounds"):
                self._run(f"DELETE FROM {table} WHERE seq > ?", int(seq))
                self._tally[table] = self._query(f"SELECT count(*) FROM {table}")[0][0]
            again: dict[str, dict[str, Any]] = {
                "trials": {"state": str(State.RUNNING), "reason": None, "steps": 0, "value": None, "metrics": "{}"},
                "rounds": {"finished": None},
            }
            for table, changes in again.items():
                for row in self._rows(table, "WHERE ended > ?", int(seq)):
                    self._put(table, [self._changed_row(table, row, changes | {"ended": None})], replace=True)

    def adopt(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Whole rows of another ledger, without their sums, as they are: with their numbers too."""
        found = [tuple(row) for row in rows]
        self._add(table, found)
        for row in found:
            named = dict(zip(COLUMNS[table], row, strict=True))
            self.seq = max(self.seq, named.get("seq") or 0, named.get("ended") or 0)

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def _add(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        """New rows of a table, all or none."""
        with self.transaction():
            self._put(table, rows)
            self._tally[table] += len(rows)
            self._changed = True

    def _put(self, table: str, rows: list[tuple[Any, ...]], *, replace: bool = False) -> None:
        try:
            self._connection.executemany(insert(table, replace=replace), [(*row, row_sum(table, row)) for row in rows])
        except (sqlite3.Error, OverflowError) as error:
            raise _unwritable(self.directory, error) from error

    def _end(self, table: str, changes: Mapping[int, Mapping[str, Any]], what: str) -> None:
        """Completes rows. Raises StudyError when one is missing."""
        with self.transaction():
            new = []
            for number, change in changes.items():
                found = self._rows(table, f"WHERE {what} = ?", number)
                if found:
                    new.append(self._changed_row(table, found[0], {**change, "ended": self._next()}))
            if len(new) != len(changes):
                raise _unwritable(
                    self.directory,
                    f"{len(changes) - len(new)} of {len(changes)} have no row in it "
                    f"({what} {', '.join(map(str, list(changes)[:8]))}, ...)",
                )
            self._put(table, new, replace=True)
            self._changed = True

    @staticmethod
    def _changed_row(table: str, row: Any, changes: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple((dict(zip(COLUMNS[table], row, strict=True)) | dict(changes)).values())

    def _run(self, sql: str, *values: Any) -> None:
        try:
            self._connection.execute(sql, values)
        except (sqlite3.Error, OverflowError) as error:
            raise _unwritable(self.directory, error) from error


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


def taken(directory: Path) -> InputError:
    """The error where a new study was to be: another process writes one, or `already_there`."""
    return held_by_another(directory) or already_there(directory)


def already_there(directory: Path) -> InputError:
    """The error of a study where a new one was to be."""
    more = ""
    try:
        with LedgerReader.open(directory) as reader, reader.snapshot():
            counts = ", ".join(f"{count} {state}" for state, count in reader.counts().items() if count)
            end = "finished" if reader.finished() else "not finished"
            there = f"a study ({end}; trials: {counts or 'none'})"
            if reader.finished():
                more = "; or give it more trials, with --trials N --force"
    except (InputError, StudyError) as error:
        there = f"a {FILE_NAME} that is no readable study ({error})"
    return InputError(f"{directory} already holds {there}; choose another --out, or delete {directory} first{more}")


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
