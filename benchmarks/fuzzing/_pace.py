"""Whether a case trains at least as fast as a plain loop of jitted steps does, compilation left out of both."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vmaptune as vt
from fuzzing._case import Case
from fuzzing._judge import Loops
from fuzzing._package import experiment

TRIALS, SECONDS, SLOWER, TURNS = 16, 1.0, 1.2, 3


def paced(case: Case, say: Any = lambda stage: None) -> dict[str, Any]:
    """Times a case both ways, at most three times: {"verdict": "right" | "slow" | "refused" | "no case", "ratio"}."""
    say("plain")
    try:
        loops = Loops(case)
        loops.check()
        each = _seconds_of_plain_step(loops)
    except Exception as error:
        return {"verdict": "no case", "error": f"{type(error).__name__}: {error}"[:500]}
    steps = max(case.spec["steps"], min(20_000, int(SECONDS / each / TRIALS * 4)))
    ratio = float("inf")
    for _ in range(TURNS):
        say("package")
        with tempfile.TemporaryDirectory() as folder:
            try:
                study = vt.run(
                    experiment(case), trials=TRIALS, rounds=1, steps=steps, out=Path(folder) / "s", report=False
                )
            except Exception as error:
                return {"verdict": "refused", "error": f"{type(error).__name__}: {error}"[:500]}
            result = study.meta["result"]
        say("judge")
        each = min(each, _seconds_of_plain_step(loops))
        ratio = min(ratio, result["seconds"]["train"] / result["model_steps"] / each)
        if ratio <= SLOWER:
            return {"verdict": "right", "ratio": ratio}
    return {"verdict": "slow", "ratio": ratio, "error": f"{ratio:.2f} times a plain loop's time"}


def _seconds_of_plain_step(loops: Loops) -> float:
    """The least time of a jitted step on data that lie on the device, of several runs."""
    narrow, spec = loops.narrow, loops.case.spec
    rows, keys, key = loops.order.of(1)
    params, rest = narrow.first(key)
    rate = np.float32(loops.case.rates[0])
    part = jax.device_put(narrow.train_part)

    @jax.jit
    def step(params: Any, rest: Any, opt: Any, part: Any, rows: Any, rate: Any, key: Any) -> Any:
        return narrow.step(params, rest, opt, tuple(a[rows] for a in part), rate, key)

    opt = narrow._begin(params, rate)
    rows = [jax.device_put(each) for each in rows]
    best = float("inf")
    for _ in range(5):
        started, count = time.perf_counter(), 0
        while count < 2 * spec["steps"] or time.perf_counter() - started < 0.05:
            at = count % spec["steps"]
            *_, loss = step(params, rest, opt, part, rows[at], rate, keys[at])
            jax.block_until_ready(loss)
            count += 1
        best = min(best, (time.perf_counter() - started) / count)
    return best
