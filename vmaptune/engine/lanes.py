"""Many trials over few lanes: who is in which lane, and what each segment said of it.

A lane is free, or holds one trial. Trials wait in a queue and enter as lanes become free; between segments,
on the host, finished trials leave. Because a trial's key, data order and step count are its own, it has the
same bits in whatever lane and whenever it enters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from vmaptune.engine.program import NEVER, Program, Result


@dataclass(frozen=True)
class Job:
    """A trial as the engine needs it."""

    trial: int
    seed: int  # uint32
    settings: Mapping[str, Any]  # the traced ones
    steps: int
    keep: bool = False  # whether its final state is wanted


@dataclass(frozen=True)
class Point:
    """One trial at the end of one segment."""

    trial: int
    step: int
    loss: float  # mean training loss over the segment
    metrics: dict[str, float]
    bad: int | None  # the first step whose loss was not finite


@dataclass
class _Lane:
    job: Job | None = None
    done: int = 0  # steps dispatched
    used: bool = False  # whether it has held a trial


@dataclass
class _Chunk:
    """The lanes of one call of the program."""

    lanes: list[_Lane]
    state: Any = None
    hp: dict[str, np.ndarray] = field(default_factory=dict)  # [L] each
    seeds: np.ndarray | None = None  # [L] uint32
    on_device: tuple[Any, Any] | None = None
    limits: Any = None  # [L] int32 on the devices; None when a lane's end has changed

    def live(self) -> list[_Lane]:
        return [lane for lane in self.lanes if lane.job is not None]


@dataclass(frozen=True)
class _Pending:
    owners: list[tuple[int, Job, int]]  # (lane, its job, steps done after the segment)
    result: Result


class Lanes:
    """Trains jobs of one group on a program's lanes, one call of the program at a time.

    `submit` puts jobs into the queue, `advance` dispatches one call and reads the results of an earlier one,
    until it returns False. The order of calls, and of the points that they bring, depends on the jobs, on
    `capacity` and on the answers of `on_points` alone.

    Args:
      program: the group's compiled segment.
      capacity: the most lanes that may live at once (they are rounded up to whole calls).
      on_points: called with the points of each segment, in the order of the calls, on the host, while the next
        one runs; returns the trials to stop, whose lanes become free. It may submit jobs.
      on_state: called with `(job, state)` for finished jobs with `keep`; numpy arrays of one lane.
    """

    def __init__(
        self,
        program: Program,
        *,
        capacity: int,
        on_points: Callable[[list[Point]], Collection[int]],
        on_state: Callable[[Job, Any], None] | None = None,
    ):
        self.program, self.on_points, self.on_state = program, on_points, on_state
        self.capacity = capacity
        self._order = program.plan.filling_order()
        self._queue: deque[Job] = deque()
        self._pending: deque[_Pending] = deque()
        self._chunks: list[_Chunk] = []
        self._turn = 0  # the chunk that is dispatched next
        self.calls = 0
        self.refilled = 0  # times that a lane took in another trial
        self.lane_steps = 0  # steps that the devices spent, idle lanes included
        self.live_steps = 0  # steps of lanes that held a trial

    @property
    def live(self) -> int:
        """Trials that are in a lane."""
        return sum(len(chunk.live()) for chunk in self._chunks)

    @property
    def waiting(self) -> int:
        """Trials that wait for a lane."""
        return len(self._queue)

    def submit(self, jobs: Iterable[Job]) -> None:
        """Adds jobs to the queue, in their order."""
        self._queue.extend(jobs)
        width = self.program.plan.width
        wanted = max(1, min(-(-(self.live + len(self._queue)) // width), self.capacity // width))
        while len(self._chunks) < wanted:
            self._chunks.append(self._chunk())

    def advance(self) -> bool:
        """Dispatches one call of the next chunk that has a trial, and reads what came of an earlier call.

        Returns False when every job has ended and every point has been read.
        """
        for _ in self._chunks:
            chunk = self._chunks[self._turn]
            self._turn = (self._turn + 1) % len(self._chunks)
            fresh = self._fill(chunk)
            if chunk.live():
                self._dispatch(chunk, fresh)
                calls = sum(bool(each.live()) for each in self._chunks)
                while len(self._pending) > max(1, calls):
                    self._read()
                return True
            chunk.state = None  # free the memory
        if self._pending:
            self._read()
        return bool(self._pending or self._queue)

    def train(self, jobs: Iterable[Job]) -> None:
        """Trains every job to its last step."""
        self.submit(jobs)
        while self.advance():
            pass

    def _chunk(self) -> _Chunk:
        width = self.program.plan.width
        hp = {name: np.zeros(width, shape.dtype) for name, shape in self.program.traced.items()}
        return _Chunk([_Lane() for _ in range(width)], hp=hp, seeds=np.zeros(width, np.uint32))

    def _fill(self, chunk: _Chunk) -> np.ndarray | None:
        """Puts waiting jobs into free lanes; returns the mask [L] of those, or None when there are none."""
        fresh = np.zeros(len(chunk.lanes), bool)
        if not self._queue:
            return None
        closed = self._closed_tiles(chunk)
        for i in self._order:
            lane = chunk.lanes[i]
            if lane.job is None and self._queue and i // self.program.plan.lanes not in closed:
                lane.job, lane.done = self._queue.popleft(), 0
                self.refilled += lane.used
                lane.used = True
                fresh[i] = True
                assert chunk.seeds is not None
                chunk.seeds[i] = lane.job.seed
                for name, column in chunk.hp.items():
                    column[i] = lane.job.settings[name]
        if not fresh.any():
            return None
        chunk.limits = None
        if chunk.state is None:
            chunk.state = self.program.empty()
            _settle_idle_lanes(chunk, fresh, range(len(chunk.lanes)))
        elif self.program.functions.lockstep:
            _settle_idle_lanes(chunk, fresh, self._lanes_of(_tiles_of(fresh, self.program.plan.lanes)))
        put = self.program.put
        # copies: on a CPU device_put may share the host's memory, which the next fill writes to
        chunk.on_device = (
            {name: put(column.copy()) for name, column in chunk.hp.items()},
            put(np.array(chunk.seeds, copy=True)),
        )
        return fresh

    def _closed_tiles(self, chunk: _Chunk) -> set[int]:
        """Tiles that nobody may enter: in lockstep, those in which somebody still trains."""
        if not self.program.functions.lockstep:
            return set()
        return _tiles_of([lane.job is not None for lane in chunk.lanes], self.program.plan.lanes)

    def _lanes_held(self, chunk: _Chunk) -> int:
        """Lanes that a call keeps busy or waiting: of all devices, as many tiles as the fullest device runs."""
        plan = self.program.plan
        tiles = _tiles_of([lane.job is not None for lane in chunk.lanes], plan.lanes)
        fullest = max(sum(tile // plan.tiles == device for tile in tiles) for device in range(plan.devices))
        return plan.devices * fullest * plan.lanes

    def _lanes_of(self, tiles: Iterable[int]) -> list[int]:
        width = self.program.plan.lanes
        return [tile * width + i for tile in sorted(tiles) for i in range(width)]

    def _dispatch(self, chunk: _Chunk, fresh: np.ndarray | None) -> None:
        every = self.program.plan.every
        assert chunk.on_device is not None
        if chunk.limits is None:
            limits = [lane.job.steps if lane.job else 0 for lane in chunk.lanes]
            chunk.limits = self.program.put(np.array(limits, np.int32))
        chunk.state, result = self.program.run(chunk.state, *chunk.on_device, fresh, chunk.limits, every)
        self.calls += 1
        self.lane_steps += every * self._lanes_held(chunk)
        owners = []
        finished = []
        for i, lane in enumerate(chunk.lanes):
            if lane.job is None:
                continue
            n = min(every, lane.job.steps - lane.done)
            lane.done += n
            self.live_steps += n
            owners.append((i, lane.job, lane.done))
            if lane.done >= lane.job.steps:
                if lane.job.keep and self.on_state is not None:
                    finished.append((i, lane.job))
                lane.job = None
        self._pending.append(_Pending(owners, result))
        if finished:  # before the next segment takes the buffers
            host = jax.device_get(chunk.state[0])
            for i, job in finished:
                self.on_state(job, jax.tree.map(lambda a, i=i: np.array(a[i]), host))  # type: ignore[misc]

    def _read(self) -> None:
        pending = self._pending.popleft()
        result = jax.device_get(pending.result)
        points = []
        for i, job, done in pending.owners:
            bad = int(result.bad[i])
            metrics = {name: float(values[i]) for name, values in result.metrics.items()}
            points.append(Point(job.trial, done, float(result.loss[i]), metrics, None if bad == NEVER else bad))
        stop = self.on_points(points)
        if not stop:
            return
        for chunk in self._chunks:
            for lane in chunk.lanes:
                if lane.job is not None and lane.job.trial in stop:
                    lane.job, chunk.limits = None, None
        for waiting in self._pending:  # segments of a stopped trial that were under way are nobody's
            waiting.owners[:] = [owner for owner in waiting.owners if owner[1].trial not in stop]


def _tiles_of(lanes: Sequence[Any] | np.ndarray, width: int) -> set[int]:
    """The tiles, of `width` lanes each, with a lane that is marked."""
    return {i // width for i, marked in enumerate(lanes) if marked}


def _settle_idle_lanes(chunk: _Chunk, fresh: np.ndarray, lanes: Iterable[int]) -> None:
    """Idle lanes compute too: give them the settings of a trial, so that they cannot slow the others by NaNs."""
    first = int(np.argmax(fresh))
    assert chunk.seeds is not None
    for i in lanes:
        if chunk.lanes[i].job is None:
            chunk.seeds[i] = chunk.seeds[first]
            for column in chunk.hp.values():
                column[i] = column[first]
            fresh[i] = True
