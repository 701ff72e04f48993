"""A study on disk, as a person holds it: the best setting, the trials, the trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmaptune.errors import InputError, StudyError
from vmaptune.space import Space
from vmaptune.store.ledger import LedgerReader, TrialRow
from vmaptune.store.tables import CONFIRMED, PLACE, finalists_of


class Study:
    """A study directory, read from its ledger alone.

    `study.best_params`, `.best_value`, `.best_trial`, `.best_model()`, `.trials()`, `.trials_dataframe()`.
    """

    def __init__(self, directory: str | Path, experiment: Any = None):
        self.directory = Path(directory)
        self._experiment = experiment
        self.ledger = LedgerReader.open(self.directory)
        self._meta = self.ledger.meta()
        self._plots: Any = None

    def __repr__(self) -> str:
        state = "finished" if self.ledger.finished() else "unfinished"
        return f"<vmaptune study {self.directory}: {state}, best {self._best_or_none()}>"

    @property
    def result(self) -> dict[str, Any]:
        """What `run --json` printed.

        Raises:
          StudyError: the study is not finished.
        """
        result = self._meta.get("result")
        if result is None:
            raise StudyError(
                f"{self.directory}: the study is not finished, so it has no result yet; "
                f"`python -m vmaptune status {self.directory}` says where it stands"
            )
        return result

    def _best_or_none(self) -> Any:
        return (self._meta.get("result") or {}).get("best")

    @property
    def best(self) -> dict[str, Any]:
        """The winner: trial, value (mean over fresh seeds), value_std, repeats, params, and more.

        `low` and `high` are the 95 % interval of the mean over all seeds there are; `chance` that of being the best of
        the finalists; `expected` what to expect of another training. `best_seen` is the best single value of the
        search, of the configuration of trial `best_seen_trial`; `seen` is the winner's own. `valid_error` is the
        standard error that `valid_examples` leave in its value, whatever the seed. None is what is not known.

        Raises:
          StudyError: the study is not finished, or every trial was infeasible.
        """
        best = self.result["best"]
        if best is None:
            raise StudyError(f"{self.directory}: every trial was infeasible, so there is no best one")
        return best

    @property
    def finalists(self) -> list[dict[str, Any]]:
        """The configurations that were confirmed, the winner first: trial, value, value_std, low, high, repeats,
        chance, params, as in `best`. Empty where nothing was confirmed.

        Raises:
          StudyError: the study is not finished.
        """
        return list(self.result.get("finalists") or [])

    @property
    def best_trial(self) -> TrialRow:
        """The trial whose setting won."""
        return self.ledger.trial(self.best["trial"])

    @property
    def best_params(self) -> dict[str, Any]:
        """The winning setting, by name."""
        return self.best["params"]

    @property
    def best_value(self) -> float:
        """The winner's objective: its mean over fresh seeds where it was confirmed."""
        return self.best["value"]

    @property
    def space(self) -> Space:
        """The first round's space."""
        return Space.from_json(self._meta["space"])

    @property
    def meta(self) -> Mapping[str, Any]:
        """Options, versions, machine, the experiment's source and hash."""
        return self._meta

    def trials(self, **where: Any) -> list[TrialRow]:
        """The trials, by `round=` and `state=` if given."""
        return self.ledger.trials(**where)

    def curve(self, trial: int) -> list[Any]:
        """A trial's curve: a point with step, loss, value and metrics for each segment."""
        return self.ledger.curve(trial)

    def trials_dataframe(self) -> Any:
        """The trials as a pandas DataFrame, with the columns of trials.csv and the values as they are.

        Raises:
          InputError: pandas is not installed.
        """
        try:
            import pandas  # type: ignore[import-untyped,unused-ignore]
        except ImportError:
            raise InputError("trials_dataframe() needs pandas, which is not installed: pip install pandas") from None
        names, finalists = list(self.space), finalists_of(self._meta)
        more = [PLACE, *CONFIRMED] if finalists else []
        return pandas.DataFrame(
            [
                {
                    "trial": t.trial, "round": t.round, "state": str(t.state), "reason": t.reason, "seed": t.seed,
                    "steps": t.steps, "value": t.value, **{f"params.{n}": t.params.get(n) for n in names},
                    **{column: finalists.get(t.trial, {}).get(column) for column in more},
                }
                for t in self.trials()
            ]
        )  # fmt: skip

    def best_model(self, experiment: Any = None) -> Any:
        """The winner's trained model: the repeat with the best validation value.

        A Flax nnx module in evaluation mode, a bound linen model to call, or the pytree of parameters; for a
        `vt.Task`, its final state. The weights come from the study; the code that rebuilds the module is the
        `experiment` given here, or else the experiment's file where it was when the study ran.

        Raises:
          StudyError: no weights were saved (nothing finished, or nothing was confirmed).
          InputError: the experiment's file is gone or has changed, and no `experiment` was given.
        """
        if "best" not in (self._meta.get("weights") or {}):
            raise StudyError(
                f"{self.directory}: the study has no saved model: weights are kept at the end of a study, "
                f"which this one did not reach"
            )
        trial = self.ledger.trial(self._meta["weights"]["best"])
        return self._rebuild(self._own_experiment(experiment), trial, "best")

    def best_optimizer_state(self, experiment: Any = None) -> Any:
        """The state of the winner's optimizer after its last step, as Optax made it, to train on from `best_model`.

        Raises:
          StudyError: the study has none: it is of a `vt.Task`, whose final state `best_model` gives, or of before.
          InputError: as `best_model`.
        """
        trial = (self._meta.get("weights") or {}).get("best")
        if not (self.directory / "best" / "best-optimizer.weights").exists() or trial is None:
            raise StudyError(f"{self.directory}: the study has no optimizer's state of its winner")
        own = self._own_experiment(experiment)
        return self._rebuild(own, self.ledger.trial(trial), "best-optimizer", ("opt",))

    def ensemble(self, experiment: Any = None) -> Any:
        """The ensemble that `--ensemble M` chose: `study.ensemble().predict(x)`; `.members`, `.weights`, `.models`.

        Raises:
          StudyError: the study has chosen none. InputError: as `best_model`.
        """
        from vmaptune.study._ensemble import TrainedEnsemble

        info = self.result.get("ensemble")
        if info is None:
            raise StudyError(f"{self.directory}: the study has no ensemble; run it with --ensemble M")
        experiment = self._own_experiment(experiment)
        rows = [self.ledger.trial(t) for t in info["members"]]
        models = [self._rebuild(experiment, row, f"ensemble-{row.trial}") for row in rows]
        return TrainedEnsemble(experiment.with_changes(space=self.space), models, [row.params for row in rows], info)

    def _rebuild(self, experiment: Any, trial: TrialRow, name: str, parts: tuple[str, ...] = ()) -> Any:
        from vmaptune.study._models import rebuild

        experiment = self._with_rows(experiment.with_changes(space=self.space))
        return rebuild(experiment, trial, self.directory / "best" / f"{name}.weights", self._meta["static"], parts)

    def _with_rows(self, experiment: Any) -> Any:
        """The experiment, where its data are gone with rows that look like them: a model is rebuilt without."""
        from vmaptune.experiment import stand_in

        if experiment.task is not None:
            return experiment
        try:
            experiment.loaded_data()
        except InputError:
            rows = self._meta["experiment"].get("rows")
            if rows is None:
                raise
            return replace(experiment, data=stand_in(rows), _cache={})
        return experiment

    def _own_experiment(self, experiment: Any) -> Any:
        from vmaptune.experiment import load_experiment

        experiment = experiment or self._experiment
        if experiment is not None:
            return experiment
        origin = self._meta["experiment"]
        if origin["path"] is None or not Path(origin["path"]).exists():
            raise InputError(
                f"{self.directory}: the experiment's code is needed, but its file "
                f"{origin['path'] or '(it was run from Python)'} is not there; bring it back, or pass "
                f"experiment=... from Python"
            )
        path = Path(origin["path"])
        if not path.is_absolute() or path.resolve().is_relative_to(self.directory.resolve()):
            raise InputError(
                f"{self.directory}: its experiment's file, {path}, is not outside the study, and what a study holds is "
                f"not run; pass experiment=... from Python"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != origin["sha256"]:  # before any of it runs
            raise InputError(
                f"{path} has changed since the study ran (sha256 {digest[:12]}, then {origin['sha256'][:12]}); "
                f"bring the old one back, or pass experiment=... to use another"
            )
        name = str(origin.get("spec") or "").partition(".py:")[2]
        loaded = load_experiment(f"{path}:{name}" if name else path, origin.get("folder"))
        for file, digest in (origin.get("files") or {}).items():
            if loaded.files.get(file, digest) != digest:
                raise InputError(
                    f"{file}, which {path} imports, has changed since the study ran; bring the old one back, or pass "
                    f"experiment=... to use another"
                )
        return loaded.experiment

    @property
    def plot(self) -> Any:
        """The report's figures one by one, from Plotly: `study.plot.axis("learning_rate")`, `.curves()`,
        `.parallel()`, `.zoom()`, `.importance()`, `.pair()`, ...; `study.plot.report()` writes the whole page."""
        from vmaptune.view.report import Plots

        if self._plots is None:
            self._plots = Plots(self.directory)
        return self._plots

    def _repr_html_(self) -> str:
        from vmaptune.view.report import card

        return card(self.ledger)

    def close(self) -> None:
        """Closes the ledger."""
        self.ledger.close()


def load(directory: str | Path, experiment: Any = None) -> Study:
    """Opens a study directory for reading. It may still be running; nothing in it is executed.

    Raises:
      InputError: there is no study at this path. StudyError: it cannot be read.
    """
    return Study(directory, experiment)
