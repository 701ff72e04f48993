"""report.html, kept current while a study runs. It is an extra: whatever goes wrong with it, the study goes on."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from pathlib import Path

from vmaptune.study._progress import Listener

SHARE = 0.02  # of a study's time that reports may take before its end
FIRST_GUESS = 0.25  # seconds for the first one: what a report of 500 trials takes


class RoundReport:
    """Writes the report after a round, where that costs little, and at the end.

    A report of 500 trials takes a quarter of a second, so rounds of less than twelve seconds have none of their own,
    nor has one that ends less than that before the study's end; the last round has one however short it was, and so
    has a study that was interrupted or failed.

    Without Plotly, which is optional, nothing is written; at the end a note says how to get one.
    """

    def __init__(self, directory: Path, listener: Listener, *, wanted: bool = True):
        self._directory, self._listener, self._wanted = directory, listener, wanted
        self._cost = FIRST_GUESS
        self._since = time.perf_counter()
        if wanted:  # now, since a core has nothing to do until the first program compiles
            threading.Thread(target=_packed_javascript, daemon=True).start()

    def write(self, *, last: bool = False, left: float = math.inf) -> None:
        """Writes it, unless it would take more than its share of the time since the one before, or of the `left`
        seconds until the last one."""
        started = time.perf_counter()
        if not self._wanted or (not last and self._cost > SHARE * min(started - self._since, left)):
            return
        try:
            from vmaptune.view.report import available, write_report

            if not available():
                if last:
                    self._listener.note(
                        f"no report was written, because Plotly is not installed: pip install plotly, then "
                        f"`python -m vmaptune report {self._directory}`"
                    )
                return
            write_report(self._directory)
        except Exception as error:
            self._listener.note(
                f"the report could not be written ({type(error).__name__}: {error}); the study goes on, and "
                f"`python -m vmaptune report {self._directory}` tries again"
            )
        self._since = time.perf_counter()
        self._cost = self._since - started


def _packed_javascript() -> None:
    """Packs what every report holds; it is kept."""
    with suppress(Exception):  # the report says what is wrong
        from vmaptune.view.report._plotly import packed_javascript

        packed_javascript()
