"""Which settings are static? Found out by tracing, never by asking.

A setting is traced (an array, a value per lane) unless the code needs its value while the program is
built: as a shape, in a Python branch, or because it is no number. Such a static setting makes a group,
one compiled program for each of its values, so it must have finitely many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.errors import InputError
from vmaptune.experiment._experiment import Experiment, check_lanes_hold
from vmaptune.experiment._measures import check_blocks, checked_metrics
from vmaptune.experiment._models import hang_on
from vmaptune.experiment._places import at, at_line, described, frames_of, is_own, place_in, settings_text
from vmaptune.nn import noted
from vmaptune.rewrite import as_written
from vmaptune.space import Space
from vmaptune.task import Hyperparameters, Task, check_jit_is_on, reads_noted

# What Flax and optax refuse as a traced value, and what takes its place.
WAYS_OUT = {
    "warmup_cosine_decay_schedule": "vt.schedules.warmup_cosine(peak, steps, warmup)",
    "warmup_exponential_decay_schedule": "vt.schedules.exponential(init, rate, transition)",
    "sgdr_schedule": "vt.schedules.sgdr(peak, cycle)",
    "exponential_decay": "vt.schedules.exponential(init, rate, transition)",
    "cosine_decay_schedule": "vt.schedules.cosine(peak, steps)",
    "cosine_onecycle_schedule": "vt.schedules.onecycle(peak, steps)",
    "linear_onecycle_schedule": "vt.schedules.onecycle(peak, steps)",
    "linear_schedule": "vt.schedules.linear(init, end, steps)",
    "polynomial_schedule": "vt.schedules.polynomial(init, end, power, steps)",
    "piecewise_constant_schedule": "vt.schedules.step_decay(init, boundaries, factors)",
    "piecewise_interpolate_schedule": "vt.schedules.step_decay(init, boundaries, factors)",
}
NEEDS_A_VALUE = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError, jax.errors.NonConcreteBooleanIndexError,
)  # fmt: skip
MOST_OTHERS = 32  # values of static settings that are traced to see whether another one is read then
STOCHASTIC = {"nnx": "vt.nn.Dropout(rate, rngs=rngs)", "linen": "vt.nn.LinenDropout(rate)"}


@dataclass(frozen=True)
class Statics:
    """How the settings of a space reach the model."""

    static: tuple[str, ...]  # plain Python values; trials are grouped by them
    traced: tuple[str, ...]  # scalars, a value per lane
    structure: tuple[str, ...] = ()  # of these, the ones that masked layers read: they could be static as well
    notes: tuple[str, ...] = ()  # what the person should know of how the code uses settings and seeds

    def with_static(self, names: Iterable[str]) -> Statics:
        """The same with some of the traced settings static."""
        order = {*self.static, *names}
        return Statics(
            (*self.static, *(n for n in self.traced if n in order)), tuple(n for n in self.traced if n not in order),
            self.structure, self.notes,
        )  # fmt: skip

    def group_of(self, params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """The static settings of a trial: trials that agree in them share one program."""
        return tuple((name, params[name]) for name in self.static)


def lane_arguments(space: Space, names: tuple[str, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """One lane's traced settings as shapes: float32 or int32 scalars; of a choice, the position of its option."""
    whole = {name: space[name].is_integer or not space[name].numeric for name in names}
    return {name: jax.ShapeDtypeStruct((), jnp.int32 if whole[name] else jnp.float32) for name in names}


def find_statics(experiment: Experiment, task: Task | None = None, file: str | None = None) -> Statics:
    """Sorts the settings into static and traced ones.

    Raises:
      InputError: a continuous setting that is used as a static one, or values that a lane cannot hold; a model, loss or
        metric that fails.
    """
    space = experiment.space
    assert isinstance(space, Space)
    check_jit_is_on()
    check_lanes_hold(space)
    task = task or experiment.build()
    first = _first_settings(space)
    with noted() as read, reads_noted() as used:  # by masked layers and by the person's code, while it was traced
        traced = _find_traced(experiment, task, first, file)
    notes = [*_unread(experiment, task, first, traced, used), *_check_repeatable(experiment, task, first, traced)]
    check_blocks(experiment, task, first)
    return Statics(
        tuple(n for n in space if n not in traced), tuple(n for n in space if n in traced),
        tuple(n for n in space if n in traced and n in read), tuple(notes),
    )  # fmt: skip


def _first_settings(space: Space) -> dict[str, Any]:
    """Settings to trace with, in plain values; those that do not exist have one that harms nothing."""
    first = {name: column[0] for name, column in space.sample(1, seed=0).items()}
    first = {n: v.item() if isinstance(v, np.generic) else v for n, v in first.items()}
    return first | space.lane_values(first, [n for n, d in space.items() if d.numeric])


