"""The ledger: what goes in comes out to the bit, and what was committed survives."""

import json
import math
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmaptune.errors import InputError, StudyError
from vmaptune.store.encoding import from_json, to_json
from vmaptune.store.ledger import FINISHED, CurvePoint, Ledger, LedgerReader, TrialResult, TrialRow
from vmaptune.store.states import State
from vmaptune.store.tables import format_rows, trials_csv

STRANGE = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1e16, 3.0, 0.1]
floats = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from(STRANGE)
scalars = st.none() | st.booleans() | st.integers() | floats | st.text()
keys = st.text() | st.sampled_from(["$tuple", "$float", "$dict", "$"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bits(value):
    """Equal for two values just when they are the same to the bit and the type; all NaNs are one."""
    if isinstance(value, float):
        return "float", "nan" if math.isnan(value) else struct.pack("<d", value)
    if isinstance(value, list | tuple):
        return type(value).__name__, [bits(item) for item in value]
    if isinstance(value, dict):
        return "dict", [(key, bits(item)) for key, item in value.items()]
    return type(value).__name__, value


def row(trial=0, **changes):
    base = {
        "round": 0,
        "group": 0,
        "state": State.RUNNING,
        "reason": None,
        "seed": 1,
        "steps": 0,
        "value": None,
    }
    return TrialRow(trial=trial, **(base | {"params": {"lr": 0.1}} | changes))


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path / "study", {"name": "test"}) as made:
        yield made


def python(code, *arguments, wait=True):
    """Runs code in a process of its own."""
    script = "import os, sys\nfrom pathlib import Path\nfrom vmaptune.store.ledger import *\n"
    script += "def row(trial): return TrialRow(trial, 0, 0, State.RUNNING, None, 1, 0, None, {'lr': 0.1})\n"
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", script + textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root,
    )  # fmt: skip
    if not wait:
        return process
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# ---- values ----------------------------------------------------------------------------------------------


@given(value=values)
def test_json_round_trips_to_the_bit_and_is_strict(value):
    text = to_json(value)
    json.loads(text, parse_constant=pytest.fail)
    assert bits(from_json(text)) == bits(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.1), 0.10000000149011612),
        (np.float64("nan"), math.nan),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(2.0), 2.0),
        (ml_dtypes.bfloat16(1.5), 1.5),
        (State.COMPLETE, "COMPLETE"),
        ((np.int8(1), [np.float16(0.5)]), (1, [0.5])),
    ],
    ids=repr,
)
def test_array_scalars_become_plain_ones(value, plain):
    assert bits(from_json(to_json(value))) == bits(plain)


@pytest.mark.parametrize("value", [object(), {1: 2}, {1, 2}, b"x", np.zeros(2), 1j, np.datetime64("2020-01-01")])
def test_what_json_cannot_hold_is_refused_by_name(value):
    with pytest.raises(InputError, match=r"params\.act\[1\] cannot be stored"):
        to_json({"act": [0, value]}, "params")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "{", '{"$float":"x"}', '{"$tuple":1}', '{"$dict":[1]}'])
def test_json_that_was_never_written_is_refused(text):
    with pytest.raises(StudyError, match="ledger holds"):
        from_json(text)


@quick
@given(rows=st.lists(st.tuples(floats | st.none(), values, st.dictionaries(keys, values), st.text()), max_size=4))
def test_trials_and_curves_round_trip_to_the_bit(ledger, rows):
    first = len(ledger.trials())
    trials = [
        row(first + i, value=value, params={"p": param}, metrics=metrics, reason=reason, of=first)
        for i, (value, param, metrics, reason) in enumerate(rows)
    ]
    points = [CurvePoint(t.trial, 7, t.value, t.value, t.metrics) for t in trials]
    with ledger.transaction():
        ledger.add_trials(trials)
        ledger.add_curve_points(points)
    with LedgerReader.open(ledger.directory) as reader:
        for trial, point in zip(trials, points, strict=True):
            found, (at,) = reader.trial(trial.trial), reader.curve(trial.trial)
            assert bits(list(vars(found).values())) == bits(list(vars(trial).values()))
            assert bits(list(vars(at).values())) == bits(list(vars(point).values()))


