"""From an older schema to the present one, one version at a time; each step within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from vmaptune.store.schema import APPLICATION_ID, COLUMNS, COUNTED, SCHEMA_VERSION, TABLES, insert, row_sum


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Brings a study from `version` to SCHEMA_VERSION, whole or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number in range(version, SCHEMA_VERSION):
            _STEPS[number](connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def in_memory(source: sqlite3.Connection, version: int) -> sqlite3.Connection:
    """A copy of an older study in memory, brought to the present schema, for those who only read."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        source.backup(copy)
        migrate(copy, version)
    except BaseException:
        copy.close()
        raise
    return copy


def _sums_and_order(connection: sqlite3.Connection) -> None:
    """1 to 2: rows get a number in the order in which they were written, and a checksum."""
    old = {table: _rows(connection, table) for table in ("meta", "rounds", "trials", "curves", "groups", "decisions")}
    for table in old:
        connection.execute(f"DROP TABLE {table}")
    for statement in TABLES.values():
        connection.execute(statement)
    seq = 0
    for table in ("meta", "groups", "rounds", "trials", "curves", "decisions"):
        for row in old[table]:
            if "seq" in COLUMNS[table]:
                seq += 1
                row = row | {"seq": seq}
            if "ended" in COLUMNS[table]:
                open_ = row["finished"] is None if table == "rounds" else row["state"] == "RUNNING"
                row["ended"] = None if open_ else seq
            values = [row[column] for column in COLUMNS[table]]
            connection.execute(insert(table), (*values, row_sum(table, values)))
    tally = [1, seq, *(len(old[table]) for table in COUNTED)]
    connection.execute(insert("tally"), (*tally, row_sum("tally", tally)))


def _rows(connection: sqlite3.Connection, table: str) -> list[dict]:
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _sums_and_order}
