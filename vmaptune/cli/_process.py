"""What a command does to its own process, and a library must not do to anyone's: how it begins and how it ends."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from vmaptune.cli._common import INTERRUPTED

NEW_OBJECTS = 50_000  # between two collections of garbage; Python's own 700 let tracing spend a sixth of its time there


def begin() -> None:
    """To be called before NumPy is imported.

    The threads of NumPy's and SciPy's OpenBLAS wait for more work by spinning, a tenth of a second and more after each
    call, on the cores that compile and train; here they go to sleep at once.
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the logarithm of the cycles spun
    gc.set_threshold(NEW_OBJECTS, 10, 10)


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
    except (OSError, ValueError):
        raise SystemExit(code) from None  # Python says what could not be written
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