@pytest.mark.parametrize("value", STRANGE)
def test_strange_floats_survive_a_restart(ledger, value):
    ledger.add_trials([row(value=value)])
    ledger.add_curve_points([CurvePoint(0, 1, value, np.float32(value))])
    ledger.close()
    with LedgerReader.open(ledger.directory) as reader:
        (point,) = reader.curve(0)
        assert bits([reader.trial(0).value, point.loss]) == bits([value, value])
        with np.errstate(over="ignore"):
            assert bits(point.value) == bits(float(np.float32(value)))


# ---- the story of a study --------------------------------------------------------------------------------


def test_a_whole_study(ledger):
    ledger.add_round(0, "search", {"lr": ["loguniform", 1e-4, 1.0]}, 3, {"method": "sobol"})
    ledger.add_trials([row(0), row(1), row(2, group=1, of=None)])
    ledger.add_group(0, {"width": 16}, {"lanes": 4}, 1.5, {"memory": 7})
    ledger.add_group(0, {"width": 16}, {"lanes": 8}, 2.5)
    ledger.add_curve_points([CurvePoint(1, 20, 0.2, 0.3), CurvePoint(1, 10, 0.4, 0.5, {"error": 0.5})])
    ledger.add_curve_points([CurvePoint(2, 5, math.nan, math.nan), CurvePoint(1, 20, 0.25, 0.3)])
    middle = ledger.progress()
    assert (middle.round, middle.kind, middle.trials, middle.ended, middle.steps) == (0, "search", 3, 0, 25)
    ledger.finish_trials([
        TrialResult(1, State.COMPLETE, None, 30, 0.3, {"error": 0.3}),
        TrialResult(2, State.INFEASIBLE, "diverged at step 5", 5, math.nan, {}),
    ])  # fmt: skip
    ledger.finish_round(0)
    ledger.add_decision(0, "zoom", {"slice": [1]})
    ledger.add_decision(0, "stop", {"trials": (2,)})
    ledger.set_meta(FINISHED, True)

    with LedgerReader.open(str(ledger.directory)) as reader:
        assert reader.meta() == {"name": "test", "finished": True}
        (only,) = reader.rounds()
        assert (only.kind, only.trials, only.info) == ("search", 3, {"method": "sobol"})
        assert only.space == {"lr": ["loguniform", 1e-4, 1.0]}
        assert only.finished >= only.started
        assert [t.trial for t in reader.trials()] == [0, 1, 2]
        assert [t.trial for t in reader.trials(round=0, state="COMPLETE")] == [1]
        assert reader.trials(round=1) == reader.trials(state=State.FAIL) == []
        assert reader.trial(1).metrics == {"error": 0.3}
        assert reader.trial(2).reason == "diverged at step 5"
        assert reader.curve(1) == [CurvePoint(1, 10, 0.4, 0.5, {"error": 0.5}), CurvePoint(1, 20, 0.25, 0.3)]
        assert [(trial, len(curve)) for trial, curve in reader.curves()] == [(1, 2), (2, 1)]
        assert [(g.group, g.plan, g.compile_seconds) for g in reader.groups()] == [(0, {"lanes": 8}, 2.5)]
        assert [d.kind for d in reader.decisions()] == ["zoom", "stop"]
        assert [d.data for d in reader.decisions("stop")] == [{"trials": (2,)}]
        assert reader.counts() == {"RUNNING": 1, "COMPLETE": 1, "STOPPED": 0, "INFEASIBLE": 1, "FAIL": 0}
        end = reader.progress()
        assert (end.finished, end.rounds, end.rounds_finished, end.ended, end.steps) == (True, 1, 1, 2, 35)
        with pytest.raises(InputError, match=r"no trial 9; it has trials 0 to 2"):
            reader.trial(9)


