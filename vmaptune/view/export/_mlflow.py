"""MLflow: a tracking store in one SQLite file, a run for each trial.

`mlflow ui --backend-store-uri sqlite:///runs/x/export/mlflow.db` shows it.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow  # type: ignore[import-not-found,import-untyped,unused-ignore]

from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.view.export._source import Source, measured, told_apart

STATUS = {State.COMPLETE: "FINISHED", State.STOPPED: "FINISHED", State.RUNNING: "RUNNING"}  # FAILED for the others
MOST_OF_A_NAME, MOST_OF_A_VALUE = 250, 6000  # characters
AT_ONCE = 1000  # metrics that MLflow takes in one call
NOT_IN_A_NAME = re.compile(r"[^\w\-. /]")


def write_mlflow(source: Source, path: Path) -> None:
    """Settings as params, curves as metrics by step, what the ledger knows beside them as tags."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of every table that it makes
    try:
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
        experiment = _experiment(client, source.name, path.parent.absolute().as_uri())
        client.set_experiment_tag(experiment, "objective", source.objective)
        client.set_experiment_tag(experiment, "direction", source.direction)
        params, metrics = _names(source.space), _names([*source.metric_names(), *_losses(source)])
        for trial in source.each():
            _write(client, experiment, source, trial, params, metrics)
    finally:
        logger.setLevel(level)


def _experiment(client: Any, name: str, artifacts: str) -> str:
    """A new experiment; MLflow's own where that has this name, as "Default" has in every store."""
    there = client.get_experiment_by_name(name)
    return there.experiment_id if there else client.create_experiment(name, artifact_location=artifacts)


def _write(
    client: Any, experiment: str, source: Source, trial: TrialRow, params: dict[str, str], metrics: dict[str, str]
) -> None:
    from mlflow.entities import Metric, Param, RunTag  # type: ignore[import-not-found,unused-ignore]

    started, finished = (None if t is None else int(1000 * t) for t in source.times_of(trial))
    run = client.create_run(experiment, start_time=started, run_name=f"trial-{trial.trial}").info.run_id
    tags = {
        "round": trial.round, "kind": source.kind_of(trial), "state": str(trial.state), "seed": trial.seed,
        "reason": trial.reason, "confirms": trial.of,
        "winner": True if trial.trial == source.confirmed else None,
    }  # fmt: skip
    moment = started or int(1000 * time.time())
    values = [
        Metric(metrics[name], value, moment, point.step)
        for point in source.curve(trial.trial)
        for name, value in measured(point)
        if math.isfinite(value)
    ]
    client.log_batch(
        run,
        params=[Param(params[name], str(value)[:MOST_OF_A_VALUE]) for name, value in trial.params.items()],
        tags=[RunTag(name, str(value)) for name, value in tags.items() if value is not None],
    )
    for first in range(0, len(values), AT_ONCE):
        client.log_batch(run, metrics=values[first : first + AT_ONCE])
    if trial.state is not State.RUNNING:
        client.set_terminated(run, STATUS.get(trial.state, "FAILED"), finished)


def _names(given: Iterable[str]) -> dict[str, str]:
    """What MLflow calls them: no character and no length that it refuses, and no two alike."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(given):
        found[name] = told_apart(NOT_IN_A_NAME.sub("_", name) or "_", taken, MOST_OF_A_NAME)
        taken.add(found[name])
    return found


def _losses(source: Source) -> dict[str, None]:
    """Every name that a training loss goes by."""
    return {name: None for curve in source.curves.values() for point in curve for name, _ in measured(point)}
