"""Which rows of a table are trained on and which validate: by the rows themselves and a seed, not by their order."""

from __future__ import annotations

import numpy as np

from vmaptune.errors import InputError


def merged(*columns: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal rows as one with the sum of their weights, sorted; those of no weight left out.

    So a row with weight 2 is that row twice, to the bit, and the order in which rows come means nothing.

    Args:
      columns: `[n]` or `[n, k]` each, side by side the rows; NaN equals NaN.

    Returns:
      The positions `[m]` of the rows that are kept, and their weights `[m]`, whose mean is 1.
    """
    there = np.flatnonzero(weights > 0)
    rows = np.concatenate([np.asarray(c, np.float64).reshape(len(c), -1) for c in columns], 1)[there] + 0.0  # no -0
    _, first, of = np.unique(_sortable(rows), axis=0, return_index=True, return_inverse=True)
    summed = np.bincount(of.reshape(-1), weights[there])
    return there[first], summed / summed.mean()


def _sortable(rows: np.ndarray) -> np.ndarray:
    """The same order as numbers that compare equal where they are NaN."""
    return np.where(np.isnan(rows), np.inf, rows)  # an infinity is refused before


def validation_rows(
    rng: np.random.Generator,
    fraction: float,
    classes: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    time: np.ndarray | None = None,
    *,
    n: int,
) -> np.ndarray:
    """`[n]` bool: about `fraction` of the rows, at least one, and never all of several.

    Of each class as many, but one is always left to train on; with `groups` whole groups; with `time` the latest. A
    single row is all there is: it validates, too.

    Raises:
      InputError: one group alone, which can't be split.
    """
    valid = np.zeros(n, bool)
    if n == 1:
        return ~valid
    wanted = min(max(1, round(fraction * n)), n - 1)
    if time is not None:
        valid[np.argsort(time, kind="stable")[n - wanted :]] = True
        return valid
    if groups is not None:
        names = np.unique(groups)
        if len(names) < 2:
            raise InputError("groups: rows of at least 2 groups are needed to hold some out, but all are of one")
        for name in rng.permutation(names)[: max(1, len(names) - 1)]:
            if valid.sum() >= wanted:
                break
            valid |= groups == name
        return valid
    of = np.zeros(n, int) if classes is None else classes
    for label in np.unique(of):
        members = rng.permutation(np.flatnonzero(of == label))
        valid[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
    if not valid.any():  # each class has hardly any rows
        counts = np.bincount(of)
        valid[rng.choice(np.flatnonzero(counts[of] == counts.max()))] = n > 1
    return valid
