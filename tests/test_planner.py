"""The measured plan: what is timed, what is kept, and when nothing is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from vmaptune.engine import planner
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Costs, Plan
from vmaptune.task import Task

TRACED = {"rate": jax.ShapeDtypeStruct((), jnp.float32)}
COSTS = Costs(state_bytes=64_000, step_bytes=1000, step_flops=1e6, evaluate_flops=1e4)


@pytest.fixture
def functions(tmp_path, monkeypatch) -> LaneFunctions:
    monkeypatch.setenv("VMAPTUNE_CACHE", str(tmp_path))

    def step(state, hp, key):
        return state - hp.rate * state, (state**2).sum()

    task = Task(lambda hp, key: jnp.zeros(3), step, lambda state, hp: {"loss": state.sum()}, has_loss=True)
    return LaneFunctions(task, {}, TRACED)


def test_a_small_run_is_planned_from_sizes_and_times_nothing(functions, monkeypatch):
    monkeypatch.setattr(planner, "model_step_seconds", lambda program: pytest.fail("timed"))
    found = planner.planned(functions, COSTS, steps=100, trials=64)
    assert (found.plan.lanes, found.measured) == (8, {})
    assert "too small" in planner.why(found)


def test_a_large_run_takes_the_fastest_and_the_next_one_times_nothing(functions, monkeypatch):
    timed = []

    def seconds(program) -> float:
        timed.append(program.plan.lanes)
        return {1: 5e-6, 2: 3e-6, 8: 7e-6, 32: 6e-6}[program.plan.lanes]

    monkeypatch.setattr(planner, "model_step_seconds", seconds)
    found = planner.planned(functions, COSTS, steps=100_000, trials=100)
    assert sorted(timed) == [1, 2, 8, 32]  # the plain loop is one of them
    assert (found.plan.lanes, found.plan.tiles) == (2, 25)
    assert found.measured[2] == pytest.approx(3.0)
    assert "2 lanes 3 µs" in planner.why(found)
    again = planner.planned(functions, COSTS, steps=10, trials=10)
    assert (again.plan.lanes, len(timed)) == (2, 4)
    assert "before" in again.why


def test_a_pinned_plan_is_taken_as_it_is(functions, monkeypatch):
    monkeypatch.setattr(planner, "model_step_seconds", lambda program: pytest.fail("timed"))
    found = planner.planned(functions, COSTS, steps=100_000, trials=100, pinned={"lanes": 3})
    assert (found.plan.lanes, found.why) == (3, "as pinned")


def test_a_damaged_record_is_measured_again(functions, tmp_path, monkeypatch):
    monkeypatch.setattr(planner, "model_step_seconds", lambda program: 1e-6 * (1 + abs(program.plan.lanes - 8)))
    planner.planned(functions, COSTS, steps=100_000, trials=100)
    (file,) = (tmp_path / "plans").iterdir()
    file.write_text("{")
    assert planner.planned(functions, COSTS, steps=100_000, trials=100).why == "measured now"


def test_the_plain_loop_is_always_a_candidate():
    for lanes in (1, 2, 16, 64):
        assert planner.candidates(Plan(2, lanes, 10), trials=512)[0] == 1
    assert planner.candidates(Plan(2, 64, 10), trials=4) == [1]
