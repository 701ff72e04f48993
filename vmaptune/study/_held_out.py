"""The confirmed winner on the test part of the data, and how much the validation part's few examples leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.functions import LaneFunctions, unpack
from vmaptune.experiment import Experiment, lane_settings, metrics_on

RESAMPLES = 50  # of a validation part
FEW = 1000  # examples: a larger part is cut into parts instead, which costs one pass over it
PARTS = 20
WHOLE = 1e-3  # how near to whole numbers rounding leaves counts of examples


def held_out_values(
    experiment: Experiment,
    functions: LaneFunctions,
    static: Mapping[str, Any],
    traced: Mapping[str, Any],
    states: Sequence[Any],
) -> list[float]:
    """The objective of each of these final states on the test part."""
    data = experiment.loaded_data()
    part, n = jax.tree.map(jnp.asarray, data.test), data.size("test")
    objective, arrays = _objective(experiment, functions, static, traced)
    measure = jax.jit(lambda state, arrays, part: objective(state, arrays, part, n))
    return [float(np.asarray(measure(s, arrays, part))) for s in states]


def rate_error(values: Sequence[float], n: int) -> float | None:
    """The standard error of a share of `n` examples, such as an error rate; None where the values are no such shares.

    Source: Agresti and Coull (1998), for two more of either kind, so that no share is known for sure.
    """
    counts = np.array(values) * n
    if not len(counts) or np.abs(counts - np.round(counts)).max() > WHOLE or counts.min() < 0 or counts.max() > n:
        return None
    share = (float(counts.mean()) + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def resampled_error(
    experiment: Experiment,
    functions: LaneFunctions,
    static: Mapping[str, Any],
    traced: Mapping[str, Any],
    state: Any,
) -> float | None:
    """The standard error of a final state's objective that the validation part's size leaves: its deviation over
    resamples of the part (bootstrap), or of many examples over parts of it, by the root of their number. None where it
    cannot be measured so.

    Source: Efron (1979).
    """
    data = experiment.loaded_data()
    part, n = jax.tree.map(jnp.asarray, data.valid), data.size("valid")
    rng = np.random.Generator(np.random.PCG64(0))
    few = n <= FEW
    size = n if few else n // PARTS
    rows = rng.integers(n, size=(RESAMPLES, n)) if few else rng.permutation(n)[: PARTS * size].reshape(PARTS, size)
    objective, arrays = _objective(experiment, functions, static, traced)

    @jax.jit
    def measure(state: Any, arrays: Any, part: Any, rows: Any) -> Any:
        def one(some: Any) -> Any:
            return objective(state, arrays, jax.tree.map(lambda a: a[some], part), size)

        return jax.lax.map(one, rows)

    try:
        values = np.asarray(measure(state, arrays, part, jnp.asarray(rows)), np.float64)
    except Exception:  # a person's metrics() that takes the whole part alone: the study is done without this number
        return None
    error = float(values.std(ddof=1)) / (1 if few else math.sqrt(PARTS))
    return error if math.isfinite(error) else None


def _objective(
    experiment: Experiment, functions: LaneFunctions, static: Mapping[str, Any], traced: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The objective of a state on `n` examples, and the traced hyperparameters that it takes with them."""
    order = tuple(experiment.space)

    def objective(state: Any, arrays: Any, part: Any, n: int) -> Any:
        hp = lane_settings(experiment, {name: arrays.get(name, static.get(name)) for name in order})
        return metrics_on(experiment, unpack(state, functions.key_kinds), hp, part, n)[experiment.objective]

    return objective, {n: jnp.asarray(v, functions.traced[n].dtype) for n, v in traced.items()}
