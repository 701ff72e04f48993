"""One moment of a group's lanes, between two calls: taken as plain data and arrays, and gone on from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vmaptune.engine.lanes import Job, Lanes, _Pending, _settle_idle_lanes
from vmaptune.engine.tiles import Result
from vmaptune.errors import InputError


def take(lanes: Lanes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """This moment: plain data, and host arrays by name, all copies.

    Results that were not read yet are part of it as they are: taking a moment reads nothing, so it moves no
    decision. Waits for the calls under way.
    """
    arrays: dict[str, np.ndarray] = {}
    for c, chunk in enumerate(lanes._chunks):
        if chunk.state is not None:
            arrays |= {f"chunk{c}.{i}": leaf for i, leaf in enumerate(lanes.program.on_host(chunk.state))}
    for p, pending in enumerate(lanes._pending):
        arrays |= {f"pending{p}.{name}": _copy(array) for name, array in _by_name(lanes, pending.result).items()}
    plain = {
        "chunks": [
            [None if lane.job is None else [lane.job.trial, lane.done] for lane in chunk.lanes]
            for chunk in lanes._chunks
        ],
        "queue": [job.trial for job in lanes._queue],
        "pending": [
            {
                "chunk": next((c for c, chunk in enumerate(lanes._chunks) if chunk is pending.chunk), None),
                "owners": [[i, job.trial, done] for i, job, done in pending.owners],
            }
            for pending in lanes._pending
        ],
        "turn": lanes._turn,
        "counts": [lanes.calls, lanes.refilled, lanes.lane_steps, lanes.live_steps, lanes.moves],
    }
    return plain, arrays


def trials_of(plain: Mapping[str, Any]) -> list[int]:
    """The trials that are in a moment: in lanes, in the queue, or in results that were not read yet."""
    held = [lane[0] for chunk in plain["chunks"] for lane in chunk if lane is not None]
    return [*held, *plain["queue"], *(owner[1] for one in plain["pending"] for owner in one["owners"])]


def settle(lanes: Lanes) -> None:
    """Waits for the calls under way; they stay unread."""
    jax.block_until_ready([chunk.state for chunk in lanes._chunks])
    jax.block_until_ready([pending.result for pending in lanes._pending])


def restore(lanes: Lanes, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray], jobs: Mapping[int, Job]) -> None:
    """Makes lanes that nothing was submitted to go on from a moment. `jobs` holds at least the trials in it.

    Where the program has another number of lanes now, the trials are laid out anew, in their order; in lockstep those
    of a tile must have done as many steps, so there each number of steps begins a tile of its own.

    Raises:
      InputError: the moment's arrays do not fit the program.
    """
    leaves = lanes.program.state_shapes()
    width = lanes.program.plan.width
    chunks = [
        (held, [arrays[f"chunk{c}.{i}"] for i in range(len(leaves))] if f"chunk{c}.0" in arrays else [])
        for c, held in enumerate(plain["chunks"])
    ]
    for _, state in chunks:
        for found, leaf in zip(state, leaves, strict=bool(state)):
            if found.shape[1:] != leaf.shape[1:] or found.dtype != leaf.dtype:
                raise InputError(
                    f"the checkpoint does not fit the experiment's model: it holds {found.dtype}"
                    f"{list(found.shape[1:])} where the model has {leaf.dtype}{list(leaf.shape[1:])}; bring the "
                    f"experiment, or the version of vmaptune, back as it was, or begin another study with --fresh DIR"
                )
    lanes._turn, anew = plain["turn"], False
    tile = lanes.program.plan.lanes if lanes.program.functions.lockstep else None
    if any(len(held) != width or (tile and _out_of_step(held, tile)) for held, _ in chunks):
        chunks, lanes._turn, anew = _laid_out_anew(chunks, leaves, tile), 0, True
    lanes.calls, lanes.refilled, lanes.lane_steps, lanes.live_steps, lanes.moves = plain["counts"]
    for held, state in chunks:
        chunk = lanes._chunk()
        lanes._chunks.append(chunk)
        taken = [i for i, lane in enumerate(held) if lane is not None]
        for i in taken:
            trial, done = held[i]
            lanes._enter(chunk, i, jobs[trial], done)
        if taken:
            chunk.state = lanes.program.on_devices(state)
            mask = np.zeros(width, bool)
            mask[taken] = True
            _settle_idle_lanes(chunk, mask, range(width))
    lanes._pending = deque(
        _Pending(
            None if anew or one["chunk"] is None else lanes._chunks[one["chunk"]],
            [(i, jobs[trial], done) for i, trial, done in one["owners"]],
            _result_of(arrays, f"pending{p}."),
        )
        for p, one in enumerate(plain["pending"])
    )
    lanes.submit(jobs[trial] for trial in plain["queue"])


def _copy(array: Any) -> np.ndarray:
    """On the host, and no view of a buffer that the next call takes."""
    return np.array(jax.device_get(array))


def _by_name(lanes: Lanes, result: Any) -> dict[str, Any]:
    read = result if isinstance(result, Result) else lanes.program.read(result)
    fields = {name: array for name, array in read._asdict().items() if name != "metrics"}
    return fields | {f"metrics.{name}": values for name, values in read.metrics.items()}


def _result_of(arrays: Mapping[str, np.ndarray], before: str) -> Result:
    """The inverse of `_by_name`, for names that begin with `before`."""
    found = {name.removeprefix(before): array for name, array in arrays.items() if name.startswith(before)}
    metrics = {name.removeprefix("metrics."): array for name, array in found.items() if name.startswith("metrics.")}
    return Result(**{n: found[n] for n in Result._fields if n != "metrics"}, metrics=metrics)


def _out_of_step(held: list, tile: int) -> bool:
    """Whether trials of a tile have done different numbers of steps, where they are to take in the same batch."""
    return any(len({lane[1] for lane in held[i : i + tile] if lane}) > 1 for i in range(0, len(held), tile))


def _laid_out_anew(
    chunks: list[tuple[list, list]], leaves: list[jax.ShapeDtypeStruct], tile: int | None
) -> list[tuple[list, list]]:
    """Trials and their states over chunks of another width; with a `tile`, none holds different numbers of steps."""
    width = leaves[0].shape[0]
    alive = [(lane, [leaf[i] for leaf in state]) for lanes, state in chunks for i, lane in enumerate(lanes) if lane]
    places: list[Any] = list(alive)
    if tile:
        places = []
        for done in dict.fromkeys(lane[1] for lane, _ in alive):
            places += [one for one in alive if one[0][1] == done]
            places += [None] * (-len(places) % tile)
    laid = []
    for start in range(0, max(1, len(places)), width):
        part = places[start : start + width]
        state = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        for i, one in enumerate(part):
            for leaf, value in zip(state, one[1] if one else (), strict=bool(one)):
                leaf[i] = value
        laid.append(([one and one[0] for one in part] + [None] * (width - len(part)), state))
    return laid
