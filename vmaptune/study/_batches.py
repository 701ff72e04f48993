"""The batches of a trial, for whoever trains it again by a loop of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.functions import trial_key
from vmaptune.errors import InputError
from vmaptune.experiment import Experiment, order_key, rows_of_batches
from vmaptune.store.rows import TrialRow

AT_ONCE = 64  # batches
_rows = jax.jit(rows_of_batches, static_argnums=(2, 3, 4))


def batches(experiment: Experiment, trial: TrialRow, *, steps: int | None = None) -> Iterator[Any]:
    """The batches that a trial trained on, in order: `for batch in vt.batches(experiment, study.best_trial)`.

    With `key = jax.random.key(trial.seed)` the model was made from `jax.random.fold_in(key, 0)`, and the `loss` of step
    `i`, from 0, was given `jax.random.fold_in(key, i + 1)`.

    Args:
      experiment: what the study ran.
      trial: one of `study.trials()`; of a population (`method="pbt"`) one that took over from none.
      steps: how many; by default the trial's own number.

    Returns:
      An iterator over pytrees of NumPy arrays `[batch_size, ...]`: rows of the data's `train`.

    Raises:
      InputError: the experiment is a `vt.Task`, which has no batches.
    """
    if not isinstance(experiment, Experiment) or experiment.task is not None:
        raise InputError("batches() needs an Experiment with data; a vt.Task takes in what its own functions say")
    if not isinstance(trial, TrialRow):
        raise InputError(f"batches() needs one of study.trials(), but got {type(trial).__name__}")
    size = experiment.lane_batch_size(trial.params)
    return _batches(experiment, trial, size, experiment.total_steps(trial.params) if steps is None else steps)


def _batches(experiment: Experiment, trial: TrialRow, size: int, steps: int) -> Iterator[Any]:
    data = experiment.loaded_data()
    words = order_key(experiment, jax.random.fold_in(trial_key(trial.seed), 0))
    for first in range(0, steps, AT_ONCE):
        several = _rows(words, jnp.int32(first), AT_ONCE, size, data.size("train"))
        for rows in np.asarray(several)[: steps - first]:
            yield jax.tree.map(lambda a, rows=rows: a[rows], data.train)
