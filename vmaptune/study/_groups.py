"""The groups of a study: trials that share all static settings share one compiled program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from vmaptune.engine.check import AsWritten, Checked, Memory, check
from vmaptune.engine.convolutions import faster_as_a_whole, fastest_convolutions, worth_timing_models
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Plan, default_plan, lanes_in_memory
from vmaptune.engine.planner import planned, run_seconds, why
from vmaptune.engine.program import Program, SharedArrays
from vmaptune.errors import InputError
from vmaptune.experiment import Experiment, Statics, check_blocks, described, raise_as_input_error, settings_text
from vmaptune.search.pbt import PBT
from vmaptune.space import Space
from vmaptune.store.ledger import GroupRow, Ledger
from vmaptune.study._options import Options
from vmaptune.study._progress import Counts
from vmaptune.study._stopping import stopping_lanes
from vmaptune.study._structure import COMPILERS, Structure
from vmaptune.task import Task

PATIENCE = 0.2  # seconds of a wait for a program, after which it is looked whether somebody asked to stop


@dataclass
class Group:
    """The trials that share all static settings, and their program."""

    number: int
    static: tuple[tuple[str, Any], ...]
    functions: LaneFunctions
    steps: int  # of each trial
    plan: Plan
    why: str  # this plan
    capacity: int  # the most of its lanes that may live at once, were it alone
    step_seconds: float  # of one trial's step where all devices are busy, guessed from its operations
    _begun: Program | None = None  # lowered; its compilation may be under way
    _program: Program | None = None
    evaluate_seconds: float | None = None  # of one call; timed when nothing else computes
    checked: Checked | None = None  # what a comparison with the model as it is written found
    _trials: Sequence[Mapping[str, Any]] = ()  # some of those that it was met with

    @property
    def program(self) -> Program:
        """The compiled segment."""
        assert self._program is not None
        return self._program


@dataclass
class Built:
    """A group's program, and what a check of it found, if there was one."""

    program: Program
    checked: Checked | None = None


