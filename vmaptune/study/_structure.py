"""Groups, masks, or a mixture: which settings that shape a model are static, by measured time.

A model written with the masked layers of `vt.nn` can run as one program for all shapes (padded to the largest), as a
program for each shape, or anything between: some of its settings static, the others masked. Fewer programs compile
faster, narrower ones train faster. What a mask costs is measured on the program in which all are masked, the others
are estimated from it by their operations, and the best of them is measured too before it is chosen.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import default_plan
from vmaptune.engine.planner import model_step_seconds
from vmaptune.engine.program import Program, SharedArrays
from vmaptune.experiment import Experiment, Statics, lane_arguments
from vmaptune.space import Space
from vmaptune.study._options import Options
from vmaptune.study._padding import Differs, Padding
from vmaptune.task import Task

MOST_TRACED = 12  # shapes whose operations are counted, which takes a trace each
LEAST_RATIO = 0.1  # of the masked program's time that a narrow one takes, before it is measured
FEW = 3  # programs that are not worth a measurement: then each shape has its own
COMPILERS = 2  # programs that compile at once


@dataclass(frozen=True)
class Candidate:
    """Which of the structure's settings are static, and what the study would take."""

    static: tuple[str, ...]
    programs: int
    seconds: float  # of the whole study, compilation included
    measured: bool


