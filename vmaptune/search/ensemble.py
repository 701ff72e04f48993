"""A greedy ensemble from a library of trained models. NumPy only; lower losses are better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vmaptune.errors import InputError

Loss = Callable[[np.ndarray], np.ndarray]  # mean predictions [C, ...] of C candidate ensembles -> their losses [C]


@dataclass(frozen=True)
class Ensemble:
    """Which models, and how often each was taken."""

    members: tuple[int, ...]  # positions in the library, each once, the heaviest first
    counts: tuple[int, ...]  # how often each was taken
    loss: float  # of the ensemble
    losses: tuple[float, ...]  # after each pick, those that were given up again included

    @property
    def weights(self) -> tuple[float, ...]:
        """The members' shares; their sum is 1."""
        return tuple(count / sum(self.counts) for count in self.counts)


def greedy_ensemble(predictions: np.ndarray, loss: Loss, size: int) -> Ensemble:
    """Picks up to `size` models, with replacement, each time the one that makes the mean prediction best.

    Ties go to the model that comes first. Of the ensembles passed on the way the best one is returned (the
    smallest of equals), so it is never worse than the best single model, on the data that it is chosen on.
    Models with predictions that are not finite are never picked.

    Args:
      predictions: `[K, ...]`, of each model on the same examples; class probabilities, say.
      loss: `[C, ...] -> [C]`, of candidate mean predictions.
      size: the most picks.

    Source: Caruana et al., "Ensemble Selection from Libraries of Models", ICML 2004, without bagging.

    Raises:
      InputError: no model with finite predictions, or a size below 1.
    """
    predictions = np.asarray(predictions, np.float64)
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(f"an ensemble's size must be a whole number of at least 1, but got {size!r}")
    usable = np.flatnonzero(np.isfinite(predictions.reshape(len(predictions), -1)).all(1))
    if not len(usable):
        raise InputError(
            f"an ensemble needs at least one model with finite predictions, but none of the {len(predictions)} has "
            f"them; look at the trials' values"
        )
    library = predictions[usable]
    total = np.zeros_like(library[0])
    picks: list[int] = []
    losses: list[float] = []
    for n in range(1, int(size) + 1):
        found = np.asarray(loss((total + library) / n), np.float64)
        found = np.where(np.isfinite(found), found, np.inf)
        pick = int(np.argmin(found))
        picks.append(pick)
        losses.append(float(found[pick]))
        total = total + library[pick]
    best = int(np.argmin(losses))
    taken = picks[: best + 1]
    members = sorted(set(taken), key=lambda m: (-taken.count(m), m))
    return Ensemble(
        members=tuple(int(usable[m]) for m in members),
        counts=tuple(taken.count(m) for m in members),
        loss=losses[best],
        losses=tuple(losses),
    )
