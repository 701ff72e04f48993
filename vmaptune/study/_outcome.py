"""The end of a study: its result, the winner on the test part, and the weights that are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vmaptune.experiment import Data, model_arrays
from vmaptune.search.confirm import Confirmed
from vmaptune.search.zoom import Scored
from vmaptune.store.files import inside
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.store.weights import save_weights
from vmaptune.study._held_out import held_out_metrics
from vmaptune.study._training import Training


def scored(row: TrialRow, sign: float) -> Scored:
    """A trial as the search sees it: to be minimised, NaN unless it came to its end or was stopped early."""
    stopped = row.state == State.STOPPED
    value = row.value if (row.state == State.COMPLETE or stopped) and row.value is not None else math.nan
    return Scored(row.trial, dict(row.params), sign * value, row.steps if stopped else math.inf)


def outcome(
    training: Training, directory: Path, finished: Iterable[TrialRow], winner: Scored | None, ranked: list[Confirmed]
) -> dict[str, Any]:
    """A study's result, as `run --json` prints it. `finished` are the trials of the search."""
    counts, experiment = training.counts, training.experiment
    finished = list(finished)
    best: dict[str, Any] | None = None
    if winner is not None:
        confirmed = ranked[0] if ranked else None
        seen = [s for s in (scored(row, counts.sign) for row in finished) if s.rung == winner.rung]
        best = {
            "trial": winner.trial,
            "value": counts.sign * (confirmed.mean if confirmed else winner.value),
            "value_std": confirmed.std if confirmed else None,
            "repeats": confirmed.repeats if confirmed else 0,
            "expected": counts.sign * confirmed.expected if confirmed else None,
            "chance": confirmed.chance if confirmed else None,
            "best_seen": counts.sign * min((s.value for s in seen), key=_nan_last),
            "params": winner.params,
        }
        if training.options.method == "pbt":
            counts.warn(
                "a population's winner is a model and the schedule of settings that led to it; it is not one setting, "
                "and is not confirmed on fresh seeds"
            )
        elif confirmed is None:
            counts.warn("too few trials to confirm the winner on fresh seeds: its value is one lucky draw's")
        elif len(ranked) > 1 and _overlap(ranked[0], ranked[1]):
            tied = sum(_overlap(ranked[0], other) for other in ranked[1:])
            counts.warn(
                f"the best {tied + 1} settings can't be told apart by their fresh seeds (the chance that this one is "
                f"the best is {confirmed.chance:.0%}); any of them will do, or run again with more trials"
            )
        best |= _on_test_part(training, winner)
    return {
        "study": str(directory),
        "trials": len(training.rows),
        "rounds": counts.rounds,
        "objective": experiment.objective,
        "direction": experiment.direction,
        "best": best,
        "seconds": {"total": counts.total_seconds(), **counts.seconds},
        "model_steps": counts.model_steps,
        "compilations": counts.compilations,
        "programs": [
            {"static": row.static, "compile_seconds": row.compile_seconds} for row in training.ledger.groups()
        ],
        "infeasible": sum(row.state == State.INFEASIBLE for row in finished),
        "stopped": counts.stopped,
        "occupancy": counts.occupancy,
        "refilled": counts.refilled,
        "moved": counts.moved,
        "warnings": counts.warnings,
    }


def _on_test_part(training: Training, winner: Scored) -> dict[str, Any]:
    """The confirmed winner's repeats on the test part, measured once, here and nowhere else."""
    experiment, groups, counts = training.experiment, training.groups, training.counts
    data = experiment.loaded_data() if experiment.task is None else None
    if not isinstance(data, Data) or data.test is None:
        return {}
    states = [
        training.states[t]
        for t, row in training.rows.items()
        if row.of == winner.trial and row.round >= training.counts.rounds and t in training.states
    ]
    if training.options.method == "pbt":
        states = [training.states[winner.trial]]
    if not states:
        return {}
    group = groups.of(winner.params)
    traced = groups.lane_values(winner.params)
    started = time.perf_counter()
    found = held_out_metrics(experiment, group.functions, dict(group.static), traced, states)
    counts.compilations += 1
    counts.seconds["compile"] += time.perf_counter() - started
    test = {name: _mean_and_std([each[name] for each in found]) for name in found[0]}
    value, std = test[experiment.objective]
    return {
        "test_value": value,
        "test_std": std,
        "test": {name: {"value": value, "std": std} for name, (value, std) in test.items()},
    }


def _mean_and_std(values: list[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def save_models(training: Training, directory: Path, winner: Scored | None, confirmed: bool) -> dict[str, int]:
    """Saves the best repeat of each finalist (or the unconfirmed winner itself) under `best/`.

    Returns the trial of each file by its name.
    """
    if winner is None:
        return {}
    best_of: dict[int, TrialRow] = {}
    for row in training.rows.values():
        if row.trial not in training.states or row.state != State.COMPLETE:
            continue
        of = row.trial if row.of is None else row.of
        best = best_of.get(of)
        sign = training.counts.sign
        if best is None or scored(row, sign).value < scored(best, sign).value:
            best_of[of] = row
    if not confirmed:
        best_of = {winner.trial: best_of[winner.trial]} if winner.trial in best_of else {}
    saved: dict[str, int] = {}
    folder = inside(directory, "best")
    for of, row in best_of.items():
        name = "best" if of == winner.trial else f"trial-{of}"
        state = training.states[row.trial]
        is_model = training.experiment.task is None
        kept = model_arrays(state) if is_model else state
        save_weights(folder / f"{name}.weights", plain_tree(kept))
        if is_model and name == "best":
            save_weights(folder / "best-optimizer.weights", plain_tree({"opt": state["opt"]}))
        saved[name] = row.trial
    return saved


def plain_tree(tree: Any) -> Mapping[str, np.ndarray]:
    """Any pytree of arrays as a dict with string keys: what a weights file holds."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def _overlap(a: Confirmed, b: Confirmed) -> bool:
    """Whether two confirmed means differ by less than twice the standard error of their difference."""
    if not (math.isfinite(a.mean) and math.isfinite(b.mean)):
        return False
    variance = sum((c.std**2 if math.isfinite(c.std) else 0.0) / max(1, c.repeats) for c in (a, b))
    return abs(a.mean - b.mean) <= 2 * math.sqrt(variance)


def _nan_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
