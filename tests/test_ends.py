"""Where people run commands: streams that cannot be written, two processes at once, other folders, helper modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.experiment import load_experiment
from vmaptune.store.ledger import Ledger, LedgerReader
from vmaptune.study._options import Options
from vmaptune.study._resume import study_meta

ROOT = Path(__file__).parent.parent
TASK = """
import jax, vmaptune as vt

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-2, 1.0)},
    task=vt.Task(lambda hp, key: jax.random.normal(key, (2,)), lambda x, hp, key: x - hp.rate * x,
                 lambda x, hp: {"loss": (x**2).mean()}),
    steps=4, name="größe",
)
"""
PLAIN = {"PYTHONIOENCODING": "", "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*argv: str, cwd: Path, how: str = "", entry=("-m", "vmaptune"), **environment: str):
    """One command in a process of its own, by the shell, with `how` behind it."""
    line = " ".join(f"'{word}'" for word in (sys.executable, *entry, *argv))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        f"{line} {how}", shell=True, capture_output=True, timeout=120, cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The folder of an experiment and its study, which ran where its notes and errors could not be written."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "exp.py").write_text(TASK, encoding="utf-8")
    done = command(
        "run",
        "exp.py",
        "--trials",
        "8",
        "--rounds",
        "1",
        "--out",
        "s",
        "--no-report",
        cwd=folder,
        how="2>/dev/full",
        **PLAIN,
    )
    assert done.returncode == 0, done
    assert b"the setting to use" in done.stdout
    return folder


def test_a_terminal_that_knows_ascii_alone_gets_other_characters(study):
    with LedgerReader.open(study / "s") as reader:
        assert reader.finished()
    strict = {**PLAIN, "PYTHONIOENCODING": "ascii:strict"}
    for streams, *argv in ((PLAIN, "best", "s"), (strict, "watch", "s", "--once"), (strict, "check", "exp.py")):
        done = command(*argv, cwd=study, **streams)
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode("ascii")
        assert b"Unicode" not in done.stderr


@pytest.mark.parametrize("how", [">&- 2>&- <&-", ">/dev/full"])
def test_a_study_ends_well_where_nobody_can_be_told(study, tmp_path, how):
    done = command(
        "run", str(study / "exp.py"), "--trials", "8", "--rounds", "1", "--out", str(tmp_path / "s"), "--no-report",
        cwd=tmp_path, how=how,
    )  # fmt: skip
    assert (done.returncode != 0) == (how == ">/dev/full"), done
    assert b"Traceback" not in done.stderr
    if how == ">/dev/full":
        assert b"error: the output could not be written: No space left" in done.stderr
    with LedgerReader.open(tmp_path / "s") as reader:
        assert reader.finished()


def test_a_pipe_of_notes_that_nobody_reads_stops_no_study(study, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "vmaptune", "run", str(study / "exp.py"), "--trials", "8", "--rounds", "1", "--out",
         str(tmp_path / "s"), "--no-report"],
        stdout=subprocess.PIPE, stderr=writing, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0
    assert vt.load(tmp_path / "s").ledger.finished()


def test_a_listener_writes_what_its_stream_takes(tmp_path):
    stream = (tmp_path / "log").open("w", encoding="ascii")
    view = vt.live(stream)
    view.say("±")
    stream.close()
    view.say("nobody")
    assert (tmp_path / "log").read_text() == "?\n"


def test_the_loser_of_two_that_start_together_is_told_who_holds_the_study(tmp_path):
    holder = Ledger.create(tmp_path / "s", {"state": "running"})
    try:
        for _ in range(2):
            with pytest.raises(
                InputError, match=rf"another run \(process {os.getpid()} on .*wait for it, stop it"
            ) as error:
                Ledger.create(tmp_path / "s", {})
            assert "delete" not in str(error.value)
        (tmp_path / "s" / "writer.json").unlink()  # it has not come to that yet
        with pytest.raises(InputError, match=r"is being written by another run; wait for it"):
            Ledger.create(tmp_path / "s", {})
    finally:
        holder.close()
    with pytest.raises(InputError, match="already holds a study"):
        Ledger.create(tmp_path / "s", {})


# ---- experiments' files ------------------------------------------------------------------------------

GUARDED = TASK + "\nif __name__ == '__main__':\n    vt.run(experiment)\n"
CALLS = ["run(experiment)", "check(experiment)", "replay('s', 0)", "resume('s')", "retest('s')", "panda(experiment)"]


@pytest.mark.parametrize("call", CALLS)
def test_a_file_that_trains_while_it_is_imported_is_told_and_trains_nothing(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    Path("exp.py").write_text(TASK + f"\nvt.{call}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"must not call vt\.\w+ then; put the call under\s`if __name__") as error:
        load_experiment("exp.py")
    assert f"vt.{call}" in str(error.value)
    assert not Path("runs").exists()
    Path("exp.py").write_text(GUARDED, encoding="utf-8")
    assert load_experiment("exp.py").experiment.name == "größe"


def test_a_file_that_reads_the_command_line_or_imports_relatively_is_told_the_way_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exp.py").write_text(
        "import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n" + TASK, encoding="utf-8"
    )
    with pytest.raises(
        InputError, match=r"SystemExit: 2\n.*parse_args.*\n.*must not end the process.*if __name__.*--set"
    ):
        load_experiment("exp.py")
    Path("helper.py").write_text("x = 1\n")
    Path("exp.py").write_text("from .helper import x\n" + TASK, encoding="utf-8")
    with pytest.raises(InputError, match=rf"relative import.*\n.*\n.*way out: {tmp_path} is where.*without a dot"):
        load_experiment("exp.py")


def test_modules_of_the_folder_are_found_alike_by_both_commands(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "helper.py").write_text("STEPS = 3\n")
    (tmp_path / "experiments").mkdir()
    source = "from pkg.helper import STEPS\n" + TASK.replace("steps=4", "steps=STEPS")
    (tmp_path / "experiments" / "exp.py").write_text(source, encoding="utf-8")
    script = tmp_path / "bin" / "vmaptune"
    script.parent.mkdir()
    script.write_text("from vmaptune.cli import command\ncommand()\n")
    for entry in (("-m", "vmaptune"), (str(script),)):
        done = command("check", "experiments/exp.py", "--trials", "8", cwd=tmp_path, entry=entry)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def with_helpers(tmp_path, monkeypatch):
    """An experiment that imports a package of its own, and what of this process that leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text("")
    Path("mine/first.py").write_text("from . import second\n")
    Path("mine/second.py").write_text("RATE = 1.0\n")
    Path("exp.py").write_text("import numpy\nfrom mine import first\n" + TASK, encoding="utf-8")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_the_files_that_an_experiment_imports_are_known(with_helpers):
    files = load_experiment("exp.py").files
    assert [Path(file).relative_to(with_helpers).as_posix() for file in files] == [
        "mine/__init__.py", "mine/first.py", "mine/second.py",
    ]  # fmt: skip


