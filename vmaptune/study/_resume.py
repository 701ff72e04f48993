"""Going on with a study: the moment to go on from, and whether the code, machine and options are still those.

A round's beginning and end need no checkpoint, since the ledger alone is then the whole moment (but for states
that were kept). So the story of a study is simply told again from its first round: a round that the ledger has
is not trained again, and every decision comes out as before.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmaptune.engine.devices import machine
from vmaptune.errors import InputError
from vmaptune.experiment import Experiment, LoadedExperiment, load_experiment, row_shapes
from vmaptune.space import Space
from vmaptune.store.checkpoints import Snapshot
from vmaptune.store.rows import RoundRow
from vmaptune.study._options import Options
from vmaptune.study._stopping import Stopping

COPY = "experiment.py"  # the experiment's source, in the study's directory
DIFFERENCE_LINES = 40
ALL = 2**62  # a row that no ledger comes to: nothing is rolled back


@dataclass(frozen=True)
class Moment:
    """Where a study goes on: its ledger up to a row, and the snapshot to take with it, if any."""

    seq: int
    snapshot: Snapshot | None


def last_moment(rounds: Sequence[RoundRow], snapshots: Sequence[Snapshot], *, keeps_states: bool) -> Moment:
    """The latest moment that is whole. `snapshots` come newest first; `keeps_states` says that the search's rounds
    keep final states, as the confirmation always does."""
    last = rounds[-1]
    first_open = next((row for row in rounds if row.finished is None), None)
    if first_open is None and last.kind != "confirm" and not keeps_states:
        return Moment(ALL, None)
    begin = first_open or last  # rounds may flow into one another: then several are open
    for snapshot in snapshots:
        if snapshot.seq >= begin.seq and snapshot.plain["round"] >= begin.round:
            return Moment(snapshot.seq, snapshot)
    start = begin.seq + begin.trials  # its trials were written with it: they are not drawn again
    kept = [row for row in rounds[: begin.round] if keeps_states or row.kind == "confirm"]
    if not kept:
        return Moment(start, None)
    for snapshot in snapshots:  # the states of the rounds before
        if snapshot.plain["round"] == begin.round - 1 and snapshot.plain["ended"]:
            return Moment(start, snapshot)
    return Moment(kept[0].seq + kept[0].trials, None)


def study_meta(
    experiment: Experiment, options: Options, static: Sequence[str], source: LoadedExperiment | None
) -> dict[str, Any]:
    """What a study keeps about itself from its beginning."""
    assert isinstance(experiment.space, Space)
    return {
        "state": "running",
        "name": source.name if source else experiment.name,
        "experiment": {
            "path": source.path if source else None,
            "spec": source.spec if source else None,
            "sha256": source.sha256 if source else None,
            "source": source.source if source else None,
            "files": source.files if source else {},
            "folder": _folder(),
            "rows": row_shapes(experiment.loaded_data()) if experiment.task is None else None,
        },
        "options": asdict(options),
        "space": experiment.space.to_json(),
        "static": list(static),
        "objective": experiment.objective,
        "direction": experiment.direction,
        "machine": machine(),
        "created": time.time(),
    }


def _folder() -> str | None:
    """Where this process is, from which relative paths are read; None where that folder is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


def code_of(directory: Path, meta: Mapping[str, Any], force: bool, say: Callable[[str], None]) -> LoadedExperiment:
    """The experiment that a study goes on with; `say` is told which file's code that is, before it runs.

    It is the experiment's file where it was, if its hash is the recorded one; if that file is gone, the study's
    own copy.

    Raises:
      InputError: the file has changed, and not `force`; or there is neither file nor copy.
    """
    origin = meta["experiment"]
    if origin["source"] is None:
        raise InputError(
            f"{directory}: the study was run from Python, so its code is in no file; go on with "
            f"vt.run(experiment, out={str(directory)!r}) from there"
        )
    path, why = Path(origin["path"]), ""
    if not path.is_file():
        path, why = directory / COPY, f", the study's own copy, because {path} is not there"
        if not path.is_file() or path.is_symlink():
            raise InputError(
                f"{directory}: the experiment's file {origin['path']} is gone, and so is the study's copy {path}; "
                f"bring one back"
            )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    changed = hashlib.sha256(content).hexdigest() != origin["sha256"]
    if changed:
        check_code(content.decode("utf-8", "replace"), str(path), meta, directory, force)
    state = "CHANGED since" if changed else "as it was when"
    say(f"{directory}: runs the code of {path}{why} ({state} the study began)")
    name = (origin.get("spec") or "").partition(".py:")[2]
    loaded = load_experiment(f"{path}:{name}" if name else path, origin.get("folder"))
    check_files(loaded, meta, directory, force)
    return loaded


