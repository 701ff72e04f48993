"""The methods that `public_tables.py` compares, on one table: which configuration each hands over, after how much.

vmaptune runs once for each size, as a study does: rounds, and the finalists again on fresh seeds within the size. A
rival does not know when it ends, so one run of the largest size holds the smaller ones; it hands over the best
configuration that it observed. Times are processor time of proposals alone.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from public._tables import Table

from vmaptune.search.sampler import Sampler, trial_seed

OURS = "vmaptune"
BATCH = 64
STREAM = 90_000  # of the rivals' training seeds
Place = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """What a method came to at one size."""

    regret: float  # of the configuration handed over, by its true mean: 0 best, 1 the table's median
    trainings: int
    seconds: float  # of processor time that its proposals took


class Rival(Protocol):
    def ask(self, n: int) -> list[Place]: ...

    def tell(self, places: Sequence[Place], losses: Sequence[float]) -> None: ...


def ours(table: Table, sizes: Sequence[int], seed: int) -> dict[int, Found]:
    found = {}
    for size in sizes:
        started = time.process_time()
        sampler = Sampler(table.space, trials=size, seed=seed)
        spent, used = time.process_time() - started, 0
        while not sampler.done:
            started = time.process_time()
            asked = sampler.ask(size)
            spent += time.process_time() - started
            results = {a.trial: table.loss(table.place(a.params), a.seed) for a in asked}
            used += len(asked)
            started = time.process_time()
            sampler.tell(results)
            spent += time.process_time() - started
        best = sampler.best
        assert best is not None  # every configuration of a table has a finite value
        found[size] = Found(table.regret(table.place(best["params"])), used, spent)
    return found


def run_rival(
    table: Table, make: Callable[[Table, int], Rival], sizes: Sequence[int], seed: int, batch: int
) -> dict[int, Found]:
    """One run of the largest size, `batch` trainings at a time; what it would hand over at each size."""
    spent, used, best = 0.0, 0, math.inf
    handed: Place = ()
    found: dict[int, Found] = {}
    started = time.process_time()
    rival = make(table, seed)
    spent += time.process_time() - started
    for size in sorted(sizes):
        while used < size:
            started = time.process_time()
            places = rival.ask(min(batch, size - used))
            spent += time.process_time() - started
            losses = [table.loss(p, trial_seed(STREAM + seed, used + i)) for i, p in enumerate(places)]
            for place, loss in zip(places, losses, strict=True):
                if loss < best:
                    best, handed = loss, place
            used += len(places)
            started = time.process_time()
            rival.tell(places, losses)
            spent += time.process_time() - started
        found[size] = Found(table.regret(handed), used, spent)
    return found


class Random:
    def __init__(self, table: Table, seed: int):
        self.shape, self.rng = table.shape, np.random.default_rng([seed, 77])

    def ask(self, n: int) -> list[Place]:
        return [tuple(map(int, p)) for p in self.rng.integers(0, self.shape, (n, len(self.shape)))]

    def tell(self, places: Sequence[Place], losses: Sequence[float]) -> None:
        pass


class Optuna:
    """A sampler of Optuna's with its defaults; a level is its number, without an order where it has none."""

    def __init__(self, kind: str, table: Table, seed: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")
        sampler = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler"}[kind]
        self.study = optuna.create_study(sampler=getattr(optuna.samplers, sampler)(seed=seed))
        self.distributions = {
            n: optuna.distributions.CategoricalDistribution(tuple(range(len(levels))))
            if n in table.unordered
            else optuna.distributions.IntDistribution(0, len(levels) - 1)
            for n, levels in table.levels.items()
        }
        self.waiting: list[Any] = []

    def ask(self, n: int) -> list[Place]:
        self.waiting = [self.study.ask(self.distributions) for _ in range(n)]
        return [tuple(t.params[name] for name in self.distributions) for t in self.waiting]

    def tell(self, places: Sequence[Place], losses: Sequence[float]) -> None:
        for trial, loss in zip(self.waiting, losses, strict=True):
            self.study.tell(trial, loss)


class Hebo:
    def __init__(self, table: Table, seed: int):
        import torch
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.names = list(table.levels)
        space = DesignSpace().parse(
            [
                {"name": n, "type": "cat", "categories": list(range(len(levels)))}
                if n in table.unordered
                else {"name": n, "type": "int", "lb": 0, "ub": len(levels) - 1}
                for n, levels in table.levels.items()
            ]
        )
        self.search = HEBO(space, scramble_seed=seed)
        self.waiting: Any = None

    def ask(self, n: int) -> list[Place]:
        self.waiting = self.search.suggest(n_suggestions=n)
        return [tuple(int(v) for v in row) for row in self.waiting[self.names].to_numpy()]

    def tell(self, places: Sequence[Place], losses: Sequence[float]) -> None:
        self.search.observe(self.waiting, np.array(losses, np.float64)[:, None])


class Smac:
    """SMAC3's facade for hyperparameters, a random forest; one training for each configuration."""

    def __init__(self, table: Table, seed: int):
        import tempfile
        from pathlib import Path

        import ConfigSpace as cs
        from smac import HyperparameterOptimizationFacade as Facade
        from smac import Scenario

        space = cs.ConfigurationSpace(seed=seed)
        for n, levels in table.levels.items():
            numbers = range(len(levels))
            space.add(
                cs.CategoricalHyperparameter(n, list(numbers))
                if n in table.unordered
                else cs.UniformIntegerHyperparameter(n, 0, len(levels) - 1)
            )
        self.names = list(table.levels)
        self.folder = tempfile.TemporaryDirectory()
        scenario = Scenario(
            space, deterministic=True, n_trials=1_000_000, seed=seed, output_directory=Path(self.folder.name)
        )
        design = Facade.get_initial_design(scenario, n_configs=16)  # a quarter of the smallest size, as SMAC advises
        self.search = Facade(
            scenario, lambda config, seed=0: 0.0, initial_design=design, overwrite=True, logging_level=False
        )
        self.waiting: list[Any] = []

    def ask(self, n: int) -> list[Place]:
        self.waiting = [self.search.ask() for _ in range(n)]
        return [tuple(int(info.config[name]) for name in self.names) for info in self.waiting]

    def tell(self, places: Sequence[Place], losses: Sequence[float]) -> None:
        from smac.runhistory.dataclasses import TrialValue

        for info, loss in zip(self.waiting, losses, strict=True):
            self.search.tell(info, TrialValue(cost=loss))


RIVALS: dict[str, tuple[Callable[[Table, int], Rival], int]] = {
    "random": (Random, 1),
    "tpe": (lambda table, seed: Optuna("tpe", table, seed), 1),
    f"tpe {BATCH}": (lambda table, seed: Optuna("tpe", table, seed), BATCH),
    "cmaes": (lambda table, seed: Optuna("cmaes", table, seed), 1),
    f"cmaes {BATCH}": (lambda table, seed: Optuna("cmaes", table, seed), BATCH),
    "gp": (lambda table, seed: Optuna("gp", table, seed), 1),
    "hebo": (Hebo, 1),
    f"hebo {BATCH}": (Hebo, BATCH),
    "smac": (Smac, 1),
    f"smac {BATCH}": (Smac, BATCH),
}
MOST = {"gp": 64, "hebo": 64, "smac": 64, f"hebo {BATCH}": 128, f"smac {BATCH}": 128}  # slow: a minute and more a study
METHODS = (OURS, *RIVALS)
QUICK = (OURS, "random", "tpe")


def run(method: str, table: Table, sizes: Sequence[int], seed: int) -> dict[int, Found]:
    """One method's studies of one seed on one table, by size."""
    if method == OURS:
        return ours(table, sizes, seed)
    make, batch = RIVALS[method]
    return run_rival(table, make, sizes, seed, batch)
