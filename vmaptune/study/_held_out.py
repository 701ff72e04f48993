"""The confirmed winner on the test part of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.functions import LaneFunctions, unpack
from vmaptune.experiment import Experiment, lane_settings, metrics_on


def held_out_metrics(
    experiment: Experiment,
    functions: LaneFunctions,
    static: Mapping[str, Any],
    traced: Mapping[str, Any],
    states: Sequence[Any],
) -> list[dict[str, float]]:
    """The metrics of each of these final states on the test part, by name."""
    data = experiment.loaded_data()
    part, n = jax.tree.map(jnp.asarray, data.test), data.size("test")
    order = tuple(experiment.space)

    @jax.jit
    def measure(state: Any, arrays: Any, part: Any) -> Any:
        hp = lane_settings(experiment, {name: arrays.get(name, static.get(name)) for name in order})
        return metrics_on(experiment, unpack(state, functions.key_kinds), hp, part, n)

    arrays = {n: jnp.asarray(v, functions.traced[n].dtype) for n, v in traced.items()}
    return [{n: float(np.asarray(v)) for n, v in measure(s, arrays, part).items()} for s in states]
