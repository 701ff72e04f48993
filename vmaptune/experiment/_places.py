"""Where in a person's own code something went wrong."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

_OURS = str(Path(__file__).parents[1])
_LIBRARIES = tuple({_OURS, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))})


def frames_of(error: BaseException) -> list[traceback.FrameSummary]:
    """The calls that led to the error, the outermost first."""
    return list(traceback.extract_tb(error.__traceback__))


def place_in(error: BaseException, file: str | None) -> str:
    """The line of the person's code at which it went wrong, as `exp.py:12: code`; "" where there is none.

    It is the innermost line in `file`, or else the innermost one that is in no library.
    """
    frames = frames_of(error)
    own = [f for f in frames if f.filename == file] or [f for f in frames if is_own(f.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}: {(own[-1].line or '').strip()}" if own else ""


@contextmanager
def inside(folder: str | None) -> Iterator[None]:
    """Within it that folder is the current one, where it is there."""
    if folder is None or not Path(folder).is_dir():
        yield
        return
    with chdir(folder):
        yield


def at_line(place: str) -> str:
    """The end of a message about what went wrong at a place; "" where it is not known."""
    return f"\n  at {place}" if place else ""


def at(function: Callable[..., Any] | None) -> str:
    """The end of a message about what a person's function returned; "" where its place is not known."""
    code = getattr(function, "__code__", None)
    if code is None or not is_own(code.co_filename):
        return ""
    return f"\n  at {code.co_filename}:{code.co_firstlineno}: {code.co_name}()"


def described(error: BaseException) -> str:
    """The error's class and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def kind(value: Any) -> str:
    """What a value is, for a message about one of another kind."""
    if isinstance(value, jax.Array):
        return f"an array {value.dtype}{list(value.shape)}"
    if callable(value):
        return f"the {'class' if isinstance(value, type) else 'function'} {getattr(value, '__name__', value)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array {value.dtype}{list(value.shape)}"
    if isinstance(value, (bool, int, float)):
        return f"the {type(value).__name__} {value!r}"
    return "None" if value is None else f"a {type(value).__name__}"


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings on one line, floats with 4 digits."""
    return ", ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v!r}" for n, v in values.items())


def is_own(filename: str) -> bool:
    """Whether a file is a person's, and of no library."""
    return not filename.startswith(("<frozen", "<string>", *_LIBRARIES)) and "-packages" not in filename
