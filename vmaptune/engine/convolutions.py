"""Which implementation of each convolution, and of a convolutional model as a whole, is the fastest on the device at
hand, measured and kept from run to run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from vmaptune.engine import kept
from vmaptune.engine.devices import cache_folder, machine
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Plan
from vmaptune.engine.planner import model_step_seconds
from vmaptune.engine.program import Program, SharedArrays
from vmaptune.rewrite import Choice, ConvShape, fastest

SECONDS = 1.5  # that measuring one convolution takes at most, compiling included
MODEL_SECONDS = 10.0  # that timing two programs of one model takes, compiling included
TURNS = 3  # of timing one and the other
SHARE = 0.05  # of a run's time that measuring may take


def fastest_convolutions(
    shapes: Iterable[ConvShape], lanes: int, run_seconds: float, settle: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """The fastest method for each convolution under a `vmap` of `lanes`, by the record's text.

    What was measured before on this machine costs nothing; the others are measured where that takes at most a twentieth
    of the run, `run_seconds` long, and are left out otherwise. `settle` is called before anything is timed, to wait for
    what else computes.
    """
    file = cache_folder() / "plans" / f"convolutions-{kept.digest([lanes, sorted(machine().items())])}.json"
    known = _read(file)
    shapes = list(shapes)
    new = [shape for shape in shapes if str(shape) not in known]
    if new and len(new) * SECONDS <= SHARE * run_seconds:
        settle()
        known |= {str(shape): method for shape, method in fastest(new, lanes).items()}
        kept.write(file, known)
    return {str(shape): known[str(shape)] for shape in shapes if str(shape) in known}


def worth_timing_models(run_seconds: float) -> bool:
    """Whether `faster_functions` takes at most a twentieth of a run of so many seconds."""
    return SHARE * run_seconds >= MODEL_SECONDS


def faster_as_a_whole(
    choice: Choice,
    settled: Collection[str],
    functions: LaneFunctions,
    trace: Callable[[], LaneFunctions],
    plan: Plan,
    shared: SharedArrays | None = None,
    settle: Callable[[], None] = lambda: None,
) -> LaneFunctions:
    """A model's functions, or what `trace` makes of them with the examples innermost, where that trains faster; the
    `choice` says so from then on.

    Args:
      settled: the convolutions that others are computed with already: a model that has one of them stays as it is,
        and nothing is traced where `choice` has met no others.
      plan: how many lanes are timed, in one tile.
      settle: as for `fastest_convolutions`.
    """
    if set(settled).issuperset(map(str, choice.asked)):
        return functions
    other, tried = choice.trying(trace)
    if not tried or not set(settled).isdisjoint(tried):
        return functions
    found = faster_functions(functions, other, plan, shared, settle)
    if found is other:
        choice.prefer_innermost(tried)
    return found


def faster_functions(
    functions: LaneFunctions,
    other: LaneFunctions,
    plan: Plan,
    shared: SharedArrays | None,
    settle: Callable[[], None] = lambda: None,
) -> LaneFunctions:
    """Whichever trains faster of two ways to compute the same step, timed with one tile of a plan's lanes; costs
    nothing where it was timed before on this machine. `settle` as for `fastest_convolutions`."""
    both = (functions, other)
    what = [[str(each.step.fitted) for each in both], plan.devices, plan.lanes, sorted(machine().items())]
    file = cache_folder() / "plans" / f"steps-{kept.digest(what)}.json"
    seconds = kept.read(file)
    if not isinstance(seconds, list) or len(seconds) != 2 or not all(isinstance(s, float) for s in seconds):
        settle()
        plan = replace(plan, tiles=1)
        programs = [Program(each, each.traced, plan, shared, uneven=False) for each in both]
        turns = [[model_step_seconds(program) for program in programs] for _ in range(TURNS)]
        seconds = [min(times) for times in zip(*turns, strict=True)]
        kept.write(file, seconds)
    return both[seconds.index(min(seconds))]


def _read(file: Path) -> dict[str, str]:
    found = kept.read(file)
    return {s: method for s, method in found.items() if isinstance(method, str)} if isinstance(found, dict) else {}
