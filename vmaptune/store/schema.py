"""The tables of study.db. A change here raises SCHEMA_VERSION and needs a step in migrations.py.

SQLite keeps no checksums, so every row carries one of its own in the column `sum`, and the table `tally` says
how many rows each table has. `seq` numbers the rows in the order in which they were written, over all tables;
`ended` is the number at which a row was completed. So the ledger can be rolled back to any earlier moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

SCHEMA_VERSION = 2
APPLICATION_ID = 0x766D6170  # "vmap": tells a study from any other SQLite file
FILE_NAME = "study.db"
FINISHED = "finished"  # the meta key that says, when true, that the study came to its end

TABLES = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, sum INTEGER NOT NULL)",
    "rounds": """CREATE TABLE rounds (
        round INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('search', 'confirm')),
        space TEXT NOT NULL, trials INTEGER NOT NULL, started REAL NOT NULL, finished REAL,
        info TEXT NOT NULL, seq INTEGER NOT NULL, ended INTEGER, sum INTEGER NOT NULL)""",
    "trials": """CREATE TABLE trials (
        trial INTEGER PRIMARY KEY, round INTEGER NOT NULL, grp INTEGER NOT NULL, state TEXT NOT NULL,
        reason TEXT, seed INTEGER NOT NULL, steps INTEGER NOT NULL, value REAL,
        params TEXT NOT NULL, of INTEGER, metrics TEXT NOT NULL, seq INTEGER NOT NULL, ended INTEGER,
        sum INTEGER NOT NULL)""",
    "curves": """CREATE TABLE curves (
        trial INTEGER NOT NULL, step INTEGER NOT NULL, loss REAL, value REAL, metrics TEXT NOT NULL,
        seq INTEGER NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY (trial, step)) WITHOUT ROWID""",
    "groups": """CREATE TABLE groups (
        grp INTEGER PRIMARY KEY, static TEXT NOT NULL, plan TEXT NOT NULL, compile_seconds REAL,
        info TEXT NOT NULL, seq INTEGER NOT NULL, sum INTEGER NOT NULL)""",
    "decisions": """CREATE TABLE decisions (
        id INTEGER PRIMARY KEY, round INTEGER, kind TEXT NOT NULL, data TEXT NOT NULL, time REAL NOT NULL,
        seq INTEGER NOT NULL, sum INTEGER NOT NULL)""",
    "tally": """CREATE TABLE tally (
        one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, meta INTEGER NOT NULL,
        rounds INTEGER NOT NULL, trials INTEGER NOT NULL, curves INTEGER NOT NULL, groups INTEGER NOT NULL,
        decisions INTEGER NOT NULL, sum INTEGER NOT NULL)""",
}

# The columns that a row's sum covers, in the order in which they are written and read.
COLUMNS = {
    "meta": ("key", "value"),
    "rounds": ("round", "kind", "space", "trials", "started", "finished", "info", "seq", "ended"),
    "trials": (
        "trial", "round", "grp", "state", "reason", "seed", "steps", "value", "params", "of", "metrics", "seq",
        "ended",
    ),
    "curves": ("trial", "step", "loss", "value", "metrics", "seq"),
    "groups": ("grp", "static", "plan", "compile_seconds", "info", "seq"),
    "decisions": ("id", "round", "kind", "data", "time", "seq"),
    "tally": ("one", "seq", "meta", "rounds", "trials", "curves", "groups", "decisions"),
}  # fmt: skip
COUNTED = COLUMNS["tally"][2:]


def row_sum(table: str, values: Sequence[Any]) -> int:
    """The checksum of a row: the first 8 bytes of BLAKE2b over its values as SQLite holds them."""
    text = repr((table, *values)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def select(table: str) -> str:
    """The query of a table's rows, to which a WHERE may be added; the last column is the sum."""
    return f"SELECT {', '.join(COLUMNS[table])}, sum FROM {table}"


def insert(table: str, *, replace: bool = False) -> str:
    """The statement that writes one row and its sum."""
    columns = COLUMNS[table]
    verb = "INSERT OR REPLACE" if replace else "INSERT"
    return f"{verb} INTO {table} ({', '.join(columns)}, sum) VALUES ({', '.join('?' * (len(columns) + 1))})"
