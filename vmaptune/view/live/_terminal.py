"""The live view in a terminal: a panel that a thread of its own redraws, as often as 1 % of the time pays for."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, TextIO

from vmaptune.errors import VmaptuneError
from vmaptune.store.ledger import LedgerReader
from vmaptune.view.live._draw import panel
from vmaptune.view.live._snapshot import Looked, Rate, Snapshot, from_progress, look

LEAST = 0.5  # seconds between two drawings
LEAST_LOOK = 2.0  # seconds between two looks into the ledger
DRAWING_SHARE = 0.002  # of the time, on one core
LOOKING_SHARE = 0.001


class TerminalView:
    """A listener that draws a study in a terminal (standard error by default).

    The study's thread only leaves its last `Progress` here. Drawing and reading the ledger happen in another
    thread, which measures what they cost and waits long enough for it to stay below a third of a per cent of one core.
    """

    def __init__(self, stream: TextIO | None = None, *, notes: bool = True, width: int | None = None):
        from rich.console import Console

        self.console = Console(file=stream or sys.stderr, highlight=False, width=width)
        self.notes = notes  # the summary prints them too
        self._last: tuple[Any, float] | None = None  # the progress, and when it came
        self._rate = Rate()
        self._looked: Looked | None = None
        self._reader: LedgerReader | None = None
        self._next_look = 0.0
        self._live: Any = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def progress(self, progress: Any) -> None:
        """Leaves the progress for the next drawing."""
        now = time.monotonic()
        self._rate.update(now, progress.steps_seen or progress.model_steps, progress.phase == "compile")
        self._last = (progress, now)
        if self._thread is None:
            self._start()

    def note(self, text: str) -> None:
        """Prints a note above the panel."""
        if self.notes:
            self.console.print(f"note: {text}", markup=False)

    def say(self, text: str) -> None:
        """Prints what is of this moment above the panel: no summary will say it."""
        self.console.print(text, markup=False)

    def close(self) -> None:
        """Removes the panel; the summary says what it said."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _start(self) -> None:
        from rich.live import Live

        self._over.clear()
        self._live = Live(
            self._picture(), console=self.console, auto_refresh=False, transient=True,
            redirect_stdout=sys.stdout.isatty(), redirect_stderr=True,
        )  # fmt: skip
        self._live.start()
        self._thread = threading.Thread(target=self._draw, name="vmaptune-view", daemon=True)
        self._thread.start()

    def _draw(self) -> None:
        wait = LEAST
        while not self._over.wait(wait):
            started = time.thread_time()
            now = time.monotonic()
            if now >= self._next_look:
                self._look()
                cost = time.thread_time() - started
                self._next_look = now + max(LEAST_LOOK, cost / LOOKING_SHARE)
                started = time.thread_time()
            self._live.update(self._picture(), refresh=True)
            wait = max(LEAST, (time.thread_time() - started) / DRAWING_SHARE)

    def _look(self) -> None:
        assert self._last is not None
        progress = self._last[0]
        try:
            if self._reader is None and progress.directory:
                self._reader = LedgerReader.open(progress.directory)
            if self._reader is not None:
                self._looked = look(self._reader, progress.direction)
        except VmaptuneError:
            pass  # the curves stay as they were: a view must not end a study

    def snapshot(self) -> Snapshot:
        """The study now."""
        from dataclasses import replace

        assert self._last is not None
        progress, came = self._last
        now = time.monotonic()
        steps = progress.steps_seen or progress.model_steps
        shown = from_progress(progress, self._rate.update(now, steps, progress.phase == "compile"), self._looked)
        return replace(shown, seconds=shown.seconds + now - came)

    def _picture(self) -> Any:
        return panel(self.snapshot(), self.console.width, self.console.height)
