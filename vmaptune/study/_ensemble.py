"""The ensemble of a study's finalists: chosen by the validation metric, measured once on held-out data, saved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.engine.functions import LaneFunctions, unpack
from vmaptune.errors import InputError
from vmaptune.experiment import Experiment, Statics, lane_arguments, lane_settings, metrics_on, model_arrays
from vmaptune.experiment._predict import inputs_of, metrics_of, predict, predictions_of
from vmaptune.search.ensemble import Ensemble, greedy_ensemble
from vmaptune.space import Space
from vmaptune.store.files import inside
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.store.weights import save_weights
from vmaptune.study._outcome import plain_tree
from vmaptune.study._training import Training
from vmaptune.task import Hyperparameters, Task

BLOCK = 1024  # examples of one forward pass
ROUNDING = 1e-3  # of a measure, relative, that two ways to compute it may differ by
WAY_OUT = (
    "give the Experiment predict=lambda model, x: ..., which returns what metrics() gets by calling the model, with "
    "whatever metrics() does to its inputs"
)


class Library:
    """The trained models that a study still holds, and what they predict."""

    def __init__(self, training: Training):
        self.training, self.experiment = training, training.experiment
        self.rows = [row for t, row in training.rows.items() if t in training.states and row.state == State.COMPLETE]
        self._predictors: dict[int, Callable[..., Any]] = {}

    def predictions(self, rows: list[TrialRow], part: Any, n: int) -> np.ndarray:
        """`[K, n, ...]` floats: of each of these trials' models on a part of the data."""
        return np.stack([self._predictions(row, part, n) for row in rows])

    def _predictions(self, row: TrialRow, part: Any, n: int) -> np.ndarray:
        groups = self.training.groups
        group = groups.of(row.params)
        if group.number not in self._predictors:
            functions, static, order = group.functions, dict(group.static), tuple(row.params)

            def run(state: Any, arrays: Any, x: Any) -> jax.Array:
                hp = lane_settings(self.experiment, {name: arrays.get(name, static.get(name)) for name in order})
                return predictions_of(self.experiment, hp, unpack(state, functions.key_kinds), x)

            self._predictors[group.number] = jax.jit(run)
            self.training.counts.compilations += 1
        arrays = {
            name: jnp.asarray(value, group.functions.traced[name].dtype)
            for name, value in groups.lane_values(row.params).items()
        }
        x = inputs_of(part)
        run, state = self._predictors[group.number], self.training.states[row.trial]
        return _by_blocks(lambda block: run(state, arrays, block), x, n)

    def measure(self, part: Any) -> Callable[[np.ndarray], np.ndarray]:
        """`[C, n, ...] -> [C]`: the objective of each of these mean predictions on a part of the data."""
        hp = Hyperparameters(dict(self.rows[0].params))
        objective = self.experiment.objective

        @jax.jit
        def one_by_one(means: jax.Array) -> jax.Array:
            return jax.lax.map(lambda mean: metrics_of(self.experiment, hp, mean, part)[objective], means)

        return lambda means: np.asarray(one_by_one(jnp.asarray(means, jnp.result_type(float))), np.float64)

    def differing(self, values: np.ndarray, n: int) -> str:
        """Of the first of these `values`, one for each row, that is not what the ledger says; "" where all are."""
        for row, value in zip(self.rows, values, strict=True):
            if row.value is not None and not same_measure(float(value), row.value, n):
                return f"of trial {row.trial}'s predictions {value:.6g}, of the trial itself {row.value:.6g}"
        return ""


def _by_blocks(run: Callable[[Any], Any], x: Any, n: int) -> np.ndarray:
    """What a model says of inputs, block by block, as floats."""
    blocks = [jax.tree.map(lambda a, i=i: a[i : i + BLOCK], x) for i in range(0, n, BLOCK)]
    return np.concatenate([np.asarray(run(block), jnp.result_type(float)) for block in blocks])


