"""The confirmed winner on the test part of the data, and how much the validation part's few examples leave open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def on_examples(
    experiment: Experiment,
    functions: LaneFunctions,
    static: Mapping[str, Any],
    traced: Mapping[str, Any],
    states: Sequence[Any],
    *,
    resample: bool,
) -> tuple[list[dict[str, float]], float | None]:
    """The metrics of each of these final states on the test part by name, empty where there is none; and with
    `resample` the standard error that the validation part's size leaves in the first one's objective: its deviation
    over resamples of the part (bootstrap), or of many examples over parts of it, by the root of their number. None
    where it cannot be measured so. One program for both.

    Source: Efron (1979).
    """
    data = experiment.loaded_data()
    n, few = data.size("valid"), data.size("valid") <= FEW
    size = n if few else n // PARTS
    rng = np.random.Generator(np.random.PCG64(0))
    rows = rng.integers(n, size=(RESAMPLES, n)) if few else rng.permutation(n)[: PARTS * size].reshape(PARTS, size)
    order = tuple(experiment.space)

    def metrics(state: Any, arrays: Any, part: Any, n: int) -> Any:
        hp = lane_settings(experiment, {name: arrays.get(name, static.get(name)) for name in order})
        return metrics_on(experiment, unpack(state, functions.key_kinds), hp, part, n)

    def measure(state: Any, arrays: Any, parts: Any, rows: Any, first: Any) -> Any:
        test, valid = parts
        found = None if test is None else metrics(state, arrays, test, data.size("test"))
        if not resample:
            return found, None

        def one(some: Any) -> Any:
            return metrics(state, arrays, jax.tree.map(lambda a: a[some], valid), size)[experiment.objective]

        shape = jax.eval_shape(one, rows[0])
        again = jax.lax.cond(first, lambda: jax.lax.map(one, rows), lambda: jnp.zeros(len(rows), shape.dtype))
        return found, again

    if data.test is None and not resample:
        return [], None
    arrays = {n: jnp.asarray(v, functions.traced[n].dtype) for n, v in traced.items()}
    parts = jax.tree.map(jnp.asarray, (data.test, data.valid if resample else None))
    used = states if data.test is not None else states[:1]
    program = jax.jit(measure)
    found = [jax.device_get(program(s, arrays, parts, jnp.asarray(rows), i == 0)) for i, s in enumerate(used)]
    error = float(np.std(found[0][1], ddof=1)) / (1 if few else math.sqrt(PARTS)) if resample else math.nan
    measured = [{n: float(np.asarray(v)) for n, v in f.items()} for f, _ in found if f is not None]
    return measured, error if math.isfinite(error) else None


def rate_error(values: Sequence[float], n: int) -> float | None:
    """The standard error of a share of `n` examples, such as an error rate; None where the values are no such shares.

    Source: Agresti and Coull (1998), for two more of either kind, so that no share is known for sure.
    """
    counts = np.array(values) * n
    if not len(counts) or np.abs(counts - np.round(counts)).max() > WHOLE or counts.min() < 0 or counts.max() > n:
        return None
    share = (float(counts.mean()) + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))