def _find_traced(experiment: Experiment, task: Task, first: Mapping[str, Any], file: str | None) -> tuple[str, ...]:
    space = experiment.space
    assert isinstance(space, Space)
    known: dict[frozenset[str], Exception | None] = {}

    def failure(traced: tuple[str, ...], others: Mapping[str, Any] = {}) -> Exception | None:
        if others:
            return trace_failure(experiment, task, {**first, **others}, traced)
        names = frozenset(traced)
        if names not in known:
            known[names] = trace_failure(experiment, task, first, traced)
        return known[names]

    traced = tuple(n for n, d in space.items() if d.numeric and not d.static)
    continuous = tuple(n for n in traced if space[n].n_values is None)
    if failure(traced) is None:
        return _with_choices(experiment, task, first, traced)

    wrong = failure(continuous) and failure(())
    if wrong is not None:
        whole = {n: max(1, round(first[n])) for n in continuous}
        if not isinstance(wrong, InputError) and not _same_place(failure((), whole), wrong):
            for name in whole:  # fractions are what is wrong there, of this setting if it alone brings it back
                if _same_place(failure((), {**whole, name: first[name]}), wrong):
                    raise InputError(_fraction(name, space, first[name], wrong, file)) from wrong
        raise_as_input_error(wrong, file, first)
    for name in continuous if failure(continuous) else ():
        refused = failure((name,))
        if isinstance(refused, InputError):
            raise_as_input_error(refused, file, first)
        if refused is not None:
            raise InputError(_refusal(name, space, refused, file)) from refused
    finite = [n for n in traced if n not in continuous]
    free = tuple(n for n in finite if failure((*continuous, n)) is None)
    traced = tuple(n for n in traced if n in continuous or n in free)
    together = failure(traced)
    if together is not None:
        raise_as_input_error(together, file, first)
    return _with_choices(experiment, task, first, traced)


def _with_choices(
    experiment: Experiment, task: Task, first: Mapping[str, Any], traced: tuple[str, ...]
) -> tuple[str, ...]:
    """The traced settings, and the choices that `vt.nn.select` alone reads."""
    space = experiment.space
    assert isinstance(space, Space)
    for name, d in space.items():
        if d.numeric or d.static or d.options is None or len(d.options) < 2:
            continue
        # `hp.norm is None` and `hp.nesterov is True` would be False of a traced choice, and nobody would know
        if any(option is None or isinstance(option, bool) for option in d.options):
            continue
        if trace_failure(experiment, task, first, (*traced, name)) is None:
            traced = (*traced, name)
    return traced


def trace_failure(
    experiment: Experiment, task: Task, values: Mapping[str, Any], traced: tuple[str, ...]
) -> Exception | None:
    """Traces the three functions of a lane with these settings traced; what they raised, if they did."""
    space = experiment.space
    assert isinstance(space, Space)

    def lane(arrays: dict[str, jax.Array], seed: jax.Array) -> Any:
        hp = Hyperparameters({name: arrays.get(name, value) for name, value in values.items()})
        key = jax.random.key(seed)
        state = task.init(hp, key)
        out = task.step(state, hp, key, *task.taken(state, hp, jnp.int32(0)))
        return state, out, checked_metrics(task.evaluate(state, hp), experiment.objective)

    try:
        with as_written():  # what rewriting makes of it is another matter
            jax.eval_shape(lane, lane_arguments(space, traced), jax.ShapeDtypeStruct((), jnp.uint32))
    except Exception as error:
        return error
    return None


def _unread(
    experiment: Experiment, task: Task, first: Mapping[str, Any], traced: tuple[str, ...], used: set[str]
) -> list[str]:
    """A note on settings that the code reads for no value of the static ones; `used` are those read for the first."""
    space = experiment.space
    assert isinstance(space, Space)
    there = {n: d.options[0] for n, d in space.items() if first[n] is None and d.options and None not in d.options}
    others = [(n, v) for n, d in space.items() if n not in traced for v in d.values() or () if v != first[n]]
    for name, value in others[:MOST_OTHERS]:
        if used.issuperset(space):
            break
        with reads_noted() as more:
            trace_failure(experiment, task, {**first, **there, name: value}, traced)
        used |= more
    unread = [n for n in space if n not in used]
    if not unread or len(others) > MOST_OTHERS:
        return []
    names = ", ".join(f"hp.{n}" for n in unread)
    return [
        f"the experiment's code never reads {names}, so that it changes nothing: use it, or leave it out of the space"
    ]


