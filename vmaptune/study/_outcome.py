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
from vmaptune.search.decide import alike
from vmaptune.search.zoom import Scored
from vmaptune.store.files import inside
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.store.weights import save_weights
from vmaptune.study._held_out import on_examples, rate_error
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
    finalists = [_finalist(training, c) for c in ranked]
    constant = _constant(finished)
    if constant is not None:
        counts.warn(
            f"every trial came to the same {experiment.objective}, {constant:.6g}: it does not depend on the "
            f"hyperparameters, so there is nothing to choose by; see whether what is measured is what is trained"
        )
    if winner is not None:
        confirmed = ranked[0] if ranked else None
        seen = [s for s in (scored(row, counts.sign) for row in finished) if s.rung == winner.rung]
        of = {row.trial: row.trial if row.of is None else row.of for row in finished}
        luckiest = min(seen, key=lambda s: (_nan_last(s.value), of[s.trial] != winner.trial, s.trial))
        own = [s for s in seen if of[s.trial] == winner.trial]
        best = {
            "trial": winner.trial,
            "value": counts.sign * (confirmed.mean if confirmed else winner.value),
            "value_std": confirmed.std if confirmed else None,
            "repeats": confirmed.repeats if confirmed else 0,
            "low": None, "high": None, "expected": None, "chance": None,
            "best_seen": counts.sign * luckiest.value,
            "best_seen_trial": of[luckiest.trial],  # the first with its configuration
            "seen": known(counts.sign * min((s.value for s in own), key=_nan_last, default=math.nan)),
            "params": winner.params,
        }  # fmt: skip
        best |= {name: one for name, one in (finalists[0] if finalists else {}).items() if name in best}
        if training.options.method == "pbt":
            counts.warn(
                "a population's winner is a model and the schedule of settings that led to it; it is not one setting, "
                "and is not confirmed on fresh seeds"
            )
        elif confirmed is None:
            counts.warn("too few trials to confirm the winner on fresh seeds: its value is one lucky draw's")
        elif (tied := len(alike(_repeats(training, ranked), winner.trial))) and constant is None:
            why = "came to the same value on each of their fresh seeds"
            if math.isfinite(confirmed.chance):
                why = (
                    f"can't be told apart by their fresh seeds (the chance that this one is the best is "
                    f"{_share(confirmed.chance)})"
                )
            counts.warn(f"the best {tied + 1} settings {why}; any of them will do, or run again with more trials")
        best |= _on_examples(training, winner)
    return {
        "study": str(directory),
        "trials": len(training.rows),
        "rounds": counts.rounds,
        "objective": experiment.objective,
        "direction": experiment.direction,
        "best": best,
        "finalists": finalists,
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


def _finalist(training: Training, c: Confirmed) -> dict[str, Any]:
    """A finalist by its fresh seeds, in the objective's own sign; None for what is not known."""
    sign = training.counts.sign
    low, high = sorted((sign * c.low, sign * c.high))
    return {
        "trial": c.trial, "value": sign * c.mean, "value_std": known(c.std), "low": known(low), "high": known(high),
        "repeats": c.repeats, "infeasible": c.infeasible, "expected": known(sign * c.expected),
        "chance": known(c.chance), "params": dict(training.rows[c.trial].params),
    }  # fmt: skip


def _repeats(training: Training, ranked: Iterable[Confirmed]) -> dict[int, list[float]]:
    """The finalists' values on their fresh seeds, by trial; lower is better."""
    found: dict[int, list[float]] = {c.trial: [] for c in ranked}
    for row in training.rows.values():
        if row.of in found and row.round >= training.counts.rounds:
            found[row.of].append(scored(row, training.counts.sign).value)
    return found


def _constant(finished: Iterable[TrialRow]) -> float | None:
    """The value of all trials that came to their end, where it is one and the same for several configurations."""
    rows = [row for row in finished if row.state == State.COMPLETE and row.value is not None]
    values = {row.value for row in rows}
    several = any(dict(row.params) != dict(rows[0].params) for row in rows)
    return values.pop() if several and len(values) == 1 else None


def _share(chance: float) -> str:
    """A chance as a person would say it: never 0 or 100 %, which so few seeds can't show."""
    return "over 99%" if chance > 0.99 else "below 1%" if chance < 0.01 else f"{chance:.0%}"


def known(value: float) -> float | None:
    """A number, or None where it is not finite: nothing is known then."""
    return value if math.isfinite(value) else None


def _on_examples(training: Training, winner: Scored) -> dict[str, Any]:
    """The confirmed winner's repeats on the test part, measured once, here and nowhere else; and the standard error
    that so few validation examples leave in its value, the same for all of its seeds."""
    experiment, groups, counts = training.experiment, training.groups, training.counts
    data = experiment.loaded_data() if experiment.task is None else None
    if not isinstance(data, Data):
        return {}
    repeats = {
        t: row.value
        for t, row in training.rows.items()
        if row.of == winner.trial and row.round >= training.counts.rounds and t in training.states
    }
    if training.options.method == "pbt":
        repeats = {winner.trial: training.rows[winner.trial].value}
    if not repeats:
        return {}
    group = groups.of(winner.params)
    what = experiment, group.functions, dict(group.static), groups.lane_values(winner.params)
    started = time.perf_counter()
    examples = data.size("valid")
    states = [training.states[t] for t in repeats]
    error = rate_error([v for v in repeats.values() if v is not None], examples)
    try:
        test, by_resampling = on_examples(*what, states, resample=error is None)
    except Exception:  # a person's metrics() that takes the whole validation part alone: without that number then
        test, by_resampling = on_examples(*what, states, resample=False)
    counts.compilations += bool(test) or error is None
    found: dict[str, Any] = {"valid_examples": examples, "valid_error": by_resampling if error is None else error}
    if test:
        by_name = {name: _mean_and_std([each[name] for each in test]) for name in test[0]}
        found["test_value"], found["test_std"] = by_name[experiment.objective]
        found["test"] = {name: {"value": value, "std": std} for name, (value, std) in by_name.items()}
    counts.seconds["compile"] += time.perf_counter() - started
    return found


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
    for path in folder.glob("trial-*.weights"):  # finalists of before the study went on with more trials
        if path.stem not in saved:
            path.unlink()
    return saved


def plain_tree(tree: Any) -> Mapping[str, np.ndarray]:
    """Any pytree of arrays as a dict with string keys: what a weights file holds."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def _nan_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf
