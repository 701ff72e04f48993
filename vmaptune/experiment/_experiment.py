"""What an exp.py declares, and how it becomes a Task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vmaptune.errors import InputError
from vmaptune.experiment._data import Data
from vmaptune.experiment._measures import (
    MOST_LETTERS,
    SIGNATURES,
)
from vmaptune.experiment._places import at, at_line, described, inside, kind, place_in
from vmaptune.experiment._structure import limits_of, with_structure
from vmaptune.nn import Size, size
from vmaptune.rewrite import Choice
from vmaptune.space import Distribution, Space, check_held
from vmaptune.task import Task

DEFAULT_STEPS = 1000
DEFAULT_BATCH_SIZE = 128
PRECISIONS = ("float32", "bfloat16")
SHARED_ORDER = 0  # the key of the order that lanes share
MOST_STEPS = 2**31 - 1  # steps are counted in int32
MOST_EXAMPLES = 2**32  # that `batch_indices` can count, in uint32


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One small model and which of its settings are uncertain.

    An argument of these functions that has one of the names below gets what it says, wherever it stands; one with
    another name gets the next in the order given here, or keeps its default where it has one.

    Args:
      space: name -> distribution (`vt.loguniform(...)`, ...) or a plain value.
      model: `(hp, rngs) -> module`: a Flax nnx module, a linen one, or a pytree of arrays. It may take a `key` too.
      optimizer: `(hp, steps) -> optax.GradientTransformation`. A schedule-free one of optax.contrib trains at y, and
        the model at x is what is measured and saved.
      loss: `(model, batch[, hp[, key]]) -> scalar`, or a scalar and a dict of more scalars, which are metrics too:
        those of the last training batch before a measurement, each with `train_` before its name. nnx models are in
        training mode; the key is the trial's own for this step. It may take `step` too, the number of the step, from
        0, and `steps`, how many there are.
      metrics: `(model, batch[, hp]) -> dict` of scalars of a whole part of the data, or with `combine` of sums over
        some of its examples; nnx models are in evaluation mode. It may take `steps`, and a `key`, the same for all
        trials. Without it the loss itself is measured, as `loss`.
      combine: `(sums[, hp]) -> dict` of metrics, from what `metrics` returns of up to 1,024 examples at a time, added
        up over all of them: for metrics that are no means, such as an F1 score, of a part too large to measure at once.
      data: `() -> vt.Data`, or a `vt.Data`.
      predict: `(model, x[, hp]) -> array`, what an ensemble averages: what `metrics` gets by calling the model. Without
        it the model is called on `x`, the first array of a batch.
      task: instead of model, optimizer, loss, metrics and data: a `vt.Task`.
      objective: the metric that ranks trials. direction: "minimize" or "maximize".
      batch_size, steps: a fixed number, or the name of a setting in the space.
      epochs: in the place of `steps`, how many times a trial goes through the training data: a number, which may be a
        fraction, or the name of a setting. A trial's steps are as many batches, rounded up.
      ema: how slowly an average of the weights follows them, from 0 to below 1, or the name of a setting that says so:
        that average is then what is measured and saved. It agrees with `optax.ema(decay, debias=True)` of the weights
        after each step. Running averages of a normalisation are those of the training steps.
      order: "own", each trial draws its batches in an order of its own; "shared", all trials in one order, which
        trains faster on small models because the lanes of a tile read the same batch.
      precision: "float32", or "bfloat16": the operands of matrix products and convolutions, in the model and in its
        gradient, are rounded to bfloat16 and their products summed in float32. Weights, activations, loss and the
        optimiser's state stay float32. Twice as fast or more where the device has units for it; a CPU seldom has.
      trials, rounds: what `run` takes when the person names no other number.

    Raises:
      InputError: parts that are missing, or that contradict each other.
    """

    space: Space | Mapping[str, Any]
    model: Callable[..., Any] | None = None
    optimizer: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    metrics: Callable[..., Any] | None = None
    combine: Callable[..., Any] | None = None
    data: Callable[[], Data] | Data | None = None
    predict: Callable[..., Any] | None = None
    task: Task | None = None
    objective: str = "loss"
    direction: str = "minimize"
    batch_size: int | str | None = None
    steps: int | str | None = None
    epochs: float | str | None = None
    ema: float | str | None = None
    order: str = "own"
    precision: str = "float32"
    trials: int | None = None
    rounds: int | None = None
    name: str = ""
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        space = self.space if isinstance(self.space, Space) else Space(self.space)
        object.__setattr__(self, "space", space)
        if "lanes hold" not in self._cache:  # once: a study of an earlier version can still be looked at
            check_lanes_hold(space)
            self._cache["lanes hold"] = True
        parts = {"model": self.model, "optimizer": self.optimizer, "loss": self.loss, "data": self.data}
        if self.task is None:
            missing = [part for part, value in parts.items() if value is None]
            if missing:
                raise InputError(
                    f"Experiment(): {', '.join(missing)} must be given (or `task=` instead of "
                    f"model, optimizer, loss, metrics and data)"
                )
            for part in ("model", "optimizer", "loss"):
                if not callable(parts[part]):
                    raise InputError(f"Experiment(): `{part}` must be a function, but got {parts[part]!r}")
        else:
            more = {"metrics": self.metrics, "combine": self.combine}
            extra = [part for part, value in {**parts, **more}.items() if value is not None]
            if extra:
                raise InputError(f"Experiment(): with `task=` leave out {', '.join(extra)}: the task has them")
        self._check_functions(space)
        if self.direction not in ("minimize", "maximize"):
            raise InputError(f'Experiment(): `direction` must be "minimize" or "maximize", but got {self.direction!r}')
        if self.order not in ("own", "shared"):
            raise InputError(f'Experiment(): `order` must be "own" or "shared", but got {self.order!r}')
        if self.precision not in PRECISIONS:
            raise InputError(
                f"Experiment(): `precision` must be {' or '.join(map(repr, PRECISIONS))}, but got {self.precision!r}"
            )
        if self.precision != "float32" and self.task is not None:
            raise InputError(
                "Experiment(): with `task=` leave out `precision`: the task's own functions say in which precision "
                "they compute"
            )
        if not isinstance(self.name, str) or len(self.name) > MOST_LETTERS:
            raise InputError(
                f"Experiment(): `name` must be a text of at most {MOST_LETTERS} characters, but got "
                f"{self.name!r:.300}; it names the study's directory"
            )
        if not isinstance(self.objective, str):
            raise InputError(f"Experiment(): `objective` must be the name of a metric, but got {self.objective!r}")
        for part in ("batch_size", "steps") if self.task is None else ("steps",):
            _check_count(part, self._named(part), space)
        self._check_epochs_and_average(space)
        if self.order == "shared" and isinstance(self._named("batch_size"), str):
            raise InputError(
                f'Experiment(): order="shared" needs one batch size for all trials, but the setting '
                f'{self._named("batch_size")!r} gives it; take order="own" or a fixed batch_size'
            )
        for part in ("trials", "rounds"):
            value = getattr(self, part)
            if value is not None and (not _is_int(value) or value < 1):
                raise InputError(f"Experiment(): `{part}` must be a whole number of at least 1, but got {value!r}")

    def _check_epochs_and_average(self, space: Space) -> None:
        for part in ("epochs", "ema"):
            if getattr(self, part) is not None and self.task is not None:
                raise InputError(
                    f"Experiment(): with `task=` leave out `{part}`: the task's own functions say what it does"
                )
        if self.epochs is not None and self.steps is not None:
            raise InputError(
                f"Experiment(): `steps` and `epochs` both say how long a trial trains, but both are given "
                f"({self.steps!r} and {self.epochs!r}); leave one out"
            )
        _check_number("epochs", self.epochs, space, lambda v: 0 < v < math.inf, "above 0", finite=True)
        _check_number("ema", self.ema, space, lambda v: 0 <= v < 1, "from 0 to below 1", finite=False)

    def _check_functions(self, space: Space) -> None:
        for part, signature in SIGNATURES.items():
            function = getattr(self, part)
            if function is None:
                continue
            if not callable(function):
                raise InputError(f"Experiment(): `{part}` must be a function, but got {function!r}")
            signature.check(function, space, at(function))
        if self.combine is not None and self.metrics is None:
            raise InputError("Experiment(): `combine` needs `metrics`, a function that returns the sums to combine")
        if self.task is None and self.metrics is None and SIGNATURES["loss"].asks_for(self.loss, "step"):  # type: ignore
            raise InputError(
                "Experiment(): a loss that takes `step` can't be measured, since a model is measured at no step; give "
                "`metrics`, a function that returns what is to be measured"
            )

    # ---- what the study asks -------------------------------------------------------------------------

    def with_changes(self, *, space: Space | None = None, steps: int | None = None) -> Experiment:
        """The same experiment with another space or a fixed number of steps."""
        changes: dict[str, Any] = {"_cache": self._cache}
        if space is not None:
            changes["space"] = space
        if steps is not None:
            changes |= {"steps": steps, "epochs": None}
        return replace(self, **changes)

    def loaded_data(self) -> Data:
        """The data, loaded once."""
        if "data" not in self._cache:
            with inside(self._cache.get("folder")):
                self._cache["data"] = _load_data(self.data, self._cache.get("folder"))
        return self._cache["data"]

    def found_in(self, folder: str | None) -> None:
        """Keeps the folder from which the relative paths of its data are read; None is the current one."""
        self._cache["folder"] = folder

    @property
    def convolutions(self) -> Choice:
        """How the convolutions of its training step are computed."""
        return self._cache.setdefault("convolutions", Choice())

    def note_blocks(self, needed: float) -> None:
        """Keeps that measuring all examples at once would take so many bytes, so that they are measured by blocks."""
        self._cache.setdefault("blocks", int(needed))

    @property
    def block_bytes(self) -> int:
        """Of what is measured by blocks, the bytes that measuring it at once would take; 0 where nothing is."""
        return self._cache.get("blocks", 0)

    def total_steps(self, hp: Mapping[str, Any]) -> int:
        """The number of training steps of a trial with these settings."""
        if self.epochs is None:
            return self._count("steps", hp, DEFAULT_STEPS)
        epochs = hp[self.epochs] if isinstance(self.epochs, str) else self.epochs
        if isinstance(epochs, jax.core.Tracer):
            raise TypeError("epochs must be a concrete number")  # the tracing finds out that it is static
        return max(1, math.ceil(epochs * self.loaded_data().size("train") / self.lane_batch_size(hp)))

    def decay(self, hp: Mapping[str, Any]) -> Any:
        """How slowly the average of a trial's weights follows them; None where there is none."""
        return hp[self.ema] if isinstance(self.ema, str) else self.ema

    def lane_batch_size(self, hp: Mapping[str, Any]) -> int:
        """The number of examples in one training batch of a trial with these settings."""
        return self._count("batch_size", hp, min(DEFAULT_BATCH_SIZE, self.loaded_data().size("train")))

    def lane_batch(self, hp: Mapping[str, Any]) -> Size:
        """The same as a size: where a traced setting gives it, batches are as long as its largest value."""
        name = self._named("batch_size")
        if isinstance(name, str) and isinstance(hp[name], jax.core.Tracer):
            return size(hp, name)
        n = self.lane_batch_size(hp)
        return Size(n, n)

    def _largest(self, part: str, default: int) -> int:
        """The largest value that a trial may have."""
        value = self._named(part)
        if isinstance(value, str):
            return int(max(self.space[value].values() or (default,)))
        return default if value is None else int(value)

    def check_sizes(self) -> None:
        """Every batch size against the data, before any of them is traced."""
        n = self.loaded_data().size("train")
        batch = self._largest("batch_size", min(DEFAULT_BATCH_SIZE, n))
        if batch > n:
            raise InputError(
                f"batch_size must be at most the number of training examples, {n}, but got {batch}; "
                f"take a smaller batch or more data"
            )
        steps = self._largest("steps", DEFAULT_STEPS)
        if self.epochs is not None:
            epochs = max(self.space[self.epochs].values() or ()) if isinstance(self.epochs, str) else self.epochs
            steps = math.ceil(epochs * n / batch)
        if steps * batch >= MOST_EXAMPLES:
            raise InputError(
                f"steps times batch_size must be below {MOST_EXAMPLES}, the examples that can be counted, but "
                f"{steps} times {batch} is {steps * batch}; take fewer steps or smaller batches"
            )

    def _named(self, part: str) -> Any:
        """A number, the setting that gives it, or None: a setting called `steps` is the number of steps."""
        value = getattr(self, part)
        return part if value is None and part in self.space else value

    def _count(self, part: str, hp: Mapping[str, Any], default: int) -> int:
        value = self._named(part)
        if isinstance(value, str):
            value = hp[value]
            if isinstance(value, jax.core.Tracer):
                raise TypeError(f"{part} must be a concrete number")  # the tracing finds out that it is static
        return default if value is None else int(value)

    def build(self) -> Task:
        """The experiment as three functions of one lane."""
        from vmaptune.experiment._built import built

        assert isinstance(self.space, Space)
        return with_structure(self.task if self.task is not None else built(self), limits_of(self.space))


