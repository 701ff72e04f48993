"""What goes into lanes and what comes out of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Paused:
    """A trial's lane as it was taken out of it."""

    done: int  # steps
    leaves: tuple[np.ndarray, ...]  # of one lane's packed state, `Program.state_shapes`


@dataclass(frozen=True)
class Job:
    """A trial as the engine needs it."""

    trial: int
    seed: int  # uint32
    settings: Mapping[str, Any]  # the traced ones
    steps: int
    keep: bool = False  # whether its final state is wanted
    begun: Paused | None = None  # where it goes on from, if it has trained before


class Point(NamedTuple):
    """One trial at the end of one segment."""

    trial: int
    step: int
    loss: float  # mean training loss over the segment
    metrics: dict[str, float]
    bad: int | None  # the first step whose loss was not finite


@dataclass(frozen=True)
class Leaving:
    """The trials that leave their lanes now."""

    stop: Collection[int] = ()  # for good
    pause: Collection[int] = ()  # to go on later, as a job that has `begun`
    keep: Collection[int] = ()  # whose states as of their points are wanted, whether they leave or not
