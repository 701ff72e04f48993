"""The search from 64 to 8,192 trainings, on the tasks in closed form: the same bars at each number."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _report import row
from quality import _methods as m
from quality._closed import WORKS, Formula
from quality._judge import compared
from scipy import stats

SIZES = (64, 256, 512, 2048, 8192)
METHODS: dict[str, Callable[[Any, int, int], m.Method]] = {
    "zoom": m.zoom,
    "random": lambda space, n, seed: m.one_shot(space, n, seed, "random"),
    "random 2x": lambda space, n, seed: m.one_shot(space, 2 * n, seed, "random"),
    "random 4x": lambda space, n, seed: m.one_shot(space, 4 * n, seed, "random"),
    "sobol": lambda space, n, seed: m.one_shot(space, n, seed, "sobol"),
    "tpe": lambda space, n, seed: m.optuna_search(space, n, seed, "tpe"),
}
WORSE = 0.15  # of a round's trials, from the third round on, may be worse than the first round's median
MOST_SECONDS = 60.0  # of arithmetic, for the largest number of trainings
Tables = dict[int, dict[str, dict[str, dict[str, Any]]]]  # size -> task -> method -> what came of its studies


def studies(method: str, trials: int, seeds: int) -> int:
    """How many studies: TPE's own time grows with the square of the trials."""
    return seeds if method != "tpe" or trials <= 512 else min(seeds, 2) if trials <= 2048 else 0


def run_task(name: str, trials: int, first: int, seeds: int) -> dict[str, dict[str, Any]]:
    """All methods on a task: the true worth of what each hands over, `[seeds]`, and its sampler's processor time."""
    formula = Formula(next(w for w in WORKS if w.name == name))
    found: dict[str, dict[str, Any]] = {}
    for method, make in METHODS.items():
        range_ = range(first, first + studies(method, trials, seeds))
        if not range_:
            continue
        ends = m.drive(formula, {seed: make(formula.space, trials, seed) for seed in range_})
        true = formula.true([ends[seed].params for seed in range_])
        found[method] = {
            "true": [float(v) for v in np.where(np.isfinite(true), true, np.inf)],
            "seconds": [ends[seed].overhead[-1] if ends[seed].overhead else 0.0 for seed in range_],
            **{k: [ends[seed].more[k] for seed in range_] for k in ends[first].more if k in ("worse", "outside")},
        }
    return found


def run(
    sizes: Sequence[int], names: Sequence[str], first: int, seeds: int, folder: Path, version: str, jobs: int
) -> Tables:
    """Every task at every size; what has been found before with the same sources is read again."""
    file = folder / f"closed-{version}-{first}-{seeds}.jsonl"
    known: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            known[one["trials"], one["task"]] = one["found"]
    todo = [(n, name) for n in sizes for name in names if (n, name) not in known]
    with ProcessPoolExecutor(jobs) as pool:
        waiting = [(n, name, pool.submit(run_task, name, n, first, seeds)) for n, name in todo]
        for n, name, future in waiting:
            known[n, name] = future.result()
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"trials": n, "task": name, "found": known[n, name]}) + "\n")
            print(f"{name}, {n} trainings: done", flush=True)
    return {n: {name: known[n, name] for name in names} for n in sizes}


def judged(tables: Tables) -> list[dict[str, Any]]:
    """The bars, at each number of trainings and over all."""
    traps = {w.name for w in WORKS if w.trap}
    rows = []
    for n, tasks in tables.items():
        listed = [t for t in tasks if t not in traps]
        for rival, least in (("random 2x", 0.9), ("random 4x", 0.6)):
            beaten = [t for t in listed if beats(tasks[t], rival)]
            need = int(np.ceil(least * len(listed) - 1e-9))
            wanted = f">= {need} of {len(listed)}"
            rows.append(row(f"{n}: tasks on which it beats {rival}", len(beaten), wanted, len(beaten) >= need,
                            tasks=beaten))  # fmt: skip
        ranks = mean_ranks(tasks)
        for rival in ("sobol", "tpe"):
            if rival in ranks:
                rows.append(row(f"{n}: mean rank of {rival} less its own", ranks[rival] - ranks["zoom"], "> 0",
                                ranks[rival] > ranks["zoom"], ranks=ranks))  # fmt: skip
        rows += rounds_of(n, tasks)
        rows.append(seconds_of(n, tasks))
    sizes = sorted(tables)
    worse = [
        f"{t}: {b} than {a}"
        for a, b in itertools.pairwise(sizes)
        for t in tables[a]
        if is_worse(values(tables[b][t], "zoom"), values(tables[a][t], "zoom"))
    ]
    rows.append(row("tasks whose winner is truly worse with more trainings", len(worse), "0", not worse, tasks=worse))
    return rows


def values(task: Mapping[str, Any], method: str) -> np.ndarray:
    return np.array(task[method]["true"])


def beats(task: Mapping[str, Any], rival: str) -> bool:
    return bool(compared(values(task, "zoom"), values(task, rival))["beaten"])


def is_worse(more: np.ndarray, fewer: np.ndarray) -> bool:
    """Whether studies of more trainings end worse: by the mean, and by signed ranks at 5 %."""
    found = compared(fewer, more)
    return bool(found["beaten"] and found["p"] < 0.05)


def mean_ranks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean rank of each method over tasks and the studies that all have; 1 is best."""
    methods = list(next(iter(tasks.values())))
    common = min(len(task[m]["true"]) for task in tasks.values() for m in methods)
    ranks = [stats.rankdata([values(t, m)[:common] for m in methods], axis=0).mean(axis=1) for t in tasks.values()]
    return {m: float(r) for m, r in zip(methods, np.mean(ranks, axis=0), strict=True)}


def rounds_of(n: int, tasks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each round's trials, how many are worse than the first round's median: means over studies."""
    shares = {t: np.mean(task["zoom"]["worse"], axis=0) for t, task in tasks.items()}
    most = {t: float(s[2:].max()) for t, s in shares.items() if len(s) > 2}
    over = np.mean(list(shares.values()), axis=0)
    rises = float(np.diff(over).max()) if len(over) > 1 else 0.0
    by_task = {t: [round(float(v), 3) for v in s] for t, s in shares.items()}
    worst = max(most.values(), default=0.0)
    return [
        row(f"{n}: largest share of a round, from the third on, worse than the first's median", worst, f"<= {WORSE}",
            worst <= WORSE, by_task=by_task),
        row(f"{n}: largest rise of that share from a round to the next, mean over tasks", rises, "<= 0.02",
            rises <= 0.02),
    ]  # fmt: skip


def seconds_of(n: int, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Processor seconds of proposals and confirmation, against TPE's where it was run."""
    ours = float(np.mean([np.mean(t["zoom"]["seconds"]) for t in tasks.values()]))
    if all("tpe" in t for t in tasks.values()):
        theirs = float(np.mean([np.mean(t["tpe"]["seconds"]) for t in tasks.values()]))
        return row(f"{n}: seconds of proposals and confirmation, over TPE's", ours / theirs, "<= 1", ours <= theirs,
                   ours=ours, tpe=theirs)  # fmt: skip
    most = float(np.max([np.max(t["zoom"]["seconds"]) for t in tasks.values()]))
    return row(f"{n}: seconds of proposals and confirmation, at most", most, f"<= {MOST_SECONDS:.0f}",
               most <= MOST_SECONDS)  # fmt: skip
