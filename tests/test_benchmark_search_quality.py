"""How the search-quality benchmark judges, on made-up results; and that a method's trainings are counted."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from quality import _judge, _methods, _page, _run

import vmaptune as vt

SPACE = vt.Space({"x": vt.uniform(0.0, 1.0), "act": vt.choice(["a", "b"]), "n": vt.ordinal([1, 2, 4])})


class Plain:
    """A trainer of a closed form: best at x = 0.3; it counts what it is asked for."""

    def __init__(self):
        self.asked = []

    def values(self, pairs):
        self.asked += pairs
        return [math.nan if p["x"] > 0.95 else (p["x"] - 0.3) ** 2 + 1e-3 * (seed % 7) for p, seed in pairs]


def record(median, told=None, **more):
    return {
        "median": median,
        "mean": median,
        "std": 0.5,
        "told": median if told is None else told,
        "trainings": 9,
    } | more


def made(values):
    rows = {("t", method, s): record(v) for method, column in values.items() for s, v in enumerate(column)}
    return SimpleNamespace(rows=rows, times={}, trials=9, versions={})


def test_beaten_needs_the_mean_and_the_signed_ranks():
    ours = np.zeros(10)
    assert _judge.compared(ours, ours + 1)["beaten"]
    assert not _judge.compared(ours, ours)["beaten"]
    lucky = np.array([9.0, *[-0.1] * 9])  # one large gain, nine small losses
    assert not _judge.compared(ours, lucky)["beaten"]
    assert _judge.compared(ours, lucky)["gain"] > 0
    assert _judge.compared(ours, ours + 1)["p"] == pytest.approx(1 / 1024)


def test_trapped_is_worse_by_more_than_the_spread():
    random = np.array([0.0, 1.0] * 5)
    assert _judge.compared(random + 0.6, random)["trapped"]
    assert not _judge.compared(random + 0.4, random)["trapped"]


def test_rows_and_page_from_made_results():
    ours = [1.0, 1.1, 0.9, 1.0]
    values = {"zoom": ours, "random": [v + 0.5 for v in ours], "random 2x": [v + 0.2 for v in ours],
              "random 4x": [v - 0.1 for v in ours], "sobol": [v + 0.4 for v in ours[:3]]}  # fmt: skip
    records = made(values)
    records.rows["t", "random", 1]["median"] = 1.7
    seeds = {m: range(len(column)) for m, column in values.items()}
    found = _judge.judged(records, [SimpleNamespace(name="t", trap=False)], list(values), seeds)
    ok = {row["name"]: row["ok"] for row in found["rows"]}
    assert ok["tasks on which the zoom beats random 2x"]
    assert not ok["tasks on which the zoom beats random 4x"]
    assert ok["mean rank of sobol less the zoom's"]
    assert found["ranks"] == {"zoom": 2, "random": 5, "random 2x": 3, "random 4x": 1, "sobol": 4}
    assert found["tasks"]["t"]["methods"]["zoom"]["mean"] == 1.0  # of all four studies, beside three of Sobol
    page = _page.page(found)
    assert "3 studies of each method on each, 4 of the zoom and of random search" in page
    assert "| tasks on which the zoom beats random 4x | 0 (0 of these at p < 0.05) | >= 1 of 1 | **no** |" in page
    gain, error = _page.gains(found, "t", "sobol")  # 0.1 better in two of the three studies that both have, 0.2 in one
    assert (gain, error) == pytest.approx((0.4 / 3 / found["tasks"]["t"]["methods"]["random"]["std"], error))
    assert _page.figure(found).startswith("<svg")


def test_the_time_of_a_sampler_counts_its_own():
    assert _run.trials_in(1.0, 0.1, [0.0] * 20) == 10
    assert _run.trials_in(1.0, 0.1, [0.1 * (i + 1) for i in range(20)]) == 5
    assert _run.trials_in(0.05, 0.1, [0.0] * 20) == 0


@pytest.mark.parametrize("name", ["zoom", "random 2x", "sobol", "grid", "random unconfirmed", "tpe batch", "tpe"])
def test_every_method_spends_what_it_may(name):
    if name.startswith("tpe"):
        pytest.importorskip("optuna")
    trainer = Plain()
    found = _methods.drive(trainer, {0: _run.METHODS[name](SPACE, 64, 1)})[0]
    most = 128 if name.endswith("2x") else 64
    assert found.trainings == len(trainer.asked)
    assert most * 0.75 < found.trainings <= most
    assert abs(found.params["x"] - 0.3) < 0.2


def test_neighbours_change_nothing():
    alone = _methods.drive(Plain(), {0: _run.METHODS["sobol"](SPACE, 64, 1)})[0]
    methods = {0: _run.METHODS["sobol"](SPACE, 64, 1), 1: _run.METHODS["zoom"](SPACE, 64, 2)}
    assert _methods.drive(Plain(), methods)[0] == alone
