"""One line on long work: redrawn in a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from vmaptune.view.words import duration, number

TERMINAL_EVERY = 0.1  # seconds
PLAIN_EVERY = 10.0


class ProgressLine:
    """A listener that draws a study's progress on a stream (standard error by default)."""

    def __init__(self, stream: TextIO | None = None, *, notes: bool = True):
        self.stream = stream or sys.stderr
        self.notes = notes  # the summary prints them too
        self.terminal = self.stream.isatty()
        self._drawn = -1e9
        self._width = 0
        self._first_step: tuple[float, int] | None = None
        self._phase = ""

    def progress(self, progress: Any) -> None:
        """Draws the line, unless it was drawn a moment ago."""
        now = time.monotonic()
        phase = f"{progress.phase} {progress.round}"
        due = now - self._drawn >= (TERMINAL_EVERY if self.terminal else PLAIN_EVERY)
        if not due and phase == self._phase:
            return
        self._drawn, self._phase = now, phase
        self._write(self._line(progress, now))

    def note(self, text: str) -> None:
        """Prints a note on a line of its own."""
        if not self.notes:
            return
        self._clear()
        print(f"note: {text}", file=self.stream, flush=True)

    def close(self) -> None:
        """Removes the line from a terminal."""
        self._clear()

    def _line(self, p: Any, now: float) -> str:
        where = {"search": f"round {p.round + 1}/{p.rounds}", "confirm": "confirming"}.get(p.phase, "compiling")
        if self._first_step is None and p.model_steps:
            self._first_step = (now, p.model_steps)
        parts = [where, f"{p.done}/{p.trials} trials"]
        if self._first_step and p.model_steps > self._first_step[1] and now > self._first_step[0]:
            rate = (p.model_steps - self._first_step[1]) / (now - self._first_step[0])
            parts.append(f"{rate:,.0f} model-steps/s")
            if rate > 0:
                parts.append(f"{duration(max(0, p.total_steps - p.model_steps) / rate)} left")
        if p.best is not None:
            parts.append(f"best {number(p.best)}")
        if p.infeasible:
            parts.append(f"{p.infeasible} diverged")
        return f"[{duration(p.seconds)}] " + " · ".join(parts)

    def _write(self, line: str) -> None:
        if self.terminal:
            print("\r" + line.ljust(self._width), end="", file=self.stream, flush=True)
            self._width = len(line)
        else:
            print(line, file=self.stream, flush=True)

    def _clear(self) -> None:
        if self.terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self.stream, flush=True)
            self._width = 0
