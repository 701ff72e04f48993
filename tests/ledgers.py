"""A small ledger written by hand, for the tests of what reads one. No JAX."""

from __future__ import annotations

from pathlib import Path

from vmaptune.space import Space, loguniform, ordinal, reverseloguniform
from vmaptune.store.ledger import CurvePoint, Ledger, TrialResult, TrialRow
from vmaptune.store.states import State

SPACE = Space(
    {
        "learning_rate": loguniform(1e-4, 1.0),
        "momentum": reverseloguniform(0.5, 0.999),
        "decay": loguniform(1e-6, 1e-1, or_zero=0.25),
        "width": ordinal([16, 32]),
    }
)
STEPS = (10, 20, 30)
# trial -> setting, the state it ends in, why, and its objective after each segment
TRIALS = {
    0: ((0.01, 0.9, 0.0, 16), State.COMPLETE, None, (0.9, 0.5, 0.25)),
    1: ((0.1, 0.99, 1e-3, 32), State.COMPLETE, None, (0.8, 0.4, 0.125)),
    2: ((1e-3, 0.5, 1e-4, 16), State.STOPPED, "rung 0: 3rd of 3", (0.95,)),
    3: ((1.0, 0.999, 0.0, 32), State.INFEASIBLE, "diverged: the loss is not finite at step 15", (0.99, float("nan"))),
    4: ((0.02, 0.95, 0.1, 32), State.RUNNING, None, (0.85, 0.45)),
    5: ((0.1, 0.99, 1e-3, 32), State.COMPLETE, None, (0.7, 0.3, 0.15)),
}
CONFIRMS = {5: 1}


def write_study(directory: Path, *, state: str = "running", objective: str = "error") -> Path:
    """The study of TRIALS: a search round of 0 to 4 and a confirm round of 5, which trains 1 again."""
    meta = {
        "state": state, "name": "by-hand", "space": SPACE.to_json(), "static": ["width"], "objective": objective,
        "direction": "minimize", "options": {"rounds": 1, "trials": 8, "seed": 0, "steps": 30},
    }  # fmt: skip
    with Ledger.create(directory, meta) as ledger, ledger.transaction():
        ledger.add_round(0, "search", SPACE.to_json(), 5)
        ledger.add_round(1, "confirm", None, 1)
        ledger.add_group(0, {"width": 16}, {"devices": 1, "lanes": 4, "every": 10}, 0.5)
        ledger.add_decision(0, "zoom", {"slice": [1, 0]})
        for trial, (values, end, reason, curve) in TRIALS.items():
            params = dict(zip(SPACE, values, strict=True))
            ledger.add_trials(
                [TrialRow(trial, 1 if trial in CONFIRMS else 0, 0, State.RUNNING, None, 100 + trial, 0, None, params,
                          CONFIRMS.get(trial))]
            )  # fmt: skip
            ledger.add_curve_points(
                CurvePoint(trial, step, 2 * value, value, {objective: value, "loss": 2 * value})
                for step, value in zip(STEPS, curve, strict=False)
            )
            if end is not State.RUNNING:
                last = curve[-1]
                result = TrialResult(
                    trial, end, reason, STEPS[len(curve) - 1], last, {objective: last, "loss": 2 * last}
                )
                ledger.finish_trials([result])
        ledger.finish_round(0)
    return directory
