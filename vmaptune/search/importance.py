"""How much each setting matters for being among the best: PED-ANOVA, with its uncertainty.

Source: Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
Subspaces", IJCAI 2023. For settings without a zero and trials without gaps the numbers agree with Optuna's
`PedAnovaImportanceEvaluator` (evaluate_on_local=True), which a test checks. Lower values are better here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from vmaptune.errors import InputError
from vmaptune.space import Distribution, Space

CELLS = 50  # of the grid on which the densities are compared
TARGET = 0.1  # "the best": this fraction of the trials,
MOST_TARGET = 0.3  # or up to this one, until
LEAST_BEST = 30  # so many are in it: a density of fewer is noise
LEAST_TRIALS = 20  # with fewer there is nothing to say
AT_ONCE = 2_000_000  # numbers of resampled trials: tens of megabytes
_LEAST_SIGMA = 0.5 / 1.64  # in cells: nine tenths of a kernel stay in its own cell


@dataclass(frozen=True)
class Importance:
    """How much one setting matters. All numbers are shares of the total over the settings."""

    name: str
    share: float
    low: float  # of the 90 % bootstrap interval
    high: float
    floor: float  # what a setting that does not matter would show in one of twenty studies

    @property
    def matters(self) -> bool:
        """Whether there is more to see than chance shows."""
        return self.share > self.floor


def importance(
    space: Space,
    settings: Sequence[Mapping[str, Any]],
    values: Sequence[float] | np.ndarray,
    *,
    target: float | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> list[Importance]:
    """The importance of every setting, the largest first; empty with fewer than 20 trials or no finite value.

    It compares where the best `target` of the trials lie with where all of them lie: the Pearson divergence of
    the two densities, each setting by itself. A value that is not finite counts as worse than every other.
    The interval comes from resampling the trials, the floor from shuffling their values. By default the best
    tenth is taken, or up to three tenths where a tenth is fewer than 30 trials.

    Args:
      settings: `[N]`, by name; a name that is missing (a conditional setting that is off) is a value of its own.
      values: `[N]`, lower is better.

    Raises:
      InputError: `target` is not between 0 and 1, or the lengths differ.
    """
    if target is None:
        target = min(MOST_TARGET, max(TARGET, LEAST_BEST / max(1, len(settings))))
    if not 0 < target < 1:
        raise InputError(f"importance(): `target` must be above 0 and below 1, but got {target!r}")
    ranked = np.where(np.isfinite(values), np.asarray(values, np.float64), np.inf)
    if len(ranked) != len(settings):
        raise InputError(f"importance(): {len(settings)} settings and {len(ranked)} values must be as many")
    if len(ranked) < LEAST_TRIALS or not np.isfinite(ranked).any():
        return []
    grids = [_Grid.of(space[name], [s.get(name) for s in settings]) for name in space]
    best = _best(ranked, target)
    found = np.array([grid.divergences(best[None])[0] for grid in grids])
    rng = np.random.default_rng(seed)
    of_again: list[np.ndarray] = []
    of_shuffled: list[np.ndarray] = []
    at_once = max(1, AT_ONCE // len(ranked))
    for start in range(0, resamples, at_once):
        part = min(at_once, resamples - start)
        drawn, mixed = np.zeros((part, len(ranked)), int), np.zeros((part, len(ranked)), bool)
        for i in range(part):
            drawn[i] = rng.integers(len(ranked), size=len(ranked))
            mixed[i] = rng.permutation(best)
        best_drawn = np.array([_best(ranked[one], target) for one in drawn])
        of_again.append(np.stack([grid.divergences(best_drawn, drawn) for grid in grids], 1))
        of_shuffled.append(np.stack([grid.divergences(mixed) for grid in grids], 1))
    again, shuffled = np.concatenate(of_again), np.concatenate(of_shuffled)  # [resamples, D]
    total = float(found.sum()) or 1.0
    shares = again / np.maximum(again.sum(axis=1, keepdims=True), 1e-300)
    low, high = np.quantile(shares, [0.05, 0.95], axis=0)
    floor = np.quantile(shuffled, 0.95, axis=0) / total
    rows = [
        Importance(name, share, min(share, low[i]), max(share, high[i]), floor[i])
        for i, (name, share) in enumerate(zip(space, found / total, strict=True))
    ]
    return sorted(rows, key=lambda row: -row.share)


def divergences(
    space: Space, settings: Sequence[Mapping[str, Any]], values: Sequence[float] | np.ndarray, target: float = TARGET
) -> dict[str, float]:
    """The plain divergences by name, times `target` squared as in the paper; what Optuna gives."""
    ranked = np.where(np.isfinite(values), np.asarray(values, np.float64), np.inf)
    best = _best(ranked, target)
    scale = (best.sum() / len(best)) ** 2
    grids = {name: _Grid.of(space[name], [s.get(name) for s in settings]) for name in space}
    return {name: scale * float(grid.divergences(best[None])[0]) for name, grid in grids.items()}


def _best(ranked: np.ndarray, target: float) -> np.ndarray:
    """Which trials are the best `target`, ties too: bool `[N]`."""
    k = math.ceil(target * len(ranked)) - 1
    cut = np.partition(ranked, k)[k]
    return ranked <= cut if math.isfinite(cut) else np.isfinite(ranked)


@dataclass(frozen=True)
class _Grid:
    """One setting's trials in cells. The cells past `ordinary` are values apart: zero by `or_zero`, and off."""

    cell: np.ndarray  # [N] int
    ordinary: int
    apart: int
    ordered: bool

    @classmethod
    def of(cls, d: Distribution, values: Sequence[Any]) -> _Grid:
        off = np.array([v is None and not _has_none(d) for v in values], bool)
        zero = np.array([not o and d.or_zero > 0 and v == 0 for v, o in zip(values, off, strict=True)], bool)
        rest = ~(off | zero)
        count = d.with_zero(0.0).n_values
        cell = np.zeros(len(values), int)
        ordinary = min(count, CELLS) if count is not None else CELLS
        if rest.any() and ordinary > 1:
            kept = [v for v, r in zip(values, rest, strict=True) if r]
            low, high = d.scaled_bounds
            c = d.to_scaled(kept if d.options is not None else np.asarray(kept, np.float64))
            place = (c - low) / (high - low) * (ordinary - 1)
            cell[rest] = np.clip(np.ceil(place - 0.5 - 1e-9), 0, ordinary - 1)
        cell[zero] = ordinary
        cell[off] = ordinary + int(zero.any())
        return cls(cell, ordinary, int(zero.any()) + int(off.any()), d.kind != "choice")

    def divergences(self, best: np.ndarray, drawn: np.ndarray | None = None) -> np.ndarray:
        """The Pearson divergences of the best trials' densities from those of all of them: `[R]`.

        Args:
          best: which trials are the best, bool `[R, N]`.
          drawn: which trials they are, `[R, N]`; without it all, in their order.
        """
        cells = np.broadcast_to(self.cell, best.shape) if drawn is None else self.cell[drawn]
        top = self.densities(cells, best)
        all_ = self.densities(cells[:1] if drawn is None else cells)
        return (all_ * (top / all_ - 1) ** 2).sum(axis=1)

    def densities(self, cells: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """How likely each cell is by the trials in `cells` `[R, N]`, or by those `chosen`: `[R, ordinary + apart]`."""
        n = self.ordinary + self.apart
        placed = cells + n * np.arange(len(cells))[:, None]
        placed = placed.ravel() if chosen is None else placed[chosen]
        counts = np.bincount(placed, minlength=n * len(cells)).reshape(-1, n).astype(np.float64)
        main = counts[:, : self.ordinary]
        smooth = _parzen(main) if self.ordered else _categorical(main)
        if not self.apart:
            return smooth + 1e-12
        weights = np.concatenate([main.sum(axis=1, keepdims=True), counts[:, self.ordinary :]], 1) + 0.5
        weights /= weights.sum(axis=1, keepdims=True)
        return np.concatenate([weights[:, :1] * smooth, weights[:, 1:]], 1) + 1e-12


def _categorical(counts: np.ndarray) -> np.ndarray:
    """One smoothed bump for each option that occurs, weighted by how often, and an even one: `[R, n]`."""
    n = counts.shape[1]
    total = counts.sum(axis=1, keepdims=True)
    even = 1.0 / ((counts > 0).sum(axis=1, keepdims=True) + 1)  # what a bump adds to every option
    return ((counts + total * even) / (1 + n * even) + 1 / n) / (total + 1)


def _parzen(counts: np.ndarray) -> np.ndarray:
    """A kernel density on cells 0, 1, ...: truncated Gaussians of Scott's width, and a wide one as the prior; even
    where there are no counts.

    `counts` and the result are `[R, n]`.
    """
    n = counts.shape[1]
    place, seen = np.arange(n), counts > 0
    total, sums = counts.sum(axis=1, keepdims=True), counts.cumsum(axis=1)
    some = np.maximum(total, 1)
    mean = (counts * place).sum(axis=1, keepdims=True) / some
    sigma = np.sqrt((counts * (place - mean) ** 2).sum(axis=1, keepdims=True) / np.maximum(1, total - 1))
    first = (seen & (sums >= total // 4)).argmax(axis=1)[:, None]
    third = (seen & (sums > total * 3 // 4)).argmax(axis=1)[:, None]
    sigma = 1.059 * np.minimum((third - first) / 1.34, sigma) * some**-0.2
    sigma = np.maximum(sigma, _LEAST_SIGMA)
    # a kernel's mass up to an edge depends on how far the edge is from its centre alone
    up_to = ndtr((np.arange(1 - n, n + 1) - 0.5) / sigma)
    edges = np.lib.stride_tricks.sliding_window_view(up_to, n + 1, axis=1)[:, ::-1]  # [R, kernels, n + 1]
    prior = ndtr((np.arange(n + 1) - n / 2) / n)
    edges = np.append(edges, np.broadcast_to(prior, (len(counts), 1, n + 1)), 1)
    weights = np.append(counts, np.ones((len(counts), 1)), 1)
    mixture = (weights / (edges[..., -1] - edges[..., 0]))[:, None] @ edges
    return np.where(total, np.diff(mixture[:, 0]) / weights.sum(axis=1, keepdims=True), 1 / n)


def _has_none(d: Distribution) -> bool:
    return d.options is not None and any(option is None for option in d.options)
