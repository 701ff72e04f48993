"""The tasks in closed form, and how the search is judged on them at many numbers of trainings."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from quality import _closed, _methods, _page, _sizes

import vmaptune as vt


@pytest.mark.parametrize("task", _closed.WORKS, ids=lambda task: task.name)
def test_a_task_is_a_formula_of_its_space_with_a_seeds_luck(task):
    formula = _closed.Formula(task)
    rows = task.space.rows(task.space.sample(64, 1))
    true = formula.true(rows)
    assert true.shape == (64,)
    assert np.isfinite(true).mean() > 0.5
    again = [formula.values([(row, 5) for row in rows]) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert formula.values([(rows[3], 7)])[0] == pytest.approx(formula.values([(r, 7) for r in rows])[3], nan_ok=True)
    good = int(np.nanargmin(true))
    drawn = np.array(formula.values([(rows[good], seed) for seed in range(2000)]))
    spread = math.hypot(task.noise, task.share * true[good])
    assert drawn.std() == pytest.approx(spread, rel=0.1)
    assert drawn.mean() == pytest.approx(true[good], abs=5 * spread / math.sqrt(2000) + 0.01 * spread)


def test_luck_is_normal():
    assert stats.kstest(_closed.luck(np.arange(5000, dtype=np.uint64)), "norm").pvalue > 1e-3


def made(true, worse, seconds=1.0):
    return {
        "true": true,
        "seconds": [seconds] * len(true),
        "worse": [worse] * len(true),
        "outside": [[0.0] * len(worse)],
    }


def tables(zoom_64, zoom_256, worse=(0.5, 0.1, 0.05)):
    found = {}
    for n, ours in ((64, zoom_64), (256, zoom_256)):
        rivals = {m: made([1.5] * 6, [0.5]) for m in ("random", "random 2x", "random 4x", "sobol", "tpe")}
        found[n] = {"valley": {"zoom": made(ours, list(worse), 0.5), **rivals}}
    return found


def ok(found):
    return {row["name"]: row["ok"] for row in _sizes.judged(found)}


def test_bars_on_made_up_results():
    better, good = [1.1, 1.2, 1.0, 1.1, 1.2, 1.0], [1.0, 1.1, 0.9, 1.0, 1.1, 0.9]
    assert all(ok(tables(better, good)).values())
    worse = ok(tables(good, better))
    assert [name for name, fine in worse.items() if not fine] == [
        "tasks whose winner is truly worse with more trainings"
    ]
    forgotten = ok(tables(better, good, worse=(0.5, 0.1, 0.4)))
    assert not forgotten["64: largest share of a round, from the third on, worse than the first's median"]
    assert not forgotten["256: largest rise of that share from a round to the next, mean over tasks"]
    lost = ok(tables([2.0] * 6, [2.0] * 6))
    assert not lost["64: tasks on which it beats random 2x"]
    assert not lost["64: mean rank of tpe less its own"]


def test_a_study_tells_how_its_rounds_went():
    formula = _closed.Formula(_closed.WORKS[0])
    found = _methods.drive(formula, {0: _methods.zoom(formula.space, 64, 0)})[0]
    assert len(found.more["worse"]) == 6
    assert found.more["worse"][0] == pytest.approx(0.5)
    assert max(found.more["worse"][2:]) <= _sizes.WORSE
    assert found.more["outside"][0] == 0


def test_the_page_keeps_what_is_before_the_section(tmp_path):
    (tmp_path / "search-quality.md").write_text("# Before\n\n## From 64 to 8,192 trainings\n\nold\n", encoding="utf-8")
    _page.write_closed(_sizes.judged(tables([1.0] * 6, [1.0] * 6)), 6, tmp_path)
    text = (tmp_path / "search-quality.md").read_text(encoding="utf-8")
    assert text.startswith("# Before\n\n## From 64")
    assert "old" not in text
    assert "| 64: tasks on which it beats random 2x | 1 | >= 1 of 1 | yes |" in text


def worse_shares(task, trials, seed):
    """Of each round of a search, the share of trials that are worse than the first one's median."""
    formula = _closed.Formula(task)
    sampler = vt.Sampler(formula.space, trials=trials, seed=seed)
    shares, median = [], math.nan
    while len(shares) < len(sampler.budget.rounds):
        asked = sampler.ask(trials)
        values = np.array(formula.values([(a.params, a.seed) for a in asked]))
        values[~np.isfinite(values)] = math.inf
        median = median if shares else float(np.median(values))
        shares.append(np.mean(values > median))
        if len(shares) < len(sampler.budget.rounds):
            sampler.tell({a.trial: v for a, v in zip(asked, values, strict=True)})
    return shares


def test_no_round_of_a_long_search_goes_where_it_is_known_to_be_bad():
    assert max(worse_shares(_closed.WORKS[0], 512, 1)[2:]) <= 0.15


def test_few_trials_cross_the_edge_beyond_which_all_diverge():
    (task,) = (work for work in _closed.WORKS if work.name == "cliff")
    shares = [worse_shares(task, 256, seed)[2:] for seed in (1, 4)]  # with a smooth edge 0.23, and in one round all
    assert np.mean(shares) <= 0.1
    assert np.max(shares) <= 0.5
