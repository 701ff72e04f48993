"""vmaptune's own engine: an unchanged nnx model, `optax.adam` from traced scalars, its queue of lanes.

    vmaptune          each lane its own data order, the default
    vmaptune_shared   one order for all lanes

Training is timed with a validation part of one row, so that each segment's evaluation, which the program
always does, takes next to nothing; `evaluate` times evaluations of the whole validation part by themselves.
"""

from __future__ import annotations

import time
from typing import Any

import _worker  # first: puts the benchmarks' folder on the path
import optax
from _jax_models import loss, metrics, model_of
from works import Work, learning_rates

import vmaptune as vt
from vmaptune.engine.convolutions import faster_as_a_whole
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Job, Lanes
from vmaptune.engine.plan import default_plan, parse_plan
from vmaptune.engine.planner import planned
from vmaptune.engine.program import Program
from vmaptune.experiment import find_statics, lane_arguments

vt.prepare_devices()  # every core a device, before JAX starts


def experiment_of(work: Work, valid_rows: int | None, shared: bool) -> vt.Experiment:
    """The workload as a person would declare it."""
    train, valid = work.data()
    options: dict[str, Any] = {"order": "shared"} if shared else {}
    return vt.Experiment(
        space={
            "learning_rate": vt.loguniform(1e-4, 1e-2),
            "beta1": vt.reverseloguniform(0.5, 0.99),
            "beta2": vt.reverseloguniform(0.9, 0.9999),
        },
        model=lambda hp, rngs: model_of(work, rngs),
        optimizer=lambda hp, steps: optax.adam(hp.learning_rate, b1=hp.beta1, b2=hp.beta2),
        loss=loss,
        metrics=metrics,
        data=vt.Data(train=train, valid=tuple(part[:valid_rows] for part in valid)),
        objective="error",
        batch_size=work.batch,
        steps=1000,
        **options,
    )


def program_of(experiment: vt.Experiment, work: Work, plan: str, every: int) -> Program:
    """The engine's compiled program for this experiment. THE one place that knows how the engine is put together."""
    task = experiment.build()
    traced = lane_arguments(experiment.space, find_statics(experiment, task).traced)

    def trace() -> LaneFunctions:
        return LaneFunctions(task, {}, traced)

    functions, pinned = trace(), {**parse_plan(plan), "every": every}
    run: dict[str, Any] = {"steps": 1000, "trials": work.lanes, "pinned": pinned}
    guess = default_plan(functions.costs(), **run)
    functions = faster_as_a_whole(experiment.convolutions, (), functions, trace, guess)
    found = planned(functions, functions.costs(), **run, measure=True)
    return Program(functions, traced, found.plan, uneven=False)  # as where segments divide trials' steps


def train(program: Program, work: Work, segments: int) -> tuple[float, float]:
    """Trains all lanes for so many segments through the engine's queue: (seconds, mean loss at the end)."""
    steps = segments * program.plan.every
    losses: list[float] = []
    jobs = [
        Job(i, i, {"learning_rate": float(rate), "beta1": 0.9, "beta2": 0.999}, steps)
        for i, rate in enumerate(learning_rates(work.lanes))
    ]

    def on_points(points: list) -> list[int]:
        losses.extend(point.loss for point in points if point.step == steps)
        return []

    started = time.perf_counter()
    Lanes(program, capacity=10**6, on_points=on_points).train(jobs)
    return time.perf_counter() - started, sum(losses) / len(losses)


class Ours:
    """A repeat trains all lanes for some segments, then for one segment alone: their difference is steady training,
    without the lanes' initialisation."""

    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work, self.plan, self.target = work, options.get("plan", ""), options.get("seconds", 1.0)
        shared = method == "vmaptune_shared"
        self.one_row, self.whole = experiment_of(work, 1, shared), experiment_of(work, None, shared)
        self.programs: list[Program] = []

    def prepare(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.program = program_of(self.one_row, self.work, self.plan, self.work.segment)
        compile_s = time.perf_counter() - started
        train(self.program, self.work, 1)
        self.segments = 1
        self.segments = max(1, round(self.target / self.time()["seconds"]))
        return {"compile_s": compile_s, "setting": str(self.program.plan)}

    def time(self) -> dict[str, Any]:
        longer, loss = train(self.program, self.work, 1 + self.segments)
        first, _ = train(self.program, self.work, 1)
        model_steps = self.work.lanes * self.segments * self.work.segment
        return {"seconds": longer - first, "model_steps": model_steps, "loss": loss}

    def evaluate(self) -> dict[str, Any]:
        """Evaluations of the whole validation part: what segments of one step take longer by than with one row."""
        if not self.programs:
            self.programs = [program_of(e, self.work, self.plan, 1) for e in (self.whole, self.one_row)]
            for program in self.programs:
                train(program, self.work, 1)
        segments = 20
        whole, one_row = (train(program, self.work, segments)[0] for program in self.programs)
        return {"seconds": whole - one_row, "models": segments * self.work.lanes}


if __name__ == "__main__":
    _worker.serve(Ours, ("jax", "jaxlib", "flax", "optax"))
