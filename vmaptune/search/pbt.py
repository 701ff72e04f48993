"""Population-based training: who copies whom, and with which settings it goes on. NumPy only; lower is better.

A population is `N` trials that train side by side. Every so often the worst take over the state of the best
(exploit: over lanes, a gather by an index for each) and go on with settings near theirs (explore). A decision is
a pure function of the population's values, settings, the study's seed and the step, so it can be replayed.

Source: Jaderberg et al., "Population Based Training of Neural Networks", 2017, with truncation selection as
exploit and perturbation or resampling as explore.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space import Space


@dataclass(frozen=True)
class PBT:
    """Population-based training's numbers."""

    truncation: float = 0.2  # the worst share copies from the best share
    perturbation: float = 0.1  # a perturbed setting moves by up to this share of its range, in its scale
    resample: float = 0.25  # the probability with which a setting is drawn anew instead
    every: int = 0  # steps between decisions; 0: twenty decisions in a trial

    def __post_init__(self) -> None:
        for name, low, high in (("truncation", 0.0, 0.5), ("perturbation", 0.0, 1.0), ("resample", 0.0, 1.0)):
            value = getattr(self, name)
            real = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not real or not low <= value <= high or (name != "resample" and value == 0):
                least = "at least 0" if name == "resample" else "above 0"
                raise InputError(f"pbt: `{name}` must be {least} and at most {high}, but got {value!r}")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 0:
            raise InputError(f"pbt: `every` must be a whole number of at least 0, but got {self.every!r}")

    def interval(self, steps: int) -> int:
        """Steps between decisions in a training of `steps`."""
        return self.every or max(1, math.ceil(steps / 20))


@dataclass(frozen=True)
class Copy:
    """One exploit and explore: what a lineage is made of."""

    step: int
    trial: int  # that goes on from another one's state
    parent: int  # whose state it took
    value: float  # its own before
    parent_value: float
    params: dict[str, Any]  # with which it goes on


def exploit(values: Sequence[float], truncation: float) -> np.ndarray:
    """Whom each member goes on from, `[N]` positions: itself, or for the worst share one of the best share.

    The worst one copies from the best, the second worst from the second best, and so on. Values that are not
    finite are worse than every other and are always replaced, while a finite one is there. Equal values rank by
    position, so that a tie is broken too, as truncation selection does.
    """
    scores = np.array([v if math.isfinite(v) else math.inf for v in values], float)
    order = np.argsort(scores, kind="stable")
    finite = int(np.isfinite(scores).sum())
    parents = np.arange(len(scores))
    share = max(1, int(truncation * len(scores) + 1e-9))
    replaced = max(share, len(scores) - finite)
    donors = order[: min(share, finite)]
    if len(scores) < 2 or not len(donors):
        return parents
    for i, member in enumerate(order[::-1][:replaced]):
        parents[member] = donors[i % len(donors)]
    return parents


def explore(space: Space, params: Mapping[str, Any], options: PBT, seed: Sequence[int]) -> dict[str, Any]:
    """Settings near `params`: each is moved by up to `perturbation` of its range in its own scale, up or down as
    likely, or drawn anew with probability `resample`. A list moves to a neighbour, a choice is kept or drawn anew.

    The result depends on the arguments alone.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))
    existed = space.active(params)
    found: dict[str, Any] = {}
    for name, d in space.items():
        anew, u, towards = rng.random(3)
        value = params[name]
        if anew < options.resample or not existed[name]:
            value = d.from_unit(np.array([u]))[0]
        elif d.kind != "choice" and not (d.or_zero > 0 and value == 0):
            low, high = d.scaled_bounds
            at = float(d.to_scaled([value])[0])
            move = (2 * towards - 1) * options.perturbation * (high - low)
            if d.options is not None:
                move = math.copysign(1.0, towards - 0.5)
            value = d.from_scaled(np.array([min(max(at + move, low), high)]))[0]
        found[name] = value.item() if isinstance(value, np.generic) else value
    exists = space.active(found)
    return {name: value if exists[name] else None for name, value in found.items()}


def generation(
    space: Space,
    traced: Sequence[str],
    trials: Sequence[int],
    values: Sequence[float],
    params: Sequence[Mapping[str, Any]],
    options: PBT,
    seed: int,
    step: int,
) -> list[Copy]:
    """The copies of one decision, by trial; settings that are not `traced` (they shape the state) come with it.

    Args:
      trials, values, params: of the population, in one order.
      seed, step: of the study and of the decision; with a trial's id they give the trial's random numbers.
    """
    copies = []
    for i, parent in enumerate(exploit(values, options.truncation)):
        if parent == i:
            continue
        near = explore(space, params[parent], options, (seed, trials[i], step))
        kept = space.held({name: near[name] if name in traced else params[parent][name] for name in space})
        copies.append(Copy(step, trials[i], trials[int(parent)], float(values[i]), float(values[int(parent)]), kept))
    return copies


def lineage(copies: Sequence[Copy], trial: int) -> list[Copy]:
    """The copies that led to a trial's last state, oldest first: its own last one, its parent's before, and so on.

    Args:
      copies: a study's, in the order in which they were made.
    """
    chain: list[Copy] = []
    step: float = math.inf
    for copy in reversed(copies):
        if copy.trial == trial and copy.step < step:
            chain.append(copy)
            trial, step = copy.parent, copy.step
    return chain[::-1]
