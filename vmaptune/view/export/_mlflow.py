"""MLflow: a tracking store in one SQLite file, a run for each trial.

`mlflow ui --backend-store-uri sqlite:///runs/x/export/mlflow.db` shows it.
"""

from __future__ import annotations

import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import mlflow  # type: ignore[import-not-found,import-untyped,unused-ignore]

from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.view.export._source import Source, measured

STATUS = {State.COMPLETE: "FINISHED", State.STOPPED: "FINISHED", State.RUNNING: "RUNNING"}  # FAILED for the others
AT_ONCE = 1000  # metrics that MLflow takes in one call
NOT_IN_A_NAME = re.compile(r"[^\w\-. /]")


def write_mlflow(source: Source, path: Path) -> None:
    """Settings as params, curves as metrics by step, what the ledger knows beside them as tags."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of every table that it makes
    try:
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
        experiment = client.create_experiment(source.name, artifact_location=path.parent.absolute().as_uri())
        client.set_experiment_tag(experiment, "objective", source.objective)
        client.set_experiment_tag(experiment, "direction", source.direction)
        for trial in source.trials:
            _write(client, experiment, source, trial)
    finally:
        logger.setLevel(level)


def _write(client: Any, experiment: str, source: Source, trial: TrialRow) -> None:
    from mlflow.entities import Metric, Param, RunTag  # type: ignore[import-not-found,unused-ignore]

    started, finished = (None if t is None else int(1000 * t) for t in source.times_of(trial))
    run = client.create_run(experiment, start_time=started, run_name=f"trial-{trial.trial}").info.run_id
    tags = {
        "round": trial.round, "kind": source.kind_of(trial), "state": str(trial.state), "seed": trial.seed,
        "reason": trial.reason, "confirms": trial.of,
    }  # fmt: skip
    moment = started or int(1000 * time.time())
    metrics = [
        Metric(_name(name), value, moment, point.step)
        for point in source.curve(trial.trial)
        for name, value in measured(point)
        if math.isfinite(value)
    ]
    there = source.space.active(trial.params)
    client.log_batch(
        run,
        params=[Param(_name(name), str(value)) for name, value in trial.params.items() if there[name]],
        tags=[RunTag(name, str(value)) for name, value in tags.items() if value is not None],
    )
    for first in range(0, len(metrics), AT_ONCE):
        client.log_batch(run, metrics=metrics[first : first + AT_ONCE])
    if trial.state is not State.RUNNING:
        client.set_terminated(run, STATUS.get(trial.state, "FAILED"), finished)


def _name(name: str) -> str:
    return NOT_IN_A_NAME.sub("_", name) or "_"
