"""What a command does to its own process, and a library must not do to anyone's: how it begins and how it ends."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from vmaptune.cli._common import FAILED, INTERRUPTED

NEW_OBJECTS = 50_000  # between two collections of garbage; Python's own 700 let tracing spend a sixth of its time there


def begin() -> None:
    """To be called before NumPy is imported.

    The threads of NumPy's and SciPy's OpenBLAS wait for more work by spinning, a tenth of a second and more after each
    call, on the cores that compile and train; here they go to sleep at once.
    """
    _open_streams()
    with suppress(OSError):  # the folder may be gone
        if not sys.flags.safe_path and (here := os.getcwd()) not in sys.path:  # as `python -m vmaptune` has it
            sys.path.insert(0, here)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the logarithm of the cycles spun
    gc.set_threshold(NEW_OBJECTS, 10, 10)


class Said:
    """A stream for what a person may read or not: where it cannot be written, a study goes on."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As `write`."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_streams() -> None:
    """Standard streams that are there, that can write any text, and of which none but the output can fail.

    Where a person closed one, the next file to be opened, such as the ledger, would take its number, and be written
    into by whoever writes to that stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
            setattr(sys, name, stream)
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")
    sys.stderr = Said(sys.stderr)


def end(code: int) -> NoReturn:
    """Ends the process without taking everything in it apart, which takes most of a second once programs are compiled.

    After an interruption it ends at once: a program that still compiles would otherwise be waited for. Threads that the
    experiment has started are waited for otherwise, and what was registered for the end is called.
    """
    if code == INTERRUPTED:
        with suppress(OSError, ValueError):  # the terminal may be gone
            _flush()
        os._exit(code)
    try:
        _flush()
    except BrokenPipeError:
        pass  # nobody reads on
    except (OSError, ValueError) as error:
        print(f"error: the output could not be written: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code or FAILED)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        raise SystemExit(code)
    try:
        atexit._run_exitfuncs()
    except AttributeError:  # another Python has no such function: it does it itself, and takes its time
        raise SystemExit(code) from None
    with suppress(OSError, ValueError):
        _flush()
    os._exit(code)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