def test_a_helper_that_changed_since_a_study_began_is_noticed(with_helpers):
    loaded = load_experiment("exp.py")
    meta = study_meta(loaded.experiment, Options(trials=8, rounds=1), (), loaded)
    with Ledger.create("s", meta) as ledger:
        ledger.add_round(0, "search", loaded.experiment.space.to_json(), 8)
    shutil.copytree("s", "old")
    Path("mine/second.py").write_text("RATE = 2.0\n")
    for go_on in (lambda: vt.resume("s"), lambda: vt.run("exp.py", out="s")):
        with pytest.raises(InputError, match=r"mine/second\.py, which the experiment imports, has changed.*--force"):
            go_on()
    with pytest.raises(InputError, match=r"mine/second\.py, which .*exp\.py imports, has changed"):
        vt.load("s")._own_experiment(None)
    Path("mine/second.py").write_text("RATE = 1.0\n")
    assert vt.load("s")._own_experiment(None).steps == 4


SUPERVISED = """
import jax, numpy as np, optax, vmaptune as vt

def data():
    x = np.load("rows.npy")
    return vt.Data(train=(x, x[:, 0]), valid=(x, x[:, 0]))

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-2, 1.0)}, model=lambda hp, key: {"w": jax.random.normal(key, (4,))},
    optimizer=lambda hp: optax.sgd(hp.rate), loss=lambda m, b: ((b[0] @ m["w"] - b[1]) ** 2).mean(), data=data,
    batch_size=8, steps=4,
)
"""


def test_a_model_is_loaded_from_another_folder_and_without_its_data(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "exp.py").write_text(SUPERVISED)
    np.save(home / "rows.npy", np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    monkeypatch.chdir(home)
    vt.run("exp.py", trials=4, rounds=1, out="s", report=False)
    here = vt.load("s").best_model()
    monkeypatch.chdir(elsewhere)
    assert vt.replay(home / "s", 0).agrees  # which reads the data
    np.testing.assert_array_equal(vt.load(home / "s").best_model()["w"], here["w"])
    (home / "rows.npy").unlink()
    np.testing.assert_array_equal(vt.load(home / "s").best_model()["w"], here["w"])
    with pytest.raises(
        InputError, match=rf"rows\.npy.*\n\s+the study ran in {home}; relative paths are read from there"
    ):
        vt.replay(home / "s", 0)


@pytest.mark.parametrize("name", [5, "x" * 300, ["a"]])
def test_a_name_that_is_none_is_an_error_of_ours(name):
    with pytest.raises(InputError, match="`name` must be a text of at most 100 characters, but got"):
        vt.Experiment(space={"rate": 0.1}, task=vt.Task(lambda hp, key: 0.0, lambda s, hp, key: s, dict), name=name)


@pytest.mark.parametrize("name", ["m" * 300, "", "a\tb", "a\x00b", 3, "a\ud800b"])
def test_a_metrics_name_that_files_could_not_hold_is_an_error_of_ours(name):
    task = vt.Task(lambda hp, key: 0.0, lambda s, hp, key: s, lambda s, hp: {"loss": s, name: s})
    with pytest.raises(InputError, match="each metric's name must be a text of 1 to 100 printable characters"):
        vt.check(vt.Experiment(space={"rate": vt.uniform(0, 1)}, task=task), trials=8)


def test_unusual_metrics_names_are_kept(tmp_path):
    names = ["größe/%", "a,b;c", "<b>", "=1+1", "x" * 100, "x y", "'\"", "∑🎉"]
    task = vt.Task(
        lambda hp, key: hp.rate * 1.0, lambda s, hp, key: s, lambda s, hp: dict.fromkeys(["loss", *names], s)
    )
    experiment = vt.Experiment(space={"rate": vt.uniform(0, 1)}, task=task, steps=2)
    study = vt.run(experiment, trials=4, rounds=1, out=tmp_path / "s", report=False)
    assert set(study.trials()[0].metrics) == {"loss", *names}


def test_threads_load_experiments_side_by_side(tmp_path):
    """What is imported is known by the thread that imports."""
    (tmp_path / "exp.py").write_text("import time\ntime.sleep(0.2)\n" + TASK, encoding="utf-8")
    loading = threading.Thread(target=load_experiment, args=(tmp_path / "exp.py",))
    loading.start()
    with pytest.raises(InputError, match="holds no study"):  # and not that it is imported
        vt.replay(tmp_path / "none", 0)
    loading.join()