def _check_repeatable(
    experiment: Experiment, task: Task, values: Mapping[str, Any], traced: tuple[str, ...]
) -> list[str]:
    """Traces what a lane is made of and measured by twice. Both must compute with the same numbers: a trial is trained
    and measured by programs of their own, and so is its model when it is loaded. Returns a note where a model's first
    weights are the same for every seed."""
    assert isinstance(experiment.space, Space)
    shapes = lane_arguments(experiment.space, traced)

    def numbers() -> tuple[str, Any, Any]:
        def lane(arrays: dict[str, jax.Array], seed: jax.Array) -> Any:
            hp = Hyperparameters({name: arrays.get(name, value) for name, value in values.items()})
            state = task.init(hp, jax.random.key(seed))
            return state, task.evaluate(state, hp)

        closed, out = jax.make_jaxpr(lane, return_shape=True)(shapes, jax.ShapeDtypeStruct((), jnp.uint32))
        return re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)), closed, out  # without the addresses of functions

    (text, closed, (state, _)), (other, again, _) = numbers(), numbers()
    same = text == other and all(
        a is b or np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(closed.consts, again.consts, strict=True)
    )
    if not same:
        raise InputError(
            "the experiment must compute with the same numbers each time its functions are called, but what comes of "
            "one configuration and seed differs from call to call, as with np.random or random; way out: draw from "
            "rngs (rngs.params()) or from a key, or from np.random.default_rng(SEED) made where it is drawn from"
            f"{at(experiment.model)}"
        )
    if experiment.task is not None:
        return []
    places = [path[0].key for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    by_seed = hang_on(closed.jaxpr, closed.jaxpr.invars[-1:])
    if any(hangs for place, hangs in zip(places, by_seed, strict=False) if place == "params"):
        return []
    left = "in nothing but the key of loss" if experiment.order == "shared" else "by their order of the data"
    return [
        "model() makes the same first weights for every seed, since it draws them neither from rngs nor from a key: "
        f"fresh seeds differ {left}"
    ]


def raise_as_input_error(error: Exception, file: str | None, values: Mapping[str, Any]) -> None:
    """Raises what the person's own code raised, with the line of their file."""
    place = place_in(error, file)
    if isinstance(error, InputError):
        known = not place or (file is not None and not place.startswith(file)) or "\n  at " in str(error)
        raise InputError(str(error) if known else f"{error}{at_line(place)}") from error
    raise InputError(
        f"the experiment cannot be traced: {described(error)}{at_line(place)}\n  with {settings_text(values)}"
    ) from error


def _same_place(error: BaseException | None, other: BaseException) -> bool:
    if type(error) is not type(other):
        return False
    places = ([(f.filename, f.lineno) for f in frames_of(e)] for e in (error, other))
    return next(places) == next(places)


def _fraction(name: str, space: Space, value: Any, error: Exception, file: str | None) -> str:
    return (
        f"{name}: a setting used as a shape or a count must be a whole number, but {space[name]!r} drew {value:.4g} "
        f"({described(error)})\n"
        f"  at {place_in(error, file)}\n"
        f"  way out: draw whole numbers with vt.ordinal([...]) or vt.randint(low, high); trials are grouped by them"
    )


def _refusal(name: str, space: Space, error: Exception, file: str | None) -> str:
    ways = [
        f"use {way} instead of {frame.name}, which takes no value per lane"
        for frame in frames_of(error)
        for function, way in WAYS_OUT.items()
        if frame.name == function and "optax" in frame.filename
    ]
    for frame in frames_of(error):
        if "stochastic" in frame.filename and "flax" in frame.filename:
            kind = "nnx" if "nnx" in frame.filename else "linen"
            ways.append(f"use {STOCHASTIC[kind]} instead of Flax's own, which takes no value per lane")
    ways += _ways_in_arrays(error)
    way = ways[0] if ways else (
        "use it only in array arithmetic (jnp.where instead of `if`), or give it finitely many values, "
        "e.g. vt.ordinal([...]), so that it can be static"
    )  # fmt: skip
    needs = "the code needs its value while the program is built"
    if not isinstance(error, NEEDS_A_VALUE):  # what the person's own code raised is not to be lost
        needs = f"the code then raises {described(error)}"
    return (
        f"{name}: a continuous setting must stay a traced number, but {needs} ({space[name]!r} would mean one "
        f"compilation per value){at_line(place_in(error, file))}\n  way out: {way}"
    )


def _ways_in_arrays(error: Exception) -> list[str]:
    """What takes the place of NumPy, math and Python's own functions in the line that refused a traced number."""
    own = [frame.line or "" for frame in frames_of(error) if is_own(frame.filename)]
    if not own or not isinstance(error, NEEDS_A_VALUE):
        return []
    used = re.findall(r"\b(np|numpy|math)\.(\w+)\(", own[-1])
    used = [(module, name) for module, name in used if hasattr(jnp, name)]
    if used:
        module, name = used[-1]
        return [f"use jnp.{name} instead of {module}.{name}, which takes no traced number"]
    built_in = re.findall(r"(?<![\w.])(max|min|round|abs)\(", own[-1])
    names = {"max": "maximum", "min": "minimum"}
    return [f"use jnp.{names.get(n, n)} instead of {n}, which takes no traced number" for n in built_in[-1:]]
