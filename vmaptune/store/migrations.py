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
    round_of = {row["trial"]: row["round"] for row in old["trials"]}
    rows = [("meta", -1, row) for row in old["meta"]] + [("groups", -1, row) for row in old["groups"]]
    rows += [(table, row["round"], row) for table in ("rounds", "trials") for row in old[table]]
    rows += [("curves", round_of.get(row["trial"], -1), row) for row in old["curves"]]
    rows += [("decisions", _LAST if row["round"] is None else row["round"], row) for row in old["decisions"]]
    rows.sort(key=lambda found: found[1])  # round by round; within one, as listed above
    seq, last = 0, {}
    for table, number, row in rows:
        if "seq" in COLUMNS[table]:
            seq += 1
            row["seq"] = last[number] = seq
    for table, number, row in rows:
        if "ended" in COLUMNS[table]:
            is_open = row["finished"] is None if table == "rounds" else row["state"] == "RUNNING"
            row["ended"] = None if is_open else last[number]
        values = [row[column] for column in COLUMNS[table]]
        connection.execute(insert(table), (*values, row_sum(table, values)))
    tally = [1, seq, *(len(old[table]) for table in COUNTED)]
    connection.execute(insert("tally"), (*tally, row_sum("tally", tally)))


_LAST = 2**62  # of a decision that belongs to no round


def _rows(connection: sqlite3.Connection, table: str) -> list[dict]:
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


_STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _sums_and_order}