def check_lanes_hold(space: Space) -> None:
    """Every hyperparameter that may be traced, before anything is.

    Raises:
      InputError: one has values that a lane cannot hold.
    """
    for name, d in space.items():
        check_held(name, d)


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_count(part: str, value: Any, space: Space) -> None:
    if value is None:
        return
    if isinstance(value, str):
        values = _named(part, value, space, "a whole number").values()
        if values is None or any(not _is_int(v) or v < 1 for v in values):
            raise InputError(
                f"Experiment(): the setting {value!r} that gives `{part}` must be a finite set of whole "
                f"numbers of at least 1, but it is {space[value]!r}; use vt.ordinal([...]) or vt.randint(...)"
            )
    elif not _is_int(value) or not 1 <= value <= MOST_STEPS:
        most = f" and at most {MOST_STEPS}" if _is_int(value) and value > MOST_STEPS else ""
        raise InputError(f"Experiment(): `{part}` must be a whole number of at least 1{most}, but got {value!r}")


def _named(part: str, name: str, space: Space, what: str) -> Distribution:
    """The setting that gives a part, which may be `what` instead."""
    if name not in space:
        raise InputError(
            f"Experiment(): `{part}` must be {what} or the name of a setting, but the space has no setting {name!r} "
            f"(it has: {', '.join(space)})"
        )
    return space[name]


