"""Is a padded program the model that a program of its own size trains? Found out by training both for some steps.

Masked layers keep padding out of what they compute. What else the code does with a padded array they don't see: a mean
over a layer in an optimiser, a mean over the batch in a loss, random numbers that are drawn for the padded shape. So
before any hyperparameter is padded, one lane of about half the largest sizes is trained both ways, on the study's own
data: losses, metrics, first numbers and their changes must be the same, up to what rounding makes of them, which shows
in the same training from a start that is off by some rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vmaptune.engine.alone import Alone, nudged
from vmaptune.engine.compiling import hurry
from vmaptune.engine.functions import LaneFunctions
from vmaptune.experiment import Statics, lane_arguments
from vmaptune.space import Space
from vmaptune.task import Task

SEGMENTS = (1, 4)  # steps, the first one for what does not hang on the optimiser
LANES, TRIED = 2, 6  # configurations that must come to finite numbers, and that are tried at most
OPTIONS = 4  # of a choice, at most, that are compared
DRAWS, NUDGE = 4, 1e-6  # starts that are off, and by how much: eight rounding errors
SLACK = 10.0  # times what those differ by
ROUNDING = 1e-6  # and at least so much of the largest number, ten rounding errors
SEED = 1


@dataclass(frozen=True)
class Differs:
    """Something that the padded program has otherwise."""

    what: str
    padded: float
    dense: float


class Padding:
    """Compares padded lanes with dense ones, of a study's structure."""

    def __init__(self, task: Task, space: Space, statics: Statics):
        self.task, self.space, self.statics = task, space, statics
        self._dense: dict[tuple, list[Any] | None] = {}
        self._options = hurry()

    def ruled_out(self, settings: Sequence[Mapping[str, Any]]) -> dict[str, Differs]:
        """The hyperparameters of the structure that must not be padded, each with what differs then.

        Args:
          settings: of the first round; one group of each of its other static values is compared.
        """
        names = [n for n in self.statics.structure if n not in self.statics.static and self.space[n].n_values != 1]
        found = self._compared(names, settings)
        if (
            found and self._options
        ):  # what XLA makes in a hurry may differ in itself: once more, as it does for everyone
            self._options, self._dense = {}, {}
            found = self._compared(list(found), settings)
        return found

    def _compared(self, names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> dict[str, Differs]:
        found: dict[str, Differs] = {}
        groups: dict[tuple, list[Mapping[str, Any]]] = {}
        for params in settings:
            groups.setdefault(self.statics.group_of(params), []).append(params)
        for members in groups.values():
            rest = [n for n in names if n not in found]
            found |= self._of_group(rest, members) if rest else {}
        return found

    def _of_group(self, names: Sequence[str], members: Sequence[Mapping[str, Any]]) -> dict[str, Differs]:
        together = self._difference(names, members)
        if together is None:
            return {}
        found = {name: d for name in names if (d := self._difference([name], members)) is not None} if names[1:] else {}
        rest = [name for name in names if name not in found]
        still = self._difference(rest, members) if found and rest else together
        return found | (dict.fromkeys(rest, still) if still else {})

    def _difference(self, names: Sequence[str], members: Sequence[Mapping[str, Any]]) -> Differs | None:
        """What a lane with these padded has otherwise than the dense one; None where nothing."""
        others = [n for n in self.statics.structure if n not in names]
        most = max([1, *(len(self.space[n].options or ()) for n in names if not self.space[n].numeric)])
        padded: dict[tuple, Alone] = {}
        for turn in range(min(most, OPTIONS)):
            shape = {n: self._value(n, turn) for n in self.statics.structure}
            lanes = [_settled(self.space, {**params, **shape}) for params in members[:TRIED]]
            found = self._outcomes(lanes)
            if found is None:  # the code takes these values masked alone: there is nothing to compare with
                continue
            each = self.statics.with_static(others)
            group = each.group_of(lanes[0])
            if group not in padded:
                padded[group] = self._trainer(each, lanes[0])
            for params, known in zip(lanes, found, strict=False):
                differs = known and _first_difference(self._train(padded[group], params), *known)
                if differs:
                    return differs
            if not any(found):
                return Differs("every loss compared", float("nan"), float("nan"))
        return None

    def _outcomes(self, lanes: Sequence[Mapping[str, Any]]) -> list[Any] | None:
        """The dense model's outcomes and how far rounding moves them, of each lane; None of one that is not finite."""
        each = self.statics.with_static(self.statics.structure)
        group = each.group_of(lanes[0])
        if group not in self._dense:
            try:
                trainer = self._trainer(each, lanes[0])
            except Exception:
                self._dense[group] = None
                return None
            found: list[Any] = []
            for params in lanes:
                exact = self._train(trainer, params)
                if not all(np.isfinite(v).all() for v in exact.values()):
                    found.append(None)
                    continue
                moved = [self._train(trainer, params, draw) for draw in range(DRAWS)]
                found.append((exact, {n: max(_largest(m[n] - v) for m in moved) for n, v in exact.items()}))
                if sum(f is not None for f in found) == LANES:
                    break
            self._dense[group] = found
        return self._dense[group]

    def _trainer(self, statics: Statics, params: Mapping[str, Any]) -> Alone:
        arguments = lane_arguments(self.space, statics.traced)
        functions = LaneFunctions(self.task, dict(statics.group_of(params)), arguments, plain=True)  # as it is written
        return Alone(functions, self.space.lane_values(params, statics.traced), SEED, options=self._options)

    def _train(self, trainer: Alone, params: Mapping[str, Any], draw: int | None = None) -> dict[str, np.ndarray]:
        """Everything that a short training comes to, by name."""
        values = self.space.lane_values(params, tuple(trainer.functions.traced))
        trainer.settings = trainer.arrays(values)
        state = trainer.start()
        first = _floats(state)
        if draw is not None:
            state = nudged(state, NUDGE, np.random.default_rng(draw))
        start, done, found = _floats(state), 0, {}
        for n in SEGMENTS:
            state, total, _ = trainer.segment(state, done, n, trainer.settings)
            done += n
            if trainer.functions.has_loss:
                found[f"the loss of step {done}" if n == 1 else f"the loss up to step {done}"] = np.asarray(total / n)
        metrics = trainer.measure(state, trainer.settings)
        found |= {f"the metric {name!r} after {done} steps": np.asarray(value) for name, value in metrics.items()}
        found |= {f"the first numbers of {path}": first[path] for path in first}
        return found | {f"the change of {path}": array - start[path] for path, array in _floats(state).items()}

    def _value(self, name: str, turn: int) -> Any:
        """About half of the largest size, so that there is padding; of a choice, one option after the other."""
        d = self.space[name]
        if not d.numeric:
            assert d.options is not None
            return d.options[turn % len(d.options)]
        if d.options is None:
            assert d.low is not None
            assert d.high is not None
            step = d.step or 1
            return int(d.low + max(0, (d.high // 2 - d.low) // step) * step)
        small = sorted(d.options)[:-1] or d.options
        return max([v for v in small if 2 * v <= max(d.options)], default=small[0])


def _settled(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration some of whose values were changed, with those of the conditional ones that it has now."""
    exists = space.active(params)
    found = {n: (space[n].neutral if v is None else v) if exists[n] else None for n, v in params.items()}
    return {n: found[n] for n in space}


def _first_difference(
    padded: Mapping[str, np.ndarray], dense: Mapping[str, np.ndarray], noise: Mapping[str, float]
) -> Differs | None:
    for name, array in dense.items():
        wide = padded.get(name)
        if wide is None or wide.ndim != array.ndim or any(n > m for n, m in zip(array.shape, wide.shape, strict=True)):
            continue  # it is laid out otherwise: what it does shows in the others
        mine = wide[tuple(slice(n) for n in array.shape)]
        allowed = SLACK * max(noise[name], ROUNDING / SLACK * _scale(name, dense))
        off = np.abs(mine - array)
        if array.size and not off.max() <= allowed:  # NaN too
            worst = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
            return Differs(name, float(mine[worst]), float(array[worst]))
    return None


def _scale(name: str, dense: Mapping[str, np.ndarray]) -> float:
    """The largest number whose rounding is in this one: a change is that of the numbers that change."""
    before = dense.get(name.replace("the change of", "the first numbers of"))
    return max(_largest(dense[name]), 0.0 if before is None else _largest(before))


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max()) if array.size else 0.0


def _floats(state: Any) -> dict[str, np.ndarray]:
    """A state's real numbers by path, in float64."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(state))
    return {
        jax.tree_util.keystr(path): np.asarray(leaf, np.float64)
        for path, leaf in leaves
        if np.issubdtype(np.asarray(leaf).dtype, np.floating)
    }
