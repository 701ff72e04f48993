"""`resume` and `retest`: studies that begin with another one on disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmaptune.engine.devices import prepare_devices
from vmaptune.errors import InputError, StudyError
from vmaptune.experiment import Experiment, LoadedExperiment, load_experiment, not_while_importing
from vmaptune.space import Space
from vmaptune.store.ledger import FILE_NAME, Ledger, LedgerReader, taken
from vmaptune.store.reader import has_file
from vmaptune.store.rescue import RESCUED
from vmaptune.study import _minutes
from vmaptune.study._budget import recorded_budget
from vmaptune.study._options import Options
from vmaptune.study._progress import Listener, heard
from vmaptune.study._resume import changed_machine, changed_space, check_objective, code_of
from vmaptune.study._retest import DRAWS, REPEATS, TOP, Retest, budget_of, plan_retest
from vmaptune.study._run import StudyRun
from vmaptune.study._saving import SAVE_EVERY
from vmaptune.study._study import Study, load


def resume(
    directory: str | Path,
    experiment: Experiment | None = None,
    *,
    force: bool = False,
    listener: Listener | None = None,
    save_every: float = SAVE_EVERY,
    report: bool = True,
    say: Callable[[str], None] | None = None,
) -> Study:
    """Goes on with an unfinished study. On the machine and with the versions that it began with, the finished study
    is the same to the bit as one that was never interrupted.

    The code that runs is the experiment's file where it was, if it is unchanged; if it is gone, the study's own
    copy. `say` (by default the listener) is told which, before it runs.

    Args:
      directory: the study's.
      experiment: for a study that was run from Python, the experiment; else left out.
      force: go on although the experiment's file has changed.
      listener, save_every, report: as for `run`.

    Raises:
      InputError: no unfinished study there, or its code is gone or has changed. KeyboardInterrupt: as for `run`.
    """
    started = _minutes.clock()
    listener = heard(listener)
    not_while_importing("vt.resume")
    note = prepare_devices()
    if note:
        listener.note(note)
    check_save_every(save_every)
    directory = Path(directory)
    ledger = open_unfinished(directory, insist=True)
    assert ledger is not None
    try:
        source = None
        if experiment is None:
            source = code_of(directory, ledger.meta(), force, say or listener.note)
        own = source.experiment if source else experiment
        assert own is not None
        study = going_on(ledger, own, source, listener, [note] if note else [], save_every, report, started)
    except BaseException:
        ledger.close()
        raise
    finish(study, listener)
    return load(directory, own)


def finish(study: StudyRun, listener: Listener) -> None:
    try:
        study.run()
    finally:
        close = getattr(listener, "close", None)  # a view gives the terminal back
        if close is not None:
            close()


def going_on(
    ledger: Ledger,
    experiment: Experiment,
    source: LoadedExperiment | None,
    listener: Listener,
    warnings: list[str],
    save_every: float,
    report: bool,
    started: float | None = None,
) -> StudyRun:
    """A run that goes on with a study, by its own space and options."""
    meta = ledger.meta()
    check_objective(meta, experiment, ledger.directory)
    for text in (found := [*changed_machine(meta), *changed_space(meta, experiment, ledger.directory)]):
        listener.note(text)
    kind = Retest if "retest" in meta else StudyRun
    extra = {"retest": meta["retest"]} if "retest" in meta else {}
    return kind(
        experiment.with_changes(space=Space.from_json(meta["space"])), Options(**meta["options"]), ledger.directory,
        source=source, listener=listener, warnings=[*warnings, *found], ledger=ledger, save_every=save_every,
        report=report, extra=extra, budget=budget_of(extra["retest"]) if extra else recorded_budget(meta),
        started=started,
    )  # fmt: skip


def retest(
    directory: str | Path,
    experiment: Experiment | LoadedExperiment | str | Path | None = None,
    *,
    top: int = TOP,
    repeats: int = REPEATS,
    trials: int = DRAWS,
    out: str | Path | None = None,
    seed: int | None = None,
    listener: Listener | None = None,
    save_every: float = SAVE_EVERY,
    report: bool = True,
    say: Callable[[str], None] | None = None,
) -> Study:
    """Asks whether an old study's best setting still is the best, on today's code and data.

    Trains the old study's best settings again, fresh draws around them and over the whole space, and more where these
    look best, all in the same lanes; then the best of both on a few fresh seeds, from which one old setting and one
    rival are chosen. These two are trained on pairs of fresh seeds, 16 more at a time, until the 99.8 % interval of the
    gain, which holds at all looks together, lies above 0 ("moved") or below three quarters of the spread of one
    training over seeds ("still best"), or there may be no more ("unclear"). What came of it, with the evidence, is
    `study.result["retest"]`.

    Args:
      directory: the old study, which is only read.
      experiment: today's code; by default the file that the old study ran, as it is now.
      top: how many of the old settings. repeats: the most pairs of seeds at the end. trials: new draws.
      out: the new study's directory, `<directory>-retest` by default.
      seed: another one than the old study's, so that no seed is trained twice; by default the old one's plus 1.
      listener, save_every, report: as for `run`. say: is told which file's code runs, before it runs.

    Raises:
      InputError, StudyError: the old study is not finished or found nothing, or the code is gone.
    """
    listener = heard(listener)
    not_while_importing("vt.retest")
    note = prepare_devices()
    if note:
        listener.note(note)
    check_save_every(save_every)
    directory = Path(directory)
    plan, meta = plan_retest(directory, top, repeats, trials)
    source: LoadedExperiment | None
    if experiment is None:
        source = code_of(directory, meta, True, say or listener.note)
        own = source.experiment
    else:
        source, own = resolve_experiment(experiment)
    other_space = changed_space(meta, own, directory)
    own = own.with_changes(space=Space.from_json(meta["space"]))
    budget = budget_of(plan)
    old = Options(**meta["options"])
    options = Options(
        trials=sum(budget.rounds) + budget.finalists * budget.repeats, rounds=len(budget.rounds), steps=old.steps,
        seed=old.seed + 1 if seed is None else seed, plan=old.plan, lanes=old.lanes, structure=old.structure,
        as_written=old.as_written,
    )  # fmt: skip
    target = Path(out) if out is not None else directory.with_name(directory.name + "-retest")
    ledger = open_unfinished(target, insist=False)
    if ledger is not None and ledger.rounds():
        study = going_on(ledger, own, source, listener, [], save_every, report)
    else:
        study = Retest(
            own, options, target, source=source, listener=listener, warnings=[*([note] if note else []), *other_space],
            ledger=ledger, save_every=save_every, report=report, budget=budget, extra={"retest": plan},
        )  # fmt: skip
    finish(study, listener)
    return load(target, own)


def open_unfinished(directory: Path, *, insist: bool, extend: bool = False) -> Ledger | None:
    """The ledger of an unfinished study, locked, with `extend` of a finished one too; None where there is no study and
    nobody insists on one.

    Raises:
      InputError: a finished study is there, another process writes it, or there is none although `insist`.
    """
    if not has_file(directory / FILE_NAME) and not insist:
        return None
    try:
        with LedgerReader.open(directory) as reader:
            finished, rescued = reader.finished(), RESCUED in reader.meta()
    except StudyError:
        if insist:
            raise
        return None  # what is there is not touched: Ledger.create says so
    if finished and insist and not extend:
        raise InputError(
            f"{directory}: the study is finished, so there is nothing to go on with; give it more trials "
            f"(run ... --trials N --force), or begin another one (--fresh DIR)"
        )
    if finished and not extend:
        raise taken(directory)
    if rescued:
        raise InputError(
            f"{directory} was rescued from a damaged study and may lack rows, so it cannot be gone on with; run the "
            f"experiment again with another --out"
        )
    return Ledger.open(directory)


def check_save_every(value: float) -> None:
    """Raises InputError for what is no time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(f"save_every must be a number of seconds, 0 or more, but got {value!r}; leave it out for 60")


def resolve_experiment(experiment: Any) -> tuple[LoadedExperiment | None, Experiment]:
    if isinstance(experiment, (str, Path)):
        experiment = load_experiment(experiment)
    if isinstance(experiment, LoadedExperiment):
        return experiment, experiment.experiment
    if isinstance(experiment, Experiment):
        return None, experiment
    raise InputError(f"run() takes a vt.Experiment or a path, but got {type(experiment).__name__}")
