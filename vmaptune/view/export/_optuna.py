"""Optuna: a SQLite storage that optuna.visualization and optuna-dashboard open.

Optuna knows linear and log scales, no reverse-log one, and no exact zero on a log scale. So a reverse-log setting
goes out as `1-NAME` on a log scale, and one that may be switched off as `NAME-is-zero` (True or False) beside
`NAME`, which only the trials have that are not zero.
"""

from __future__ import annotations

import datetime
import math
import warnings
from pathlib import Path
from typing import Any

import optuna  # type: ignore[import-not-found,unused-ignore]
import sqlalchemy  # type: ignore[import-not-found,unused-ignore]

from vmaptune.space import Distribution
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.view.export._source import Source, told_apart

STATES = {
    State.COMPLETE: "COMPLETE",
    State.STOPPED: "PRUNED",
    State.INFEASIBLE: "FAIL",
    State.FAIL: "FAIL",
    State.RUNNING: "RUNNING",
}


def write_optuna(source: Source, path: Path) -> None:
    """One Optuna study, named as this one; trial numbers are the same."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            _write(source, path)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _write(source: Source, path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    sqlalchemy.event.listen(storage.engine, "connect", _without_sync)  # the file is new: nothing is to be protected
    storage.engine.dispose()
    study = optuna.create_study(
        storage=storage, study_name=source.name, direction=optuna.study.StudyDirection[source.direction.upper()]
    )
    study.set_metric_names([source.objective])
    study.set_user_attr("written by", "vmaptune")
    names = [out for name, d in source.space.items() for out in _outgoing(name, d, source)]
    distributions = dict(names)
    if source.confirmed is not None:
        study.set_user_attr("winner", source.confirmed)
    for trial in source.each():
        study.add_trial(_trial(source, trial, distributions))
    storage.remove_session()
    storage.engine.dispose()


def _without_sync(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")


def _trial(source: Source, trial: TrialRow, distributions: dict[str, Any]) -> Any:
    params: dict[str, Any] = {}
    for name, value in trial.params.items():
        params.update(_values(name, source.space[name], value, distributions))
    started, finished = source.times_of(trial)
    curve = {p.step: p.value for p in source.curve(trial.trial) if p.value is not None}
    value = trial.value if trial.value is not None and math.isfinite(trial.value) else None
    attributes = {
        "round": trial.round, "kind": source.kind_of(trial), "seed": trial.seed, "steps": trial.steps,
        **({"reason": trial.reason} if trial.reason else {}),
        **({"confirms": trial.of} if trial.of is not None else {}),
        **{f"metric:{n}": v for n, v in trial.metrics.items() if math.isfinite(v)},
    }  # fmt: skip
    ended = trial.state is not State.RUNNING
    state = optuna.trial.TrialState[STATES[trial.state]]
    return optuna.trial.FrozenTrial(
        number=-1, trial_id=-1, state=state,
        value=value if STATES[trial.state] in ("COMPLETE", "PRUNED") else None,
        datetime_start=_time(started), datetime_complete=_time(finished or started) if ended else None,
        params=params, distributions={name: distributions[name] for name in params},
        user_attrs=attributes, system_attrs={}, intermediate_values=curve,
    )  # fmt: skip


def _time(seconds: float | None) -> datetime.datetime | None:
    return None if seconds is None else datetime.datetime.fromtimestamp(seconds)


def _outgoing(name: str, d: Distribution, source: Source) -> list[tuple[str, Any]]:
    """The settings that one of ours becomes, with Optuna's distributions. Wide enough for every trial."""
    of = optuna.distributions
    if d.options is not None:
        return [(name, of.CategoricalDistribution(_options(d)))]
    values = [v for t in source.trials if (v := t.params.get(name)) is not None and not (d.or_zero > 0 and v == 0)]
    low, high = min([d.low, *values]), max([d.high, *values])
    zero = [(f"{name}-is-zero", of.CategoricalDistribution([False, True]))] if d.or_zero > 0 else []
    if d.kind == "reverseloguniform":
        return [*zero, (f"1-{name}", of.FloatDistribution(1.0 - high, 1.0 - low, log=True))]
    if d.is_integer:
        log = d.kind == "lograndint"
        return [*zero, (name, of.IntDistribution(int(low), int(high), log=log, step=1 if log else int(d.step or 1)))]
    if d.step is not None:
        return [*zero, (name, of.FloatDistribution(low, high, step=float(d.step)))]
    return [*zero, (name, of.FloatDistribution(low, high, log=d.kind == "loguniform"))]


def _values(name: str, d: Distribution, value: Any, distributions: dict[str, Any]) -> dict[str, Any]:
    if d.options is not None:
        return {name: _options(d)[int(d.to_scaled([value])[0])]}
    is_zero = d.or_zero > 0 and value == 0
    found: dict[str, Any] = {f"{name}-is-zero": is_zero} if d.or_zero > 0 else {}
    if is_zero:
        return found
    if d.kind == "reverseloguniform":
        bounds = distributions[f"1-{name}"]
        return {**found, f"1-{name}": min(max(1.0 - value, bounds.low), bounds.high)}
    return {**found, name: value}


def _options(d: Distribution) -> list[Any]:
    """A choice's options as Optuna stores them, in order: a tuple by its text, and by its text too whatever equals
    another one there, as True equals 1."""
    found: list[Any] = []
    for value in d.options or ():
        own = value if value is None or isinstance(value, bool | int | float | str) else str(value)
        found.append(told_apart(str(own), found) if own in found else own)
    return found
