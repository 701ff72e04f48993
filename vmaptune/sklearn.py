"""scikit-learn's estimators on vmaptune's engine: `TunedMLPClassifier` and `TunedMLPRegressor`.

    TunedMLPClassifier(minutes=1).fit(X, y).predict(X)

Needs scikit-learn, `pip install "vmaptune[sklearn]"`; DataFrames of pandas are taken where there are any.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vmaptune.errors import InputError
from vmaptune.store.files import inside
from vmaptune.store.weights import load_weights
from vmaptune.study import Study, load, run
from vmaptune.tables import (
    STUDY,
    Columns,
    Kind,
    Network,
    is_frame,
    load_plain,
    merged,
    read_columns,
    save_plain,
    table_experiment,
    validation_rows,
)

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        _check_sample_weight,
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        f'vmaptune.sklearn needs scikit-learn 1.6 or later, but {error}: pip install "vmaptune[sklearn]"'
    ) from error

__all__ = ["TunedMLPClassifier", "TunedMLPRegressor"]


class _TunedMLP(BaseEstimator):
    """What the two have in common."""

    _UNSAVED: ClassVar = ("study_", "_folder_")
    kinds_: list[Kind] | None  # of a DataFrame's columns

    def __init__(
        self,
        *,
        minutes: float | None = 1.0,
        trials: int | None = None,
        ensemble: int = 16,
        steps: int | None = None,
        batch_size: int | None = None,
        patience: int = 16,
        validation_fraction: float = 0.2,
        space: Mapping[str, Any] | None = None,
        plan: str | None = None,
        directory: str | Path | None = None,
        random_state: Any = 0,
    ):
        self.minutes, self.trials, self.ensemble, self.steps = minutes, trials, ensemble, steps
        self.batch_size, self.patience, self.validation_fraction = batch_size, patience, validation_fraction
        self.space, self.plan, self.directory, self.random_state = space, plan, directory, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name not in self._UNSAVED}

    def __getattr__(self, name: str) -> Any:
        if name == "study_" and "networks_" in self.__dict__:
            raise AttributeError(
                "study_: a pickled estimator has no study; give directory=DIR before fit, and open it by vt.load(DIR)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _rows(self, X: Any, *, reset: bool) -> np.ndarray:
        """`[n, d]` float64, categories as positions, NaN where something is missing."""
        if not is_frame(X) or not (reset or self.kinds_):
            if not reset and self.kinds_ and any(kind.categories is not None for kind in self.kinds_):
                raise ValueError("X was a DataFrame with categories when this was fitted, so it must be one now")
            rows = validate_data(
                self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=reset, ensure_min_samples=1 + reset
            )
            if reset:
                self.kinds_ = None
            return rows
        validate_data(self, X, skip_check_array=True, reset=reset)
        rows, kinds = read_columns(X, None if reset else self.kinds_)
        if reset:
            self.kinds_ = kinds
        return check_array(
            rows, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=1 + reset, input_name="X",
            estimator=self,
        )  # fmt: skip

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, groups: Any = None, time: Any = None) -> Any:
        """Tunes on `[n, d]` rows and their classes or targets `[n]`; returns itself.

        Args:
          sample_weight: `[n]`, at least 0. groups: `[n]`, rows that must not be split between training and validation.
          time: `[n]`, by which the latest rows validate.

        Raises:
          ValueError: what scikit-learn refuses, one class alone, or every training diverged.
        """
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        self._check_parameters()
        rows = self._rows(X, reset=True)
        y = self._target(column_or_1d(y, warn=True))
        check_consistent_length(rows, y)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        weights = weights * self._class_weights(y, weights)
        beside = [np.unique(np.asarray(c), return_inverse=True)[1] for c in (groups, time) if c is not None]
        check_consistent_length(rows, *beside)
        if not (weights > 0).any():
            raise ValueError("sample_weight: at least one row must weigh more than 0, but none does")
        kept, weights = merged(rows, y, *beside, weights=weights)
        rows, y = rows[kept], y[kept]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        valid = validation_rows(
            np.random.default_rng(seed), self.validation_fraction, None if self._classes is None else y,
            None if groups is None else beside[0][kept], None if time is None else beside[-1][kept], n=len(y),
        )  # fmt: skip
        train = ~valid if not valid.all() else valid
        categories = [None if k.categories is None else len(k.categories) for k in self.kinds_ or ()]
        self.columns_ = Columns(rows[train], weights[train], categories or [None] * rows.shape[1])
        self.middle_, self.scale_ = 0.0, 1.0
        if self._classes is None:
            self.middle_ = float(np.average(y[train], weights=weights[train]))
            self.scale_ = float(np.sqrt(np.average((y[train] - self.middle_) ** 2, weights=weights[train]))) or 1.0
        experiment = table_experiment(
            self.columns_(rows), (y - self.middle_) / self.scale_, weights, valid,
            [k for _, k in self.columns_.embedded], self._classes, steps=self.steps, batch_size=self.batch_size,
            fixed=self.space,
        )  # fmt: skip
        self._take(self._study(experiment, seed))
        return self

    def _study(self, experiment: Any, seed: int) -> Study:
        folder = None
        if self.directory is None:
            folder = tempfile.mkdtemp(prefix="vmaptune-")
            self._folder_ = folder
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        out = Path(folder) / "study" if folder else Path(self.directory or "")
        study = run(
            experiment, trials=self.trials, minutes=self.minutes if self.trials is None else None, seed=seed, out=out,
            stopping=f"patience={self.patience}", structure="masks", plan=self.plan, report=folder is None,
            ensemble=self.ensemble if self.ensemble > 1 else None,
        )  # fmt: skip
        return load(study.directory, experiment)

    def _take(self, study: Study) -> None:
        """Keeps of a study what predictions need, and what a person asks for."""
        self.study_ = study
        if study.result["best"] is None:
            raise ValueError(
                "every training diverged, so there is no model; scale y, or lower the learning rate: space="
            )
        self.best_params_, self.best_loss_ = dict(study.best_params), float(study.best_value)
        chosen = study.result.get("ensemble")
        if chosen:
            members = [(f"ensemble-{t}", t, w) for t, w in zip(chosen["members"], chosen["weights"], strict=True)]
        else:
            members = [("best", study.meta["weights"]["best"], 1.0)]
        self.members_ = [(file, w, dict(study.ledger.trial(t).params)) for file, t, w in members]
        self.networks_ = _networks(study.directory, self.members_)
        rows = [row for row in study.trials() if row.of is None]
        values = np.array([np.nan if row.value is None else row.value for row in rows])
        self.cv_results_ = {
            "params": [dict(row.params) for row in rows],
            **{f"param_{name}": [row.params.get(name) for row in rows] for name in study.space},
            "validation_loss": values,
            "rank": np.argsort(np.argsort(values, kind="stable"), kind="stable") + 1,
            "steps": [row.steps for row in rows],
            "state": [str(row.state) for row in rows],
        }

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "networks_")
        inputs = self.columns_(self._rows(X, reset=False))
        return np.sum([weight * network(inputs) for weight, network in self.networks_], axis=0)

    def _check_parameters(self) -> None:
        if not (isinstance(self.ensemble, (int, np.integer)) and self.ensemble >= 1):
            raise InputError(f"ensemble must be a whole number of at least 1 (no ensemble), but got {self.ensemble!r}")
        if not 0 < self.validation_fraction < 1:
            raise InputError(
                f"validation_fraction must be above 0 and below 1, but got {self.validation_fraction!r}; 0.2 is the "
                f"default"
            )
        if self.trials is None and self.minutes is None:
            raise InputError("one of minutes and trials must say how long to search, but both are None; e.g. minutes=1")

    _classes: int | None = None

    def _target(self, y: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _class_weights(self, y: np.ndarray, weights: np.ndarray) -> Any:
        return 1.0


def _networks(directory: Path, members: Sequence[Any]) -> list[tuple[float, Network]]:
    folder = inside(directory, "best")
    return [(w, Network(load_weights(inside(folder, Path(f"{file}.weights").name)), hp)) for file, w, hp in members]


def save_table(estimator: Any, directory: Path, info: Mapping[str, Any]) -> None:
    """Writes what `load_table` needs into a directory: of an estimator that was
    fitted on a DataFrame, and whose study is `STUDY` in it.

    Args:
      info: plain values that `load_table` gives back; its `task` is "classification" or "regression".
    """
    more = {
        "info": dict(info), "members": estimator.members_, "middle": estimator.middle_, "scale": estimator.scale_,
        "classes": estimator.classes_.tolist() if info["task"] == "classification" else None,
    }  # fmt: skip
    save_plain(directory, estimator.columns_, estimator.kinds_, more)


def load_table(directory: str | Path) -> tuple[Any, dict[str, Any]]:
    """The estimator that `vmaptune table` fitted, to predict with, and its `info`. It executes nothing.

    Raises:
      InputError, StudyError: there is none, or it cannot be read.
    """
    columns, kinds, plain = load_plain(directory)
    estimator: Any = TunedMLPRegressor() if plain["classes"] is None else TunedMLPClassifier()
    estimator.columns_, estimator.kinds_, estimator.members_ = columns, kinds, plain["members"]
    estimator.middle_, estimator.scale_ = plain["middle"], plain["scale"]
    estimator.n_features_in_ = len(kinds)
    estimator.feature_names_in_ = np.array([kind.name for kind in kinds], object)
    if plain["classes"] is not None:
        estimator.classes_ = np.array(plain["classes"])
    estimator.networks_ = _networks(inside(directory, STUDY), plain["members"])
    return estimator, plain["info"]


_PARAMETERS = """
    Args:
      minutes: how long to search, all included; with `trials`, the number of trainings instead.
      ensemble: the most members of the ensemble that predicts; 1 is the best network alone.
      steps, batch_size: of a training at most; by default by the number of rows.
      patience: evaluations without a better one after which a training ends.
      validation_fraction: of the rows, by which networks are compared and trainings end.
      space: hyperparameters in the place of the own ones, name -> distribution (`vt.loguniform(...)`) or value.
      plan: as `vt.run`'s.
      directory: where the study is kept, with its report; fit goes on with an unfinished one. None: none is kept.
      random_state: an int gives the same bits each time, with `trials`.

    Attributes: best_params_, best_loss_, cv_results_ (a dict of columns, one row a training), study_, n_features_in_,
    feature_names_in_.

    A row with weight 2 is that row twice, to the bit. Missing values and, in DataFrames, categories are taken as they
    are. Ctrl-C ends a fit with KeyboardInterrupt; with `directory`, the next fit goes on from there.