class Groups:
    """All groups that a study has met, by their static settings; compiled when first met."""

    def __init__(
        self,
        experiment: Experiment,
        task: Task,
        statics: Statics,
        traced: Mapping[str, jax.ShapeDtypeStruct],
        options: Options,
        ledger: Ledger,
        counts: Counts,
        file: str | None,
        chooser: Structure,
        while_waiting: Callable[[], None] = lambda: None,
    ):
        """`while_waiting` is called now and then while programs compile and nothing else goes on."""
        self.experiment, self.task, self.statics, self.traced = experiment, task, statics, traced
        self.options, self.ledger, self.counts, self.file = options, ledger, counts, file
        self.while_waiting = while_waiting
        self._groups: dict[tuple, Group] = {}
        self._built = chooser.built
        self._shared: SharedArrays = chooser.shared
        self._compiling: dict[int, Future[Built]] = {}  # by group, in the background
        self._pool = ThreadPoolExecutor(COMPILERS)
        self._memory = Memory()
        self._recorded = {tuple(row.static.items()): row for row in ledger.groups()}  # of a study that goes on
        for row in self._recorded.values():
            experiment.convolutions.chosen.update(row.info.get("convolutions", {}))

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def of(self, params: Mapping[str, Any]) -> Group:
        """The group of a trial, traced if it is new; its program exists once `prepare` has met it."""
        static = self.statics.group_of(params)
        return self._groups.get(static) or self._trace(static, [params])

    def lane_values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The traced settings of a trial as its lane receives them."""
        space = self.experiment.space
        assert isinstance(space, Space)
        return space.lane_values(params, self.statics.traced)

    def prepare(self, settings: Sequence[Mapping[str, Any]], *, ahead: bool = False) -> None:
        """Traces, then compiles, the programs that these trials need and that do not exist yet.

        `ahead` returns as soon as one of them exists; the others compile in the background, `ready` takes them in.

        Raises:
          InputError: the experiment's code refuses a setting.
        """
        trials: dict[tuple, list[Mapping[str, Any]]] = {}
        for params in settings:
            trials.setdefault(self.statics.group_of(params), []).append(params)
        if all(static in self._groups and self._groups[static]._program is not None for static in trials):
            return
        self.counts.phase, phase = "compile", self.counts.phase
        self.counts.tell()
        started = time.perf_counter()
        met, new = [], []
        for static, found in trials.items():
            met.append(self._groups.get(static) or self._trace(static, found))
            group = met[-1]
            if group._program is None and group.number not in self._compiling:
                plain = self._begin(group)  # here, since two threads that run Python take each other's time
                if plain is not None:
                    self._pool.submit(plain.compile)  # the check waits for it, so it comes before
                self._compiling[group.number] = self._pool.submit(self._compile, group, plain)  # while more is traced
                new.append(group)
        with self.ledger.transaction():  # the plans first: a study that goes on takes them, whatever was compiled
            for group in new:
                self._write(group)
        self.counts.seconds["compile"] += time.perf_counter() - started
        while not (any if ahead else all)(self.ready(group) for group in met):
            self.while_waiting()
            self.wait_for_any(PATIENCE)
        self.counts.phase = phase
        self.counts.tell()  # from here on time is training

    def ready(self, group: Group) -> bool:
        """Whether a group's program exists; takes it in when it has come."""
        if group._program is not None:
            return True
        if group.number not in self._compiling or not self._compiling[group.number].done():
            return False
        built = self._compiling.pop(group.number).result()
        group._program, group.functions = built.program, built.program.functions
        group.checked = built.checked or group.checked
        self._say(group)
        self.counts.compilations += 1
        self._write(group)
        return True

    def wait_for_any(self, most: float | None = None) -> float:
        """Waits for a program that compiles in the background, if there is one, for `most` seconds if given; returns
        for how many."""
        return self._wait(list(self._compiling.values()), most)

    def wait_for(self, group: Group) -> float:
        """Waits until a group's program exists, and takes it in; returns for how many seconds."""
        waited = 0.0
        if not self.ready(group):
            self.counts.phase, phase = "compile", self.counts.phase
            self.counts.tell()
            waited = self._wait([self._compiling[group.number]])
            self.ready(group)
            self.counts.phase = phase
            self.counts.tell()
        return waited

    def _wait(self, programs: Sequence[Future[Built]], most: float | None = None) -> float:
        started = time.perf_counter()
        wait(programs, timeout=most, return_when=FIRST_COMPLETED)
        waited = time.perf_counter() - started
        self.counts.seconds["compile"] += waited
        return waited

    def time_evaluations(self) -> None:
        """Times an evaluation of each group whose program has come since the last time. Beside a compiler it would seem
        to take a multiple of it."""
        self._settle()
        for group in self:
            if group._program is not None and group.evaluate_seconds is None:
                group.evaluate_seconds = _evaluate_seconds(group._program)

    def _settle(self) -> None:
        """Waits for all programs that compile in the background."""
        wait(self._compiling.values())

    def _write(self, group: Group) -> None:
        """A group as it is known now into the ledger."""
        program = group._program
        self.ledger.add_group(
            group.number, dict(group.static), group.plan.to_json(), program.compile_seconds if program else None,
            {"why": group.why, "memory_bytes": program.memory_bytes if program else 0, "capacity": group.capacity,
             "convolutions": dict(self.experiment.convolutions.chosen),
             "checked": group.checked.to_json() if group.checked else None, **asdict(group.functions.costs())},
        )  # fmt: skip

    def _say(self, group: Group) -> None:
        """Tells the person of a group that is trained as written without having been asked for."""
        if group.checked is not None and not group.checked.equal:
            of = settings_text(dict(group.static))
            self.counts.warn(f"group {group.number}{f' ({of})' if of else ''}: {given_up(group.checked)}")

    def close(self) -> None:
        """Nothing more is compiled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, group: Group) -> AsWritten | None:
        """Lowers a group's program; returns what it is to be compared with, or None where it is that itself, or was
        compared before."""
        try:
            group._begun = self._lowered(group)
            known = self._memory.found(group._begun) if group.functions.rewritten else None
        except Exception as error:
            if not group.functions.rewritten:
                raise
            known = failed(error)
        if not group.functions.rewritten:
            return None
        if known is None:
            return AsWritten(self._functions(group.static, plain=True), group.steps)
        group.checked = known
        if not known.equal:
            group.functions = self._functions(group.static, plain=True)
            group._begun = self._lowered(group)
        return None

    def _lowered(self, group: Group) -> Program:
        """A group's program, still to be compiled unless that was done when the structure was chosen."""
        _, built = self._built.get((self.statics.static, group.static), (None, None))
        if built is not None and built.plan == group.plan and built.functions is group.functions:
            return built
        return self._program(group, group.functions, compile=False)

    def _program(self, group: Group, functions: LaneFunctions, *, compile: bool = True) -> Program:
        uneven = group.steps % group.plan.every != 0
        return Program(functions, self.traced, group.plan, self._shared, uneven=uneven, compile=compile)

    def _compile(self, group: Group, plain: AsWritten | None) -> Built:
        assert group._begun is not None
        if plain is None:
            return Built(group._begun.compile())
        try:
            program = group._begun.compile()
            values = [self.lane_values(params) for params in group._trials]
            found = check(program, plain, values, range(len(values)))
        except Exception as error:
            return Built(self._program(group, plain.functions), failed(error))
        self._memory.keep(program, found)
        return Built(program if found.equal else self._program(group, plain.functions), found)

    def _functions(self, static: tuple, *, plain: bool = False) -> LaneFunctions:
        plain = plain or self.options.as_written
        return LaneFunctions(self.task, dict(static), self.traced, plain=plain)

    def _trace(self, static: tuple, trials: Sequence[Mapping[str, Any]]) -> Group:
        built = self._built.get((self.statics.static, static))
        recorded = self._recorded.get(static)
        found = recorded.info.get("checked") if recorded else None
        checked = Checked(**found) if found and not found["equal"] else None  # elsewhere, what was equal may not be
        try:
            functions = built[0] if built else self._functions(static, plain=checked is not None)
        except Exception as error:
            raise_as_input_error(error, self.file, dict(trials[0]))
            raise
        space = self.experiment.space
        assert isinstance(space, Space)
        numbers = space.lane_values(trials[0], [name for name, d in space.items() if d.numeric])
        check_blocks(self.experiment, self.task, {**trials[0], **numbers})
        steps = self.experiment.total_steps(trials[0])
        plan = self._recorded_plan(recorded) if recorded else None
        capacity = recorded.info.get("capacity") if recorded and plan else None
        if recorded is not None and plan is not None:
            reason = str(recorded.info.get("why", ""))
        else:
            if not functions.plain:
                functions = self._with_fastest_convolutions(functions, static, steps, len(trials))
            plan, reason = self._planned(functions, steps, len(trials))
        taken = {group.number for group in self} | {row.group for row in self._recorded.values()}
        number = recorded.group if recorded else max(taken, default=-1) + 1
        costs = functions.costs()
        capacity = capacity or lanes_in_memory(costs.state_bytes, plan)
        group = Group(
            number, static, functions, steps, plan, reason, capacity, run_seconds(costs, 1, plan.devices),
            checked=failed(functions.failure) if functions.failure else checked, _trials=trials[: plan.width],
        )  # fmt: skip
        self._groups[static] = group
        return group

    def _with_fastest_convolutions(self, functions: LaneFunctions, static: tuple, steps: int, n: int) -> LaneFunctions:
        """The group's functions with each convolution computed as was measured to be the fastest here."""
        choice = self.experiment.convolutions
        costs, rounds, settled = functions.costs(), self.options.rounds, set(choice.chosen)
        plan = default_plan(costs, steps=steps, trials=n, pinned=dict(self.options.plan))
        seconds = rounds * n * run_seconds(costs, steps)

        def traced() -> LaneFunctions:
            return self._functions(static)

        if choice.settle(fastest_convolutions(choice.asked, plan.lanes, seconds, self._settle)):
            functions = traced()
        if not worth_timing_models(seconds):
            return functions
        return faster_as_a_whole(choice, settled, functions, traced, plan, self._shared, self._settle)

    def _planned(self, functions: LaneFunctions, steps: int, trials: int) -> tuple[Plan, str]:
        """A plan for a group that is met for the first time, and why this one."""
        plain = self.options.method != "pbt" and not self.options.stopping
        found = planned(
            functions, functions.costs(), steps=steps, trials=trials, rounds=self.options.rounds,
            pinned=self.options.plan, shared=self._shared, measure=None if plain else False, settle=self._settle,
        )  # fmt: skip
        plan = found.plan
        if self.options.method == "pbt" and "every" not in self.options.plan:
            plan = replace(plan, every=PBT().interval(steps))
        if self.options.stopping:
            plan = self.options.stopping.plan(plan, steps, stopping_lanes(self.options), self.options.plan)
            every = next((group.plan.every for group in self), plan.every)
            plan = replace(plan, every=every)  # one for all groups, so that their trials meet at the same rungs
        return plan, why(found)

    def _recorded_plan(self, row: GroupRow) -> Plan | None:
        """The plan by which a group ran before, or None where this machine or version cannot run it."""
        try:
            plan = Plan(**row.plan)
        except (TypeError, InputError):
            plan = None
        if plan is None or plan.devices > jax.local_device_count():
            self.counts.warn(
                f"group {row.group} cannot run by its plan {row.plan} here, so it is planned anew: its numbers may "
                f"differ from the study's so far in the last digits"
            )
            return None
        return plan


def failed(error: Exception) -> Checked:
    """What a check says of functions that could not be rewritten, compiled or compared."""
    return Checked(False, failure=described(error))


def given_up(found: Checked) -> str:
    """What a person is told of a model that is trained as written without having been asked for."""
    reason = found.failure or (
        f"it gives other numbers than plain JAX at {found.where} (by {found.largest:.2g} of its size)"
    )
    return (
        f"trained as written, which is slower, because its faster form was given up: {reason}. Please report the "
        f"model, so that this can be mended"
    )


def _evaluate_seconds(program: Program) -> float:
    """The time of one evaluation of a call's lanes: a segment of no steps."""
    width = program.plan.width
    hp = {n: np.zeros(width, s.dtype) for n, s in program.traced.items()}
    table = program.table(hp, np.zeros(width, np.uint32), np.ones(width), True)
    state, result = program.run(program.empty(), table, 0, fill=True)
    jax.block_until_ready(result)
    started = time.perf_counter()
    state, result = program.run(state, table, 0)
    jax.block_until_ready(result)
    return time.perf_counter() - started
