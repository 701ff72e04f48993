"""Reading a study: beside a running writer, after a killed one, and from a read-only directory."""

import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmaptune.errors import InputError, StudyError
from vmaptune.store.encoding import decode_float, from_json
from vmaptune.store.migrations import in_memory
from vmaptune.store.rows import CurvePoint, DecisionRow, GroupRow, Progress, RoundRow, TrialRow
from vmaptune.store.schema import (
    APPLICATION_ID,
    COLUMNS,
    COUNTED,
    FILE_NAME,
    FINISHED,
    SCHEMA_VERSION,
    TABLES,
    row_sum,
    select,
)
from vmaptune.store.states import State

_WAIT = 30.0  # seconds to wait for a lock before it is an error


class Reading:
    """The read methods that the reader and the writer share. Nothing is cached: each call reads the file."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self.directory = directory
        self._connection = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads inside see the study as it was at the first of them. Keep it short: it holds the log."""
        if self._connection.in_transaction:
            yield
            return
        self._query("BEGIN")
        try:
            yield
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def meta(self) -> dict[str, Any]:
        return {key: self._json(value) for key, value in self._rows("meta", "ORDER BY rowid")}

    def finished(self) -> bool:
        """Whether the study came to its end: its meta entry FINISHED is true."""
        found = self._rows("meta", "WHERE +key IN (?, 'state')", FINISHED)
        return any(self._json(value) in (True, "finished") for _, value in found)  # the first version wrote `state`

    def rounds(self) -> list[RoundRow]:
        return [
            RoundRow(number, kind, self._json(space), trials, started, finished, self._json(info), seq)
            for number, kind, space, trials, started, finished, info, seq, _ in self._rows("rounds", "ORDER BY round")
        ]

    def trials(self, round: int | None = None, state: State | str | None = None) -> list[TrialRow]:
        """All trials in the order of their ids, or those of one round or in one state."""
        wanted = None if state is None else str(State(state))
        where = "WHERE (?1 IS NULL OR round = ?1) AND (?2 IS NULL OR state = ?2) ORDER BY trial"
        return [self._trial(row) for row in self._rows("trials", where, round, wanted)]

    def trial(self, trial: int) -> TrialRow:
        """One trial. Raises InputError when the study has none of that number."""
        found = self._rows("trials", "WHERE +trial = ?", trial)
        if not found:
            low, high = self._query("SELECT min(trial), max(trial) FROM trials")[0]
            there = "has no trials yet" if low is None else f"has trials {low} to {high}"
            raise InputError(f"{self.directory} has no trial {trial}; it {there}")
        return self._trial(found[0])

    def curve(self, trial: int) -> list[CurvePoint]:
        """The points of one trial by step; empty when it has none."""
        return self._points("WHERE +trial = ? ORDER BY step", trial)

    def curves(self) -> Iterator[tuple[int, list[CurvePoint]]]:
        """Each trial that has points, by its id, with its curve."""
        for trial, points in groupby(self._points("ORDER BY trial, step"), lambda point: point.trial):
            yield trial, list(points)

    def reports(self, round: int) -> list[CurvePoint]:
        """Every point of a round's trials in the order in which they came: what its decisions were taken from."""
        return self._points("WHERE +trial IN (SELECT trial FROM trials WHERE round = ?) ORDER BY seq", round)

    def _points(self, where: str, *values: Any) -> list[CurvePoint]:
        return [
            CurvePoint(trial, step, self._float(loss), self._float(value), self._json(metrics))
            for trial, step, loss, value, metrics, _ in self._rows("curves", where, *values)
        ]

    def groups(self) -> list[GroupRow]:
        return [
            GroupRow(group, self._json(static), self._json(plan), self._float(seconds), self._json(info))
            for group, static, plan, seconds, info, _ in self._rows("groups", "ORDER BY grp")
        ]

    def decisions(self, kind: str | None = None) -> list[DecisionRow]:
        """All decisions in the order in which they were taken, or those of one kind."""
        found = self._rows("decisions", "WHERE ?1 IS NULL OR kind = ?1 ORDER BY id", kind)
        return [DecisionRow(row, number, what, self._json(data), time) for row, number, what, data, time, _ in found]

    def counts(self) -> dict[State, int]:
        """How many trials are in each state; every state is there, with 0 when none is in it."""
        counts = dict.fromkeys(State, 0)
        for row in self._rows("trials"):
            counts[self._state(row[3])] += 1
        return counts

    def progress(self) -> Progress:
        """How far the study is."""
        with self.snapshot():
            rounds = self.rounds()
            last = rounds[-1] if rounds else None
            trials = self._rows("trials")
            alive = self._rows(
                "curves",
                "WHERE (trial, step) IN (SELECT trial, max(step) FROM curves WHERE trial IN "
                "(SELECT trial FROM trials WHERE state = ?) GROUP BY trial)",
                str(State.RUNNING),
            )
            running = {row[0] for row in trials if row[3] == State.RUNNING}
            steps = {row[0]: row[6] for row in trials} | {row[0]: row[1] for row in alive if row[0] in running}
            counts = dict.fromkeys(State, 0)
            for row in trials:
                counts[self._state(row[3])] += 1
            return Progress(
                finished=self.finished(),
                rounds=len(rounds),
                rounds_finished=sum(row.finished is not None for row in rounds),
                round=last.round if last else None,
                kind=last.kind if last else None,
                trials=last.trials if last else 0,
                ended=sum(row[3] != State.RUNNING for row in trials if last and row[1] == last.round),
                steps=sum(steps.values()),
                counts=counts,
                started=rounds[0].started if rounds else None,
            )

    def _rows(self, table: str, where: str = "", *values: Any) -> list[Any]:
        """Whole rows of a table without their sums. Raises StudyError when a row is not what was written.

        A `+` before a column in `where` makes SQLite look at every row: a damaged page above the rows could lead a
        search past them, and the sums of rows that are not found tell nothing.
        """
        found = self._query(f"{select(table)} {where}", *values)
        for *row, stored in found:
            if row_sum(table, row) != stored:
                raise unreadable(self.directory, f"a row of its table {table} is damaged ({row[0]!r:.40})")
        return [row[:-1] for row in found]

    def _query(self, sql: str, *values: Any) -> list[Any]:
        """All rows at once, so that no read stays open and holds up the writer's checkpoints."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise unreadable(self.directory, error) from error

    def _trial(self, row: Any) -> TrialRow:
        trial, number, group, state, reason, seed, steps, value, params, of, metrics, *_ = row
        return TrialRow(
            trial=trial,
            round=number,
            group=group,
            state=self._state(state),
            reason=reason,
            seed=seed,
            steps=steps,
            value=self._float(value),
            params=self._json(params),
            of=of,
            metrics=self._json(metrics),
        )

    def _state(self, stored: str) -> State:
        try:
            return State(stored)
        except ValueError as error:
            raise unreadable(self.directory, error) from error

    def _json(self, stored: str) -> Any:
        try:
            return from_json(stored)
        except StudyError as error:
            raise unreadable(self.directory, error) from error

    def _float(self, stored: Any) -> float | None:
        try:
            return decode_float(stored)
        except StudyError as error:
            raise unreadable(self.directory, error) from error


class LedgerReader(Reading):
    """A study, read only. It never takes a lock that the writer waits for, and never writes."""

    def __init__(
        self, directory: Path, connection: sqlite3.Connection, copy: "tempfile.TemporaryDirectory[str] | None"
    ) -> None:
        super().__init__(directory, connection)
        self._copy = copy

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Opens the study in `directory`.

        Raises InputError when there is no study.db, StudyError when it is not a study, is damaged or is newer
        than this vmaptune.
        """
        directory = Path(directory)
        path = directory / FILE_NAME
        if not has_file(path):
            raise InputError(
                f"{directory} holds no study: there is no {FILE_NAME} in it; "
                "give the directory that `vmaptune run` wrote to (its --out)"
            )
        try:
            connection, copy = _connect(path)
        except (sqlite3.Error, OSError) as error:
            raise unreadable(directory, error) from error
        reader = cls(directory, connection, copy)
        try:
            version = check(directory, connection)
            if version < SCHEMA_VERSION:
                reader._connection = in_memory(connection, version)
                connection.close()
            check_tally(reader)
        except sqlite3.Error as error:
            reader.close()
            raise unreadable(directory, error) from error
        except BaseException:
            reader.close()
            raise
        return reader

    def close(self) -> None:
        super().close()
        if self._copy is not None:
            self._copy.cleanup()