"""


class TunedMLPClassifier(ClassifierMixin, _TunedMLP):
    __doc__ = f"""A classifier that tunes hundreds of small networks at once and predicts with an ensemble of the best.
{_PARAMETERS}
    class_weight: None, "balanced" or class -> weight. Besides: classes_."""

    def __init__(  # scikit-learn reads every parameter off the signature
        self,
        *,
        minutes: float | None = 1.0,
        trials: int | None = None,
        ensemble: int = 16,
        steps: int | None = None,
        batch_size: int | None = None,
        patience: int = 16,
        validation_fraction: float = 0.2,
        class_weight: Any = None,
        space: Mapping[str, Any] | None = None,
        plan: str | None = None,
        directory: str | Path | None = None,
        random_state: Any = 0,
    ):
        super().__init__(
            minutes=minutes, trials=trials, ensemble=ensemble, steps=steps, batch_size=batch_size, patience=patience,
            validation_fraction=validation_fraction, space=space, plan=plan, directory=directory,
            random_state=random_state,
        )  # fmt: skip
        self.class_weight = class_weight

    def predict_proba(self, X: Any) -> np.ndarray:
        """`[n, classes]`, in the order of `classes_`."""
        return self._outputs(X)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each row, `[n]`."""
        likeliest = self._outputs(X).argmax(1)  # says first that nothing is fitted
        return self.classes_[likeliest]

    def _target(self, y: np.ndarray) -> np.ndarray:
        check_classification_targets(y)
        self.classes_, positions = np.unique(y, return_inverse=True)
        return positions

    def _class_weights(self, y: np.ndarray, weights: np.ndarray) -> Any:
        there = np.unique(y[weights > 0])
        if len(there) < 2:
            raise ValueError(
                f"{type(self).__name__} needs rows of at least 2 classes, but the data contain 1 class: "
                f"{[self.classes_[i] for i in there]}"
            )
        self._classes = len(self.classes_)
        if self.class_weight is None:
            return 1.0
        if self.class_weight == "balanced":
            totals = np.bincount(y, weights, len(self.classes_))
            return (weights.sum() / (len(there) * np.where(totals > 0, totals, 1)))[y]
        return compute_sample_weight(self.class_weight, self.classes_[y])


class TunedMLPRegressor(RegressorMixin, _TunedMLP):
    __doc__ = f"""A regressor that tunes hundreds of small networks at once and predicts with an ensemble of the best.
{_PARAMETERS}"""

    def predict(self, X: Any) -> np.ndarray:
        """The target of each row, `[n]`."""
        return self._outputs(X) * self.scale_ + self.middle_

    def _target(self, y: np.ndarray) -> np.ndarray:
        return check_array(y, dtype=np.float64, ensure_2d=False, input_name="y", estimator=self)
