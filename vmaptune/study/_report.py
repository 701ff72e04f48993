"""report.html, kept current while a study runs. It is an extra: whatever goes wrong with it, the study goes on."""

from __future__ import annotations

import time
from pathlib import Path

from vmaptune.study._progress import Listener

SHARE = 0.05  # of a study's time that reports may take before its end
FIRST_GUESS = 0.5  # seconds for the first one
MOST_AT_THE_END = 3.0  # seconds, of a study that is interrupted or fails


class RoundReport:
    """Writes the report after a round, where that costs little, and at the end.

    Without Plotly, which is optional, nothing is written and nothing said.
    """

    def __init__(self, directory: Path, listener: Listener, *, wanted: bool = True):
        self._directory, self._listener, self._wanted = directory, listener, wanted
        self._cost = FIRST_GUESS
        self._written = False
        self._since = time.perf_counter()

    def write(self, *, last: bool = False) -> None:
        """Writes it, unless it would take more than its share of the time since the one before."""
        started = time.perf_counter()
        if not self._wanted or (not last and self._cost > SHARE * (started - self._since)):
            return
        try:
            from vmaptune.view.report import available, write_report

            if not available():
                return
            write_report(self._directory)
            self._written = True
        except Exception as error:
            self._listener.note(
                f"the report could not be written ({type(error).__name__}: {error}); the study goes on, and "
                f"`python -m vmaptune report {self._directory}` tries again"
            )
        self._since = time.perf_counter()
        self._cost = self._since - started

    def correct(self) -> None:
        """Writes it again where one is there that has become untrue, and quickly: somebody wants to go home."""
        if self._written and self._cost < MOST_AT_THE_END:
            self.write(last=True)
