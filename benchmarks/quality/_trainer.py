"""Trains many (setting, seed) pairs of a task at once, and remembers what each came to."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Job, Lanes, Point
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.experiment import find_statics, lane_arguments
from vmaptune.space import Space

RECORD = struct.Struct("<16sd")
TILES = 8  # of each device


class Trainer:
    """A task's compiled programs, one for each value of its static settings.

    A trained value is kept under the hash of (task, version, plan, setting, seed), in memory and, with `folder`, in a
    file: a setting that several methods try with the same seed is trained once, and a run that was broken off goes
    on. Values do not depend on what else is trained in the same call.
    """

    def __init__(self, work: Any, folder: Path | None, version: str, devices: int):
        self.work = work
        self.experiment = work.build()
        assert isinstance(self.experiment.space, Space)
        self.space: Space = self.experiment.space
        self.task = self.experiment.build()
        self.statics = find_statics(self.experiment, self.task)
        self.traced = lane_arguments(self.space, self.statics.traced)
        self.steps = self.experiment.total_steps({})
        self.plan = Plan(devices=devices, tiles=TILES, lanes=work.lanes, every=self.steps)
        self._programs: dict[tuple, Program] = {}
        self._salt = json.dumps([work.name, version, str(self.plan)])
        self._known: dict[bytes, float] = {}
        self._file = folder / f"{work.name}.values" if folder else None
        if self._file is not None and self._file.exists():
            raw = self._file.read_bytes()
            self._known = dict(RECORD.iter_unpack(raw[: len(raw) // RECORD.size * RECORD.size]))
        self.trained = 0
        self.seconds = 0.0

    def values(self, pairs: Sequence[tuple[Mapping[str, Any], int]]) -> list[float]:
        """The objective at the end of each training; NaN for one that is not finite. Lower is better."""
        keys = [self._key(params, seed) for params, seed in pairs]
        missing = {k: pair for k, pair in zip(keys, pairs, strict=True) if k not in self._known}
        if missing:
            self._train(missing)
        return [self._known[k] for k in keys]

    def _key(self, params: Mapping[str, Any], seed: int) -> bytes:
        text = json.dumps([self._salt, [params[n] for n in self.space], seed])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def program(self, static: tuple, plan: Plan | None = None) -> Program:
        """The compiled program of a group."""
        if plan is not None:
            return Program(LaneFunctions(self.task, dict(static), self.traced), self.traced, plan, uneven=False)
        if static not in self._programs:
            functions = LaneFunctions(self.task, dict(static), self.traced)
            self._programs[static] = Program(functions, self.traced, self.plan, uneven=False)
        return self._programs[static]

    def _train(self, missing: Mapping[bytes, tuple[Mapping[str, Any], int]]) -> None:
        groups: dict[tuple, list[tuple[bytes, Mapping[str, Any], int]]] = {}
        for key, (params, seed) in missing.items():
            groups.setdefault(self.statics.group_of(params), []).append((key, params, seed))
        found: dict[bytes, float] = {}
        started = time.perf_counter()
        for static, members in groups.items():
            for i, value in enumerate(train(self, self.program(static), [m[1:] for m in members])):
                found[members[i][0]] = value
        self.seconds += time.perf_counter() - started
        self.trained += len(found)
        self._known |= found
        if self._file is not None:
            with self._file.open("ab") as out:
                out.write(b"".join(RECORD.pack(k, v) for k, v in found.items()))


def train(trainer: Trainer, program: Program, pairs: Sequence[tuple[Mapping[str, Any], int]]) -> list[float]:
    """The values of these trainings, which are all of the program's group."""
    values = [math.nan] * len(pairs)
    objective = trainer.experiment.objective

    def on_points(points: list[Point]) -> list[int]:
        for point in points:
            value = point.metrics[objective]
            values[point.trial] = value if point.bad is None and np.isfinite(value) else math.nan
        return []

    names = trainer.statics.traced
    jobs = [
        Job(i, seed, trainer.space.lane_values(params, names), trainer.steps) for i, (params, seed) in enumerate(pairs)
    ]
    Lanes(program, capacity=2 * program.plan.width, on_points=on_points).train(jobs)
    return values