def test_an_empty_study_can_be_read(ledger):
    assert (ledger.progress().round, ledger.progress().ended, ledger.progress().finished) == (None, 0, False)
    assert ledger.trials() == ledger.rounds() == ledger.groups() == list(ledger.curves()) == []
    with pytest.raises(InputError, match="no trials yet"):
        ledger.trial(0)


def test_rows_that_do_not_fit_change_nothing(ledger):
    ledger.add_trials([row(0)])
    with pytest.raises(StudyError, match="UNIQUE"):
        ledger.add_trials([row(1), row(0)])
    with pytest.raises(StudyError, match=r"1 of 2 .*trial 0, 5"):
        ledger.finish_trials([TrialResult(t, State.COMPLETE, None, 1, 0.5) for t in (0, 5)])
    with pytest.raises(StudyError, match="round 3"):
        ledger.finish_round(3)
    with pytest.raises(StudyError, match="kind"):
        ledger.add_round(0, "other", {}, 1)
    with pytest.raises(StudyError, match="too large"):
        ledger.add_trials([row(1, seed=2**70)])
    with pytest.raises(InputError, match=r"params\.lr cannot be stored"):
        ledger.add_trials([row(1), row(2, params={"lr": object()})])
    assert ledger.trials() == [row(0)]


def test_names_are_values_never_sql(ledger):
    name = "x'); DROP TABLE trials; --"
    ledger.add_trials([row(0, params={name: name}, reason=name)])
    ledger.set_meta(name, name)
    ledger.add_decision(0, name, name)
    assert ledger.trial(0).params == {name: name}
    assert ledger.meta()[name] == ledger.decisions(name)[0].data == name


# ---- transactions ----------------------------------------------------------------------------------------


def test_an_exception_leaves_nothing_of_a_transaction(ledger):
    ledger.add_trials([row(0)])

    def segment():
        with ledger.transaction():
            ledger.add_trials([row(1)])
            ledger.add_curve_points([CurvePoint(0, 1, 0.5, 0.5)])
            ledger.finish_trials([TrialResult(0, State.COMPLETE, None, 1, 0.5)])
            ledger.set_meta("name", "changed")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment()
    assert ledger.trials() == [row(0)]
    assert ledger.curve(0) == []
    assert ledger.meta() == {"name": "test"}
    ledger.add_trials([row(1)])
    assert len(ledger.trials()) == 2


def test_an_inner_transaction_can_be_undone_alone(ledger):
    with ledger.transaction():
        ledger.add_trials([row(0)])
        with pytest.raises(StudyError):
            ledger.add_trials([row(1), row(0)])
        with suppress(ZeroDivisionError), ledger.transaction():
            ledger.add_trials([row(2)])
            raise ZeroDivisionError
        ledger.add_trials([row(3)])
    with LedgerReader.open(ledger.directory) as reader:
        assert [t.trial for t in reader.trials()] == [0, 3]


def test_a_full_disk_is_a_study_error_and_keeps_what_was_committed(ledger):
    ledger.add_trials([row(0)])
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")

    def segment():
        with ledger.transaction():
            ledger.add_trials([row(1)])
            ledger.add_trials([row(t, reason="x" * 1000) for t in range(2, 50)])

    with pytest.raises(StudyError, match=r"study.*disk is full"):
        segment()
    assert ledger.trials() == [row(0)]


def test_a_ledger_passes_between_threads(ledger):
    thread = threading.Thread(target=ledger.add_trials, args=([row(0)],))
    thread.start()
    thread.join()
    assert ledger.trials() == [row(0)]


# ---- other processes -------------------------------------------------------------------------------------


