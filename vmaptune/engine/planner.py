"""The measured plan: how many lanes a tile should have, by timing the real program on the device at hand.

A tile of one lane is the plain loop, model after model in one compiled scan, and always among the candidates, so a
plan is never slower than that. What was measured is kept per program and machine and used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from vmaptune.engine import kept
from vmaptune.engine.devices import cache_folder, machine
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import SPEED, Costs, Plan, default_plan
from vmaptune.engine.program import Program, SharedArrays
from vmaptune.engine.rate import small_settings

LEAST_SECONDS = 100.0  # of a group's training; candidates compile for some seconds, and that is to stay below 5 %
RUN_SECONDS = 0.05  # of one timing
REPEATS = 3
MOST_LANES = 128


@dataclass(frozen=True)
class Planned:
    """A plan and why it was taken."""

    plan: Plan
    why: str
    measured: Mapping[int, float]  # microseconds of one model-step by lanes per tile; empty where nothing was timed


def planned(
    functions: LaneFunctions,
    costs: Costs,
    *,
    steps: int,
    trials: int,
    rounds: int = 1,
    pinned: Mapping[str, int] | None = None,
    shared: SharedArrays | None = None,
    measure: bool | None = None,
    settle: Callable[[], None] = lambda: None,
) -> Planned:
    """The plan for `rounds` times `trials` of `steps` each: as pinned, as measured before, measured now, or guessed.

    Args:
      measure: True times the candidates even for a small run, False never does; None where it pays.
      settle: called before anything is timed, to wait for what else computes.
    """
    pinned = dict(pinned or {})
    guess = default_plan(costs, steps=steps, trials=trials, pinned=pinned)
    if {"lanes", "tiles", "devices"} & set(pinned):
        return Planned(guess, "as pinned", {})
    if measure is False:
        return Planned(guess, "from sizes, not measured", {})
    file = cache_folder() / "plans" / f"{_key(functions, guess.devices)}.json"
    measured, why = _read(file), "measured before on this machine"
    if not measured:
        seconds = rounds * trials * run_seconds(costs, steps, guess.devices)
        if measure is None and (seconds < LEAST_SECONDS or jax.default_backend() != "cpu"):
            return Planned(guess, "from sizes: too small a run to measure for", {})
        settle()
        measured, why = _measured(functions, guess, trials, shared), "measured now"
        kept.write(file, measured)
    lanes = min(measured, key=measured.__getitem__)
    plan = default_plan(costs, steps=steps, trials=trials, pinned={**pinned, "lanes": lanes})
    return Planned(plan, why, measured)


def run_seconds(costs: Costs, steps: int, devices: int | None = None) -> float:
    """A guess of the seconds that `steps` steps of one trial take when all devices are busy."""
    return steps * costs.step_flops / SPEED / (devices or jax.local_device_count())


def candidates(guess: Plan, trials: int) -> list[int]:
    """Lanes per tile to time: one, which is the plain loop, the guess, and four times as many and as few."""
    most = max(1, trials // guess.devices)
    wanted = {1, guess.lanes // 4, guess.lanes, guess.lanes * 4}
    return sorted(n for n in wanted if 1 <= n <= min(most, MOST_LANES))


def _measured(functions: LaneFunctions, guess: Plan, trials: int, shared: SharedArrays | None) -> dict[int, float]:
    def program(lanes: int) -> Program:
        return Program(functions, functions.traced, replace(guess, lanes=lanes, tiles=1), shared, uneven=False)

    lanes = candidates(guess, trials)
    with ThreadPoolExecutor(2) as pool:
        programs = list(pool.map(program, lanes))
    return {n: model_step_seconds(each) * 1e6 for n, each in zip(lanes, programs, strict=True)}


def model_step_seconds(program: Program) -> float:
    """Seconds of one training step of one model when all lanes train: the least of some timings.

    A segment of many steps less one of a single step, so that evaluation and the call itself are left out.
    """
    width = program.plan.width
    table = program.table(*small_settings(program), np.full(width, 2**31 - 1), True)
    state, result = program.run(program.empty(), table, 1, fill=True)
    jax.block_until_ready(result)

    def seconds(steps: int) -> float:
        nonlocal state
        started = time.perf_counter()
        state, result = program.run(state, table, steps)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    seconds(1)
    one = min(seconds(1) for _ in range(REPEATS))
    steps = 8
    while (longer := seconds(1 + steps)) - one < RUN_SECONDS and steps < 2**20:
        steps = max(2 * steps, int(steps * RUN_SECONDS / max(longer - one, RUN_SECONDS / 16)))
    return max(min(seconds(1 + steps) for _ in range(REPEATS)) - one, 1e-9) / steps / width


def _key(functions: LaneFunctions, devices: int) -> str:
    """What a measurement holds for: the traced step and the machine."""
    what = [str(functions.step.fitted), devices, sorted(machine().items())]
    return kept.digest(what)


def _read(file: Path) -> dict[int, float]:
    try:
        return {int(lanes): float(micros) for lanes, micros in kept.read(file).items()}
    except (ValueError, AttributeError, TypeError):
        return {}  # not measured, or a damaged file: it is measured again


def why(found: Planned) -> str:
    """Why a plan was taken, with the timings if there were some, on one line."""
    times = ", ".join(f"{lanes} lanes {micros:.3g} µs" for lanes, micros in sorted(found.measured.items()))
    return f"{found.why} (a model-step with tiles of {times})" if times else found.why
