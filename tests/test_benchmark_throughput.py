"""The throughput benchmark's rows, ratios and bars, on made-up times; and its workloads' counts of operations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import throughput_table as t
from works import WORKS


def timed(work: str, method: str, *us: float, compile_s: float = 0.0, startup_s: float = 0.0) -> dict:
    times = [{"seconds": value * 1e-6 * 50, "model_steps": 50} for value in us]
    return t.row_of(work, method, times, {"compile_s": compile_s, "startup_s": startup_s, "setting": ""})


def test_a_row_is_the_median_and_its_spread_the_quartiles():
    row = timed("mlp_8_32", "loop", 90.0, 10.0, 20.0, 30.0, 40.0)
    assert row["us_per_model_step"] == pytest.approx(30.0)
    assert row["spread"] == pytest.approx((40 - 20) / 30)
    assert timed("mlp_8_32", "loop", 7.0)["spread"] == 0.0


def test_compile_and_import_are_given_apart_and_included():
    row = timed("mlp_8_32", "loop", 30.0, compile_s=2.0, startup_s=0.56)
    assert (row["compile_s"], row["startup_s"]) == (2.0, 0.56)
    assert row["us_included"] == pytest.approx(30.0 + 2.56e6 / 256_000)


def test_own_is_compared_with_own_and_everything_else_with_shared():
    rows = {
        r["method"]: r
        for r in t.with_ratios(
            [
                timed("mlp_8_32", "vmaptune", 4.0),
                timed("mlp_8_32", "vmaptune_shared", 2.0),
                timed("mlp_8_32", "scan", 10.0),
                timed("mlp_8_32", "torch_vmap_compile", 6.0),
                timed("mlp_8_32", "torch_vmap_compile_own", 10.0),
                timed("mlp_8_32", "bound", 0.5),
            ]
        )
    }
    ratios = {method: row["ratio"] for method, row in rows.items()}
    assert ratios == pytest.approx(
        {"vmaptune": 1, "vmaptune_shared": 1, "scan": 5, "torch_vmap_compile": 3, "torch_vmap_compile_own": 2.5,
         "bound": 0.25}
    )  # fmt: skip
    assert rows["scan"]["ratio_to_own"] == pytest.approx(2.5)


def test_a_row_without_a_time_has_no_ratio_and_is_not_judged():
    rows = t.with_ratios(
        [
            timed("mlp_8_32", "vmaptune_shared", 2.0),
            {"work": "mlp_8_32", "method": "sklearn", "us_per_model_step": None, "note": "not installed"},
            timed("mlp_32_64", "loop", 2.0),
        ]
    )
    assert [row["ratio"] for row in rows] == [1, None, None]
    assert t.bars(rows) == []
    assert "not installed" in t.table(rows)


def test_the_bars_are_those_of_the_table_and_say_ok_or_miss():
    rows = t.with_ratios(
        [
            timed("mlp_32_64", "vmaptune", 13.9),
            timed("mlp_32_64", "vmaptune_shared", 13.0),
            timed("mlp_32_64", "loop", 7 * 13.0 + 0.1),
            timed("mlp_32_64", "scan", 2.4 * 13.0 - 0.1),
            timed("mlp_32_64", "torch_vmap_compile_own", 1.65 * 13.9 + 0.1),
            timed("mlp_32_64", "bound", 0.61 * 13.0),
            timed("cnn_8_16", "vmaptune_shared", 100.0),
            timed("cnn_8_16", "vmap", 801.0),
            timed("cnn_8_16", "scan", 499.0),
            timed("gru", "vmaptune_shared", 100.0),
            timed("gru", "loop", 500.0),
            timed("gru", "scan", 99.0),
        ]
    )
    judged = t.bars(rows)
    assert [(bar["work"], bar["bar"].split()[-1], bar["target"], bar["ok"]) for bar in judged] == [
        ("mlp_32_64", "loop", 7, True),
        ("mlp_32_64", "scan", 2.4, False),
        ("mlp_32_64", "torch_vmap_compile_own", 1.65, True),
        ("mlp_32_64", "bound", 0.6, True),
        ("cnn_8_16", "vmap", 8, True),
        ("cnn_8_16", "scan", 5, False),
        ("gru", "vmap", 1, False),
    ]
    printed = t.verdict(judged).splitlines()
    assert [line.split()[0] for line in printed] == ["ok", "MISS", "ok", "ok", "ok", "MISS", "MISS"]


def test_a_gpu_has_bars_of_its_own():
    rows = t.with_ratios(
        [timed("mlp_32_64", "vmaptune_shared", 1.0), timed("mlp_32_64", "loop", 1.0), timed("mlp_32_64", "scan", 199.0)]
    )
    assert [(bar["bar"], bar["ok"]) for bar in t.bars(rows)] == [
        ("faster than loop", False),
        ("faster than scan", True),
    ]
    assert [(bar["target"], bar["ok"]) for bar in t.bars(rows, "gpu")] == [(200, False)]
    assert t.bars(rows, "tpu") == []


def test_what_was_disturbed_is_marked_and_not_judged():
    ours, loop, scan = (timed("mlp_8_32", method, 1.0) for method in ("vmaptune_shared", "loop", "scan"))
    rows = t.with_ratios([ours, {**loop, "disturbed": True}, scan])
    assert [bar["bar"] for bar in t.bars(rows)] == ["faster than scan"]
    assert [line.count("~") for line in t.table(rows).splitlines()[1:4]] == [0, 1, 0]
    assert t.bars(t.with_ratios([{**ours, "disturbed": True}, loop, scan])) == []


def test_rows_measured_again_replace_the_old_ones_with_their_own_ratio():
    old = t.with_ratios([timed("gru", "vmaptune_shared", 10.0), timed("gru", "scan", 30.0), timed("gru", "vmap", 20.0)])
    new = t.with_ratios([timed("gru", "vmaptune_shared", 20.0), timed("gru", "scan", 40.0)])
    rows = {row["method"]: row["ratio"] for row in t.merged(old, new)}
    assert rows == pytest.approx({"vmap": 2.0, "vmaptune_shared": 1.0, "scan": 2.0})
    assert len(t.merged(old, new)) == 3


def test_operations_are_those_counted_by_hand():
    work = WORKS["mlp_8_32"]
    assert work.weights() == 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert work.counted_operations() == 6 * 32 * (512 + 64 + 80)
    assert work.operations() == 32 * (4 * 512 + 6 * 64 + 6 * 80)  # the images need no gradient
    cnn = WORKS["cnn_28_8"]
    assert cnn.weights() == 9 * 8 + 8 + 9 * 8 * 16 + 16 + 160 + 10
    assert cnn.counted_operations() == 6 * 32 * (28 * 28 * 9 * 8 + 14 * 14 * 9 * 8 * 16 + 160)


@pytest.mark.parametrize("name", WORKS)
def test_the_models_have_the_weights_that_the_bound_counts(name):
    from flax import nnx

    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "peers"))
    import jax
    from _jax_models import model_of

    work = WORKS[name]
    state = nnx.state(nnx.eval_shape(lambda: model_of(work, nnx.Rngs(0))), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == work.weights()


def test_a_process_that_descends_from_ours_is_not_foreign():
    from _disturbance import Moment, foreign_share, lineage

    parents = {40: 30, 30: 20, 20: 1, 50: 1}
    assert lineage(40, parents) == [40, 30, 20, 1]
    assert 20 not in lineage(50, parents)
    before, after = Moment(0.0, 100.0, 10.0), Moment(2.0, 103.0, 12.0)
    cores = __import__("os").cpu_count()
    assert foreign_share(before, after) == pytest.approx(1.0 / (2.0 * cores))
