"""The benchmark on public tables, on a made-up table: look-ups, counts, ranks, bars, and going on from a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import public_tables
from public import _judge, _methods, _page, _store, _tables
from public._methods import Found
from quality import _page as quality_page

from vmaptune.search.sampler import trial_seed

LEVELS = {"rate": [0.1, 0.2, 0.4, 0.8], "act": ["a", "b", "c"], "width": [8, 16, 32, 64, 128]}


def made(name="car"):
    """The best is (0.2, "c", 64). The last of the three stored seeds is not there for half of it."""
    rate, act, width = np.meshgrid(*[np.arange(len(v)) for v in LEVELS.values()], indexing="ij")
    worth = 0.1 * (rate - 1.0) ** 2 + 0.2 * np.array([1.0, 0.5, 0.0])[act] + 0.05 * (width - 3.0) ** 2
    losses = worth[..., None] + 0.01 * np.array([-1.0, 1.0, 0.0])
    losses[:2, ..., 2] = np.nan
    return _tables.Table(name, LEVELS, frozenset(["act"]), losses)


def test_a_training_is_one_of_the_stored_seeds():
    table = made()
    place = table.place({"rate": 0.2, "act": "c", "width": 64})
    assert place == (1, 2, 3)
    assert {table.loss(place, seed) for seed in range(50)} == {-0.01, 0.01}
    assert {round(table.loss((3, 2, 3), seed), 9) for seed in range(50)} == {0.39, 0.40, 0.41}
    assert table.regret(place) == 0
    means = [np.nanmean(table.losses[p]) for p in np.ndindex(4, 3, 5)]
    assert table.regret((2, 1, 0)) == pytest.approx(np.nanmean(table.losses[2, 1, 0]) / np.median(means))
    assert [d.kind for d in table.space.values()] == ["ordinal", "choice", "ordinal"]


@pytest.mark.parametrize("method", ["vmaptune", "random", "tpe", "tpe 64", "cmaes"])
def test_a_method_spends_what_it_may_and_is_the_same_again(method):
    if method != "vmaptune" and method != "random":
        pytest.importorskip("optuna")
    table, loss, asked = made(), _tables.Table.loss, []
    table.__dict__["loss"] = lambda place, seed: asked.append(place) or loss(table, place, seed)
    found = _methods.run(method, table, [64], 3)[64]
    assert 48 < found.trainings == len(asked) <= 64
    assert found.trainings == 64 or method == "vmaptune"
    assert 0 <= found.regret < 0.35
    assert any(found.regret == pytest.approx(table.regret(p)) for p in asked)
    assert _methods.run(method, made(), [64], 3)[64].regret == found.regret


def test_a_rival_hands_over_the_best_that_it_saw_at_each_size():
    table, seed = made(), 4
    found = _methods.run("random", table, [8, 20], seed)
    rival = _methods.Random(table, seed)
    places = [rival.ask(1)[0] for _ in range(20)]
    losses = [table.loss(p, trial_seed(_methods.STREAM + seed, i)) for i, p in enumerate(places)]
    for size in (8, 20):
        assert found[size].regret == table.regret(places[int(np.argmin(losses[:size]))])
        assert found[size].trainings == size
    assert _methods.run("random", table, [8], seed)[8].regret == found[8].regret


def results(**regrets):
    """Method -> a list of regrets by seed, the same on each of the tables `car`, `cifar10`."""
    return {
        (m, t, 64): {s: Found(v, 64, seconds) for s, v in enumerate(values)}
        for m, (seconds, values) in regrets.items()
        for t in ("car", "cifar10")
    }


def test_ranks_and_bars():
    runs = results(vmaptune=(1.0, [0.1] * 6), tpe=(0.5, [0.2] * 6), random=(0.0, [0.1] * 5 + [0.3]), gp=(9.0, [0.0]))
    runs["tpe", "cifar10", 64] = {s: Found(0.05, 64, 0.5) for s in range(6)}
    found = _judge.judged(runs, ["car", "cifar10"], ["vmaptune", "tpe", "random", "gp"], [64])
    one = found["sizes"]["64"]
    # car: 1.5, 3, 1.5 five times and 1, 2, 3 once; cifar10: 2.5, 1, 2.5 five times and 2, 1, 3 once
    expected = {"vmaptune": (8.5 + 14.5) / 12, "tpe": (17 + 6) / 12, "random": (10.5 + 15.5) / 12}
    assert one["ranks"] == pytest.approx(expected)
    assert one["ranks_of_all"]["gp"] == 1  # on the only seed that it was run with
    against = one["methods"]["tpe"]["beaten"]["tables"]
    assert against["car"]["gain"] == pytest.approx(0.1)
    assert against["car"]["better"]
    assert against["cifar10"]["worse"]
    assert against["car"]["p"] == pytest.approx(2 / 2**6)
    ok = {row["name"]: row["ok"] for row in found["rows"]}
    assert ok == {
        "64 trainings, 6 seeds: best rival's mean rank (tpe) less vmaptune's": False,
        "64 trainings, 1 seeds: best rival's mean rank (gp) less vmaptune's": False,
        "64 trainings: tables on which vmaptune beats TPE": False,
        "64 trainings: NAS-Bench-201 tables on which vmaptune beats TPE": False,
        "64 trainings: processor time of proposals over TPE's": False,
    }


def test_the_bars_are_twelve_of_fifteen_and_two_of_three():
    tables = list(_tables.FAMILY)
    assert len(tables) == 15
    for lost, met in ((tables[:3], True), (tables[:4], False), (tables[-2:], True)):
        runs = {("vmaptune", t, 64): {s: Found(0.1, 64, 0.5) for s in range(6)} for t in tables}
        runs |= {("tpe", t, 64): {s: Found(0.0 if t in lost else 0.2, 64, 1.0) for s in range(6)} for t in tables}
        rows = _judge.judged(runs, tables, ["vmaptune", "tpe"], [64])["rows"]
        assert rows[1]["name"].endswith("tables on which vmaptune beats TPE")
        assert rows[1]["ok"] == met
        assert rows[2]["ok"] == (lost != tables[-2:])
        assert rows[0]["ok"]
        assert rows[3]["ok"]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The command on the made-up table; which runs it began."""
    begun: list[tuple] = []
    run = _methods.run

    def noted(method, table, sizes, seed):
        begun.append((method, table.name, tuple(sizes), seed))
        return run(method, table, sizes, seed)

    monkeypatch.setattr(_tables, "load", made)
    monkeypatch.setattr(_methods, "run", noted)
    file = tmp_path / "result.json"

    def call(*arguments):
        begun.clear()
        public_tables.main(["--tables", "car,cifar10", "--json", str(file), *arguments])
        return json.loads(file.read_text()), list(begun)

    return SimpleNamespace(call=call, file=file)


