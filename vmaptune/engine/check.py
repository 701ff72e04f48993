"""Whether a program trains what the person wrote.

A lane's functions are rewritten to run faster, and compiled with options of their own (`rewrite/`, `compiling.py`).
Before a program trains, some of its lanes are trained for a few steps on the study's own data and evaluated, and so is
the model as it was written, one lane at a time, compiled plainly, from the same initial states. Where the two differ
by more than rounding, the program is wrong.

How much rounding makes of a step is asked of the step itself: the plain program runs again from initial states of which
each number is multiplied by `1 ± NUDGE`. That needs no second precision, in which random numbers would be others and a
person's own casts would stay as they are.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine import kept
from vmaptune.engine.alone import Alone, nudged
from vmaptune.engine.compiling import compiled_in_a_hurry
from vmaptune.engine.devices import cache_folder, machine
from vmaptune.engine.functions import LaneFunctions, is_key, pack, real, unpack
from vmaptune.engine.program import Program
from vmaptune.engine.tiles import NEVER

STEPS = 3  # of training: a model whose last layer begins with zeros has no gradients elsewhere in its first
LANES = 3  # that are compared
FLOOR = 1e-4  # of a change or a value: below, two results are equal, whatever rounding does
COARSE = 0.03  # the same where products are rounded to 8 or 10 bits
NUDGE, NUDGES = 1e-5, 4  # of how much, and how many times
WEIGHTS = "the weights"
TIMES = 10  # as far as a nudge moves a result, and still rounding


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
      equal: whether the program trains what was written.
      largest: the largest difference, relative to a change or a value.
      where: what differs the most, "" where all is equal.
      lanes: how many lanes were compared.
      failure: why there is no such program, "" where there is one.
    """

    equal: bool
    largest: float = 0.0
    where: str = ""
    lanes: int = 0
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class AsWritten:
    """A few steps and an evaluation of one lane, as the person wrote them."""

    def __init__(self, functions: LaneFunctions, steps: int):
        """`functions` are plain ones; `steps` are those of a trial, if they are fewer than the check's."""
        self.functions, self.steps = functions, min(STEPS, steps)
        self.consts = (functions.step.consts, functions.taken.consts, functions.evaluate.consts)
        count = jax.ShapeDtypeStruct((), jnp.uint32)
        self._state = jax.eval_shape(pack, functions.state)
        self._lowered = jax.jit(self._run).lower(self.consts, self._state, dict(functions.traced), count)
        self._executable: Any = None
        self._compiling = threading.Lock()

    def _run(self, consts: Any, state: Any, arrays: Any, seed: Any) -> Any:
        functions, (step_consts, taken_consts, evaluate_consts) = self.functions, consts

        def body(i: Any, carry: Any) -> Any:
            state, total, finite = carry
            i = jnp.asarray(i, jnp.int32)  # the loop counts in 64 bits where a person has turned them on
            before = unpack(state, functions.key_kinds)
            taken = functions.taken.call(taken_consts, before, arrays, i)
            after, loss = functions.step.call(step_consts, before, arrays, seed, i, taken)
            return pack(after), total + loss, finite & (jnp.isfinite(loss) if functions.has_loss else True)

        began = (state, jnp.zeros((), real()), jnp.bool_(True))
        state, total, finite = jax.lax.fori_loop(0, self.steps, body, began)
        metrics = functions.evaluate.call(evaluate_consts, unpack(state, functions.key_kinds), arrays)
        return jax.tree.leaves(state), total / self.steps, finite, metrics

    def compile(self) -> AsWritten:
        """Compiles it, unless it is. Python has no part in it."""
        with self._compiling:  # whoever needs it waits for whoever began
            if self._executable is None:
                self._executable = compiled_in_a_hurry(self._lowered)
        return self

    def compile_as_usual(self) -> AsWritten:
        """Compiles it as JAX does it for everyone: in a hurry XLA computes a maximum twice, with different rounding,
        and the derivative of one that equals no number is NaN."""
        self._executable = self._lowered.compile()
        return self

    def train(self, before: Sequence[np.ndarray], settings: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
        """One lane from the packed state `before`; what became of it, by name."""
        arrays = {n: np.asarray(settings[n], s.dtype) for n, s in self.functions.traced.items()}
        state = jax.tree.unflatten(jax.tree.structure(self._state), before)
        after, loss, finite, metrics = self.compile()._executable(self.consts, state, arrays, np.uint32(seed))
        if not finite:  # a lane that goes wrong is frozen as it was
            after, metrics = before, dict.fromkeys(metrics, math.nan)
        return self.named(after, loss if self.functions.has_loss and finite else math.nan, metrics)

    def named(self, after: Sequence[Any], loss: Any, metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A lane's results by what a person would call them."""
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(self._state)[0]]
        of_state = {layer_of(jax.tree_util.keystr(path)): np.asarray(a) for path, a in zip(paths, after, strict=True)}
        of_metrics = {f"the metric {name!r}": np.asarray(value) for name, value in metrics.items()}
        return of_state | {"the training loss": np.asarray(loss)} | of_metrics


def layer_of(path: str) -> str:
    """A state's array as a person finds it in the model: `['params']['layers'][0]['kernel']` is `layers.0.kernel`."""
    parts = [a or b for a, b in re.findall(r"\[['\"]?([^\]'\"]+)['\"]?\]|\.(\w+)", path)]
    if len(parts) > 1 and parts[-1] == "value":
        parts = parts[:-1]
    head, *rest = parts or [path]
    inside = ".".join(rest) or head
    return {"params": f"{WEIGHTS} {inside}", "opt": f"the optimiser's {inside}"}.get(head, ".".join(parts))


def check(program: Program, plain: AsWritten, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Checked:
    """Compares a program with the functions as they were written.

    Args:
      settings: the traced settings of trials that it will train, one or more.
      seeds: theirs.
    """
    width = program.plan.width
    n = min(width, len(settings))
    live = np.arange(width) < n
    columns = {
        name: np.resize(np.array([s[name] for s in settings[:n]], shape.dtype), width)
        for name, shape in program.traced.items()
    }
    numbers = np.resize(np.asarray(seeds[:n], np.uint32), width)
    table = program.table(columns, numbers, np.where(live, plain.steps, 0), live)
    state, _ = program.run(program.empty(), table, 0, fill=True)
    before = program.on_host(state)
    state, results = program.run(state, table, plain.steps)
    after, found = program.on_host(state), program.read(results)

    lanes = []
    for lane in _telling(before[:-2], after[:-2], n):
        whole = found.bad[lane] == NEVER
        metrics = {name: value[lane] for name, value in found.metrics.items()}
        loss = found.loss[lane] if program.functions.has_loss and whole else math.nan
        own = {name: column[lane] for name, column in columns.items()}
        was, got = ([a[lane] for a in arrays[:-2]] for arrays in (before, after))
        lanes.append((was, plain.named(got, loss, metrics), own, int(numbers[lane])))
    return _compared(plain, lanes)


def check_alone(alone: Alone, plain: AsWritten, settings: Mapping[str, Any], seed: int) -> Checked:
    """The same for a model that is trained by itself."""
    start = alone.start()
    before = [np.array(a) for a in jax.tree.leaves(start)]
    arrays = alone.arrays({name: settings[name] for name in alone.functions.traced})
    state, total, bad = alone.segment(start, 0, plain.steps, arrays)
    metrics = alone.measure(state, arrays) if bad is None else dict.fromkeys(alone.functions.evaluate.out, math.nan)
    after = [np.array(a) for a in jax.tree.leaves(state)] if bad is None else before
    loss = total / plain.steps if alone.functions.has_loss and bad is None else math.nan
    return _compared(plain, [(before, plain.named(after, loss, metrics), settings, seed)])


def _compared(plain: AsWritten, lanes: Sequence[tuple[Any, ...]]) -> Checked:
    """What the differences of some lanes say, each with its state before, its results, its settings and its seed."""
    found = _judged([_difference(plain, *lane) for lane in lanes])
    if found.equal:
        return found
    usual = plain.compile_as_usual()
    return _judged([_difference(usual, *lane) for lane in lanes])


def _judged(observed: Sequence[tuple[float, str]]) -> Checked:
    """The same, each lane's largest difference with where it is more than rounding, or ""."""
    wrong = [each for each in observed if each[1]]
    largest, where = max(wrong or observed, default=(0.0, ""))
    return Checked(not wrong, largest, where, len(observed))


def _telling(before: Sequence[np.ndarray], after: Sequence[np.ndarray], n: int) -> list[int]:
    """The lanes that tell most: not the ones that hardly move or that go wild, and one that is not finite."""
    moved = np.zeros(n)
    for a, b in zip(before, after, strict=True):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            a, b = (np.abs(x[:n].reshape(n, -1).astype(np.float64)) for x in (a, b))
            with np.errstate(all="ignore"):
                moved += np.nan_to_num(np.abs(b - a).sum(1) / (a.sum(1) + 1e-30), nan=np.inf, posinf=np.inf)
    order = np.argsort(moved, kind="stable")
    good = order[np.isfinite(moved[order])]
    wild = order[~np.isfinite(moved[order])][:1]
    places = np.linspace(0, max(0, len(good) - 1), LANES + 2)[1:-1].round().astype(int)
    return sorted({*good[places[: len(good)]].tolist(), *wild.tolist()})


def _difference(
    plain: AsWritten, was: Sequence[np.ndarray], got: Mapping[str, np.ndarray], settings: Mapping[str, Any], seed: int
) -> tuple[float, str]:
    """The largest difference between a lane's results and the plain ones, relative, and where it is more than
    rounding, or ""."""
    expected = plain.train(was, settings, seed)
    before = plain.named(was, 0.0, {})
    sizes = {name: _size(value, before.get(name)) for name, value in expected.items()}
    apart = {name: _apart(got[name], value) for name, value in expected.items()}
    relative = {name: apart[name] / sizes[name] if sizes[name] else apart[name] for name in expected}
    suspects = {name for name, ratio in relative.items() if not ratio <= floor()}
    largest = max((r for n, r in relative.items() if n not in suspects), default=0.0)
    if not suspects:
        return largest, ""
    moved = dict.fromkeys(suspects, 0.0)
    for draw in range(NUDGES):
        moved_by = plain.train(nudged(was, NUDGE, np.random.default_rng(draw)), settings, seed)
        for name in suspects:
            moved[name] = max(moved[name], _apart(moved_by[name], expected[name]))
    wrong = [name for name in suspects if not apart[name] <= TIMES * moved[name]]
    if not wrong:
        return largest, ""
    worst = max(wrong, key=lambda name: (WEIGHTS in name, relative[name]))  # a layer tells a person most
    return relative[worst], worst


def floor() -> float:
    """The relative difference below which two results are equal on this device."""
    return FLOOR if jax.default_backend() == "cpu" else COARSE


def _size(value: np.ndarray, before: np.ndarray | None) -> float:
    """What a difference is held against: how far an array has moved, or how large a number is."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return 1.0
    change = value.astype(np.float64) - (before.astype(np.float64) if before is not None else 0.0)
    return float(np.linalg.norm(np.nan_to_num(change)))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """How far two arrays are apart: infinitely, where one has a NaN or an infinity and the other has not."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return 0.0 if np.array_equal(a, b) else math.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.where(np.isfinite(a), 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return math.inf
    good = np.isfinite(a)
    return float(np.linalg.norm(np.where(good, a, 0) - np.where(good, b, 0)))


class Memory:
    """What checks found before, of the same program on the same data and machine: kept from run to run."""

    def __init__(self) -> None:
        self._digests: dict[int, tuple[Any, str]] = {}  # of arrays of data; each is kept, so its id stays its own

    def found(self, program: Program) -> Checked | None:
        """What was found of a program, which need not be compiled, or None."""
        try:
            found = Checked(**kept.read(self._file(program)))
        except TypeError:
            return None
        return found if isinstance(found.equal, bool) else None

    def keep(self, program: Program, found: Checked) -> None:
        kept.write(self._file(program), found.to_json())

    def _file(self, program: Program) -> Path:
        functions = program.functions
        data = [self._digest(const) for part in (functions.step, functions.evaluate) for const in part.consts]
        what = [functions.text, str(program.plan), program.uneven, sorted(machine().items()), data]
        return cache_folder() / "plans" / f"checked-{kept.digest(what)}.json"

    def _digest(self, const: Any) -> str:
        if id(const) not in self._digests:
            array = jax.random.key_data(const) if is_key(const) else const
            self._digests[id(const)] = const, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return self._digests[id(const)][1]
