"""The columns of a table as the arrays that a network takes in."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

MOST_ONE_HOT = 12  # categories of a column, beyond which it is embedded
QUANTILES = 1000
FURTHEST = 5.0  # standard deviations to which numbers are cut: what a test row may hold, nobody has seen


@dataclass(frozen=True)
class Kind:
    """What a column of a table holds: numbers, or one of these categories."""

    name: str
    categories: tuple[str, ...] | None = None  # sorted; None for numbers, times and booleans

    def read(self, values: Any) -> np.ndarray:
        """[n] float64 of a pandas column: its numbers, or the positions of its categories; NaN where it is missing, or
        a category that is new.

        Raises:
          ValueError: a text where there were numbers.
        """
        if self.categories is None:
            if getattr(values.dtype, "kind", "O") == "M":
                seconds = values.to_numpy("datetime64[ns]")
                return np.where(np.isnat(seconds), math.nan, seconds.astype(np.int64) / 1e9)
            try:
                return values.to_numpy(dtype=np.float64, na_value=math.nan)
            except (TypeError, ValueError) as error:
                raise ValueError(f"column {self.name!r} held numbers when this was fitted, but now: {error}") from None
        where = {category: i for i, category in enumerate(self.categories)}
        return np.array([math.nan if _missing(v) else where.get(str(v), math.nan) for v in values], np.float64)


def _missing(value: Any) -> bool:
    return value is None or value != value or str(value) in ("<NA>", "NaT")


def _kind(name: str, values: Any) -> Kind:
    if getattr(values.dtype, "kind", "O") in "biufM":
        return Kind(name)
    there = [v for v in values if not _missing(v)]
    if getattr(values.dtype, "name", "") != "category" and all(isinstance(v, numbers.Real) for v in there):
        return Kind(name)
    return Kind(name, tuple(sorted({str(v) for v in there})))


def is_frame(table: Any) -> bool:
    """Whether it is a pandas DataFrame, told by what it can do: pandas itself need not be there."""
    return hasattr(table, "iloc") and hasattr(table, "columns") and hasattr(table, "dtypes")


def read_columns(table: Any, kinds: Sequence[Kind] | None = None) -> tuple[np.ndarray, list[Kind]]:
    """`[n, d]` float64 of a pandas DataFrame, and what its columns hold: as `kinds` says, or as found.

    Raises:
      ValueError: as `Kind.read`.
    """
    columns = [table.iloc[:, i] for i in range(table.shape[1])]
    found = list(kinds) if kinds else [_kind(str(n), c) for n, c in zip(table.columns, columns, strict=True)]
    read = [kind.read(column) for kind, column in zip(found, columns, strict=True)]
    return np.stack(read, 1) if read else np.empty((len(table), 0)), found


class Columns:
    """How rows `[n, d]` of numbers and categories become a network's inputs, learnt from weighted rows.

    Numbers are scaled twice: to mean 0 and standard deviation 1, and by their quantiles to a normal distribution; which
    one a network takes is a hyperparameter. A missing one is 0, which is the middle, and a column that misses some has
    an indicator. Categories are one-hot where they are few, and positions to embed otherwise; missing and new ones are
    zeros, or position 0. What is constant is left out.
    """

    def __init__(self, rows: np.ndarray, weights: np.ndarray, categories: Sequence[int | None]):
        """`categories`: of each column how many it has, or None where it holds numbers."""
        given = ~np.isnan(rows)
        numbers_ = [j for j, k in enumerate(categories) if k is None]
        self.one_hot = [(j, k) for j, k in enumerate(categories) if k is not None and 1 < k <= MOST_ONE_HOT]
        self.embedded = [(j, k) for j, k in enumerate(categories) if k is not None and k > MOST_ONE_HOT]
        self.missing = [j for j in range(rows.shape[1]) if 0 < given[:, j].sum() < len(rows)]
        self.numbers: list[int] = []
        middles, scales, self.quantiles = [], [], []
        for j in numbers_:
            values, w = rows[given[:, j], j], weights[given[:, j]]
            if not len(values) or values.min() == values.max():
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                middle = np.average(values, weights=w)
                scale = math.sqrt(np.average((values - middle) ** 2, weights=w))
            if not (math.isfinite(scale) and scale > 0):  # their squares are beyond a float: by their range then
                middle, scale = values.min() / 2 + values.max() / 2, values.max() / 2 - values.min() / 2
            self.numbers.append(j)
            middles.append(middle)
            scales.append(scale)
            self.quantiles.append(_quantiles(values, w))
        self.middles, self.scales = np.array(middles), np.array(scales)

    @property
    def width(self) -> int:
        """Numbers of a row that are no positions: at least 1, a column of zeros where nothing tells rows apart."""
        return max(1, len(self.numbers) + len(self.missing) + sum(k for _, k in self.one_hot))

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`[n, d]` rows as `standard` and `quantile` `[n, p]`, `rest` `[n, q]` float64 and `codes` `[n, e]` int32."""
        numbers_ = rows[:, self.numbers]
        with np.errstate(over="ignore", invalid="ignore"):
            standard = (numbers_ - self.middles) / self.scales
        quantile = np.empty_like(standard)
        for i, (at, share) in enumerate(self.quantiles):
            quantile[:, i] = ndtri(np.interp(numbers_[:, i], at, share))
        rest = [np.isnan(rows[:, self.missing]), *(rows[:, [j]] == np.arange(k) for j, k in self.one_hot)]
        codes = [rows[:, j] + 1 for j, _ in self.embedded]
        if not self.numbers and self.width == 1 and not self.missing:
            rest.append(np.zeros((len(rows), 1), bool))
        return {
            "standard": np.nan_to_num(np.clip(standard, -FURTHEST, FURTHEST)),
            "quantile": np.nan_to_num(quantile),
            "rest": np.concatenate(rest, 1).astype(np.float64),
            "codes": np.nan_to_num(np.stack(codes, 1) if codes else np.empty((len(rows), 0))).astype(np.int32),
        }


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values, increasing, and the share of the weight below each, half of its own included: at most `QUANTILES`."""
    at, of = np.unique(values, return_inverse=True)
    weight = np.bincount(of, weights)
    share = (np.cumsum(weight) - weight / 2) / weight.sum()
    if len(at) > QUANTILES:
        picked = np.unique(np.linspace(0, len(at) - 1, QUANTILES).round().astype(int))
        at, share = at[picked], share[picked]
    return at, share