def check_files(loaded: LoadedExperiment, meta: Mapping[str, Any], directory: Path, force: bool) -> None:
    """Raises InputError when a file that the experiment imports is not what it was when the study began, and not
    `force`. A study of before has none recorded."""
    was = meta["experiment"].get("files") or {}
    changed = [file for file, digest in was.items() if loaded.files.get(file, digest) != digest]
    gone = [file for file in was if not Path(file).is_file()]
    if (changed or gone) and not force:
        raise InputError(
            f"{directory}: {', '.join(changed or gone)}, which the experiment imports, "
            f"{'has changed' if changed else 'is gone'} since the study began; bring the old one back, go on all the "
            f"same with --force, or begin another study with --fresh DIR"
        )


def check_code(source: str, path: str, meta: Mapping[str, Any], directory: Path, force: bool) -> None:
    """Raises InputError, with the difference, when a source is not the study's and not `force`."""
    was = meta["experiment"]["source"] or ""
    if force or was == source:
        return
    lines = list(difflib.unified_diff(was.splitlines(), source.splitlines(), "the study's", path, lineterm=""))
    more = [f"... {len(lines) - DIFFERENCE_LINES} more lines"] if len(lines) > DIFFERENCE_LINES else []
    raise InputError(
        f"{directory}: the experiment has changed since the study began; bring the old one back, go on all the same "
        f"with --force, or begin another study with --fresh DIR\n" + "\n".join(lines[:DIFFERENCE_LINES] + more)
    )


def check_options(
    meta: Mapping[str, Any],
    given: Mapping[str, Any],
    changes: Collection[str],
    directory: Path,
    experiment: Experiment,
    may_change: Collection[str] = (),
) -> None:
    """Raises InputError when what was asked now is not what the study was begun with, but for `may_change`. `changes`
    are the hyperparameters that the person replaces in the space."""
    recorded = meta["options"] | meta.get("minutes", {}).get("asked", {})  # a study by time cuts its rounds itself
    differ = [
        f"{name} {_shown(recorded.get(name))} (now {_shown(value)})"
        for name, value in given.items()
        if value is not None
        and name not in may_change
        and recorded.get(name) != (asdict(value) if isinstance(value, Stopping) else value)
    ]
    recorded_space = Space.from_json(meta["space"])
    for name in changes:
        assert isinstance(experiment.space, Space)
        if recorded_space.get(name) != experiment.space[name]:
            differ.append(f"the space (--set): {name} {recorded_space.get(name)!r} (now {experiment.space[name]!r})")
    if differ:
        raise InputError(
            f"{directory} holds a study with other settings: {'; '.join(differ)}; leave these out to go on "
            f"with it (--force changes trials and rounds, nothing else), or begin another with --fresh DIR"
        )


def _shown(value: Any) -> str:
    """A value of an option; of configurations only how many."""
    return f"{len(value)} configurations" if isinstance(value, list) else repr(value)


def check_objective(meta: Mapping[str, Any], experiment: Experiment, directory: Path) -> None:
    """Raises InputError where the values to come could not be compared with those that are there."""
    if (experiment.objective, experiment.direction) != (meta["objective"], meta["direction"]):
        raise InputError(
            f"{directory}: the study's trials are ranked by {meta['direction']} {meta['objective']!r}, but the "
            f"experiment now says {experiment.direction} {experiment.objective!r}, and one ranking can't have both; "
            f"bring the old objective back, or begin another study with --fresh DIR"
        )


def changed_space(meta: Mapping[str, Any], experiment: Experiment, directory: Path) -> list[str]:
    """What to say where the experiment's space is no longer the one that the study goes on with, its own."""
    now, then = experiment.space, Space.from_json(meta["space"])
    assert isinstance(now, Space)
    replaced = meta.get("set", ())  # by --set, when it began
    differ = [
        f"{name}: {then.get(name, 'not there')!r} (the experiment now has {now.get(name, 'no such one')!r})"
        for name in {**then, **now}
        if name not in replaced and then.get(name) != now.get(name)
    ]
    if not differ and [n for n in then if n in now] == [n for n in now if n in then]:
        return []
    return [
        f"{directory}: the space is the one that the study began with, since its zooms, ranking and report are of one "
        f"space: {'; '.join(differ) or 'its order'}. For the edited one begin another study with --fresh DIR"
    ]


def changed_machine(meta: Mapping[str, Any]) -> list[str]:
    """A warning when the machine or the versions are not those that the study began with."""
    now = machine()
    differ = [f"{name} {was} → {now.get(name)}" for name, was in meta["machine"].items() if now.get(name) != was]
    if not differ:
        return []
    return [
        f"the study began on another machine or with other versions ({', '.join(differ)}): what is trained from here "
        f"on may differ in the last digits from what the old ones would have given, and decisions with it"
    ]