def test_another_process_reads_beside_an_open_transaction(ledger):
    ledger.add_trials([row(0)])
    with ledger.transaction():
        ledger.add_trials([row(1)])
        rc, out, err = python("print(len(LedgerReader.open(sys.argv[1]).trials()))", ledger.directory)
        assert (rc, out.strip()) == (0, "1"), err
    with LedgerReader.open(ledger.directory) as reader, reader.snapshot():
        assert len(reader.trials()) == 2
        ledger.add_trials([row(2)])
        assert len(reader.trials()) == 2
    assert len(LedgerReader.open(ledger.directory).trials()) == 3


KILLED = """
    ledger = Ledger.create(sys.argv[1], {"name": "killed"})
    ledger.add_trials([row(0), row(1)])
    with ledger.transaction():
        ledger.finish_trials([TrialResult(0, State.COMPLETE, None, 1, 0.5)])
    ledger._connection.execute("PRAGMA cache_spill = 1")
    ledger._connection.execute("PRAGMA cache_size = 1")  # so that the open transaction reaches the log
    with ledger.transaction():
        ledger.finish_trials([TrialResult(1, State.COMPLETE, None, 1, 0.25)])
        ledger.add_curve_points([CurvePoint(0, i, 0.5, 0.5) for i in range(5000)])
        os._exit(9)
"""


@pytest.fixture
def killed(tmp_path):
    rc, _, err = python(KILLED, tmp_path / "study")
    assert rc == 9, err
    assert (tmp_path / "study" / "study.db-wal").stat().st_size > 100_000
    return tmp_path / "study"


def test_a_killed_writer_leaves_whole_transactions(killed):
    with LedgerReader.open(killed) as reader:
        assert [(t.state, t.value) for t in reader.trials()] == [("COMPLETE", 0.5), ("RUNNING", None)]
        assert list(reader.curves()) == []
    with Ledger.open(killed) as ledger:
        ledger.finish_trials([TrialResult(1, State.STOPPED, "early", 1, 0.25)])
        assert ledger.meta() == {"name": "killed"}
    with LedgerReader.open(killed) as reader:
        assert reader.counts()["STOPPED"] == 1


@pytest.mark.parametrize("end", ["killed", "closed", "closed with readers"])
def test_a_read_only_directory(killed, end):
    """As a user who may only read; files that root left behind, with and without a write-ahead log."""
    if end == "closed":
        Ledger.open(killed).close()
    elif end == "closed with readers":  # then the file stays in the mode that needs a log
        ledger, reader = Ledger.open(killed), LedgerReader.open(killed)
        with reader.snapshot():
            reader.meta()
            ledger.close()
        reader.close()
        with sqlite3.connect(killed / "study.db") as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()
    place = Path(tempfile.mkdtemp(prefix="vt-test-"))  # pytest's own directories are closed to other users
    try:
        study = place / "study"
        study.mkdir()
        for name in ("study.db", "study.db-wal") if end == "killed" else ("study.db",):
            shutil.copyfile(killed / name, study / name)
            (study / name).chmod(0o444)
        study.chmod(0o555)
        place.chmod(0o755)
        code = """
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            with LedgerReader.open(sys.argv[1]) as reader:
                print([t.value for t in reader.trials()])
            print(sorted(os.listdir(sys.argv[1])) == sys.argv[2:])
        """
        rc, out, err = python(code, study, *sorted(os.listdir(study)))
        assert (rc, out.split("\n")[:2]) == (0, ["[0.5, None]", "True"]), err
    finally:
        study.chmod(0o755)
        shutil.rmtree(place)


def test_a_closed_study_is_one_file_and_reading_leaves_it_so(ledger):
    ledger.close()
    before = (ledger.directory / "study.db").read_bytes()
    with LedgerReader.open(ledger.directory) as reader:
        assert reader.meta() == {"name": "test"}
    assert [item.name for item in ledger.directory.iterdir()] == ["study.db"]
    assert (ledger.directory / "study.db").read_bytes() == before