class Structure:
    """Chooses the static settings of a study before its first round."""

    def __init__(self, experiment: Experiment, task: Task, statics: Statics, options: Options):
        self.shared: SharedArrays = {}
        self.experiment, self.task, self.statics, self.options = experiment, task, statics, options
        space = experiment.space
        assert isinstance(space, Space)
        self.space: Space = space
        self.flops: dict[tuple, float] = {}
        self.built: dict[tuple, tuple[LaneFunctions, Program | None]] = {}  # by static settings: names, then values
        self.ruled_out: dict[str, Differs] = {}  # what must not be padded, and what differs then

    def choose(
        self, settings: Sequence[Mapping[str, Any]], trials: int, how: str = "auto"
    ) -> tuple[Statics, dict[str, Any] | None]:
        """The statics to take, and what the ledger says of the choice; None where there was nothing to choose.

        Args:
          settings: of the first round, a sample of what will be trained.
          trials: of the whole study.
          how: "groups" or "masks" to take these unmeasured.
        """
        names: Sequence[str] = self.statics.structure
        several = len({tuple(p[n] for n in names) for p in settings}) > 1
        if how == "groups" or (how == "auto" and several and len(self._programs(names, settings)) <= FEW):
            return self._with(names), None
        self.ruled_out = Padding(self.task, self.space, self.statics).ruled_out(settings)
        self.statics = self._with(list(self.ruled_out))
        names = [name for name in names if name not in self.ruled_out]
        if not names or how == "masks" or len({tuple(p[n] for n in names) for p in settings}) < 2:
            return self.statics, None
        if len(self._programs(names, settings)) <= FEW:
            return self._with(names), None
        started = time.perf_counter()
        mask = self._measured((), settings, trials)
        found = [mask]
        for size in range(1, len(names) + 1):
            for static in itertools.combinations(names, size):
                estimate = self._estimated(static, settings, trials, min(c.seconds for c in found))
                if estimate is not None:
                    found.append(estimate)
        best = min(found, key=lambda c: c.seconds)
        if best.static:
            found.append(self._measured(best.static, settings, trials))
        chosen = min((c for c in found if c.measured), key=lambda c: c.seconds)
        return self._with(chosen.static), {
            "static": list(chosen.static), "programs": chosen.programs, "seconds": chosen.seconds,
            "padded_to_true": self._padding(chosen.static, settings),
            "choosing_seconds": time.perf_counter() - started,
            "candidates": [
                {"static": list(c.static), "programs": c.programs, "seconds": c.seconds, "measured": c.measured}
                for c in found
            ],
        }  # fmt: skip

    def recorded(self, static: Sequence[str]) -> Statics:
        """The choice of a study that goes on, from the names of its static settings."""
        names = [name for name in self.statics.structure if name in static]
        return self._with(names) if names else self.statics

    def notes(self) -> list[str]:
        """What to say of hyperparameters that must not be padded."""
        return [
            f"{name}: has a program for each of its values, because padded to the largest the model is another one: "
            f"{d.what} is {d.padded:.7g} where the model of its own size has {d.dense:.7g} (docs/structure.md says "
            f"what does that)"
            for name, d in self.ruled_out.items()
        ]

    def _with(self, static: Sequence[str]) -> Statics:
        return self.statics.with_static(static)

    def _programs(self, static: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> Counter[tuple]:
        """The programs that these settings need, each with how many of them it trains."""
        statics = self._with(static)
        return Counter(statics.group_of(params) for params in settings)

    def _functions(self, static: Sequence[str], group: tuple) -> LaneFunctions:
        traced = lane_arguments(self.space, self._with(static).traced)
        return LaneFunctions(self.task, dict(group), traced, plain=self.options.as_written)

    def _flops(self, static: Sequence[str], group: tuple) -> float:
        key = (tuple(static), group)
        if key not in self.flops:
            self.flops[key] = max(1.0, self._functions(static, group).costs().step_flops)
        return self.flops[key]

    def _estimated(
        self, static: tuple[str, ...], settings: Sequence[Mapping[str, Any]], trials: int, limit: float
    ) -> Candidate | None:
        """By operations, relative to the masked program; None where it cannot take less than `limit`."""
        programs = self._programs(static, settings)
        compiling = math.ceil(len(programs) / COMPILERS) * self.compile_seconds
        least = trials * self._steps(settings) * self.step_seconds * LEAST_RATIO
        if compiling + least > limit or len(programs) > MOST_TRACED:
            return None
        base = max(self._flops((), group) for group in self._programs((), settings))
        try:
            flops = {group: self._flops(static, group) for group in programs}
        except Exception:  # the code takes these settings masked, but not static
            return None
        training = 0.0
        for group, count in programs.items():
            ratio = max(LEAST_RATIO, flops[group] / base)
            training += count / len(settings) * trials * self._steps(settings) * self.step_seconds * ratio
        return Candidate(static, len(programs), compiling + training, False)

    def _measured(self, static: tuple[str, ...], settings: Sequence[Mapping[str, Any]], trials: int) -> Candidate:
        """Compiles and times the program with the most trials; the others are taken to cost as their operations."""
        programs = self._programs(static, settings)
        group, count = programs.most_common(1)[0]
        functions = self._functions(static, group)
        traced = lane_arguments(self.space, self._with(static).traced)
        steps = self._steps(settings)
        plan = default_plan(functions.costs(), steps=steps, trials=count, pinned=dict(self.options.plan))
        program = Program(functions, traced, plan, self.shared, uneven=steps % plan.every != 0)
        self.built[self._with(static).static, group] = functions, program
        step_seconds = model_step_seconds(program)
        if not static:
            self.compile_seconds, self.step_seconds = program.compile_seconds, step_seconds
        compiling = math.ceil(len(programs) / COMPILERS) * program.compile_seconds
        mine = self._flops(static, group)
        training = 0.0
        for other, n in programs.items():
            ratio = self._flops(static, other) / mine if len(programs) <= MOST_TRACED else 1.0
            training += n / len(settings) * trials * steps * step_seconds * ratio
        return Candidate(static, len(programs), compiling + training, True)

    def _padding(self, static: tuple[str, ...], settings: Sequence[Mapping[str, Any]]) -> float | None:
        """Operations done to operations needed, over a sample of the settings."""
        names = self.statics.structure
        sample = list({self._with(names).group_of(p): p for p in settings}.items())[:MOST_TRACED]
        done = needed = 0.0
        try:
            for group, params in sample:
                needed += self._flops(names, group)
                done += self._flops(static, self._with(static).group_of(params))
        except Exception:  # as above: then nobody can say
            return None
        return done / needed if needed else None

    def _steps(self, settings: Sequence[Mapping[str, Any]]) -> int:
        return self.experiment.total_steps(settings[0])


def within_padding(space: Space, first: Space, statics: Statics) -> tuple[Space, list[str]]:
    """A zoom's space without what has left the first one of the settings that masked layers read, whose arrays are
    padded to the first one's largest value; and what to say of that."""
    notes = []
    for name in statics.structure:
        now, then = space[name], first[name]
        if name not in statics.traced or now.low is None or now.high is None or then.low is None or then.high is None:
            continue
        if now.low < then.low or now.high > then.high:
            space = space.replace(**{name: now.with_bounds(max(now.low, then.low), min(now.high, then.high))})
            notes.append(
                f"{name}: --expand stays within {then.low} and {then.high}, because masked layers are padded to the "
                f"space's largest value; widen it in the space, or take --structure groups"
            )
    return space, notes
