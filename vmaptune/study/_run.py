"""The round loop: the only place where search, engine and store meet."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from vmaptune.engine.devices import machine
from vmaptune.engine.lanes import Job, Lanes, Point, jobs_by_group
from vmaptune.engine.plan import Plan, default_plan, lanes_in_memory
from vmaptune.engine.program import LaneFunctions, Program, SharedArrays
from vmaptune.experiment import (
    Data,
    Experiment,
    LoadedExperiment,
    Statics,
    find_statics,
    lane_arguments,
    raise_as_input_error,
)
from vmaptune.search.confirm import Confirmed, finalists, rank
from vmaptune.search.zoom import Leaning, Scored, leaning, slice_of, zoom
from vmaptune.space import Space
from vmaptune.store.ledger import CurvePoint, Ledger, TrialResult, TrialRow
from vmaptune.store.states import State
from vmaptune.store.tables import trials_csv
from vmaptune.store.weights import save_weights
from vmaptune.study._held_out import held_out_values
from vmaptune.study._options import Options, trial_seed
from vmaptune.task import Task

Params = dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """Where a running study stands; what a live view shows."""

    round: int
    rounds: int
    phase: str  # "compile", "search", "confirm"
    done: int  # trials finished, of all rounds
    trials: int
    model_steps: int
    total_steps: int
    seconds: float
    best: float | None
    infeasible: int


class Listener(Protocol):
    """What watches a study run; called on the host between segments."""

    def progress(self, progress: Progress) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """A listener that says nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass
class _Group:
    """The trials that share all static settings, and their program."""

    number: int
    static: tuple[tuple[str, Any], ...]
    functions: LaneFunctions
    program: Program | None = None
    plan: Plan | None = None
    evaluate_seconds: float = 0.0  # of one call


