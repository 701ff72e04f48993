"""A trained model from its saved arrays and the experiment's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.functions import first_state, pack, unpack
from vmaptune.errors import InputError
from vmaptune.experiment import Experiment, bind_model, lane_arguments, lane_settings, model_arrays
from vmaptune.space import Space
from vmaptune.store.ledger import TrialRow
from vmaptune.store.weights import load_weights


def rebuild(
    experiment: Experiment, trial: TrialRow, path: Path, static: Sequence[str], parts: Sequence[str] = ()
) -> Any:
    """The model of a trial, from its weights file; `static` names the settings that were static in its study. With
    `parts` it is what the file holds of a lane's state: that part, or a dict of several.

    Raises:
      InputError: the weights do not fit the experiment's model. StudyError: the file is damaged.
    """
    saved = load_weights(path)
    space = experiment.space
    assert isinstance(space, Space)
    traced = tuple(name for name in space if name not in static)
    shapes = lane_arguments(space, traced)
    wanted, kinds = first_state(experiment.build(), {n: trial.params[n] for n in static}, shapes)
    is_model = experiment.task is None and not parts
    if is_model:
        wanted = jax.eval_shape(model_arrays, wanted)
        kinds = {"params": jax.tree.map(lambda _: "", wanted["params"]), "rest": kinds["rest"]}
    elif parts:
        wanted, kinds = ({part: tree[part] for part in parts} for tree in (wanted, kinds))
    packed = jax.eval_shape(pack, wanted)
    flat, tree = jax.tree_util.tree_flatten_with_path(packed)
    leaves = []
    for key_path, shape in flat:
        name = jax.tree_util.keystr(key_path)
        array = saved.get(name)
        if array is None or tuple(np.shape(array)) != shape.shape:
            found = "is missing" if array is None else f"has shape {np.shape(array)}"
            raise InputError(
                f"{path}: the weights do not fit the experiment's model: {name} must have shape "
                f"{shape.shape}, but {found}; use the experiment that the study ran"
            )
        if array.dtype.name in ("float64", "complex128") and shape.dtype != array.dtype:
            raise InputError(
                f"{path}: the weights are {array.dtype.name}, but JAX keeps 32 bits here, so that {name} would be "
                f'another one; turn 64 on before anything else: jax.config.update("jax_enable_x64", True)'
            )
        leaves.append(jnp.asarray(array))
    state = unpack(jax.tree.unflatten(tree, leaves), kinds)
    if parts:
        return state if len(parts) > 1 else state[parts[0]]
    if not is_model:
        return state
    values = space.lane_values(trial.params, traced)
    arrays = {n: jnp.asarray(v, shapes[n].dtype) for n, v in values.items()}
    hp = lane_settings(experiment, {n: arrays.get(n, v) for n, v in trial.params.items()})
    return bind_model(experiment, hp, state)