def has_file(path: Path) -> bool:
    """Whether there is anything at `path`. Raises InputError when the system does not let us see."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"cannot look into {path.parent}: {error}; give a directory that you can read") from error
    return True


def connect(target: str) -> sqlite3.Connection:
    """A connection that leaves transactions to us. It may pass from thread to thread, one at a time."""
    return sqlite3.connect(target, timeout=_WAIT, isolation_level=None, check_same_thread=False, uri=True)


def check(directory: Path, connection: sqlite3.Connection) -> int:
    """The schema's version. Raises StudyError unless the file is a study whose schema this vmaptune knows."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise unreadable(directory, error) from error
    if application != APPLICATION_ID:
        raise StudyError(
            f"{directory / FILE_NAME} is not a vmaptune study (application_id {application:#x}, "
            f"expected {APPLICATION_ID:#x}); give the directory of a study"
        )
    if version > SCHEMA_VERSION:
        raise StudyError(
            f"{directory} was written by a newer vmaptune (schema {version}; this one knows "
            f"{SCHEMA_VERSION}); upgrade vmaptune to read it"
        )
    if version < 1:
        raise unreadable(directory, f"its schema has the version {version}, which there never was")
    missing = sorted(TABLES.keys() - there - ({"tally"} if version < 2 else set()))
    if missing:
        raise unreadable(directory, f"its tables {', '.join(missing)} are missing")
    return version


