"""Whether an old best setting is still the best: whole retests."""

from __future__ import annotations

import json

import pytest
from interrupted import Crash, content

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.search.verdict import BATCH, STILL_BEST, UNCLEAR
from vmaptune.store.ledger import Ledger, LedgerReader
from vmaptune.study import retest

# The loss of a setting is its distance from a best rate, which the code names, plus what the seed adds.
CODE = """
import jax, jax.numpy as jnp
import vmaptune as vt

BEST = 0.01
OWN = False

def init(hp, key):
    if OWN:  # what a seed adds is another number for each setting, so pairs of seeds do not help
        key = jax.random.fold_in(key, (hp.rate * 1e8).astype(jnp.uint32))
    return {"noise": 0.05 * jax.random.normal(key, ())}

def step(state, hp, key):
    return state

def evaluate(state, hp):
    return {"loss": (jnp.log10(hp.rate) - jnp.log10(BEST)) ** 2 + state["noise"]}

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-4, 1.0)}, task=vt.Task(init, step, evaluate), objective="loss", steps=2
)
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    place = tmp_path_factory.mktemp("old")
    (place / "exp.py").write_text(CODE)
    vt.run(place / "exp.py", out=place / "s", trials=96, rounds=3, report=False)
    return place / "s"


@pytest.fixture(scope="module")
def noisy(old):
    """Today's code, by which pairs of seeds do not help, so that more of them are needed."""
    path = old.parent / "noisy.py"
    path.write_text(CODE.replace("OWN = False", "OWN = True"))
    return path


@pytest.fixture(scope="module")
def whole(old, noisy):
    """A retest that nothing happened to."""
    retest(old, noisy, out=old.parent / "whole", report=False)
    return old.parent / "whole"


def test_the_same_data_say_still_best(old, tmp_path):
    study = retest(old, out=tmp_path / "again", report=False)
    found = study.result["retest"]
    assert found["verdict"] == STILL_BEST
    assert found["of"] == str(old)
    assert found["old"]["params"] in [t.params for t in vt.load(old).trials(round=3)]  # one of the finalists
    assert study.best_params == found["old"]["params"]
    with LedgerReader.open(old) as before:
        seeds = {t.seed for t in before.trials()}
    assert seeds.isdisjoint(t.seed for t in study.trials())


def test_the_two_are_compared_on_pairs_of_seeds_that_nothing_was_chosen_by(whole):
    found, rows = vt.load(whole).result["retest"], vt.load(whole).trials()
    with LedgerReader.open(whole) as reader:
        (contenders,) = [d.data for d in reader.decisions("contenders")]
        last = [row.round for row in reader.rounds() if row.kind == "confirm"][1:]
    compared = [row for row in rows if row.round in last]
    pairs = list(zip(compared[::2], compared[1::2], strict=True))
    assert len(pairs) == found["repeats"] == found["old"]["now"]["n"]
    for a, b in pairs:
        assert (a.of, b.of, a.seed) == (contenders["old"], contenders["rival"], b.seed)
    before = {row.seed for row in rows if row.round < last[0]}
    assert len({a.seed for a, _ in pairs} | before) == len(pairs) + len(rows) - len(compared)
    values = [[row.value for row in each] for each in zip(*pairs, strict=True)]
    assert found["gain"] == pytest.approx(sum(values[0]) / len(pairs) - sum(values[1]) / len(pairs))
    assert len(last) == found["looks"] == -(-len(pairs) // BATCH)


def test_too_few_pairs_leave_it_unclear(old, noisy, tmp_path, capsys):
    command = [
        "retest",
        str(old),
        "--exp",
        str(noisy),
        "--out",
        str(tmp_path / "s"),
        "--repeats",
        "3",
        "--quiet",
        "--no-report",
    ]
    assert main(command) == 0
    assert "unclear: run again with more than 3 --repeats" in capsys.readouterr().out
    assert vt.load(tmp_path / "s").result["retest"]["verdict"] == UNCLEAR


def test_other_data_say_moved_from_and_to(old, tmp_path, capsys):
    (tmp_path / "today.py").write_text(CODE.replace("BEST = 0.01", "BEST = 0.3"))
    out = tmp_path / "moved"
    command = ["retest", str(old), "--exp", str(tmp_path / "today.py"), "--out", str(out), "--quiet", "--no-report"]
    assert main([*command, "--top", "2", "--repeats", "32", "--trials", "32"]) == 0
    said = capsys.readouterr().out
    assert f"verdict on {old}: moved" in said
    assert "rate: 0.01" in said or "rate: 0.00" in said
    found = vt.load(out).result["retest"]
    assert found["new"]["params"]["rate"] == pytest.approx(0.3, rel=0.6)
    assert found["p"] < found["level"] / 2
    assert vt.load(out).best_params == found["new"]["params"]
    assert found["gain"] > 0
    assert vt.load(old).meta["result"] == json.loads(json.dumps(vt.load(old).meta["result"]))  # untouched


class CrashInRound(Crash):
    def __init__(self, n, number):
        super().__init__(n)
        self.number = number

    def progress(self, progress):
        if progress.round == self.number and progress.phase in ("search", "confirm"):
            super().progress(progress)


@pytest.mark.parametrize(
    ("number", "n", "every"), [(0, 1, 60), (1, 2, 0), (2, 3, 0), (3, 1, 60), (4, 2, 60), (5, 2, 0)]
)
def test_a_retest_that_was_interrupted_goes_on_as_one(old, noisy, whole, tmp_path, number, n, every):
    with pytest.raises(MemoryError):
        retest(old, noisy, out=tmp_path / "s", listener=CrashInRound(n, number), save_every=every, report=False)
    assert main(["resume", str(tmp_path / "s"), "--quiet", "--no-report"]) == 0
    assert content(tmp_path / "s") == content(whole)
    assert vt.load(tmp_path / "s").result["retest"] == vt.load(whole).result["retest"]


def test_a_retest_of_an_earlier_version_cannot_be_gone_on_with(old, tmp_path, capsys):
    with pytest.raises(MemoryError):
        retest(old, out=tmp_path / "s", listener=CrashInRound(1, 1), report=False)
    with Ledger.open(tmp_path / "s") as ledger:
        plan = ledger.meta()["retest"]
        ledger.set_meta("retest", {name: value for name, value in plan.items() if name not in ("most", "seeds")})
    assert main(["resume", str(tmp_path / "s"), "--quiet", "--no-report"]) == 2
    assert "earlier version" in capsys.readouterr().err


def test_what_cannot_be_retested_is_said(old, tmp_path, capsys):
    assert main(["retest", str(tmp_path / "none")]) == 2
    assert main(["retest", str(old), "--repeats", "1"]) == 2
    assert "--repeats must be at least 2" in capsys.readouterr().err
