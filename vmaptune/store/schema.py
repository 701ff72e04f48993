"""The tables of study.db. A change here raises SCHEMA_VERSION."""

SCHEMA_VERSION = 1
APPLICATION_ID = 0x766D6170  # "vmap": tells a study from any other SQLite file
FILE_NAME = "study.db"
FINISHED = "finished"  # the meta key that says, when true, that the study came to its end

TABLES = {
    "meta": "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "rounds": """CREATE TABLE rounds (
        round INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('search', 'confirm')),
        space TEXT NOT NULL, trials INTEGER NOT NULL, started REAL NOT NULL, finished REAL,
        info TEXT NOT NULL)""",
    "trials": """CREATE TABLE trials (
        trial INTEGER PRIMARY KEY, round INTEGER NOT NULL, grp INTEGER NOT NULL, state TEXT NOT NULL,
        reason TEXT, seed INTEGER NOT NULL, steps INTEGER NOT NULL, value REAL,
        params TEXT NOT NULL, of INTEGER, metrics TEXT NOT NULL)""",
    "curves": """CREATE TABLE curves (
        trial INTEGER NOT NULL, step INTEGER NOT NULL, loss REAL, value REAL, metrics TEXT NOT NULL,
        PRIMARY KEY (trial, step)) WITHOUT ROWID""",
    "groups": """CREATE TABLE groups (
        grp INTEGER PRIMARY KEY, static TEXT NOT NULL, plan TEXT NOT NULL, compile_seconds REAL,
        info TEXT NOT NULL)""",
    "decisions": """CREATE TABLE decisions (
        id INTEGER PRIMARY KEY, round INTEGER, kind TEXT NOT NULL, data TEXT NOT NULL, time REAL NOT NULL)""",
}
