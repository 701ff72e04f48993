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
FORGETS = 0.9  # of a long wait for the calls under way, what is expected at the next save


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
        self._seq = -1  # of the last moment that was saved
        self._settling = 0.0  # seconds that the calls under way took at the saves before, the longest of late

    def between_calls(
        self, now: Callable[[], Snapshot], settle: Callable[[], None] = lambda: None, *, busy: bool = True
    ) -> None:
        """Saves when it is time to. `settle` waits for the calls under way: time that no save costs.

        A moment holds what those calls bring, so it is begun as long before it is due as they are expected to take:
        two moments lie `every` apart, or a call where that takes longer.

        Raises:
          Interrupted: somebody asked to stop. StudyError: the last checkpoint could not be written.
        """
        if self.stop:
            self.save(now, wait=True)
            raise Interrupted
        started = time.monotonic()
        due = started + self._settling - self._last >= self.every
        if due and busy and not self.checkpoints.busy:
            settle()
            self._settling = max(time.monotonic() - started, FORGETS * self._settling)
            self.save(now)

    def before_a_wait(self, now: Callable[[], Snapshot], seq: int) -> None:
        """Saves what the ledger has up to its row `seq`, unless that is saved: the devices have nothing to do.

        Raises StudyError when the last checkpoint could not be written.
        """
        if seq != self._seq:
            self.save(now)

    def stop_now_if_asked(self) -> None:
        """Raises Interrupted when somebody asked to stop; called where the ledger alone is the whole moment."""
        if self.stop:
            raise Interrupted

    def save(self, now: Callable[[], Snapshot], *, wait: bool = False) -> None:
        """Saves now; `wait` until it is on disk. Raises StudyError when it, or the last one, cannot be written."""
        started = time.monotonic()
        moment = now()
        self.checkpoints.save(moment)
        self._seq = moment.seq
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
        """Ctrl-C, SIGTERM and the end of a terminal stop the study inside: the first after the call under way, the
        second at once.

        Only in the main thread; elsewhere signals stay as they are, as does a SIGHUP that is ignored (`nohup`).
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self.stop:
                raise KeyboardInterrupt
            self.stop = True
            note("stopping after this segment; once more stops at once")

        heard = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not on Windows
            heard.append(signal.SIGHUP)
        before = {number: signal.signal(number, ask) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
