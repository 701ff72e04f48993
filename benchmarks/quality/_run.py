"""Runs the methods on a task and writes down what each came to; measures times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from quality import _methods as m
from quality._trainer import Trainer, train

from vmaptune.engine.plan import Plan
from vmaptune.search.sampler import trial_seed
from vmaptune.space import Space

FRESH_STREAM = 10_000_000  # seeds of the last trainings, which no method has seen
GP_TRIALS = 32  # of the Gaussian-process sampler, whose own time grows with the cube of these
SEQUENTIAL = ("tpe", "gp", "cmaes")
CLOSE = ("zoom", "random", "random 2x", "random 4x")  # with more studies, because the bars on them are close

METHODS: dict[str, Callable[[Space, int, int], m.Method]] = {
    "zoom": lambda space, n, seed: m.zoom(space, n, seed),
    "random": lambda space, n, seed: m.one_shot(space, n, seed, "random"),
    "random 2x": lambda space, n, seed: m.one_shot(space, 2 * n, seed, "random"),
    "random 4x": lambda space, n, seed: m.one_shot(space, 4 * n, seed, "random"),
    "random unconfirmed": lambda space, n, seed: m.one_shot(space, n, seed, "random", confirm=False),
    "sobol": lambda space, n, seed: m.one_shot(space, n, seed, "sobol"),
    "grid": lambda space, n, seed: m.one_shot(space, n, seed, "grid"),
    "tpe batch": lambda space, n, seed: m.optuna_search(space, n, seed, "tpe", batch=32, confirm=True),
    "tpe": lambda space, n, seed: m.optuna_search(space, n, seed, "tpe"),
    "cmaes": lambda space, n, seed: m.optuna_search(space, n, seed, "cmaes"),
    "gp": lambda space, n, seed: m.optuna_search(space, min(n, GP_TRIALS), seed, "gp"),
}
QUICK_METHODS = ["zoom", "random", "random 2x", "random 4x", "sobol"]
QUICK_TASKS = ["few_noisy", "ill_conditioned", "interaction", "trap"]


class Records:
    """What has been found so far: one line a (task, method, seed), kept in a file."""

    def __init__(self, folder: Path, versions: Mapping[str, str], trials: int):
        self.file, self.versions, self.trials = folder / "records.jsonl", dict(versions), trials
        self.rows: dict[tuple[str, str, int], dict[str, Any]] = {}
        self.times: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                self._take(json.loads(line))

    def add(self, row: Mapping[str, Any]) -> None:
        row = {**row, "version": self._version(row), "trials": self.trials}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        self._take(row)

    def add_time(self, row: Mapping[str, Any]) -> None:
        self.add({"kind": "times", **row})

    def _version(self, row: Mapping[str, Any]) -> str:
        ours = row.get("kind") == "times" or row["method"] == "zoom" or row["method"].endswith("equal time")
        return self.versions["zoom" if ours else "rival"]

    def _take(self, row: dict[str, Any]) -> None:
        if row["version"] != self._version(row) or row["trials"] != self.trials:
            return
        if row.get("kind") == "times":
            self.times[row["task"]] = row
        else:
            self.rows[row["task"], row["method"], row["seed"]] = row


def run_methods(
    work: Any, records: Records, methods: Sequence[str], seeds: Mapping[str, range], trials: int, fresh: int,
    folder: Path, devices: int,
) -> None:  # fmt: skip
    """Every method and seed of a task that there is no record of yet."""
    todo = [(name, s) for name in methods for s in seeds[name] if (work.name, name, s) not in records.rows]
    if not todo:
        return
    trainer = Trainer(work, folder, records.versions["value"], devices)
    # the samplers that go one at a time in lockstep, the others before them
    for part in (False, True):
        chosen = [(name, s) for name, s in todo if (name in SEQUENTIAL) == part]
        found = m.drive(trainer, {(n, s): METHODS[n](trainer.space, trials, s) for n, s in chosen})
        for (name, seed), f in found.items():
            records.add(
                {
                    "task": work.name, "method": name, "seed": seed, "params": f.params, "told": f.told,
                    "trainings": f.trainings, "trace": improvements(f), "overhead": f.overhead, "more": f.more,
                    **again(trainer, f.params, seed, fresh),
                }
            )  # fmt: skip


def improvements(found: m.Found) -> list[Any]:
    """(trainings, setting, value) wherever the best so far changed."""
    kept: list[Any] = []
    for i, (params, value) in enumerate(found.best_so_far, 1):
        if not kept or params != kept[-1][1]:
            kept.append([i, params, value])
    return kept


def again(trainer: Trainer, params: Mapping[str, Any], seed: int, fresh: int) -> dict[str, float]:
    """The setting on fresh seeds, the same ones for all methods of a study seed."""
    values = trainer.values([(params, trial_seed(FRESH_STREAM + seed, i)) for i in range(fresh)])
    worst = np.where(np.isfinite(values), values, np.inf)
    return {"median": float(np.median(worst)), "mean": float(np.mean(worst)), "std": float(np.std(worst, ddof=1))}


def run_equal_time(
    work: Any, records: Records, methods: Sequence[str], seeds: Mapping[str, range], trials: int, fresh: int,
    folder: Path, devices: int,
) -> None:  # fmt: skip
    """What the samplers that go one at a time have found in the time of a whole zoom study."""
    times = records.times[work.name]
    trainer: Trainer | None = None
    for name in (name for name in SEQUENTIAL if name in methods):
        for seed in seeds[name]:
            label = f"{name}, equal time"
            if (work.name, label, seed) in records.rows:
                continue
            trainer = trainer or Trainer(work, folder, records.versions["value"], devices)
            row = records.rows[work.name, name, seed]
            n = trials_in(times["zoom"], times["alone"], row["overhead"])
            params, value = next((p, v) for i, p, v in reversed(row["trace"]) if i <= max(1, n))
            records.add(
                {"task": work.name, "method": label, "seed": seed, "params": params, "told": value, "trainings": n,
                 "capped": n >= len(row["overhead"]), **again(trainer, params, seed, fresh)}
            )  # fmt: skip


def trials_in(seconds: float, alone: float, overhead: Sequence[float]) -> int:
    """How many trials, one at a time, fit into a time, when the sampler takes `overhead` (summed up) for them."""
    return sum(alone * (i + 1) + spent <= seconds for i, spent in enumerate(overhead))


def measure_times(work: Any, trials: int) -> dict[str, Any]:
    """Seconds of a zoom study of so many trials, and of one training alone; both compiled before, sampler included."""
    devices = jax.local_device_count()
    trainer = Trainer(work, None, "times", devices)
    for static in {trainer.statics.group_of(row) for row in m.rows_of(trainer.space.sample(64, 0))}:
        trainer.program(static)
    studies, spent = [], []
    for seed in (1000, 1001, 1002):
        started = time.perf_counter()
        found = m.drive(trainer, {0: m.zoom(trainer.space, trials, seed)})
        studies.append(time.perf_counter() - started)
        spent.append(found[0].overhead[-1])
    rows = m.rows_of(trainer.space.sample(8, 0))
    rows = [row for row in rows if trainer.statics.group_of(row) == trainer.statics.group_of(rows[0])]
    one = trainer.program(trainer.statics.group_of(rows[0]), Plan(devices=1, tiles=1, lanes=1, every=trainer.steps))
    train(trainer, one, [(rows[0], 0)])
    alone = []
    for i in range(20):
        started = time.perf_counter()
        train(trainer, one, [(rows[i % len(rows)], i)])
        alone.append(time.perf_counter() - started)
    return {
        "task": work.name, "zoom": float(np.median(studies)), "zoom_sampler": float(np.median(spent)),
        "alone": float(np.median(alone)),
    }  # fmt: skip