def test_two_writers_are_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    code = "ledger = Ledger.create(sys.argv[1], {})\nprint('ready', flush=True)\nsys.stdin.read()"
    other = python(code, tmp_path / "s", wait=False)
    try:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match="another run"):
            Ledger.open(tmp_path / "s")
    finally:
        other.kill()
        other.communicate()
    Ledger.open(tmp_path / "s").close()


def test_reading_a_study_does_not_load_jax_or_numpy(ledger):
    code = "LedgerReader.open(sys.argv[1]).progress(); print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    rc, out, err = python(f"import vmaptune.store.tables\n{code}", ledger.directory)
    assert (rc, out.strip()) == (0, "set()"), err


# ---- what a person does wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_an_existing_study_is_never_overwritten(ledger, finished):
    ledger.add_trials([row(0), row(1, state=State.COMPLETE), row(2, state=State.COMPLETE)])
    ledger.set_meta(FINISHED, finished)
    ledger.close()
    before = (ledger.directory / "study.db").read_bytes()
    said = "finished" if finished else "not finished"
    with pytest.raises(InputError, match=rf"\({said}; trials: 1 RUNNING, 2 COMPLETE\); choose another --out, or del"):
        Ledger.create(ledger.directory, {})
    assert (ledger.directory / "study.db").read_bytes() == before


def test_a_file_that_is_no_study_is_not_overwritten_either(tmp_path):
    (tmp_path / "study.db").write_bytes(b"my own notes")
    with pytest.raises(InputError, match=r"no readable study.*choose another --out"):
        Ledger.create(tmp_path, {})
    assert (tmp_path / "study.db").read_bytes() == b"my own notes"


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (
        tmp_path / "file",
        tmp_path / "file" / "below",
        tmp_path / "file" / "a" / "b",
        tmp_path / "n\0l",
    ):
        with pytest.raises(InputError, match=r"choose another --out|give a directory"):
            Ledger.create(path, {})
    assert (tmp_path / "file").read_text() == ""


def test_meta_that_cannot_be_stored_leaves_no_study(tmp_path):
    with pytest.raises(InputError, match="meta name"):
        Ledger.create(tmp_path / "s", {"name": object()})
    assert list((tmp_path / "s").iterdir()) == []
    Ledger.create(tmp_path / "s", {}).close()


@pytest.mark.parametrize("name", ["none", "file", "a?b#c%41"])
def test_no_study_there(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"holds no study"):
        LedgerReader.open(tmp_path / name)


def test_odd_names_of_directories(tmp_path):
    for name in ("a?mode=rw#c%41", "with space", "ü", "-x"):
        with Ledger.create(tmp_path / name, {"name": name}), LedgerReader.open(tmp_path / name) as reader:
            assert reader.meta() == {"name": name}


# ---- damage ----------------------------------------------------------------------------------------------


def closed(ledger, trials=200):
    ledger.add_trials([row(t) for t in range(trials)])
    ledger.close()
    return ledger.directory / "study.db"


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, b"SQLite format 3\0", b"\0" * 8192])
def test_garbage_is_a_study_error(ledger, content):
    closed(ledger).write_bytes(content)
    for opener in (LedgerReader.open, Ledger.open):
        with pytest.raises(StudyError, match=r"study\.db"):
            opener(ledger.directory)


def read_all(directory):
    with LedgerReader.open(directory) as reader:
        return reader.meta(), reader.trials(), reader.counts(), reader.progress()