def _check_number(part: str, value: Any, space: Space, holds: Any, rule: str, *, finite: bool) -> None:
    """A number of which `holds` is true, or the name of a setting of such ones, of finitely many if `finite`."""
    if value is None:
        return
    if isinstance(value, str):
        d = _named(part, value, space, "a number")
        values: Any = d.values() if finite or d.low is None else (d.low, d.high)
        if values is None or not all(_is_number(v) and holds(v) for v in values):
            way = "vt.ordinal([...]) or vt.randint(...)" if finite else "vt.reverseloguniform(0.9, 0.9999)"
            raise InputError(
                f"Experiment(): the setting {value!r} that gives `{part}` must have "
                f"{'a finite set of ' if finite else ''}values {rule}, but it is {d!r}; use {way}"
            )
    elif not _is_number(value) or not holds(value):
        raise InputError(f"Experiment(): `{part}` must be a number {rule}, but got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _load_data(source: Any, folder: str | None) -> Data:
    if not callable(source):
        data = source
    else:
        try:
            data = source()
        except Exception as error:
            what = str(error) if isinstance(error, InputError) else f"data() failed: {described(error)}"
            if isinstance(error, OSError) and folder is not None:
                there = "" if Path(folder).is_dir() else ", which is not there"
                what += f"\n  the study ran in {folder}{there}; relative paths are read from there"
            raise InputError(f"{what}{at_line(place_in(error, None))}") from error
    if not isinstance(data, Data):
        raise InputError(f"data() must return vt.Data(train=..., valid=...), but it returned {kind(data)}{at(source)}")
    return data