def check_tally(reading: Reading) -> None:
    """Raises StudyError when a table has lost or gained rows, or has some of another moment: sums do not tell that."""
    with reading.snapshot():
        found = reading._rows("tally")
        if len(found) != 1:
            raise unreadable(reading.directory, "its table tally is damaged")
        for table, count in zip(COUNTED, found[0][2:], strict=True):
            ((there,),) = reading._query(f"SELECT count(*) FROM {table}")
            if there != count:
                raise unreadable(reading.directory, f"its table {table} has {there} rows, but {count} were written")
            for name in {"seq", "ended"} & set(COLUMNS[table]):
                ((last,),) = reading._query(f"SELECT max({name}) FROM {table}")
                if last is not None and last > found[0][1]:  # a page of another moment than the tally's
                    raise unreadable(reading.directory, f"its table {table} has rows from after its last transaction")


def unreadable(directory: Path, why: object) -> StudyError:
    return StudyError(
        f"{directory / FILE_NAME} cannot be read: {why}; if it is damaged, restore it from a copy, save what can be "
        f"saved (python -m vmaptune rescue {shlex.quote(str(directory))} --to NEW), or run the study again with "
        f"another --out. {_left(directory)}"
    )


def _left(directory: Path) -> str:
    """What else a damaged study holds."""
    table = directory / "trials.csv"
    models = len(list((directory / "best").glob("*.weights"))) if (directory / "best").is_dir() else 0
    found = [f"the trials of the rounds that ended, in {table}"] if table.exists() else []
    found += [f"{models} trained models in {directory / 'best'}"] if models else []
    return "What is beside it: " + (" and ".join(found) if found else "nothing yet")


def _connect(path: Path) -> "tuple[sqlite3.Connection, tempfile.TemporaryDirectory[str] | None]":
    """A read-only connection, and the copy that it reads from where the directory forces one."""
    uri = path.absolute().as_uri()
    connection = connect(f"{uri}?mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return connection, None
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
    except BaseException:
        connection.close()
        raise
    # A read-only directory, where SQLite cannot make the index of the write-ahead log. With no log the file
    # is all there is. With a log (its writer was killed) the file alone is old or torn: read a copy of both.
    log = path.with_name(f"{path.name}-wal")
    if not log.exists() or log.stat().st_size == 0:
        return connect(f"{uri}?mode=ro&immutable=1"), None
    copy = tempfile.TemporaryDirectory(prefix="vmaptune-")
    try:
        for source in (path, log):
            shutil.copyfile(source, Path(copy.name) / source.name)
        return connect(f"{(Path(copy.name) / path.name).as_uri()}?mode=ro"), copy
    except BaseException:
        copy.cleanup()
        raise
