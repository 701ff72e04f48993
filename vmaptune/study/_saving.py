"""When a study saves itself, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vmaptune.store.checkpoints import Checkpoints, Snapshot

SAVE_EVERY = 60.0  # seconds


class Interrupted(KeyboardInterrupt):
    """A study that was asked to stop, and is saved. Its text says how to go on."""


class Saving:
    """Saves checkpoints while a study trains. The clock decides when, and nothing else."""

    def __init__(self, checkpoints: Checkpoints, every: float = SAVE_EVERY):
        self.checkpoints, self.every = checkpoints, every
        self.stop = False  # somebody asked to stop at the next call
        self.taken = 0
        self.seconds = 0.0  # that the devices had nothing to do because of saves
        self._last = time.monotonic()

    def between_calls(self, now: Callable[[], Snapshot], settle: Callable[[], None] = lambda: None) -> None:
        """Saves when it is time to. `settle` waits for the calls under way: time that no save costs.

        Raises:
          Interrupted: somebody asked to stop. StudyError: the last checkpoint could not be written.
        """
        if self.stop:
            self.save(now, wait=True)
            raise Interrupted
        if time.monotonic() - self._last >= self.every and not self.checkpoints.busy:
            settle()
            self.save(now)

    def stop_now_if_asked(self) -> None:
        """Raises Interrupted when somebody asked to stop; called where the ledger alone is the whole moment."""
        if self.stop:
            raise Interrupted

    def save(self, now: Callable[[], Snapshot], *, wait: bool = False) -> None:
        """Saves now; `wait` until it is on disk. Raises StudyError when it, or the last one, cannot be written."""
        started = time.monotonic()
        self.checkpoints.save(now())
        if wait:
            self.checkpoints.wait()
        self._last = time.monotonic()
        self.taken += 1
        self.seconds += self._last - started

    def summary(self) -> dict[str, float]:
        """What saving has cost this process so far."""
        return {"every": self.every, "taken": self.taken, "seconds": self.seconds}

    @contextmanager
    def listening(self, note: Callable[[str], None]) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the study inside: the first after the call under way, the second at once.

        Only in the main thread; elsewhere signals stay as they are.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            note("stopping after this segment; once more stops at once")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
