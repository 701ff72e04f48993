"""Whether a study's numbers are right: as near to float64 as a plain float32 loop's are, times ten."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fuzzing._case import Case
from fuzzing._package import Order, Trained, train
from fuzzing._plain import Plain, Points, is_float

FURTHER = 10.0  # than plain float32 may a number be from float64
ROUNDING = 200 * 2.0**-24  # of a number's own size, and never less than that
NOTHING = 1e-9  # a difference so small is no number of a model whose weights are of size one: a true gradient of 0
COARSE = 2.0**-6  # the same where numbers are rounded to 16 bits
CAUGHT = "trained as written"  # in a study's warning that its own check of a program has failed
QUICK, PATIENT = (3, 2.0**-23), (40, 2.0**-20)  # runs with nudged weights, and by how much


class Loops:
    """The plain loops of a case; they compile once."""

    def __init__(self, case: Case):
        self.case = case
        self.narrow, self.wide = Plain(case, wide=False), Plain(case, wide=True)
        self.order = Order(case)

    def check(self, *, wide: bool = True) -> None:
        """Raises whatever plain JAX raises."""
        rows, keys, key = self.order.of(1)
        loop = self.wide if wide else self.narrow
        loop.run(self.first(key), self.case.rates[0], rows, keys, [len(rows)])

    def first(self, key: jax.Array) -> Any:
        first = self.narrow.first(key)
        self.wide.graph = self.narrow.graph
        return first

    def judge(self, trained: Trained) -> list[dict[str, Any]]:
        """What is wrong with a trial's numbers, the first of each name."""
        rows, keys, key = self.order.of(trained.seed)
        first = self.first(key)
        stops = [s for s in range(1, len(rows) + 1) if s in trained.points] + [len(rows)]

        def run(loop: Plain, **nudge: Any) -> Points:
            return loop.run(first, trained.rate, rows, keys, stops, **nudge)

        exact = run(self.wide)
        plain: list[Points] = []
        wrong = wrong_numbers(trained.points, exact, plain, self.floor, self.sizes(first))
        # most cases end here: what float32 costs is found out, and its loop compiled, where there is a doubt
        for draws, nudge in (QUICK, PATIENT) if wrong else ():
            plain += [] if plain else [run(self.narrow)]
            size = nudge * self.floor / ROUNDING
            plain += [run(self.narrow, nudge=size, draw=draw) for draw in range(draws)]
            wrong = wrong_numbers(trained.points, exact, plain, self.floor, self.sizes(first))
            if not wrong:
                break
        return [{"trial": trained.trial, **each} for each in wrong]

    @property
    def floor(self) -> float:
        return COARSE if self.case.is_coarse else ROUNDING

    def sizes(self, first: Any) -> dict[str, float]:
        """How large the terms of each number are."""
        leaves = [a for a in jax.tree.leaves(first) if is_float(a)]
        terms = {f"w{i}": float(np.abs(np.asarray(a) * Case.signs(i, a.shape)).sum()) for i, a in enumerate(leaves)}
        return {"loss": 0.1, "training loss": 0.1} | terms


def wrong_numbers(
    found: Points, exact: Points, plain: list[Points], floor: float, sizes: dict[str, float]
) -> list[dict[str, Any]]:
    """The numbers of `found` that are further from `exact` than `FURTHER` times any of `plain` is, and than rounding
    is. From a point on at which a plain loop is not finite nothing is compared: it may lie in how XLA compiled it (the
    gradient of a minimum asks which number equals it, and finds none where one of the two was computed anew)."""
    wrong: dict[str, dict[str, Any]] = {}
    for step, right in exact.items():
        here = found.get(step, {})
        if not all(np.isfinite(list(loop[step].values())).all() for loop in (exact, *plain)):
            break
        for name, number in right.items():
            value = here.get(name, np.nan)
            spread = max((abs(loop[step][name] - number) for loop in plain), default=0.0)
            allowed = NOTHING + FURTHER * spread + floor * max(abs(number), sizes.get(name, 0.0))
            if not abs(value - number) <= allowed and name not in wrong:
                narrow = plain[0][step][name] if plain else None
                wrong[name] = {"name": name, "step": step, "found": value, "float64": number, "float32": narrow,
                               "allowed": allowed}  # fmt: skip
    return list(wrong.values())


def judged(case: Case, say: Any = lambda stage: None) -> dict[str, Any]:
    """Trains a case both ways. Returns {"verdict": ...} and what is wrong with it.

    The verdict is "right", "wrong", "refused" where the package raised an error, "caught" where it found its own
    program wrong and trained the model as written, and rightly, or "no case" where plain JAX does not train it either.
    """
    say("plain")
    try:
        loops = Loops(case)
        loops.check()
    except Exception as error:
        return {"verdict": "no case", "error": _short(error)}
    say("package")
    with tempfile.TemporaryDirectory() as folder:
        try:
            trials, warnings = train(case, Path(folder) / "study")
        except Exception as error:
            try:
                loops.check(wide=False)
            except Exception as plain:
                return {"verdict": "no case", "error": _short(plain)}
            return {"verdict": "refused", "error": _short(error)}
    say("judge")
    wrong = [each for trained in trials for each in loops.judge(trained)]
    caught = [warning for warning in warnings if CAUGHT in warning]
    verdict = "wrong" if wrong else "caught" if caught else "right"
    return {"verdict": verdict, "wrong": wrong[:6], "warnings": warnings, "error": " ".join(caught)}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
