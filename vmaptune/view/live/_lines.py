"""The live view where nothing can be redrawn (a log), and in a notebook: one line."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from vmaptune.errors import VmaptuneError
from vmaptune.store.ledger import LedgerReader
from vmaptune.view.live._draw import line, settings
from vmaptune.view.live._snapshot import Rate, Snapshot, from_ledger, from_progress

LOG_EVERY = 10.0  # seconds
NOTEBOOK_EVERY = 0.5


def put(text: str, stream: TextIO) -> None:
    """Prints a line, as far as the stream takes it: a study goes on where it can't be told of.

    Raises:
      BrokenPipeError: nobody reads any more, so that nothing need be told again.
    """
    try:
        print(text, file=stream, flush=True)
    except UnicodeEncodeError as error:
        print(text.encode(error.encoding, "replace").decode(error.encoding), file=stream, flush=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError):  # full, or closed
        pass


class PlainLines:
    """A listener that writes a line now and then, and one at each new phase."""

    every = LOG_EVERY

    def __init__(self, stream: TextIO | None = None, *, notes: bool = True):
        self.stream = stream or sys.stderr
        self.notes = notes  # the summary prints them too
        self._drawn = -1e9
        self._phase = ""
        self._rate = Rate()

    def progress(self, progress: Any) -> None:
        """Writes the line, unless one was written a moment ago."""
        now = time.monotonic()
        rate = self._rate.update(now, progress.steps_seen or progress.model_steps, progress.phase == "compile")
        phase = f"{progress.phase} {progress.round}"
        if now - self._drawn < self.every and phase == self._phase:
            return
        self._drawn, self._phase = now, phase
        self._write(line(from_progress(progress, rate)))

    def note(self, text: str) -> None:
        """Prints a note on a line of its own."""
        if self.notes:
            put(f"note: {text}", self.stream)

    def say(self, text: str) -> None:
        """Prints what is of this moment: no summary will say it."""
        put(text, self.stream)

    def close(self) -> None:
        """Nothing is left to remove."""

    def _write(self, text: str) -> None:
        put(text, self.stream)


class NotebookLine(PlainLines):
    """A listener that keeps one line of a notebook's output current: plain text, no widget."""

    every = NOTEBOOK_EVERY

    def __init__(self, *, notes: bool = True):
        super().__init__(sys.stdout, notes=notes)
        self._handle: Any = None
        self._last: Any = None

    def progress(self, progress: Any) -> None:
        """Shows the line, unless it was shown a moment ago."""
        self._last = progress
        super().progress(progress)

    def close(self) -> None:
        """Leaves the last state in the notebook, with the winner's setting, or the best so far where there is none."""
        if self._last is not None:
            shown = self._ended(self._last)
            params = shown.winner["params"] if shown.winner is not None else shown.best_params
            self._write(line(shown) + (f"  ({settings(params, shown.space)})" if params else ""))
            self._last = None

    def _ended(self, progress: Any) -> Snapshot:
        """The study as its ledger has it: the winner is known there alone."""
        try:
            with LedgerReader.open(progress.directory) as reader:
                shown = from_ledger(reader)
            if shown.winner is not None:
                return shown
        except VmaptuneError:
            pass
        return from_progress(progress, self._rate.update(time.monotonic(), progress.steps_seen))

    def _write(self, text: str) -> None:
        from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
