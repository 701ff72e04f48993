"""The methods that `search_quality.py` compares, each as a generator that one driver runs.

A method yields lists of (setting, seed) to train and is sent their values (lower is better, NaN for one that is not
finite); it returns the settings that it would hand to its user, by a label. All methods and study seeds of a task
run in lockstep, so that what they ask for at the same time is trained in the same calls; a training's value does not
depend on its neighbours, so nothing changes by that but the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vmaptune.search.confirm import finalists, rank, split_budget
from vmaptune.search.sampler import Sampler, trial_seed
from vmaptune.search.zoom import Scored, inside
from vmaptune.space import Space

Params = dict[str, Any]
Asks = list[tuple[Params, int]]


@dataclass
class Found:
    """What a method came to."""

    params: Params  # the setting that it hands to its user
    told: float  # the value that it says this setting has
    trainings: int  # that it used
    best_so_far: list[tuple[Params, float]] = field(default_factory=list)  # after each training, where one at a time
    overhead: list[float] = field(default_factory=list)  # seconds that its sampler had taken after each training
    more: dict[str, Any] = field(default_factory=dict)


Method = Generator[Asks, list[float], Found]


def rows_of(samples: Mapping[str, np.ndarray]) -> list[Params]:
    names = list(samples)
    return [
        {n: v.item() if isinstance(v, np.generic) else v for n, v in zip(names, values, strict=True)}
        for values in zip(*samples.values(), strict=True)
    ]


def one_shot(space: Space, trials: int, seed: int, method: str, confirm: bool = True) -> Method:
    """All at once, and the best few again on fresh seeds."""
    budget = split_budget(trials, 1)
    n = budget.rounds[0] if confirm else trials
    rows = rows_of(space.sample(n, seed=(seed, 0) if method == "sobol" else (seed, 77), method=method))
    stream = seed if method == "sobol" else 50_000 + seed
    values = yield [(p, trial_seed(stream, i)) for i, p in enumerate(rows)]
    scored = [Scored(i, p, v) for i, (p, v) in enumerate(zip(rows, values, strict=True))]
    if not confirm:
        best = finalists(scored, 1)[0]
        return Found(best.params, best.value, len(rows))
    return (yield from confirmed(scored, budget.finalists, budget.repeats, stream, len(rows)))


def confirmed(scored: Sequence[Scored], count: int, repeats: int, stream: int, used: int) -> Method:
    """The best few once more on fresh seeds: the best by their mean."""
    chosen = finalists(scored, count)
    asks = [
        (s.params, trial_seed(stream, 100_000 + i)) for i, s in enumerate(s for s in chosen for _ in range(repeats))
    ]
    values = yield asks
    ranked = rank({s.trial: values[i * repeats : (i + 1) * repeats] for i, s in enumerate(chosen)})
    params = next(s.params for s in chosen if s.trial == ranked[0].trial)
    return Found(params, ranked[0].mean, used + len(asks))


def zoom(space: Space, trials: int, seed: int, **options: Any) -> Method:
    """The package's own search, as `vt.Sampler` and `run` do it."""
    sampler = Sampler(space, trials=trials, seed=seed, **options)
    used, spent = 0, 0.0
    rounds: dict[int, list[tuple[Params, float]]] = {}
    while not sampler.done:
        started = time.thread_time()
        asked = sampler.ask(trials)
        spent += time.thread_time() - started
        values = yield [(a.params, a.seed) for a in asked]
        used += len(asked)
        started = time.thread_time()
        sampler.tell({a.trial: v for a, v in zip(asked, values, strict=True)})
        spent += time.thread_time() - started
        for a, v in zip(asked, values, strict=True):
            if a.of is None:
                rounds.setdefault(a.round, []).append((a.params, v if math.isfinite(v) else math.inf))
    median = float(np.median([v for _, v in rounds[0]]))
    worse = [float(np.mean([v > median for _, v in found])) for found in rounds.values()]
    outside = [
        1 - float(inside(s, [p for p, _ in f]).mean()) for s, f in zip(sampler.spaces, rounds.values(), strict=True)
    ]
    best = sampler.best
    assert best is not None
    return Found(
        best["params"],
        sampler.ranked[0].expected,
        used,
        overhead=[spent],
        more={"mean": best["value"], "worse": worse, "outside": outside},
    )


def optuna_search(space: Space, trials: int, seed: int, kind: str, batch: int = 1, confirm: bool = False) -> Method:
    """An Optuna sampler, `batch` trials at a time. Numbers are searched in the unit cube, where each scale is even."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spare = split_budget(trials, 1) if confirm else None
    n = spare.rounds[0] if spare else trials
    study = optuna.create_study(sampler=optuna_sampler(kind, seed, batch))
    dists = {name: optuna_distribution(d) for name, d in space.items()}
    scored: list[Scored] = []
    best: list[tuple[Params, float]] = []
    overhead, spent, worst = [], 0.0, -math.inf
    while len(scored) < n:
        started = time.thread_time()
        asked = [study.ask(dists) for _ in range(min(batch, n - len(scored)))]
        rows = [params_of(space, t.params) for t in asked]
        spent += time.thread_time() - started
        values = yield [(p, trial_seed(90_000 + seed, len(scored) + i)) for i, p in enumerate(rows)]
        started = time.thread_time()
        worst = max([worst, *(v for v in values if math.isfinite(v))])
        for t, p, v in zip(asked, rows, values, strict=True):
            study.tell(t, v if math.isfinite(v) else worst if math.isfinite(worst) else 1e9)
            scored.append(Scored(len(scored), p, v))
            if math.isfinite(v) and (not best or v < best[-1][1]):
                best.append((p, v))
            else:
                best.append(best[-1] if best else (p, math.inf))
        spent += time.thread_time() - started
        overhead += [spent] * len(asked)
    if spare:
        return (yield from confirmed(scored, spare.finalists, spare.repeats, 90_000 + seed, n))
    return Found(best[-1][0], best[-1][1], n, best, overhead)


def optuna_sampler(kind: str, seed: int, batch: int) -> Any:
    import warnings

    import optuna

    warnings.simplefilter("ignore")
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed, constant_liar=batch > 1)
    if kind == "tpe_joint":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=batch > 1)
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    if kind == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed)
    raise ValueError(kind)


def optuna_distribution(d: Any) -> Any:
    import optuna

    if d.kind == "choice":
        return optuna.distributions.CategoricalDistribution(tuple(range(len(d.options))))
    if d.kind == "ordinal":
        return optuna.distributions.IntDistribution(0, len(d.options) - 1)
    return optuna.distributions.FloatDistribution(0.0, 1.0)


def params_of(space: Space, found: Mapping[str, Any]) -> Params:
    point = [(found[n] + 0.5) / len(d.options) if d.options is not None else found[n] for n, d in space.items()]
    return rows_of(space.from_unit(np.array([point])))[0]


def drive(trainer: Any, methods: Mapping[Any, Method]) -> dict[Any, Found]:
    """Runs all methods in lockstep; label -> what it came to."""
    found: dict[Any, Found] = {}
    waiting = {}
    for label, method in methods.items():
        waiting[label] = next(method)
    while waiting:
        values = trainer.values([pair for asks in waiting.values() for pair in asks])
        start, following = 0, {}
        for label, asks in waiting.items():
            mine = values[start : start + len(asks)]
            start += len(asks)
            try:
                following[label] = methods[label].send(mine)
            except StopIteration as end:
                found[label] = end.value
        waiting = following
    return found
