"""TensorBoard: a run for each trial, with its scalars and its setting for the HParams tab.

TensorBoard has a log scale and no reverse-log one, so a reverse-log setting goes out as `1-NAME`.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    Event,
)
from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    Summary,
)
from tensorboard.plugins.hparams import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    api_pb2,
    metadata,
    plugin_data_pb2,
    summary_v2,
)
from tensorboard.summary.writer.record_writer import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    RecordWriter,
)

from vmaptune.space import Distribution
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import State
from vmaptune.view.export._source import Source, measured

STATUS = {
    State.COMPLETE: api_pb2.STATUS_SUCCESS,
    State.STOPPED: api_pb2.STATUS_SUCCESS,
    State.RUNNING: api_pb2.STATUS_RUNNING,
}  # FAILURE for the others


def write_tensorboard(source: Source, path: Path) -> None:
    """`trial-00007/events...` for each trial, and the settings' domains beside them."""
    path.mkdir()
    digits = max(5, len(str(len(source.trials))))
    settings = [summary_v2.HParam(_name(n, d), _domain(d)) for n, d in source.space.items()]
    metrics = [summary_v2.Metric(tag) for tag in dict.fromkeys([source.objective, *source.metric_names()])]
    begun = source.rounds[0].started if source.rounds else time.time()
    _write(path, begun, [(begun, {"summary": summary_v2.hparams_config_pb(settings, metrics)})])
    for trial in source.each():
        run = path / f"trial-{trial.trial:0{digits}d}"
        run.mkdir()
        _write(run, begun, _events(source, trial, begun))


def _events(source: Source, trial: TrialRow, begun: float) -> list[tuple[float, dict[str, Any]]]:
    started, finished = source.times_of(trial)
    started = started or begun
    ended = finished or started
    of = source.space
    setting = {_name(n, of[n]): _value(of[n], value) for n, value in trial.params.items()}
    events = [(started, {"summary": summary_v2.hparams_pb(setting, f"trial-{trial.trial}", started)})]
    for point in source.curve(trial.trial):
        values = [Summary.Value(tag=name, simple_value=value) for name, value in measured(point)]
        events.append((started, {"summary": Summary(value=values), "step": point.step}))
    if trial.state is not State.RUNNING:
        status = STATUS.get(trial.state, api_pb2.STATUS_FAILURE)
        over = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended)
        told = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=over))
        value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=told, tensor=metadata.NULL_TENSOR)
        events.append((ended, {"summary": Summary(value=[value])}))
    return events


def _write(directory: Path, begun: float, events: list[tuple[float, dict[str, Any]]]) -> None:
    with (directory / f"events.out.tfevents.{int(begun):010d}.vmaptune").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=begun, file_version="brain.Event:2").SerializeToString())
        for moment, content in events:
            writer.write(Event(wall_time=moment, **content).SerializeToString())


def _name(name: str, d: Distribution) -> str:
    return f"1-{name}" if d.kind == "reverseloguniform" else name


def _value(d: Distribution, value: Any) -> bool | int | float | str:
    if d.kind == "reverseloguniform":
        return 1.0 - value
    plain = isinstance(value, bool | int | float | str) and not _is_mixed(d)
    return value if plain else str(value)


def _is_mixed(d: Distribution) -> bool:
    """Whether a choice's options are of several types. TensorBoard filters by one."""
    return d.options is not None and len({type(option) for option in d.options}) > 1


def _domain(d: Distribution) -> Any:
    if d.options is not None:
        return summary_v2.Discrete([_value(d, v) for v in d.options])
    low, high = float(d.low or 0), float(d.high or 0)
    if d.kind == "reverseloguniform":
        low, high = 1.0 - high, 1.0 - low
    if d.or_zero > 0:
        low = min(low, 0.0)
    return summary_v2.RealInterval(low, high) if low < high and math.isfinite(high) else None
