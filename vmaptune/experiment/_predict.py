"""What a trained model predicts, and what an experiment's metrics say of given predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vmaptune.errors import InputError
from vmaptune.experiment._experiment import Experiment
from vmaptune.experiment._measures import SIGNATURES, bind_model, combined, in_precision, measured, model_arrays
from vmaptune.experiment._places import at, kind
from vmaptune.task import Hyperparameters


def inputs_of(part: Any) -> Any:
    """What a model is called on: the first of a batch's arrays, or the batch itself where it is one array."""
    if isinstance(part, (tuple, list)):
        return part[0]
    if isinstance(part, dict):
        return next((part[name] for name in ("x", "inputs", "image", "images") if name in part), part)
    return part


def predict(experiment: Experiment, model: Any, x: Any, hp: Hyperparameters) -> jax.Array:
    """The experiment's `predict(model, x, hp)`, or the model called on `x`; an array whose first axis is the examples.

    Raises:
      InputError: the model cannot be called, or what comes is no array.
    """
    function: Callable[..., Any] | None = experiment.predict
    if function is None and not callable(model):
        raise InputError(
            "an ensemble needs predictions, but the model cannot be called; give the Experiment "
            "predict=lambda model, x: ..., which returns what metrics() uses of the model"
        )
    out = model(x) if function is None else SIGNATURES["predict"].call(function, {"model": model, "x": x, "hp": hp})
    if not isinstance(out, jax.Array):
        raise InputError(f"predict() must return one array of predictions, but it returned {kind(out)}{at(function)}")
    return out


def predictions_of(experiment: Experiment, hp: Hyperparameters, state: Any, x: Any) -> jax.Array:
    """What the model of a lane's state predicts, as it is measured: in the experiment's precision."""
    arrays = model_arrays(state)
    return in_precision(experiment, lambda x: predict(experiment, bind_model(experiment, hp, arrays), x, hp))(x)


class Given:
    """A model that has already answered: whatever it is called with, it returns the predictions."""

    def __init__(self, predictions: Any):
        self._predictions = predictions

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._predictions


def metrics_of(experiment: Experiment, hp: Hyperparameters, predictions: Any, part: Any) -> dict[str, jax.Array]:
    """The experiment's metrics of given predictions on a whole part of the data.

    Raises:
      InputError: `metrics` asks more of the model than to be called.
    """

    def whole(predictions: Any, part: Any) -> Any:
        return combined(experiment, measured(experiment, Given(predictions), part, hp), hp)

    try:
        return in_precision(experiment, whole)(predictions, part)
    except AttributeError as error:
        raise InputError(
            f"an ensemble is measured by metrics() on averaged predictions, so metrics() may only call the model, but "
            f"it failed: {error}{at(experiment.metrics)}"
        ) from error