class StudyRun:
    """One study, from its first round to its confirmed winner."""

    def __init__(
        self,
        experiment: Experiment,
        options: Options,
        directory: Path,
        *,
        source: LoadedExperiment | None = None,
        listener: Listener | None = None,
        warnings: Sequence[str] = (),
    ):
        self.started = time.perf_counter()
        self.options, self.directory, self.listener = options, directory, listener or Silent()
        self.experiment = experiment.with_changes(steps=options.steps)
        space = self.experiment.space
        assert isinstance(space, Space)
        self.first: Space = space
        self.file = source.path if source else None
        self.task: Task = self.experiment.build()
        self.statics: Statics = find_statics(self.experiment, self.task, self.file)
        self.traced = lane_arguments(space, self.statics.traced)
        self.groups: dict[tuple, _Group] = {}
        self.shared: SharedArrays = {}
        self.warnings = list(warnings)
        self.finished: dict[int, TrialRow] = {}
        self.rows: dict[int, TrialRow] = {}
        self.states: dict[int, Any] = {}
        self.steps_done: dict[int, int] = {}  # of the trials in this round
        self.next_trial = 0
        self.done = 0  # trials that have ended
        self.infeasible = 0
        self.best_seen = math.inf  # to be minimised
        self.model_steps = 0
        self.seconds = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.compilations = 0
        self.round = 0
        self.phase = "compile"
        self.total_steps = 0
        self.sign = 1.0 if self.experiment.direction == "minimize" else -1.0
        self.ledger = Ledger.create(directory, self._meta(source))

    # ---- the story -----------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Runs every round, confirms, saves; returns the result as `run --json` prints it."""
        try:
            return self._run_rounds()
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self.ledger.close()

    def _run_rounds(self) -> dict[str, Any]:
        budget = self.options.budget()
        self.total_steps = self.options.trials * self._steps_of(self._first_params())
        space = self.first
        slice_: list[Scored] = []
        for number, trials in enumerate(budget.rounds):
            self.round, self.phase = number, "search"
            scored = self._search_round(space, trials)
            slice_ = slice_of([*slice_, *scored], self.options.keep * trials / (len(slice_) + len(scored)))
            if number + 1 < len(budget.rounds):
                space = self._zoomed(space, slice_)
        leanings = leaning(self.first, slice_)
        winner, ranked = self._confirm(budget.finalists, budget.repeats)
        result = self._result(winner, ranked, leanings)
        self._save(winner, result)
        return result

    def _abandon(self, error: BaseException) -> None:
        """No trial stays `RUNNING` in the ledger of a study that has ended before its time."""
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = "interrupted" if interrupted else f"the study failed: {type(error).__name__}"
        running = [row for row in self.rows.values() if row.state == State.RUNNING]
        with contextlib.suppress(Exception), self.ledger.transaction():  # the first error is the one to show
            self.ledger.finish_trials(
                [
                    TrialResult(row.trial, State.FAIL, reason, self.steps_done.get(row.trial, 0), None, {})
                    for row in running
                ]
            )
            self.ledger.set_meta("state", "interrupted" if interrupted else "failed")
        with contextlib.suppress(Exception):
            trials_csv(self.ledger, self.directory / "trials.csv")

    def _search_round(self, space: Space, trials: int) -> list[Scored]:
        samples = space.sample(trials, seed=(self.options.seed, self.round), method=self.options.method)
        settings = [
            {name: _plain(column[i]) for name, column in samples.items()}
            for i in range(len(next(iter(samples.values()))))
        ]
        keep = not self.options.budget().finalists  # nothing will be confirmed: the winner's own state is the model
        rows = self._train_round("search", space, [(params, None) for params in settings], keep=keep)
        return [self._scored(row) for row in rows]

    def _zoomed(self, space: Space, slice_: list[Scored]) -> Space:
        if not slice_:
            self._warn(
                f"round {self.round}: every trial was infeasible, so the next round draws from the same space; "
                f"lower the upper end of the learning rate, or look for a loss that is never finite"
            )
            return space
        finer = zoom(space, self.first, slice_, margin=self.options.margin, expand=self.options.expand)
        with self.ledger.transaction():
            self.ledger.add_decision(self.round, "zoom", {"slice": [s.trial for s in slice_], "space": finer.to_json()})
        return finer

    def _confirm(self, count: int, repeats: int) -> tuple[Scored | None, list[Confirmed]]:
        scored = [self._scored(row) for row in self.finished.values()]
        chosen = finalists(scored, max(1, count))
        if not chosen:
            self._warn(
                "every trial was infeasible: no setting trained to a finite result. Lower the upper end of "
                "the learning rate, check the loss for log(0) or division by 0, or train for fewer steps"
            )
            return None, []
        if not count:
            return chosen[0], []
        self.round, self.phase = self.round + 1, "confirm"
        plans = [(s.params, s.trial) for s in chosen for _ in range(repeats)]
        rows = self._train_round("confirm", None, plans, keep=True)
        values: dict[int, list[float]] = {}
        for row in rows:
            assert row.of is not None
            values.setdefault(row.of, []).append(self._scored(row).value)
        ranked = rank(values)
        with self.ledger.transaction():
            self.ledger.add_decision(self.round, "confirm", {"ranked": [c.trial for c in ranked]})
        return next(s for s in chosen if s.trial == ranked[0].trial), ranked

    # ---- one round -----------------------------------------------------------------------------------

    def _train_round(
        self, kind: str, space: Space | None, plans: Sequence[tuple[Params, int | None]], keep: bool = False
    ) -> list[TrialRow]:
        groups = self._groups_for([params for params, _ in plans])
        rows = []
        for params, of in plans:
            trial = self.next_trial
            self.next_trial += 1
            group = self.groups[self.statics.group_of(params)]
            rows.append(
                TrialRow(
                    trial=trial, round=self.round, group=group.number, state=State.RUNNING, reason=None,
                    seed=trial_seed(self.options.seed, trial), steps=0, value=None, params=params, of=of,
                    metrics={},
                )
            )  # fmt: skip
        with self.ledger.transaction():
            self.ledger.add_round(
                self.round, kind, space.to_json() if space else None, len(rows),
                {"method": self.options.method} if space else {},
            )  # fmt: skip
            self.ledger.add_trials(rows)
        self.rows = {row.trial: row for row in rows}
        for static, positions in groups.items():
            self._train_group(self.groups[static], [rows[i] for i in positions], keep)
        with self.ledger.transaction():
            self.ledger.finish_round(self.round, {})
        trials_csv(self.ledger, self.directory / "trials.csv")
        done = [self.finished_row(row.trial) for row in rows]
        if kind == "search":
            self.finished.update({row.trial: row for row in done})
        return done

    def finished_row(self, trial: int) -> TrialRow:
        """The row of a trial of this round, as the ledger has it now."""
        return self.rows[trial]

    def _groups_for(self, settings: list[Params]) -> dict[tuple, list[int]]:
        """Traces, then compiles, the programs that these trials need and that do not exist yet."""
        groups = jobs_by_group([self.statics.group_of(params) for params in settings])
        new = []
        for static, positions in groups.items():
            if static in self.groups:
                continue
            params = settings[positions[0]]
            try:
                functions = LaneFunctions(self.task, dict(static), self.traced)
            except Exception as error:
                raise_as_input_error(error, self.file, params)
                raise
            group = _Group(len(self.groups), static, functions)
            steps = self._steps_of(params)
            group.plan = default_plan(
                functions.costs(), steps=steps, trials=len(positions), pinned=dict(self.options.plan)
            )
            self.groups[static] = group
            new.append(group)
        if not new:
            return groups
        self.phase, phase = "compile", self.phase
        self._tell()
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            programs = pool.map(lambda g: Program(g.functions, self.traced, g.plan, self.shared), new)
            for group, program in zip(new, programs, strict=True):
                group.program = program
        self.seconds["compile"] += time.perf_counter() - started
        self.compilations += len(new)
        for group in new:
            assert group.program is not None
            group.evaluate_seconds = _evaluate_seconds(group.program)
        with self.ledger.transaction():
            for group in new:
                assert group.program is not None
                assert group.plan is not None
                self.ledger.add_group(
                    group.number, dict(group.static), group.plan.to_json(), group.program.compile_seconds,
                    {"memory_bytes": group.program.memory_bytes, **asdict(group.functions.costs())},
                )  # fmt: skip
        self.phase = phase
        return groups

    def _train_group(self, group: _Group, rows: list[TrialRow], keep: bool) -> None:
        assert group.program is not None
        assert group.plan is not None
        steps = self._steps_of(rows[0].params)
        jobs = [Job(row.trial, row.seed, {n: row.params[n] for n in self.statics.traced}, steps, keep) for row in rows]
        capacity = self.options.lanes or lanes_in_memory(group.functions.costs().state_bytes, group.plan)
        calls = 0

        def on_points(points: list[Point]) -> list[int]:
            nonlocal calls
            calls += 1
            return self._record(points, steps)

        lanes = Lanes(
            group.program,
            capacity=max(capacity, group.plan.width),
            on_points=on_points,
            on_state=lambda job, state: self.states.__setitem__(job.trial, state),
        )
        started = time.perf_counter()
        lanes.train(jobs)
        spent = time.perf_counter() - started
        evaluating = min(spent, calls * group.evaluate_seconds)
        self.seconds["train"] += spent - evaluating
        self.seconds["evaluate"] += evaluating

    def _record(self, points: list[Point], steps: int) -> list[int]:
        """One segment of one call into the ledger, in one transaction; returns the trials to stop."""
        curve, ended, stop = [], [], []
        for point in points:
            value = point.metrics[self.experiment.objective]
            reason = _infeasible(point, value)
            curve.append(CurvePoint(point.trial, point.step, point.loss, value, point.metrics))
            self.steps_done[point.trial] = point.step
            if reason is None and point.step < steps:
                continue
            state = State.COMPLETE if reason is None else State.INFEASIBLE
            row = self.rows[point.trial]
            row = TrialRow(
                trial=row.trial, round=row.round, group=row.group, state=state, reason=reason,
                seed=row.seed, steps=point.step, value=value, params=row.params, of=row.of,
                metrics=point.metrics,
            )  # fmt: skip
            self.rows[row.trial] = row
            self.done += 1
            self.infeasible += state == State.INFEASIBLE
            self.best_seen = min(self.best_seen, _nan_last(self._scored(row).value))
            ended.append(TrialResult(row.trial, state, reason, point.step, value, point.metrics))
            self.model_steps += point.step
            if point.step < steps:
                stop.append(point.trial)
        with self.ledger.transaction():
            self.ledger.add_curve_points(curve)
            self.ledger.finish_trials(ended)
        self._tell()
        return stop

    # ---- the end -------------------------------------------------------------------------------------

    def _result(self, winner: Scored | None, ranked: list[Confirmed], leanings: list[Leaning]) -> dict[str, Any]:
        for lean in leanings:
            self._warn(lean.message)
        best: dict[str, Any] | None = None
        if winner is not None:
            seen = min((self._scored(r).value for r in self.finished.values()), key=_nan_last)
            confirmed = ranked[0] if ranked else None
            best = {
                "trial": winner.trial,
                "value": self.sign * (confirmed.mean if confirmed else winner.value),
                "value_std": confirmed.std if confirmed else None,
                "repeats": confirmed.repeats if confirmed else 0,
                "best_seen": self.sign * seen,
                "params": winner.params,
            }
            if confirmed is None:
                self._warn("too few trials to confirm the winner on fresh seeds: its value is one lucky draw's")
            elif len(ranked) > 1 and _overlap(ranked[0], ranked[1]):
                tied = sum(_overlap(ranked[0], other) for other in ranked[1:])
                self._warn(
                    f"the best {tied + 1} settings can't be told apart on {confirmed.repeats} seeds each; "
                    f"any of them will do, or run again with more trials"
                )
            best |= self._test(winner)
        diverged = sum(row.state == State.INFEASIBLE for row in self.finished.values())
        return {
            "study": str(self.directory),
            "trials": self.next_trial,
            "rounds": len(self.options.budget().rounds),
            "objective": self.experiment.objective,
            "direction": self.experiment.direction,
            "best": best,
            "seconds": {"total": time.perf_counter() - self.started, **self.seconds},
            "model_steps": self.model_steps,
            "compilations": self.compilations,
            "infeasible": diverged,
            "warnings": self.warnings,
        }

    def _test(self, winner: Scored) -> dict[str, Any]:
        """The confirmed winner's repeats on the test part, measured once, here and nowhere else."""
        data = self.experiment.loaded_data() if self.experiment.task is None else None
        if not isinstance(data, Data) or data.test is None:
            return {}
        states = [self.states[t] for t, row in self.rows.items() if row.of == winner.trial and t in self.states]
        if not states:
            return {}
        group = self.groups[self.statics.group_of(winner.params)]
        traced = {n: winner.params[n] for n in self.statics.traced}
        started = time.perf_counter()
        values = held_out_values(self.experiment, group.functions, dict(group.static), traced, states)
        self.compilations += 1
        self.seconds["compile"] += time.perf_counter() - started
        return {
            "test_value": float(np.mean(values)),
            "test_std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }

    def _save(self, winner: Scored | None, result: dict[str, Any]) -> None:
        saved: dict[str, int] = {}
        if winner is not None and self.states:
            best_of: dict[int, TrialRow] = {}
            for row in (self.finished | self.rows).values():
                if row.trial in self.states and row.state == State.COMPLETE:
                    of = row.trial if row.of is None else row.of
                    best = best_of.get(of)
                    if best is None or self._scored(row).value < self._scored(best).value:
                        best_of[of] = row
            if not self.options.budget().finalists:
                best_of = {winner.trial: best_of[winner.trial]}
            for of, row in best_of.items():
                name = "best" if of == winner.trial else f"trial-{of}"
                state = self.states[row.trial]
                kept = {part: state[part] for part in ("params", "rest")} if self._has_model() else state
                save_weights(self.directory / "best" / f"{name}.weights", _plain_tree(kept))
                saved[name] = row.trial
        with self.ledger.transaction():
            self.ledger.set_meta("weights", saved)
            self.ledger.set_meta("result", result)
            self.ledger.set_meta("state", "finished")
        trials_csv(self.ledger, self.directory / "trials.csv")

    # ---- small things --------------------------------------------------------------------------------

    def _has_model(self) -> bool:
        return self.experiment.task is None

    def _scored(self, row: TrialRow) -> Scored:
        value = row.value if row.state == State.COMPLETE and row.value is not None else math.nan
        return Scored(row.trial, dict(row.params), self.sign * value)

    def _first_params(self) -> Params:
        sample = self.first.sample(1, seed=(self.options.seed, 0))
        return {name: _plain(column[0]) for name, column in sample.items()}

    def _steps_of(self, params: Mapping[str, Any]) -> int:
        return self.experiment.total_steps(params)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.listener.note(text)

    def _tell(self) -> None:
        self.listener.progress(
            Progress(
                round=self.round,
                rounds=len(self.options.budget().rounds),
                phase=self.phase,
                done=self.done,
                trials=self.options.trials,
                model_steps=self.model_steps,
                total_steps=self.total_steps,
                seconds=time.perf_counter() - self.started,
                best=self.sign * self.best_seen if math.isfinite(self.best_seen) else None,
                infeasible=self.infeasible,
            )
        )

    def _meta(self, source: LoadedExperiment | None) -> dict[str, Any]:
        return {
            "state": "running",
            "name": source.name if source else self.experiment.name,
            "experiment": {
                "path": source.path if source else None,
                "sha256": source.sha256 if source else None,
                "source": source.source if source else None,
            },
            "options": asdict(self.options),
            "space": self.first.to_json(),
            "static": list(self.statics.static),
            "objective": self.experiment.objective,
            "direction": self.experiment.direction,
            "machine": machine(),
            "created": time.time(),
        }


def _infeasible(point: Point, value: float) -> str | None:
    if point.bad is not None:
        return f"diverged: the loss is not finite at step {point.bad}"
    if not math.isfinite(value):
        return f"the objective is not finite at step {point.step}"
    return None


def _evaluate_seconds(program: Program) -> float:
    """The time of one evaluation of a call's lanes: a segment of no steps."""
    hp = {n: program.put(np.zeros(program.plan.width, s.dtype)) for n, s in program.traced.items()}
    seeds = program.put(np.zeros(program.plan.width, np.uint32))
    state, result = program.run(program.empty(), hp, seeds, np.ones(program.plan.width, bool), 0)
    jax.block_until_ready(result)
    started = time.perf_counter()
    state, result = program.run(state, hp, seeds, None, 0)
    jax.block_until_ready(result)
    return time.perf_counter() - started


def _overlap(a: Confirmed, b: Confirmed) -> bool:
    """Whether two confirmed means differ by less than twice the standard error of their difference."""
    if not (math.isfinite(a.mean) and math.isfinite(b.mean)):
        return False
    variance = sum((c.std**2 if math.isfinite(c.std) else 0.0) / max(1, c.repeats) for c in (a, b))
    return abs(a.mean - b.mean) <= 2 * math.sqrt(variance)


def _nan_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _plain_tree(tree: Any) -> Any:
    """Any pytree of arrays as nested dicts with string keys: what a weights file holds."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}
