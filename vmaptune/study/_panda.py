"""One model, babysat: trained alone, its settings changed while it trains, every change kept in a ledger.

"Panda or caviar" is Andrew Ng's pair: to watch over one model, as pandas do, or to spawn many and keep what thrives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vmaptune.engine.alone import Alone
from vmaptune.engine.check import AsWritten, Checked, check_alone
from vmaptune.engine.devices import machine, prepare_devices
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Point
from vmaptune.engine.plan import segment_steps
from vmaptune.errors import InputError
from vmaptune.experiment import (
    Experiment,
    LoadedExperiment,
    find_statics,
    lane_arguments,
    model_arrays,
    not_while_importing,
    raise_as_input_error,
)
from vmaptune.search.sampler import trial_seed
from vmaptune.space import Space, held_number
from vmaptune.store.files import inside
from vmaptune.store.ledger import CurvePoint, DecisionRow, Ledger, TrialResult, TrialRow
from vmaptune.store.states import State
from vmaptune.store.weights import save_weights
from vmaptune.study._groups import failed, given_up
from vmaptune.study._options import Options, default_directory
from vmaptune.study._outcome import plain_tree
from vmaptune.study._study import Study, load
from vmaptune.study._training import infeasible
from vmaptune.task import Task

PATIENCE = 0.2  # seconds of training between two looks at the keyboard
FINER = 10  # times as many measurements as a trial of a study has


@dataclass(frozen=True)
class Mark:
    """A change of a setting, a snapshot, or a return to one, at a step."""

    step: int
    kind: str  # "adjust", "snapshot", "rollback"
    text: str


@dataclass(frozen=True)
class Snapshot:
    """A state to return to."""

    step: int
    state: Any
    settings: dict[str, Any]
    total: float = 0.0  # of the losses since the last measurement
    since: int = 0  # how many they are


class Panda:
    """A model in training, in the hands of a person.

    `begin()` makes its directory; `advance()` trains a little; `adjust`, `snapshot` and `rollback` act between two of
    those; `finish()` saves the weights as a study's best. The settings are arguments of the compiled segment: a
    change compiles nothing.

    Args:
      experiment: what to train, with every setting of `params` in its space.
      params: a value for each setting.
      seed: the trial's seed, 0 to 2^31 - 1.
      steps: training steps in all.
      directory: where the study goes; it must not hold one yet.
      source: the file that the experiment came from.
      origin: where the setting came from, for the ledger.
      as_written: trains the model as it is written, see `vmaptune.run`.

    Raises:
      InputError: a setting that the model cannot be built with.
    """

    def __init__(
        self,
        experiment: Experiment,
        params: Mapping[str, Any],
        *,
        seed: int,
        steps: int | None,
        directory: Path,
        source: LoadedExperiment | None = None,
        origin: str | None = None,
        as_written: bool = False,
    ):
        self.started = time.perf_counter()
        self.experiment, self.directory = experiment.with_changes(steps=steps), directory
        self.params, self.seed, self.origin = dict(params), seed, origin
        file = source.path if source else None
        space = self.experiment.space
        assert isinstance(space, Space)
        task = self.experiment.build()
        statics = find_statics(self.experiment, task, file)
        self.statics = statics.with_static(statics.structure)  # one model: no mask
        self.params = {name: value if space.active(self.params)[name] else None for name, value in params.items()}
        there = [name for name in self.statics.traced if self.params[name] is not None]
        self.params |= {n: held_number(n, space[n], self.params[n]) for n in there if space[n].numeric}
        self.settings: dict[str, Any] = {name: self.params[name] for name in there}
        try:
            functions = self._functions(task, plain=as_written)
        except Exception as error:
            raise_as_input_error(error, file, self.params)
            raise
        self._filled = space.lane_values(self.params, self.statics.traced)  # what does not exist has a value to skip
        self.steps = self.experiment.total_steps(self.params)
        self.alone, self.note = self._checked(task, functions)
        self.every = segment_steps(functions.costs(), max(1, self.steps // FINER))
        self.step = 0
        self.trial = 0
        self.marks: list[Mark] = []
        self.curve: list[CurvePoint] = []
        self.given_up: list[CurvePoint] = []  # the curve before the last return to a snapshot
        self.changes = 0
        self.bad: int | None = None  # the first step whose loss was not finite
        self._reason: str | None = None  # why it cannot go on
        self._total, self._since = 0.0, 0  # of the losses since the last measurement, and their number
        self._burst = 1
        self._values = self.alone.arrays({**self._filled, **self.settings})
        self._state = self.alone.start()
        self._snapshots = [Snapshot(0, self._state, dict(self.settings))]
        self._source = source
        self._ledger: Ledger | None = None

    def _functions(self, task: Task, *, plain: bool) -> LaneFunctions:
        static, traced = dict(self.statics.group_of(self.params)), self.statics.traced
        assert isinstance(self.experiment.space, Space)
        return LaneFunctions(task, static, lane_arguments(self.experiment.space, traced), plain=plain)

    def _checked(self, task: Task, functions: LaneFunctions) -> tuple[Alone, str | None]:
        """What trains the model: rewritten if that is the same to rounding, else as it is written, and why."""
        alone = Alone(functions, self._filled, self.seed)
        self.checked: Checked | None = None
        if not functions.rewritten:
            self.checked = failed(functions.failure) if functions.failure else None
            return alone, given_up(self.checked) if self.checked else None
        plain = self._functions(task, plain=True)
        try:
            self.checked = check_alone(alone, AsWritten(plain, self.steps), self._filled, self.seed)
        except Exception as error:
            self.checked = failed(error)
        return (alone, None) if self.checked.equal else (Alone(plain, self._filled, self.seed), given_up(self.checked))

    def begin(self) -> None:
        """Makes the study's directory; until then nothing is written.

        Raises:
          InputError: the directory holds a study, or cannot be made.
        """
        space = self.experiment.space
        assert isinstance(space, Space)
        static = dict(self.statics.group_of(self.params))
        self._ledger = Ledger.create(self.directory, self._meta(self._source))
        with self.ledger.transaction():
            self.ledger.add_round(0, "search", space.to_json(), 1)
            self.ledger.add_group(
                0,
                static,
                {"devices": 1, "lanes": 1, "every": self.every},
                None,
                {"checked": self.checked.to_json() if self.checked else None},
            )
            self._add_trial()

    @property
    def ledger(self) -> Ledger:
        """The study's ledger, once it has begun."""
        assert self._ledger is not None, "begin() comes first"
        return self._ledger

    # ---- training ------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether it has come to its last step, or to a loss that is not finite."""
        return self.step >= self.steps or self.bad is not None

    def advance(self, until: int | None = None) -> CurvePoint | None:
        """Trains for a moment, not past `until` or the next measurement; returns the point when one is taken."""
        stop = min(self.steps, (self.step // self.every + 1) * self.every)
        if until is not None and until > self.step:  # one that lies behind holds nothing up
            stop = min(stop, until)
        n = min(self._burst, stop - self.step)
        began = time.perf_counter()
        self._state, total, bad = self.alone.segment(self._state, self.step, n, self._values)
        spent = time.perf_counter() - began
        self._burst = (
            max(1, min(2 * self._burst, int(n * PATIENCE / max(spent, 1e-6)))) if n == self._burst else self._burst
        )
        self.step += n
        self._total, self._since = self._total + total, self._since + n
        if bad is None and self.step % self.every and self.step < self.steps:
            return None
        return self._measure(bad)

    def _measure(self, bad: int | None) -> CurvePoint:
        metrics = self.alone.measure(self._state, self._values)
        loss = self._total / self._since if self._since else math.nan
        self._total, self._since = 0.0, 0
        value = metrics[self.experiment.objective]
        self._reason = infeasible(Point(self.trial, self.step, loss, metrics, bad), value)
        if self._reason is not None:
            self.bad = bad if bad is not None else self.step
        point = CurvePoint(self.trial, self.step, loss, value, metrics)
        self.curve.append(point)
        with self.ledger.transaction():
            self.ledger.add_curve_points([point])
        return point

    # ---- what a person does --------------------------------------------------------------------------

    def adjust(self, name: str, value: float) -> None:
        """Gives a traced setting another value, from the next step on.

        Raises:
          InputError: no such setting, a static one, or a value that is not finite or that float32 cannot hold.
        """
        if name not in self.settings:
            why = "it is static: the program is built for its value" if name in self.params else "there is no such one"
            raise InputError(
                f"{name}: a setting that changes while training must be a traced one, but {why}; "
                f"those are: {', '.join(self.settings) or 'none'}"
            )
        if not math.isfinite(value):
            raise InputError(f"{name}: a setting must be a finite number, but got {value!r}")
        space = self.experiment.space
        before = self.settings[name]
        assert isinstance(space, Space)
        held = held_number(name, space[name], round(value) if space[name].is_integer else float(value))
        self.changes += 1
        self.settings[name] = held
        self._values = self.alone.arrays({**self._filled, **self.settings})
        data = {"trial": self.trial, "step": self.step, "name": name, "from": before, "to": self.settings[name]}
        self._mark("adjust", f"{name} {before:.6g} → {self.settings[name]:.6g}", data)

    def snapshot(self) -> None:
        """Keeps the state, to return to. The start is one."""
        self._snapshots.append(Snapshot(self.step, self._state, dict(self.settings), self._total, self._since))
        self._mark("snapshot", "snapshot", {"trial": self.trial, "step": self.step, "settings": dict(self.settings)})

    def rollback(self) -> None:
        """Returns to the last snapshot, its settings too. What was trained since stays in the ledger, as a trial that
        was stopped; a new one goes on from the snapshot."""
        kept = self._snapshots[-1]
        since = self.step
        self._finish_trial(State.STOPPED if self.bad is None else State.INFEASIBLE, f"rolled back to step {kept.step}")
        self.trial += 1
        self.given_up = self.curve
        self.marks = [mark for mark in self.marks if mark.step <= kept.step]
        before = [point for point in self.curve if point.step <= kept.step]
        self.curve = [CurvePoint(self.trial, p.step, p.loss, p.value, p.metrics) for p in before]
        self.step, self._state, self.settings = kept.step, kept.state, dict(kept.settings)
        self._values = self.alone.arrays({**self._filled, **self.settings})
        self.bad, self._reason = None, None
        self._total, self._since = kept.total, kept.since
        with self.ledger.transaction():
            self._add_trial()
            self.ledger.add_curve_points(self.curve)
        self._mark("rollback", f"back from {since}", {"trial": self.trial, "from": since, "step": kept.step})

    def finish(self, state: str = "finished") -> Study:
        """Saves what there is, as a study's best model, and closes the ledger."""
        if self.bad is None and (not self.curve or self.curve[-1].step != self.step):
            self._measure(None)
        complete = self.bad is None and bool(self.curve)
        self._finish_trial(State.COMPLETE if complete else State.INFEASIBLE, None if complete else self._reason)
        with self.ledger.transaction():
            self.ledger.finish_round(0)
        if complete:
            packed = jax.tree.map(np.asarray, jax.device_get(self._state))
            kept = packed if self.experiment.task is not None else model_arrays(packed)
            save_weights(inside(self.directory, "best") / "best.weights", plain_tree(kept))
        with self.ledger.transaction():
            self.ledger.set_meta("weights", {"best": self.trial} if complete else {})
            self.ledger.set_meta("result", self._result(complete))
            self.ledger.set_meta("state", state)
        self.close()
        return load(self.directory, self.experiment)

    def close(self) -> None:
        """Closes the ledger."""
        self.ledger.close()

    # ---- the ledger ----------------------------------------------------------------------------------

    def _mark(self, kind: str, text: str, data: dict[str, Any]) -> None:
        self.marks.append(Mark(self.step, kind, text))
        with self.ledger.transaction():
            self.ledger.add_decision(0, kind, data)

    def _add_trial(self) -> None:
        params = {name: self.settings.get(name, value) for name, value in self.params.items()}
        self.ledger.add_trials(
            [TrialRow(self.trial, 0, 0, State.RUNNING, None, self.seed, self.step, None, params)]
        )  # fmt: skip

    def _finish_trial(self, state: State, reason: str | None) -> None:
        last = self.curve[-1] if self.curve else None
        with self.ledger.transaction():
            self.ledger.finish_trials(
                [TrialResult(self.trial, state, reason, self.step, last.value if last else None,
                             last.metrics if last else {})]
            )  # fmt: skip

    def _result(self, complete: bool) -> dict[str, Any]:
        sign = 1.0 if self.experiment.direction == "minimize" else -1.0
        finite = [sign * p.value for p in self.curve if p.value is not None and math.isfinite(p.value)]
        best = None
        if complete:
            best = {
                "trial": self.trial, "value": self.curve[-1].value, "value_std": None, "repeats": 0,
                "best_seen": sign * min(finite),
                "params": {name: self.settings.get(name, value) for name, value in self.params.items()},
            }  # fmt: skip
        many = f"{self.changes} change{'s' if self.changes != 1 else ''} of settings while it trained"
        warnings = [self.note] if self.note else []
        if self.changes:
            warnings.append(f"{many}; the params are those at the end")
        return {
            "study": str(self.directory), "trials": self.trial + 1, "rounds": 1,
            "objective": self.experiment.objective, "direction": self.experiment.direction, "best": best,
            "seconds": {"total": time.perf_counter() - self.started, "compile": 0.0, "train": 0.0, "evaluate": 0.0},
            "model_steps": self.step, "compilations": 1, "infeasible": int(not complete), "warnings": warnings,
        }  # fmt: skip

    def _meta(self, source: LoadedExperiment | None) -> dict[str, Any]:
        space = self.experiment.space
        assert isinstance(space, Space)
        return {
            "state": "running",
            "name": source.name if source else self.experiment.name,
            "experiment": {
                "path": source.path if source else None,
                "sha256": source.sha256 if source else None,
                "source": source.source if source else None,
            },
            "options": asdict(Options(trials=1, rounds=1, steps=self.steps)),
            "panda": {"from": self.origin, "params": self.params},
            "space": space.to_json(),
            "static": list(self.statics.static),
            "objective": self.experiment.objective,
            "direction": self.experiment.direction,
            "machine": machine(),
            "created": time.time(),
        }  # fmt: skip


def panda(
    experiment: Experiment | LoadedExperiment,
    *,
    params: Mapping[str, Any] | None = None,
    origin: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    as_written: bool = False,
) -> Panda:
    """A model to babysit.

    Args:
      experiment: what to train.
      params: settings by name; the others come from `origin`, or lie in the middle of their scale.
      origin: "DIR" for a study's winner, or "DIR:TRIAL" for the setting (and the seed) of any of its trials.
      steps: training steps, instead of the origin's or the experiment's own.
      seed: the trial's seed, instead of the origin's or the first one of study seed 0.
      as_written: trains the model as it is written, see `vmaptune.run`.
      out: the study's directory; `runs/<name>-panda`, with a number if need be, by default.

    Raises:
      InputError: a mistake in one of these.
    """
    not_while_importing("vt.panda")
    prepare_devices()
    source = experiment if isinstance(experiment, LoadedExperiment) else None
    plain = source.experiment if source else experiment
    assert isinstance(plain, Experiment)
    space = plain.space
    assert isinstance(space, Space)
    (values,) = space.rows(space.from_unit(np.full((1, len(space)), 0.5)))
    if origin is not None:
        study, trial = _origin(origin)
        row = study.ledger.trial(trial)
        missing = [name for name in space if name not in row.params]
        if missing:
            raise InputError(
                f"--from {origin}: its setting must have every one of this experiment's, but {', '.join(missing)} "
                f"is not in it; it has: {', '.join(row.params)}"
            )
        values = {name: row.params[name] for name in space}
        steps = steps if steps is not None else study.meta["options"]["steps"]
        seed = row.seed if seed is None else seed
        study.close()
    for name, value in (params or {}).items():
        if name not in space:
            raise InputError(f"--set {name}=...: the space has no setting {name!r}; it has: {', '.join(space)}")
        values[name] = value
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise InputError(f"steps must be a whole number of at least 1, but got {steps!r}; leave --steps out")
    seed = trial_seed(0, 0) if seed is None else seed
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise InputError(f"seed must be a whole number from 0 to 2^31 - 1, but got {seed!r}; leave --seed out")
    name = source.name if source else plain.name or "model"
    directory = Path(out) if out is not None else _free(default_directory(f"{name}-panda"))
    return Panda(
        plain, values, seed=seed, steps=steps, directory=directory, source=source, origin=origin, as_written=as_written
    )


def adjustments(
    decisions: Iterable[DecisionRow], params: Mapping[str, Any], trial: int
) -> list[tuple[int, dict[str, Any]]]:
    """The settings that a babysat model's `trial` went on with, each with the step, from those it began with.

    A trial after a rollback has those of before the snapshot, and its own.
    """
    made: list[tuple[int, dict[str, Any]]] = []
    kept = 0
    for decision in decisions:
        done = decision.data
        if done.get("trial", 0) > trial:
            break
        if decision.kind == "adjust":
            made.append((done["step"], {**(made[-1][1] if made else params), done["name"]: done["to"]}))
        elif decision.kind == "snapshot":
            kept = len(made)
        elif decision.kind == "rollback":
            made = made[:kept]
    return made


def _origin(text: str) -> tuple[Study, int]:
    """The study and the trial that `DIR` or `DIR:TRIAL` names."""
    directory, colon, trial = text.rpartition(":")
    if not colon or Path(text).is_dir():
        study = load(text)
        return study, int(study.best["trial"])
    if trial in ("", "best"):
        study = load(directory)
        return study, int(study.best["trial"])
    if not trial.isdigit():
        raise InputError(f"--from must read DIR or DIR:TRIAL, the number of a trial, but got {text!r}")
    return load(directory), int(trial)


def _free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
