"""A moment gone on from with another number of lanes: no trial skips a batch, none that is to wait is lost."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmaptune.engine import moments
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.jobs import Job, Leaving
from vmaptune.engine.lanes import Lanes
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.task import Task

TRACED = {"rate": jax.ShapeDtypeStruct((), jnp.float32)}
X = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
ROWS = np.random.default_rng(1).integers(0, 64, (64, 8))  # of each step's batch, which all lanes share
JOBS = {i: Job(i, 100 + i, {"rate": 0.01 * (i + 1)}, 5 if i < 2 else 20, keep=True) for i in range(6)}


def task(lockstep: bool) -> Task:
    """Least squares on batches that all trials take in the same order."""
    x, rows_of = jnp.asarray(X), jnp.asarray(ROWS)

    def step(state, hp, key, rows):
        loss, g = jax.value_and_grad(lambda w: ((x[rows] @ w - x[rows].sum(1)) ** 2).mean())(state["w"])
        return {"w": state["w"] - hp.rate * g, "n": state["n"] + 1}, loss

    def shared(done, count):
        return jax.lax.dynamic_slice_in_dim(rows_of, done, count)

    def init(hp, key):
        return {"w": jnp.zeros(5), "n": jnp.int32(0)}

    def evaluate(state, hp):
        return {"loss": (state["w"] ** 2).sum()}

    if lockstep:
        return Task(init, step, evaluate, has_loss=True, shared=shared)
    return Task(init, lambda s, hp, key: step(s, hp, key, rows_of[s["n"]]), evaluate, has_loss=True)


def plain_loop(job: Job) -> np.ndarray:
    w = np.zeros(5)
    for rows in ROWS[: job.steps]:
        a = X[rows].astype(np.float64)
        w = w - job.settings["rate"] * 2 * a.T @ (a @ w - a.sum(1)) / len(a)
    return w


def program(lanes: int, tiles: int, lockstep: bool = True) -> Program:
    plan = Plan(devices=1, lanes=lanes, every=5, tiles=tiles)
    return Program(LaneFunctions(task(lockstep), {}, TRACED), TRACED, plan)


def trained(programs, calls: int) -> dict[int, np.ndarray]:
    """The final weights of all jobs, on the first of the programs for so many calls and then on the next one."""
    states: dict[int, np.ndarray] = {}

    def make():
        return Lanes(
            next(programs), capacity=4, on_points=lambda points: [],
            on_state=lambda job, state: states.update({job.trial: np.asarray(state["w"])}),
        )  # fmt: skip

    lanes = make()
    lanes.submit(JOBS.values())
    for _ in range(calls):
        assert lanes.advance()
    plain, arrays = moments.take(lanes)
    assert len({lane[1] for lane in plain["chunks"][0] if lane}) == 2, "trials of two ages, or it shows nothing"
    lanes = make()
    moments.restore(lanes, json.loads(json.dumps(plain)), arrays, JOBS)
    while lanes.advance():
        pass
    return states


@pytest.mark.parametrize("then", [(2, 2), (4, 1), (3, 1), (8, 1), (1, 3)])
def test_no_trial_skips_a_batch_when_tiles_become_wider_or_narrower(then):
    found = trained(iter([program(2, 2), program(*then)]), 2)
    assert sorted(found) == list(JOBS)
    for trial, w in found.items():
        np.testing.assert_allclose(w, plain_loop(JOBS[trial]), rtol=1e-4, atol=1e-6, err_msg=f"trial {trial}")


@pytest.mark.parametrize("width", [2, 3, 8])
def test_a_trial_that_is_to_wait_waits_where_it_was_with_any_number_of_lanes(width):
    """Its point was not read before the moment, and it lies in another call's lanes after it."""
    waiting: dict[int, int] = {}
    seen: list[tuple[int, int]] = []

    def on_points(points):
        seen.extend((p.trial, p.step) for p in points)
        return Leaving(pause=[p.trial for p in points if p.step == 10 and p.trial > 1])

    def make(of):
        return Lanes(
            of, capacity=8, on_points=on_points, prompt=True,
            on_pause=lambda job, paused: waiting.update({job.trial: paused.done}),
        )  # fmt: skip

    lanes = make(program(4, 1, lockstep=False))
    lanes.submit(JOBS.values())
    for _ in range(3):  # of two calls in turn: what came of the second and of the third is not read yet
        lanes.advance()
    plain, arrays = moments.take(lanes)
    assert any(owner[2] == 10 for one in plain["pending"] for owner in one["owners"])
    lanes = make(program(width, 1, lockstep=False))
    moments.restore(lanes, json.loads(json.dumps(plain)), arrays, JOBS)
    while lanes.advance():
        pass
    assert waiting == dict.fromkeys(range(2, 6), 10)
    assert max(step for _, step in seen) == 10