def test_a_run_goes_on_from_its_file(bench, monkeypatch, capsys):
    some = ("--methods", "vmaptune,random", "--sizes", "16,24")
    first, begun = bench.call(*some, "--seeds", "2")
    assert len(begun) == 2 * 2 * 2
    assert "numpy" in first["versions"]
    again, begun = bench.call(*some, "--seeds", "3", "--append")
    assert [(m, t, seed) for m, t, _, seed in begun] == [(m, t, 2) for t in ("car", "cifar10") for m in
                                                         ("vmaptune", "random")]  # fmt: skip
    assert all(r["seeds"] == [0, 1, 2] for r in again["runs"])
    for before, after in zip(first["runs"], again["runs"], strict=True):
        assert after["regret"][:2] == before["regret"]
    fewer, begun = bench.call("--methods", "random", "--sizes", "16,24", "--seeds", "3", "--append")
    assert not begun
    assert fewer["sizes"] == again["sizes"]  # vmaptune's studies are judged along
    monkeypatch.setattr(
        _store, "source_versions", lambda package: {"bench": again["sources"]["bench"], "vmaptune": "another"}
    )
    _, begun = bench.call(*some, "--seeds", "3", "--append")
    assert {m for m, *_ in begun} == {"vmaptune"}
    assert "of another version of vmaptune's search" in capsys.readouterr().out


def test_the_section_of_the_page_is_replaced_and_kept(bench, tmp_path):
    found, _ = bench.call("--methods", "vmaptune,random", "--sizes", "16", "--seeds", "2")
    page = tmp_path / "search-quality.md"
    page.write_text("# A title\n\nsome words\n")
    _page.write_section(found, page)
    once = page.read_text()
    assert once.startswith("# A title\n\nsome words\n\n## On public tables\n")
    assert "| method | 16 trainings |" in once
    _page.write_section(found, page)
    assert page.read_text() == once
    (tmp_path / "pictures").mkdir()
    empty = {"rows": [], "ranks": {}, "tasks": {}, "times": {}, "settings": {"trials": 9, "seeds": {"zoom": [200]},
             "methods": []}}  # fmt: skip
    quality_page.write_page(empty, tmp_path)
    assert page.read_text().endswith(once[once.index("## On public tables") :])
    assert "some words" not in page.read_text()


def test_an_unknown_name_is_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench.call("--methods", "vmaptune,annealing")
    assert "--methods: annealing is none of vmaptune, random" in capsys.readouterr().err
