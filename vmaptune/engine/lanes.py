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

from vmaptune.engine.gather import Gather
from vmaptune.engine.jobs import Job, Leaving, Paused, Point
from vmaptune.engine.program import Program
from vmaptune.engine.tiles import NEVER, Result


@dataclass(slots=True)
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
    table: Any = None  # what the program is told of them, on the host at first; None when that has changed

    def live(self) -> list[_Lane]:
        return [lane for lane in self.lanes if lane.job is not None]


@dataclass(frozen=True)
class _Pending:
    chunk: _Chunk | None  # None where its trials were laid out anew since, over any of the chunks
    owners: list[tuple[int, Job, int]]  # (lane, its job, steps done after the segment)
    result: Any  # as the program gave it, or a `Result` of a moment that was gone on from


class Lanes:
    """Trains jobs of one group on a program's lanes, one call of the program at a time.

    `submit` puts jobs into the queue, `advance` dispatches one call and reads the results of an earlier one,
    until it returns False. The order of calls, and of the points that they bring, depends on the jobs, on
    `capacity` and on the answers of `on_points` and `on_hungry` alone.

    While jobs wait, or with `prompt`, a call's points are read before its lanes go on, so that the lane of a trial
    that ends early is refilled with no segment lost; the other calls keep the devices busy meanwhile. When none
    wait, the trials that are left move together into as few calls as hold them.

    Args:
      program: the group's compiled segment.
      capacity: the most lanes that may live at once (they are rounded up to whole calls).
      on_points: called with the points of each segment, in the order of the calls, on the host, while the next
        one runs; returns the trials to stop, whose lanes become free, or what is `Leaving`. It may submit jobs.
      on_state: called with `(job, state)` for finished jobs with `keep`; numpy arrays of one lane.
      on_pause: called with `(job, paused)` for each trial that `on_points` pauses; needs `prompt`.
      on_hungry: called when a lane is free and no job waits; it may submit jobs.
      prompt: whether points are always read before the lanes that they are of go on.
      judged: whether a state is kept where `on_points` says so, instead of at a trial's last step; needs `prompt`. A
        trial then stays in its lane until its last points were read, and `on_points` stops it.
    """

    def __init__(
        self,
        program: Program,
        *,
        capacity: int,
        on_points: Callable[[list[Point]], Collection[int] | Leaving],
        on_state: Callable[[Job, Any], None] | None = None,
        on_pause: Callable[[Job, Paused], None] | None = None,
        on_hungry: Callable[[], None] | None = None,
        prompt: bool = False,
        judged: bool = False,
    ):
        self.program, self.on_points, self.on_state = program, on_points, on_state
        self.on_pause, self.on_hungry, self.prompt, self.judged = on_pause, on_hungry, prompt, judged
        self.capacity = capacity
        self._order = program.plan.filling_order()
        self._queue: deque[Job] = deque()
        self._pending: deque[_Pending] = deque()
        self._chunks: list[_Chunk] = []
        self._gather: Gather | None = None
        self._turn = 0  # the chunk that is dispatched next
        self.calls = 0
        self.refilled = 0  # times that a lane took in another trial
        self.lane_steps = 0  # steps that the devices spent, idle lanes included
        self.live_steps = 0  # steps of trials, up to the step at which one went wrong
        self.moves = 0  # trials that moved to another call

    @property
    def free(self) -> int:
        """Lanes that could take a trial now."""
        return self.capacity // self.program.plan.width * self.program.plan.width - self.live - len(self._queue)

    @property
    def live(self) -> int:
        """Trials that are in a lane."""
        return sum(len(chunk.live()) for chunk in self._chunks)

    @property
    def waiting(self) -> int:
        """Trials that wait for a lane."""
        return len(self._queue)

    def submit(self, jobs: Iterable[Job], *, first: bool = False) -> None:
        """Adds jobs to the queue, in their order: behind those that wait, or `first`."""
        jobs = list(jobs)
        self._queue = deque([*jobs, *self._queue] if first else [*self._queue, *jobs])
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
            if self.prompt or self._queue:
                while any(pending.chunk is chunk or pending.chunk is None for pending in self._pending):
                    self._read()
            if not self._queue and len(chunk.live()) < len(chunk.lanes):
                if self.on_hungry is not None:
                    self.on_hungry()
                if not self._queue:
                    self._move_together()
            fresh = self._fill(chunk)
            if chunk.live():
                self._dispatch(chunk, fresh)
                calls = sum(bool(each.live()) for each in self._chunks)
                while len(self._pending) > max(1, calls):
                    self._read()
                return True
            chunk.state = chunk.table = None  # free the memory
        if self._pending:
            self._read()
        return bool(self._pending or self._queue)

    def train(self, jobs: Iterable[Job]) -> None:
        """Trains every job to its last step."""
        self.submit(jobs)
        while self.advance():
            pass

    def settle(self) -> None:
        """Reads every point that is still to come of calls already dispatched."""
        while self._pending:
            self._read()

    def segment(self) -> None:
        """One segment of every trial that is in a lane, and all of its points."""
        for _ in range(sum(bool(chunk.live()) for chunk in self._chunks) or len(self._chunks)):
            self.advance()
        self.settle()

    def copy(self, parents: Mapping[int, int], settings: Mapping[int, Mapping[str, Any]]) -> None:
        """Trials go on from the states of others, with settings of their own; all of them must be in lanes, and
        every point must have been read. Keys stay the trial's own.

        Args:
          parents: trial -> the trial whose state it takes.
          settings: of each of these trials, the traced ones.
        """
        width = self.program.plan.width
        places = {
            lane.job.trial: (c, i)
            for c, chunk in enumerate(self._chunks)
            for i, lane in enumerate(chunk.lanes)
            if lane.job is not None
        }
        index = np.arange(width * len(self._chunks))
        for trial, parent in parents.items():
            (c, i), (d, j) = places[trial], places[parent]
            index[c * width + i] = d * width + j
            for name, column in self._chunks[c].hp.items():
                column[i] = settings[trial][name]
        if self._gather is None:
            self._gather = Gather(self.program, len(self._chunks))
        states = self._gather([chunk.state for chunk in self._chunks], index)
        for chunk, state in zip(self._chunks, states, strict=True):
            chunk.state, chunk.table = state, None

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
        back: dict[int, Paused] = {}
        for i in self._order:
            lane = chunk.lanes[i]
            if lane.job is None and self._queue and i // self.program.plan.lanes not in closed:
                self.refilled += lane.used
                job = self._queue.popleft()
                self._enter(chunk, i, job, job.begun.done if job.begun else 0)
                if job.begun:
                    back[i] = job.begun
                else:
                    fresh[i] = True
        if not fresh.any() and not back:
            return None
        chunk.table = None
        fresh[list(back)] = True
        if chunk.state is None:
            chunk.state = self.program.empty()
            _settle_idle_lanes(chunk, fresh, range(len(chunk.lanes)))
        elif self.program.functions.lockstep:
            _settle_idle_lanes(chunk, fresh, self._lanes_of(_tiles_of(fresh, self.program.plan.lanes)))
        fresh[list(back)] = False
        if back:
            self._bring_back(chunk, back)
        return fresh if fresh.any() else None

    def _bring_back(self, chunk: _Chunk, back: Mapping[int, Paused]) -> None:
        """Writes the states of trials that go on into their lanes: a copy on the host, which compiles nothing."""
        leaves = self.program.on_host(chunk.state)
        for i, paused in back.items():
            for leaf, value in zip(leaves, paused.leaves, strict=True):
                leaf[i] = value
        chunk.state = self.program.on_devices(leaves)

    def _enter(self, chunk: _Chunk, i: int, job: Job, done: int) -> None:
        """Puts a trial into lane `i`, `done` steps after its start."""
        lane = chunk.lanes[i]
        lane.job, lane.done, lane.used = job, done, True
        assert chunk.seeds is not None
        chunk.seeds[i] = job.seed
        for name, column in chunk.hp.items():
            column[i] = job.settings[name]

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
        if chunk.table is None:
            limits = [lane.job.steps if lane.job else 0 for lane in chunk.lanes]
            chunk.table = self.program.table(chunk.hp, chunk.seeds, limits, False if fresh is None else fresh)
        elif isinstance(chunk.table, np.ndarray):  # told again: from now on it needn't be sent
            chunk.table = self.program.put(chunk.table)
        chunk.state, result = self.program.run(chunk.state, chunk.table, every, fill=fresh is not None)
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
            if lane.done >= lane.job.steps and not self.judged:
                if lane.job.keep and self.on_state is not None:
                    finished.append((i, lane.job))
                lane.job = None
        self._pending.append(_Pending(chunk, owners, result))
        self._keep(chunk, finished)  # before the next segment takes the buffers

    def _keep(self, chunk: _Chunk, places: Sequence[tuple[int, Job]]) -> None:
        """Hands out the states of some lanes of a call as they are now."""
        if not places:
            return
        assert self.on_state is not None
        host = self.program.task_state(self.program.on_host(chunk.state, [i for i, _ in places]))
        for k, (_, job) in enumerate(places):
            self.on_state(job, jax.tree.map(lambda a, k=k: np.array(a[k]), host))

    def _move_together(self) -> None:
        """Moves the trials that are left into as few calls as hold them. Their bits do not change."""
        width = self.program.plan.width
        if self.program.functions.lockstep:  # a tile's lanes enter and leave together
            return
        if -(-self.live // width) >= sum(bool(chunk.live()) for chunk in self._chunks):
            return
        while self._pending:
            self._read()
        live = sorted((chunk for chunk in self._chunks if chunk.live()), key=lambda chunk: -len(chunk.live()))
        needed = -(-self.live // width)
        moved = [(chunk, i) for chunk in live[needed:] for i, lane in enumerate(chunk.lanes) if lane.job is not None]
        free = [(chunk, i) for chunk in live[:needed] for i, lane in enumerate(chunk.lanes) if lane.job is None]
        states = {id(chunk): jax.tree.map(np.array, jax.device_get(chunk.state)) for chunk in live}
        for (source, i), (target, j) in zip(moved, free, strict=False):
            old, new = states[id(source)], states[id(target)]
            jax.tree.map(lambda a, b, i=i, j=j: b.__setitem__(j, a[i]), old, new)
            source.lanes[i], target.lanes[j] = target.lanes[j], source.lanes[i]
            assert source.seeds is not None
            assert target.seeds is not None
            target.seeds[j] = source.seeds[i]
            for name, column in target.hp.items():
                column[j] = source.hp[name][i]
            self.moves += 1
        for chunk in live[:needed]:
            chunk.state = jax.tree.map(self.program.put, states[id(chunk)])
            chunk.table = None
        for chunk in live[needed:]:
            chunk.state = chunk.table = None

    def _read(self) -> None:
        pending = self._pending.popleft()
        result = pending.result if isinstance(pending.result, Result) else self.program.read(pending.result)
        bad, losses = result.bad.tolist(), result.loss.tolist()  # a list's numbers take the host a tenth of an array's
        metrics = {name: values.tolist() for name, values in result.metrics.items()}
        points = []
        for i, job, done in pending.owners:
            measured = {name: values[i] for name, values in metrics.items()}
            points.append(Point(job.trial, done, losses[i], measured, None if bad[i] == NEVER else bad[i]))
            if bad[i] != NEVER:
                self.live_steps -= done - bad[i]
        leaving = self.on_points(points)
        if not isinstance(leaving, Leaving):
            leaving = Leaving(leaving)
        chunks = self._chunks if pending.chunk is None else [pending.chunk]
        for chunk in chunks if leaving.keep else ():
            self._keep(
                chunk, [(i, ln.job) for i, ln in enumerate(chunk.lanes) if ln.job and ln.job.trial in leaving.keep]
            )
        for chunk in chunks if leaving.pause else ():
            self._pause(chunk, leaving.pause)
        gone = {*leaving.stop, *leaving.pause}
        if not gone:
            return
        for chunk in self._chunks:
            for lane in chunk.lanes:
                if lane.job is not None and lane.job.trial in gone:
                    lane.job, chunk.table = None, None
        for waiting in self._pending:  # segments of a stopped trial that were under way are nobody's
            waiting.owners[:] = [owner for owner in waiting.owners if owner[1].trial not in gone]

    def _pause(self, chunk: _Chunk, trials: Collection[int]) -> None:
        """Takes the states of trials out of a call's lanes; it has not gone on since their points."""
        assert self.prompt
        assert self.on_pause is not None
        places = [i for i, lane in enumerate(chunk.lanes) if lane.job is not None and lane.job.trial in trials]
        if not places:
            return
        leaves = self.program.on_host(chunk.state, places)
        for k, lane in enumerate(chunk.lanes[i] for i in places):
            assert lane.job is not None
            self.on_pause(lane.job, Paused(lane.done, tuple(np.array(leaf[k]) for leaf in leaves)))


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