def same_measure(a: float, b: float, n: int) -> bool:
    """Whether two measures of `n` examples are equal to rounding, which may also turn an example or two over."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return str(a) == str(b)
    turned = abs(a - b) * n
    return abs(a - b) <= ROUNDING * max(abs(a), abs(b), ROUNDING) or min(abs(turned - 1), abs(turned - 2)) < ROUNDING


def check_ensemble(
    experiment: Experiment, task: Task, statics: Statics, space: Space, params: Mapping[str, Any]
) -> None:
    """Measures an initial model by its predictions, as an ensemble will be, before anything is trained.

    Raises:
      InputError: the experiment is a Task; its model gives no predictions that `metrics` can take, or predictions
        by which it is not measured as it is by itself.
    """
    if experiment.task is not None:
        raise InputError("--ensemble needs an Experiment with a model; a vt.Task has no predictions")
    static = dict(statics.group_of(params))
    functions = LaneFunctions(task, static, lane_arguments(space, statics.traced))
    data = experiment.loaded_data()
    valid, n = jax.tree.map(jnp.asarray, data.valid), data.size("valid")
    values = space.lane_values(params, statics.traced)
    arrays = {name: jnp.asarray(value, functions.traced[name].dtype) for name, value in values.items()}
    own = lane_settings(experiment, {name: arrays.get(name, static.get(name)) for name in space})

    def asked(state: Any, x: Any, arrays: Any) -> Any:
        hp = lane_settings(experiment, {name: arrays.get(name, static.get(name)) for name in space})
        return predictions_of(experiment, hp, state, x)

    try:
        jax.eval_shape(
            lambda *a: metrics_of(experiment, own, asked(*a), valid), functions.state, inputs_of(valid), arrays
        )
        state = jax.jit(functions.init.call)(functions.init.consts, arrays, jnp.uint32(0))
        alone = jax.jit(lambda state: metrics_on(experiment, state, own, valid, n))(state)
        run = jax.jit(asked)
        predictions = _by_blocks(lambda block: run(state, block, arrays), inputs_of(valid), n)
        through = jax.jit(lambda out: metrics_of(experiment, own, out, valid))(jnp.asarray(predictions))
        for name, value in alone.items():
            if not same_measure(float(value), float(through[name]), n):
                raise InputError(
                    f"--ensemble: a model is not what its predictions are: by itself its {name} is {float(value):.6g}, "
                    f"by its predictions {float(through[name]):.6g}; {WAY_OUT}"
                )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"--ensemble: the model's predictions cannot be had and measured ({type(error).__name__}: {error}); "
            f"{WAY_OUT}"
        ) from error


def choose_ensemble(training: Training, directory: Path, size: int) -> dict[str, Any] | None:
    """Picks an ensemble of the models that are held, saves its members under `best/`, and measures it.

    Returns what the result says of it: members (trials), weights, the objective of the ensemble and of the best
    single model on the validation part, and on the test part where there is one. None where no model was held.
    """
    experiment, sign = training.experiment, training.counts.sign
    library = Library(training)
    if not library.rows:
        return None
    data = experiment.loaded_data()
    valid, n = jax.tree.map(jnp.asarray, data.valid), data.size("valid")
    predictions = library.predictions(library.rows, valid, n)
    measure = library.measure(valid)
    values = measure(predictions)
    if found_wrong := library.differing(values, n):
        training.counts.warn(
            f"no ensemble was chosen, because models are not what their predictions are: {experiment.objective} is "
            f"{found_wrong}; {WAY_OUT}, and metrics() that do not hang on a trial's settings"
        )
        return None
    chosen = greedy_ensemble(predictions, lambda means: sign * measure(means), size)
    alone = sign * values
    single = int(np.nanargmin(np.where(np.isfinite(alone), alone, np.inf)))
    members = [library.rows[m] for m in chosen.members]
    found: dict[str, Any] = {
        "members": [row.trial for row in members],
        "weights": list(chosen.weights),
        "value": sign * chosen.loss,
        "single": library.rows[single].trial,
        "single_value": sign * float(alone[single]),
        "library": len(library.rows),
    }
    if data.test is not None:
        found |= _held_out(library, data, chosen, members, library.rows[single])
    for row in members:
        state = training.states[row.trial]
        save_weights(
            inside(directory, "best") / f"ensemble-{row.trial}.weights",
            plain_tree(model_arrays(state)),
        )
    return found


def _held_out(
    library: Library, data: Any, chosen: Ensemble, members: list[TrialRow], single: TrialRow
) -> dict[str, float]:
    """The ensemble and the best single model on the test part."""
    test, n = jax.tree.map(jnp.asarray, data.test), data.size("test")
    predictions = library.predictions([*members, single], test, n)
    mean = np.tensordot(np.asarray(chosen.weights), predictions[:-1], 1)
    values = library.measure(test)(np.stack([mean, predictions[-1]]))
    return {"test_value": float(values[0]), "single_test_value": float(values[1])}


class TrainedEnsemble:
    """A study's ensemble: `ensemble.predict(x)` is the weighted mean of its members' predictions."""

    def __init__(self, experiment: Any, models: list[Any], settings: list[Any], info: Mapping[str, Any]):
        self._experiment, self.models = experiment, models
        self._settings = [lane_settings(experiment, params) for params in settings]  # of each member
        self.members: list[int] = list(info["members"])  # trials
        self.weights: list[float] = list(info["weights"])
        self.info = dict(info)

    def __repr__(self) -> str:
        parts = ", ".join(f"{w:.2f} of trial {t}" for t, w in zip(self.members, self.weights, strict=True))
        return f"<ensemble: {parts}>"

    def predict(self, x: Any) -> jax.Array:
        """The mean prediction for inputs `x`, as the experiment's models take them; `[n, ...]`."""
        out = [
            w * predict(self._experiment, model, x, hp)
            for model, hp, w in zip(self.models, self._settings, self.weights, strict=True)
        ]  # fmt: skip
        return sum(out[1:], start=out[0])
