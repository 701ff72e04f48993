"""`run`, `check` and `replay`: what the command line and a notebook call."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmaptune.engine.alone import Alone
from vmaptune.engine.devices import prepare_devices
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Point
from vmaptune.engine.plan import Costs, Plan, parse_plan
from vmaptune.engine.planner import planned, why
from vmaptune.engine.program import Program
from vmaptune.engine.rate import tile_rate
from vmaptune.errors import InputError
from vmaptune.experiment import (
    Experiment,
    LoadedExperiment,
    find_statics,
    lane_arguments,
    not_while_importing,
    raise_as_input_error,
)
from vmaptune.search.pbt import Copy, lineage
from vmaptune.space import Space
from vmaptune.store.ledger import CurvePoint
from vmaptune.study import _minutes
from vmaptune.study._again import check_save_every, finish, going_on, open_unfinished, resolve_experiment
from vmaptune.study._budget import CHANGEABLE, change_budget
from vmaptune.study._enqueue import configurations
from vmaptune.study._minutes import Timetable
from vmaptune.study._options import Options, default_directory, options_for
from vmaptune.study._panda import adjustments
from vmaptune.study._population import copies_of
from vmaptune.study._progress import Listener, heard
from vmaptune.study._resume import check_code, check_files, check_objective, check_options
from vmaptune.study._run import StudyRun
from vmaptune.study._saving import SAVE_EVERY
from vmaptune.study._stopping import read_stopping
from vmaptune.study._structure import COMPILERS, MOST_TRACED
from vmaptune.study._study import Study, load

REPLAY_TOLERANCE = 1e-4  # relative, on the loss curve, while rounding does not decide it
NUDGE = 1e-6  # about eight rounding errors of float32
NUDGED_RUNS = 8
CHAOS = 10  # times what nudged runs have moved may another be away where training is chaotic


def run(
    experiment: Experiment | LoadedExperiment | str | Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    rounds: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    keep: float | None = None,
    method: str | None = None,
    changes: Mapping[str, Any] | None = None,
    expand: bool = False,
    plan: str | None = None,
    lanes: int | None = None,
    stopping: str | None = None,
    halving: str | None = None,
    repeats: int | None = None,
    rank: str | None = None,
    ensemble: int | None = None,
    enqueue: Sequence[Mapping[str, Any]] | str | Path | None = None,
    structure: str | None = None,
    as_written: bool = False,
    listener: Listener | None = None,
    report: bool = True,
    resume: bool = False,
    force: bool = False,
    save_every: float = SAVE_EVERY,
    started: float | None = None,
) -> Study:
    """Searches an experiment's settings, coarse to fine, and confirms the winner on fresh seeds.

    A study in `out` that did not come to its end is gone on with, to the same bits as if nothing had happened.

    Args:
      experiment: a `vt.Experiment`, or the path of an exp.py.
      trials: the study's total number of trainings, over all rounds and the confirmation.
      minutes: instead of `trials`, the time that the study may take: compilation, confirmation and the report
        included, it ends within a tenth of it, at least 10 s. How many trials fit is measured as it goes.
      rounds: how many times the space is drawn from, each time finer; with `minutes`, at most.
      steps: training steps of each trial, instead of the experiment's own.
      seed: from it and a trial's id come all of the study's random numbers; 0 by default.
      out: the study's directory, `runs/<name>` by default; it must not hold a finished study.
      keep: the share of a round that seeds the next one.
      method: "sobol" (the default), "random", "halton" or "grid"; or "pbt", population-based training: all trials
        train side by side and the worst take over from the best; or "optuna:tpe", "optuna:gp", "optuna:cmaes",
        "optuna:qmc": Optuna's sampler proposes each round, and learns from it.
      changes: settings to replace in the space, name -> distribution or value.
      expand: whether a zoom may leave the first space where the best trials lean on its bounds.
      plan: what to pin of the plan, e.g. "devices=2,lanes=16,every=50".
      lanes: the most lanes alive at once; more trials wait in a queue.
      stopping: how trials are stopped early: "none" (the default), "asha" (asynchronous successive halving), "sync"
        (synchronous: a trial leaves its lane at a rung and goes on when the others have come to it, if it is among the
        best), "hyperband" (several such brackets side by side, with later and later first rungs) or "median"; or
        "patience", "patience=8": a trial ends, in the confirmation too, when its own objective has got no better for
        16 (8) evaluations, and its best one and the state it had then are its result. A free lane is refilled with the
        next trial.
      halving: the numbers of the rule, e.g. "eta=3,min_steps=100"; given alone it means "asha".
      repeats: how many seeds each setting of the search trains with; all of them count as trials.
      rank: how a setting's repeats are ranked: by their "mean" (the default), their "median", or "lower", a lower
        bound of how good it is.
      enqueue: configurations that the first round begins with, name -> value each (what is missing in one is drawn); or
        the path of a study, whose finalists are taken, or of a file that `best`, `trials` or `export` wrote.
      structure: how settings that only masked layers read (`vt.nn.size`, `vt.nn.select`) are trained: "masks", one
        program for all of their values; "groups", a program for each; or "auto" (the default), what is measured to
        be faster for this study, mixtures of both included.
      as_written: trains models as they are written, instead of rewriting them to run faster. A program that is
        rewritten is compared with the model as it is written before it trains, and trained as written where they
        differ by more than rounding; so it costs time and changes no more than the last digits.
      ensemble: picks an ensemble of up to so many of the finalists' models, see `Study.ensemble`.
      listener: told of progress and warnings.
      report: whether report.html is written after the rounds (where Plotly is installed).
      resume: insist that there is an unfinished study to go on with.
      force: go on although the experiment's file has changed since the study began, or with another number of
        trials or rounds: rounds that have begun stay as they are. A finished study goes on with more rounds where
        `trials` are more than it had, and confirms anew.
      save_every: seconds between checkpoints: the most work that a kill can cost.
      started: the moment, by `time.perf_counter()`, from which `minutes` count; by default now.

    Returns:
      The finished study; `study.best_params`, `study.best_model()`.

    Raises:
      InputError: a mistake in the experiment or in an argument; nothing has been written then.
      KeyboardInterrupt: Ctrl-C or SIGTERM, once: everything is saved; twice: stopped at once.
    """
    started = _minutes.clock() if started is None else started
    listener = heard(listener)
    not_while_importing("vt.run")
    note = prepare_devices()
    if note:
        listener.note(note)
    source, experiment = resolve_experiment(experiment)
    if changes:
        experiment = experiment.with_changes(space=changed_space(experiment.space, changes))
    check_save_every(save_every)
    name = source.name if source else experiment.name or "study"
    directory = Path(out) if out is not None else default_directory(name)
    assert isinstance(experiment.space, Space)
    given = {
        "trials": trials, "minutes": minutes, "rounds": rounds, "steps": steps, "seed": seed, "keep": keep,
        "method": method,
        "expand": expand or None, "plan": parse_plan(plan) if plan else None, "lanes": lanes,
        "stopping": read_stopping(stopping, halving) if stopping or halving else None, "repeats": repeats,
        "rank": rank, "ensemble": ensemble, "structure": structure,
        "enqueue": configurations(enqueue, experiment.space, experiment.direction),
        "as_written": as_written or None,
    }  # fmt: skip
    options = options_for(experiment, **given)
    warnings = [note] if note else []
    ledger = open_unfinished(directory, insist=resume, extend=force and (trials or rounds) is not None)
    if ledger is not None and ledger.rounds():
        meta = ledger.meta()
        try:
            changeable = force and meta["options"].get("minutes") is None  # a study by time finds its numbers itself
            if ledger.finished() and not changeable:
                raise InputError(
                    f"{directory}: a finished study of {meta['options']['minutes']} minutes had as many trials as "
                    f"fitted, so it can't be given more; begin another from its best: --enqueue {directory} --fresh DIR"
                )
            check_options(meta, given, changes or (), directory, experiment, CHANGEABLE if changeable else ())
            if source and meta["experiment"]["source"] is not None:
                check_code(source.source, source.path, meta, directory, force)
                check_files(source, meta, directory, force)
            check_objective(meta, experiment, directory)
            extended = ledger.finished()
            if changeable:
                change_budget(ledger, given)
        except BaseException:
            ledger.close()
            raise
        listener.note(f"goes on with the {'finished' if extended else 'unfinished'} study in {directory}")
        study = going_on(ledger, experiment, source, listener, warnings, save_every, report, started)
    else:
        study = StudyRun(
            experiment, options, directory, source=source, listener=listener, warnings=warnings, ledger=ledger,
            save_every=save_every, report=report, started=started, extra={"set": list(changes)} if changes else None,
        )  # fmt: skip
    finish(study, listener)
    return load(directory, experiment)


def changed_space(space: Any, changes: Mapping[str, Any]) -> Space:
    """The space with some settings replaced.

    Raises:
      InputError: a name that the space does not have.
    """
    for name in changes:
        if name not in space:
            raise InputError(f"--set {name}=...: the space has no setting {name!r}; it has: {', '.join(space)}")
    return space.replace(**changes)


@dataclass(frozen=True)
class Check:
    """What `check` found; nothing was trained."""

    name: str
    space: Space
    samples: list[dict[str, Any]]
    static: tuple[str, ...]
    traced: tuple[str, ...]
    options: Options
    groups: list[tuple[dict[str, Any], int]]  # static settings and trials of the first round
    plan: Plan
    why: str  # this plan
    costs: Costs
    memory_bytes: int  # of one call's lanes
    compile_seconds: float
    minutes: float | None = None  # that a run would be given; then `options` has the trials that would fit
    seconds_per_trial: float | None = None  # by a timing of the first group, the others by their operations
    note: str | None = None  # what the person should know of the devices
    notes: tuple[str, ...] = ()  # and of how the code uses settings and seeds


def check(
    experiment: Experiment | LoadedExperiment | str | Path,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    rounds: int | None = None,
    steps: int | None = None,
    changes: Mapping[str, Any] | None = None,
    plan: str | None = None,
    started: float | None = None,
) -> Check:
    """Resolves an experiment and compiles its first group, without training anything.

    With `minutes` it times that group's program and says how many trials a run of so long would have, about.

    Raises:
      InputError: a mistake in the experiment or in an argument.
    """
    started = _minutes.clock() if started is None else started
    not_while_importing("vt.check")
    note = prepare_devices()
    source, experiment = resolve_experiment(experiment)
    if changes:
        experiment = experiment.with_changes(space=changed_space(experiment.space, changes))
    options = options_for(
        experiment, trials=trials, minutes=minutes, rounds=rounds, steps=steps, plan=parse_plan(plan or "")
    )
    experiment = experiment.with_changes(steps=steps)
    space = experiment.space
    assert isinstance(space, Space)
    file = source.path if source else None
    task = experiment.build()
    statics = find_statics(experiment, task, file)
    traced = lane_arguments(space, statics.traced)
    samples = space.rows(space.sample(options.budget().rounds[0], seed=(options.seed, 0), method=options.design))
    groups: dict[tuple, int] = {}
    for params in samples:
        key = statics.group_of(params)
        groups[key] = groups.get(key, 0) + 1
    try:
        functions = LaneFunctions(task, dict(next(iter(groups))), traced)
    except Exception as error:
        raise_as_input_error(error, file, samples[0])
        raise
    costs = functions.costs()
    found = planned(
        functions, costs, steps=experiment.total_steps(samples[0]), trials=next(iter(groups.values())),
        rounds=options.rounds, pinned=options.plan,
    )  # fmt: skip
    chosen = found.plan
    program = Program(functions, traced, chosen)
    each = None
    if minutes is not None:
        others = [LaneFunctions(task, dict(group), traced).costs() for group in list(groups)[1:MOST_TRACED]]
        flops = [max(1.0, one.step_flops) for one in (costs, *others)]
        more = sum(flops) / len(flops) / flops[0]
        each = tile_rate(program).seconds_each(program, experiment.total_steps(samples[0])) * more
        compiling = math.ceil((len(groups) - 1) / COMPILERS) * program.compile_seconds
        table = Timetable(minutes, started)
        budget = table.cut((), options.rounds, compiling, lambda n: n * each, lambda n: n * each)
        options = replace(
            options, trials=sum(budget.rounds) + budget.finalists * budget.repeats, rounds=len(budget.rounds)
        )
    return Check(
        name=source.name if source else experiment.name or "study",
        space=space, samples=samples[:5], static=statics.static, traced=statics.traced, options=options,
        groups=[(dict(key), count) for key, count in groups.items()], plan=chosen, why=why(found), costs=costs,
        memory_bytes=program.memory_bytes, compile_seconds=program.compile_seconds,
        minutes=minutes, seconds_per_trial=each, note=note, notes=statics.notes,
    )  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """One trial of a ledger, trained again alone."""

    trial: int
    steps: list[int]
    ledger: list[float]  # mean training loss of each segment (the objective for a task without a loss)
    alone: list[float]
    objective: list[float]  # the objective after each segment, in the ledger
    objective_alone: list[float]
    difference: float  # the largest relative difference of either before the curve turns chaotic
    chaotic_from: int | None  # the first step at which they differ where rounding decides the curve
    compared: int  # segments before that step
    agrees: bool  # whether they do, in each segment that was compared; False where none could be
    seconds: float


def replay(study: Study | str | Path, trial: int, experiment: Experiment | None = None) -> Replay:
    """Trains one trial of a study alone, as it is written and without vmap, and compares its curve with the ledger's.

    Of a population's member it follows the lineage: from whom it took over, and with which settings it went on.

    The training loss and the objective of each segment are compared, up to the first that differs by more than the
    tolerance (1e-4, relative) where training is chaotic, that is where rounding decides it (a unit of a ReLU
    that is within a rounding error of zero is enough): where any of eight runs of the same trial, each number
    of the initial state multiplied by 1 ± 1e-6, has moved by more than the tolerance by then. From there on the
    ledger's curve must not lie further away than ten times what these runs have moved. A babysat model is replayed with
    the changes that were made while it trained.

    Raises:
      InputError: no such trial, or the experiment's file is gone or has changed.
    """
    not_while_importing("vt.replay")
    prepare_devices()
    started = time.perf_counter()
    study = study if isinstance(study, Study) else load(study)
    row = study.ledger.trial(trial)
    chain = lineage(copies_of(study.ledger.decisions("pbt")), trial)
    curve = _lineage_curve(study, chain, trial)
    if not curve:
        raise InputError(f"{study.directory}: trial {trial} has no curve yet (it is {row.state}); pick another")
    experiment = study._own_experiment(experiment)
    steps = study.meta["options"]["steps"]
    experiment = experiment.with_changes(space=study.space, steps=steps)
    task = experiment.build()
    static = tuple(study.meta["static"])
    traced = tuple(name for name in study.space if name not in static)
    lane = lane_arguments(study.space, traced)
    functions = LaneFunctions(task, {n: row.params[n] for n in static}, lane, plain=True)
    stops = [point.step for point in curve]
    first = study.ledger.trial(chain[0].parent if chain else 0 if "panda" in study.meta else trial)
    trainer = Alone(functions, study.space.lane_values(first.params, traced), first.seed)
    then = [
        (copy.step, study.space.lane_values(copy.params, traced), study.ledger.trial(copy.trial).seed) for copy in chain
    ]  # fmt: skip
    if "panda" in study.meta:
        for step, params in adjustments(study.ledger.decisions(), first.params, trial):
            then.append((step, study.space.lane_values(params, traced), first.seed))

    def values(points: list[Point]) -> list[tuple[float, float]]:
        measures = [p.metrics[experiment.objective] for p in points]
        return [(p.loss if task.has_loss else m, m) for p, m in zip(points, measures, strict=True)]

    alone = values(trainer.train(stops, then=then))
    recorded: list[tuple[Any, Any]] = [(p.loss if task.has_loss else p.value, p.value) for p in curve]
    apart = [max(map(_relative, was, now)) for was, now in zip(recorded, alone, strict=True)]
    end = next((i for i, each in enumerate(apart) if each > REPLAY_TOLERANCE), len(stops))
    chaotic = False
    if end < len(stops):  # whether rounding may be why
        nudged = [values(trainer.train(stops, nudge=NUDGE, draw=draw, then=then)) for draw in range(NUDGED_RUNS)]
        moved = [max(max(map(_relative, now, run[i])) for run in nudged) for i, now in enumerate(alone)]
        furthest = list(itertools.accumulate(moved, max))
        chaotic = furthest[end] > REPLAY_TOLERANCE and all(
            apart[i] <= CHAOS * furthest[i] for i in range(end, len(stops))
        )
    compared = end if chaotic else len(stops)
    largest = max(apart[:compared], default=0.0)
    return Replay(
        trial=trial, steps=stops, ledger=[was[0] for was in recorded], alone=[now[0] for now in alone],
        objective=[was[1] for was in recorded], objective_alone=[now[1] for now in alone], difference=largest,
        chaotic_from=stops[end] if chaotic else None, compared=compared,
        agrees=compared > 0 and largest <= REPLAY_TOLERANCE, seconds=time.perf_counter() - started,
    )  # fmt: skip


def _lineage_curve(study: Study, chain: Sequence[Copy], trial: int) -> list[CurvePoint]:
    """The curve of the training that led to a trial's last state: up to each copy, the one of whom it took over."""
    points, since = [], 0
    for copy in chain:
        points += [p for p in study.curve(copy.parent) if since < p.step <= copy.step]
        since = copy.step
    return points + [p for p in study.curve(trial) if p.step > since]


def _relative(a: float | None, b: float | None) -> float:
    a, b = (math.nan if v is None else v for v in (a, b))
    if not (math.isfinite(a) and math.isfinite(b)):
        return 0.0 if str(a) == str(b) else math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)
