"""How a group runs: devices × tiles × lanes per tile, and how many steps between evaluations.

A tile is the lanes that one device trains together; it runs its whole segment before the device's next tile
starts, so that its state stays in the cache. More trials than a program has lanes wait for a free lane, or are
further calls of the same program; with fewer, idle tiles are passed over. So a later round compiles nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax

from vmaptune.engine.devices import memory_bytes
from vmaptune.errors import InputError

CACHE_BYTES = 512 * 1024  # what a tile's state may take of one core's cache
TOUCHED_BYTES = 8 * 1024 * 1024  # what a tile's step may touch, by the estimate in `Costs`: large activations
MAX_CPU_TILE = 64
ACCELERATOR_MEMORY_SHARE = 0.6
LANES_MEMORY_SHARE = 0.5  # of the memory at hand that the lanes' states may take
EVALUATION_SHARE = 0.1  # of a trial's operations
MAX_SEGMENTS = 20
SPEED = 2e10  # operations a second that small models reach on one CPU core at the least, for guesses
CALL_SECONDS = 30.0  # of one call on a CPU, by that guess: nothing is saved and no Ctrl-C heard within a call


@dataclass(frozen=True)
class Plan:
    """How a group runs. The bits of a result belong to (program, plan, device, versions)."""

    devices: int  # local devices that lanes are split over
    lanes: int  # lanes of a tile, one tile on each device
    every: int  # training steps of a segment
    tiles: int = 1  # of each device

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise InputError(f"--plan: {name} must be at least 1, but got {value}")

    @property
    def width(self) -> int:
        """Lanes of one call of the program."""
        return self.devices * self.tiles * self.lanes

    def filling_order(self) -> list[int]:
        """The lanes of a call in the order in which they are filled: tile by tile, in turn on each device."""
        return [
            (device * self.tiles + tile) * self.lanes + lane
            for tile in range(self.tiles)
            for device in range(self.devices)
            for lane in range(self.lanes)
        ]

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def __str__(self) -> str:
        return f"devices={self.devices},tiles={self.tiles},lanes={self.lanes},every={self.every}"


def parse_plan(text: str) -> dict[str, int]:
    """Reads `devices=2,tiles=4,lanes=16,every=50`, any of the four; the rest is planned.

    Raises:
      InputError: what is no text, a name that a plan does not have, or a value that is no whole number of at least 1.
    """
    if not isinstance(text, str):
        raise InputError(f"plan must be a text like 'devices=2,tiles=4,lanes=16,every=50', but got {text!r}")
    parts: dict[str, int] = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, _, value = item.partition("=")
        if name not in ("devices", "tiles", "lanes", "every") or not value.isdigit() or int(value) < 1:
            raise InputError(
                f"--plan must read like devices=2,tiles=4,lanes=16,every=50 (any of the four, whole numbers of at "
                f"least 1), but got {item!r}"
            )
        parts[name] = int(value)
    if parts.get("devices", 1) > jax.local_device_count():
        raise InputError(
            f"--plan: devices must be at most {jax.local_device_count()}, the devices here, but got {parts['devices']}"
        )
    return parts


@dataclass(frozen=True)
class Costs:
    """What one lane costs, from its lowered functions."""

    state_bytes: int  # parameters, optimiser state and whatever else is carried
    step_bytes: int  # an estimate of what one step touches
    step_flops: float
    evaluate_flops: float


def segment_steps(costs: Costs, steps: int) -> int:
    """Steps of a segment such that evaluation takes at most a tenth of the operations.

    One that divides a trial's steps is taken if there is one near, so that no lane ends within a segment.
    """
    ratio = costs.evaluate_flops / max(costs.step_flops, 1.0)
    least = max(1, math.ceil(ratio * (1 - EVALUATION_SHARE) / EVALUATION_SHARE))
    segments = max(1, min(MAX_SEGMENTS, steps // least))
    wanted = math.ceil(steps / segments)
    even = [d for d in range(wanted, min(wanted * 7 // 4, steps) + 1) if steps % d == 0]
    return even[0] if even else wanted


def lanes_in_memory(state_bytes: int, plan: Plan) -> int:
    """How many lanes may live at once; the others wait in the queue. At least one call of the program."""
    share = memory_bytes() * LANES_MEMORY_SHARE
    return max(plan.width, int(share // max(1, state_bytes)))


def default_plan(costs: Costs, *, steps: int, trials: int, pinned: dict[str, int] | None = None) -> Plan:
    """The plan before any measurement, from sizes alone, so that the same command gives the same plan.

    On a CPU a tile's state stays in a core's cache; on an accelerator all lanes run at once as far as
    memory goes.
    """
    pinned = pinned or {}
    devices = pinned.get("devices", jax.local_device_count())
    per_device = max(1, math.ceil(trials / devices))
    if jax.default_backend() == "cpu":
        fits = max(1, CACHE_BYTES // max(1, costs.state_bytes))
        lanes = 2 ** int(math.log2(min(fits, MAX_CPU_TILE)))
        if costs.state_bytes <= 2 * CACHE_BYTES:
            lanes = max(lanes, 2)
        lanes = min(lanes, 2 ** int(math.log2(max(1, TOUCHED_BYTES // max(1, costs.step_bytes)))))
    else:
        stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
        memory = stats.get("bytes_limit", 8 * 2**30) * ACCELERATOR_MEMORY_SHARE
        fits = max(1, int(memory // max(1, 2 * costs.state_bytes + costs.step_bytes)))
        lanes = 8 * math.ceil(per_device / 8) if fits >= 8 else fits
        lanes = min(lanes, fits)
    lanes = pinned.get("lanes", min(lanes, 2 ** math.ceil(math.log2(per_device))))
    tiles = math.ceil(per_device / lanes)
    every = pinned.get("every", segment_steps(costs, steps))
    most = max(1, int(memory_bytes() * LANES_MEMORY_SHARE // max(1, costs.state_bytes * devices * lanes)))
    if jax.default_backend() == "cpu":
        tile_seconds = lanes * every * costs.step_flops / SPEED
        most = max(1, min(most, int(CALL_SECONDS // max(tile_seconds, 1e-9))))
    return Plan(devices=devices, lanes=lanes, tiles=pinned.get("tiles", min(tiles, most)), every=every)
