"""What a study directory holds is data: nothing in it runs, nothing is unpickled, and no path leads out of it."""

from __future__ import annotations

import ast
import csv
import hashlib
import pickle
import shutil
import sqlite3
import sys
from pathlib import Path

import jax
import pytest
from interrupted import COMMAND, OPTIONS, TASK, Crash

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.errors import InputError, StudyError
from vmaptune.store.files import write_whole
from vmaptune.store.ledger import Ledger
from vmaptune.study import resume

SOURCE = Path(vt.__file__).parent
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.fixture(scope="module")
def study(file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "s"
    vt.run(file, out=out, **OPTIONS).close()
    return out


class Bomb:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return exec, (f"open({str(self.victim)!r}, 'w')",)


def calls(path: Path) -> set[str]:
    """The names of all functions that a file calls, and the modules that it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            found.add(f".{node.func.attr}" if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
            found |= {f"{k.arg}=True" for k in node.keywords if getattr(k.value, "value", None) is True}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_no_code_of_ours_can_unpickle_and_one_file_alone_runs_code():
    runs_code = set()
    for path in SOURCE.rglob("*.py"):
        found = calls(path)
        assert not found & UNPICKLERS, path
        assert "allow_pickle=True" not in found, path
        if found & {"exec", "eval", ".run_path", ".exec_module", ".load_module"}:
            runs_code.add(path.relative_to(SOURCE).as_posix())
    assert runs_code == {"experiment/_load.py"}


def test_nothing_in_a_study_runs_when_it_is_looked_at(study, tmp_path, capsys):
    place, victim = tmp_path / "s", tmp_path / "ran"
    shutil.copytree(study, place)
    bomb = f"open({str(victim)!r}, 'w')\n"
    for name in ("experiment.py", "sitecustomize.py", "vmaptune.py", "conftest.py", "best/__init__.py", "numpy.py"):
        (place / name).write_text(bomb)
    (place / "checkpoints").mkdir(exist_ok=True)
    for name in ("best/best.weights", "checkpoints/000000000009.ckpt", "trials.pkl", "best/best.pkl"):
        (place / name).write_bytes(pickle.dumps(Bomb(victim)))
    unpickled: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class" and watching:
            unpickled.append(str(arguments))
        if event == "exec" and watching and str(place) in str(getattr(arguments[0], "co_filename", "")):
            unpickled.append(str(arguments))

    watching = True
    sys.addaudithook(hook)
    try:
        for command in (
            ["status", str(place)],
            ["trials", str(place), "--format", "csv"],
            ["best", str(place)],
            ["watch", str(place), "--once"],
            ["export", str(place), "--to", "csv"],
            ["export", str(place), "--to", "json"],
            ["rescue", str(place), "--to", str(tmp_path / "new")],
            ["resume", str(place)],
        ):
            assert main(command) == (2 if command[0] == "resume" else 0), command  # it is finished
        loaded = vt.load(place)
        assert loaded.best_trial.trial == loaded.best["trial"]
        with pytest.raises(StudyError, match="is not a weights file"):
            loaded.best_model()
    finally:
        watching = False
    assert unpickled == []
    assert not victim.exists()
    pickle.loads(pickle.dumps(Bomb(victim)))  # the bomb itself works
    assert victim.exists()
    capsys.readouterr()


@pytest.mark.parametrize("how", ["inside", "relative", "changed"])
def test_a_model_is_not_rebuilt_by_code_that_the_study_brings(study, tmp_path, monkeypatch, how):
    place, victim = tmp_path / "s", tmp_path / "ran"
    shutil.copytree(study, place)
    code = f"open({str(victim)!r}, 'w')\n" + TASK
    (place / "experiment.py").write_text(code)
    outside = tmp_path / "elsewhere.py"
    outside.write_text(code + "# other\n")
    path = {"inside": place / "experiment.py", "relative": "s/experiment.py", "changed": outside}[how]
    with Ledger.open(place) as ledger:
        origin = dict(ledger.meta()["experiment"])
        digest = hashlib.sha256(code.encode()).hexdigest()
        ledger.set_meta("experiment", origin | {"path": str(path), "spec": str(path), "sha256": digest})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="has changed" if how == "changed" else "what a study holds is not run"):
        vt.load(place).best_model()
    assert main(["replay", str(place), "0"]) == 2
    assert not victim.exists()


def test_resume_says_which_code_it_runs_before_it_runs(file, tmp_path, capsys):
    loud, out = tmp_path / "loud.py", tmp_path / "s"
    loud.write_text("import sys\nprint('I RUN', file=sys.stderr)\n" + TASK)
    with pytest.raises(MemoryError):
        vt.run(loud, out=out, listener=Crash(8), **OPTIONS)
    capsys.readouterr()
    assert main(["resume", str(out), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.index(f"runs the code of {loud}") < said.index("I RUN")


@pytest.mark.parametrize("folder", ["best", "checkpoints"])
def test_a_study_writes_through_no_link(file, tmp_path, folder):
    out, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / folder).symlink_to(elsewhere)
    with pytest.raises(StudyError, match="is a link"):
        vt.run(file, out=out, save_every=0, **OPTIONS)
    assert list(elsewhere.iterdir()) == []
    (out / folder).unlink()
    resume(out)
    assert vt.load(out).ledger.finished()


def test_exports_and_pictures_go_through_no_link(study, tmp_path):
    place, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    shutil.copytree(study, place)
    (elsewhere / "tensorboard").mkdir(parents=True)
    (elsewhere / "trials.csv").write_text("mine")
    (place / "export").symlink_to(elsewhere)
    assert main(["export", str(place), "--to", "csv"]) == 1
    assert (elsewhere / "trials.csv").read_text() == "mine"
    (place / "trials.csv").unlink()
    (place / "trials.csv").symlink_to(elsewhere / "trials.csv")
    write_whole(place / "trials.csv", b"ours")
    assert (elsewhere / "trials.csv").read_text() == "mine"  # the link was replaced
    assert not (place / "trials.csv").is_symlink()
    shutil.move(place / "study.db", elsewhere / "study.db")
    (place / "study.db").symlink_to(elsewhere / "study.db")
    with pytest.raises(StudyError, match="is a link"):
        Ledger.open(place)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a\nb", "c:evil"])
def test_an_experiments_name_leads_nowhere_else(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    task = vt.Task(
        lambda hp, key: {"x": jax.random.normal(key, ())}, lambda s, hp, key: s, lambda s, hp: {"loss": s["x"]}
    )
    experiment = vt.Experiment(space={"a": vt.uniform(0, 1)}, task=task, objective="loss", steps=2, name=name)
    with pytest.raises(InputError, match="cannot name a directory"):
        vt.run(experiment, trials=4)
    assert list(tmp_path.iterdir()) == []


def test_names_are_escaped_in_every_table(tmp_path, capsys):
    """A spreadsheet computes nothing, SQL is no SQL, and the terminal obeys no escape."""
    hostile = ["=HYPERLINK(1)", "+1+1", "@SUM(1)", "-2+3", "'); DROP TABLE trials; --", "<script>x</script>", "\x1b[2J"]
    text = TASK.replace('"width": vt.ordinal([3, 5])', f'"width": vt.ordinal([3, 5]), "name": vt.choice({hostile!r})')
    text = text.replace('"loss": (', '"=1+1": 0.0, "\'); DROP TABLE trials; --": 0.0, "loss": (')
    (tmp_path / "exp.py").write_text(text)
    out = tmp_path / "s"
    assert main(["run", str(tmp_path / "exp.py"), "--out", str(out), *COMMAND, "--no-report", "--set", "width=3"]) == 0
    capsys.readouterr()
    with sqlite3.connect(out / "study.db") as plain:
        assert plain.execute("SELECT count(*) FROM trials").fetchone() == (40,)
    plain.close()
    assert main(["export", str(out), "--to", "csv"]) == 0
    for path in (out / "trials.csv", out / "export" / "trials.csv"):
        cells = [cell for line in csv.reader(path.read_text().splitlines()) for cell in line]
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in cells)
        assert not any(cell.startswith("-") for cell in cells if not is_number(cell))
        assert "'=HYPERLINK(1)" in cells
    capsys.readouterr()
    assert main(["trials", str(out)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
