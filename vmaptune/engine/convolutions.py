"""Which implementation of each convolution is the fastest on the device at hand, measured and kept from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from vmaptune.engine import kept
from vmaptune.engine.devices import cache_folder, machine
from vmaptune.rewrite import ConvShape, fastest

SECONDS = 1.5  # that measuring one convolution takes at most, compiling included
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


def _read(file: Path) -> dict[str, str]:
    found = kept.read(file)
    return {s: method for s, method in found.items() if isinstance(method, str)} if isinstance(found, dict) else {}
