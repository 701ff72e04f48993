"""Studies that were never trained: ledgers written through the store, with results from a formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import vmaptune as vt
from vmaptune.search.zoom import Scored, slice_of, zoom
from vmaptune.store.ledger import CurvePoint, Ledger, TrialResult, TrialRow
from vmaptune.store.states import State

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"  # a choice that would like to be HTML
SPACE = vt.Space(
    {
        "learning_rate": vt.loguniform(1e-4, 1.0),
        "momentum": vt.reverseloguniform(0.5, 0.999),
        "weight_decay": vt.loguniform(1e-6, 1e-1, or_zero=0.2),
        "width": vt.ordinal([16, 32, 64, 128]),
        "activation": vt.choice(["relu", "@accent", HOSTILE, None]),
        "warmup": vt.lograndint(1, 200),
    }
)


def make_study(
    directory: Path,
    trials: int = 80,
    rounds: int = 3,
    *,
    space: vt.Space = SPACE,
    points: int = 12,
    steps: int = 240,
    confirm: int = 4,
    stop: bool = False,
    infeasible: bool = True,
    finish: bool = True,
    maximize: bool = False,
    name: str = "made <b>up</b> & {{body}}",
    seed: int = 0,
) -> Path:
    """Writes a study of `trials` search trials over `rounds`, and `2 * confirm` repeats, into `directory`."""
    rng = np.random.default_rng(seed)
    meta: dict[str, Any] = {
        "state": "running", "name": name, "experiment": {"path": "experiments/made.py", "sha256": "0", "source": ""},
        "options": {"trials": trials, "rounds": rounds, "keep": 0.15}, "space": space.to_json(), "static": ["width"],
        "objective": "accuracy" if maximize else "error", "direction": "maximize" if maximize else "minimize",
        "machine": {"device": "cpu", "devices": 2, "jax": "0.10"},
    }  # fmt: skip
    sign = -1.0 if maximize else 1.0
    best: list[Scored] = []
    now, number = space, 0
    with Ledger.create(directory, meta) as ledger, ledger.transaction():
        ledger.add_group(0, {"width": 16}, {"devices": 2, "lanes": 8, "every": 20}, 1.5, {})
        for r in range(rounds):
            n = trials // rounds + (trials % rounds if r == 0 else 0)
            ledger.add_round(r, "search", now.to_json(), n, {})
            columns = now.sample(n, seed=(seed, r))
            rows = [{k: _plain(v[i]) for k, v in columns.items()} for i in range(n)]
            scored = []
            for params in rows:
                lost = infeasible and math.log10(params.get("learning_rate", 0.01)) > -0.5
                scored.append(_trial(ledger, rng, number, r, params, lost, stop, points, steps, sign))
                number += 1
            best = slice_of([*best, *scored], 0.15 * n / (len(best) + n))
            ledger.finish_round(r)
            if r + 1 < rounds and best:
                now = zoom(now, space, best)
        if confirm and best:
            ledger.add_round(rounds, "confirm", None, 2 * confirm, {})
            for finalist in best[:2]:
                for _ in range(confirm):
                    _trial(
                        ledger, rng, number, rounds, finalist.params, False, False, points, steps, sign, finalist.trial
                    )
                    number += 1
            ledger.finish_round(rounds)
        if finish:
            ledger.set_meta("result", _result(best, sign, number, confirm, meta))
            ledger.set_meta("state", "finished")
            ledger.set_meta("finished", True)
    return directory


def _trial(
    ledger: Ledger, rng: np.random.Generator, trial: int, number: int, params: dict[str, Any], lost: bool,
    stop: bool, points: int, steps: int, sign: float, of: int | None = None,
) -> Scored:  # fmt: skip
    floor = 0.02 + 0.03 * (math.log10(params.get("learning_rate", 0.01)) + 2) ** 2
    floor += 0.01 * (params.get("activation") == "relu") + 0.01 * abs(rng.normal())
    ledger.add_trials([TrialRow(trial, number, 0, State.RUNNING, None, trial, 0, None, params, of, {})])
    end = max(1, points // 3) if lost or (stop and floor > 0.1) else points
    curve = []
    for k in range(1, end + 1):
        value = floor + 0.9 * math.exp(-5 * k / points) + 0.002 * rng.normal()
        if lost and k == end:
            value = math.nan
        value = sign * value + (1.0 if sign < 0 else 0.0)
        curve.append(CurvePoint(trial, k * steps // points, abs(value) * 0.8, value, {"loss": abs(value) * 1.1}))
    ledger.add_curve_points(curve)
    last = curve[-1]
    if lost:
        state, reason = State.INFEASIBLE, f"diverged: the loss is not finite at step {last.step}"
    elif end < points:
        state, reason = State.STOPPED, "halving"
    else:
        state, reason = State.COMPLETE, None
    ledger.finish_trials([TrialResult(trial, state, reason, last.step, last.value, last.metrics)])
    value = last.value if state is State.COMPLETE and last.value is not None else math.nan
    return Scored(trial, params, sign * value)


def _result(best: list[Scored], sign: float, trials: int, confirm: int, meta: dict[str, Any]) -> dict[str, Any]:
    winner = None
    if best:
        winner = {
            "trial": best[0].trial, "value": sign * (best[0].value + 0.01), "value_std": 0.003, "repeats": confirm,
            "best_seen": sign * best[0].value, "params": best[0].params, "test_value": 0.05, "test_std": 0.01,
        }  # fmt: skip
    finalists = [
        {"trial": one.trial, "value": sign * (best[0].value + 0.01 + 0.005 * k), "value_std": 0.003, "low": None,
         "high": None, "repeats": confirm, "infeasible": 0, "expected": None, "chance": None, "params": one.params}
        for k, one in enumerate(best[:2] if confirm else [])
    ]  # fmt: skip
    return {
        "study": "made", "trials": trials, "rounds": meta["options"]["rounds"], "objective": meta["objective"],
        "direction": meta["direction"], "best": winner, "finalists": finalists, "model_steps": 1,
        "compilations": 1, "infeasible": 0,
        "seconds": {"total": 10.0, "compile": 4.0, "train": 5.0, "evaluate": 0.5}, "warnings": ["one <i>warning</i>"],
    }  # fmt: skip


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
