"""How fast a compiled program is on the device at hand, by short trials on one tile of each device."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import jax
import numpy as np

from vmaptune.engine.program import Program

RUN_SECONDS = 0.05  # of one timing
REPEATS = 2


@dataclass(frozen=True)
class TileRate:
    """What a program takes for one tile on each device, all of them at once, in seconds."""

    fill: float  # its lanes' initial states
    step: float  # one training step of each lane
    evaluate: float  # one evaluation of each lane, and the call

    def seconds(self, program: Program, trials: float, steps: int) -> float:
        """What so many trials of `steps` each take. An idle lane of a tile takes as long as one that trains."""
        plan = program.plan
        turns = math.ceil(math.ceil(trials / plan.lanes) / plan.devices)
        return turns * (self.fill + steps * self.step + math.ceil(steps / plan.every) * self.evaluate)

    def seconds_each(self, program: Program, steps: float) -> float:
        """What one trial of `steps` takes where all lanes are busy."""
        plan = program.plan
        return (self.fill + steps * self.step + steps / plan.every * self.evaluate) / (plan.lanes * plan.devices)


def small_settings(program: Program) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Settings, each `[L]` by name, and seeds `[L]` to time a program with."""
    width = program.plan.width
    # small floats, so that nothing diverges at once; a whole number is a count, of which there is at least one
    small = {n: 1 if np.issubdtype(s.dtype, np.integer) else 0.01 for n, s in program.traced.items()}
    hp = {n: np.full(width, small[n], s.dtype) for n, s in program.traced.items()}
    return hp, np.arange(width, dtype=np.uint32)


def tile_rate(program: Program) -> TileRate:
    """Times a program. The other tiles are idle, so it takes little even where the program has many."""
    plan = program.plan
    live = np.arange(plan.width) // plan.lanes % plan.tiles == 0  # [L], the first tile of each device
    table = program.table(*small_settings(program), np.where(live, 2**31 - 1, 0), live)
    state = program.empty()

    def seconds(steps: int, fill: bool = False) -> float:
        nonlocal state
        started = time.perf_counter()
        state, result = program.run(state, table, steps, fill=fill)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    seconds(1, fill=True)
    evaluate = min(seconds(0) for _ in range(REPEATS + 1))
    steps = 1
    while (spent := seconds(steps) - evaluate) < RUN_SECONDS and steps < 2**20:
        steps = max(2 * steps, min(64 * steps, int(steps * RUN_SECONDS / max(spent, 1e-6))))
    step = max(min([spent, *(seconds(steps) - evaluate for _ in range(REPEATS - 1))]), 1e-9) / steps
    return TileRate(max(0.0, seconds(0, fill=True) - evaluate), step, evaluate)