def test_damage_anywhere_is_a_study_error_or_harmless(ledger):
    """Pages overwritten or cut off: an error with the name, never another kind of exception."""
    path = closed(ledger)
    whole = path.read_bytes()
    refused = 0
    for page in range(len(whole) // 4096):
        for damaged in (
            whole[: page * 4096] + b"\xff" * 4096 + whole[(page + 1) * 4096 :],
            whole[: page * 4096 + 100],
        ):
            path.write_bytes(damaged)
            try:
                read_all(ledger.directory)
            except StudyError as error:
                refused += str(ledger.directory) in str(error)
    assert refused >= 3 * (len(whole) // 4096) // 4


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE trials SET params = '{'",
        "UPDATE trials SET state = 'LOST'",
        "UPDATE trials SET value = 'abc'",
        "UPDATE meta SET value = x'ff'",
        "UPDATE meta SET value = cast(x'ff' AS TEXT)",
        "DROP TABLE trials",
    ],
)
def test_rows_that_were_tampered_with(ledger, sql):
    path = closed(ledger)
    with sqlite3.connect(path) as connection:
        connection.execute(sql)
    connection.close()
    with pytest.raises(StudyError, match=r"study\.db cannot be read"):
        read_all(ledger.directory)


def test_another_database_and_a_newer_schema(ledger):
    path = closed(ledger)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for opener in (LedgerReader.open, Ledger.open):
        with pytest.raises(StudyError, match=r"newer vmaptune \(schema 99; this one knows 2\); upgrade"):
            opener(ledger.directory)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (x)")
    connection.close()
    with pytest.raises(StudyError, match="not a vmaptune study"):
        LedgerReader.open(ledger.directory)


# ---- tables ----------------------------------------------------------------------------------------------


def test_csv_is_exact_guarded_and_written_whole(ledger, tmp_path):
    ledger.add_trials([
        row(0, state="COMPLETE", value=-0.1 + -0.2, steps=9, params={"lr": 1e-05, "act": "=1+1", "b": True}),
        row(1, state="FAIL", reason='@x, "y"', value=-math.inf, params={"lr": -1.5, "act": "-x", "n": 3}),
        row(2, params={"lr": None, "act": "\tx", "n": (1, 0.5)}),
    ])  # fmt: skip
    path = tmp_path / "out" / "trials.csv"
    text = trials_csv(ledger, path)
    assert text == (
        "trial,round,state,reason,seed,steps,value,params.lr,params.act,params.b,params.n\n"
        "0,0,COMPLETE,,1,9,-0.30000000000000004,1e-05,'=1+1,True,\n"
        '1,0,FAIL,"\'@x, ""y""",1,0,-inf,-1.5,\'-x,,3\n'
        '2,0,RUNNING,,1,0,,,\'\tx,,"(1, 0.5)"\n'
    )
    assert path.read_bytes().decode() == text
    assert [item.name for item in path.parent.iterdir()] == ["trials.csv"]
    assert trials_csv(ledger) == text


def test_csv_of_no_trials_and_to_nowhere(ledger, tmp_path):
    assert trials_csv(ledger) == "trial,round,state,reason,seed,steps,value\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"trials\.csv cannot be written"):
        trials_csv(ledger, tmp_path / "file" / "trials.csv")


ROWS = [
    {"trial": 1, "value": 0.123456789, "name": "a", "more": 1},
    {"trial": 20, "value": math.nan, "name": "\x1b[31m=b", "params": (1, math.inf)},
]


def test_rows_as_a_table():
    assert format_rows(ROWS, ["trial", "value", "name"], "table") == (
        "trial    value  name\n    1  0.12346  a\n   20      nan  \\x1b[31m=b"
    )
    assert format_rows([], ["trial", "value"], "table") == "trial  value"


def test_rows_as_csv_and_json():
    assert format_rows(ROWS[:1], ["trial", "value", "gone"], "csv") == "trial,value,gone\n1,0.123456789,"
    found = json.loads(format_rows(ROWS, ["trial", "value", "params"], "json"), parse_constant=pytest.fail)
    assert found == [
        {"trial": 1, "value": 0.123456789, "params": None},
        {"trial": 20, "value": None, "params": [1, None]},
    ]
    with pytest.raises(InputError, match="one of table, csv, json, but got 'xml'"):
        format_rows(ROWS, ["trial"], "xml")
