"""`watch`: a running study from another terminal, from its ledger alone."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from vmaptune.store.ledger import LedgerReader
from vmaptune.view.live._draw import line, panel
from vmaptune.view.live._lines import LOG_EVERY
from vmaptune.view.live._snapshot import Rate, Snapshot, from_ledger

EVERY = 1.0  # seconds
SHARE = 0.005  # of one core


def watch(directory: str | Path, *, once: bool = False, stream: TextIO | None = None) -> Snapshot:
    """Shows a study until it ends, in a terminal as a panel, elsewhere as lines; returns the last picture.

    Raises:
      InputError: there is no study at this path. StudyError: it cannot be read.
    """
    out = stream or sys.stdout
    with LedgerReader.open(directory) as reader:
        terminal = out.isatty()
        return _panels(reader, once, out) if terminal else _lines(reader, once, out)


def _lines(reader: LedgerReader, once: bool, out: TextIO) -> Snapshot:
    rate = Rate()
    while True:
        shown = from_ledger(reader, rate)
        print(line(shown), file=out, flush=True)
        if once or shown.state != "running":
            return shown
        _sleep_while_running(reader, LOG_EVERY)


def _sleep_while_running(reader: LedgerReader, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and reader.meta().get("state") == "running":
        time.sleep(min(1.0, seconds))


def _panels(reader: LedgerReader, once: bool, out: TextIO) -> Snapshot:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=out, highlight=False)
    rate = Rate()
    shown = from_ledger(reader, rate)
    if once:
        console.print(panel(shown, console.width, console.height))
        return shown
    with Live(panel(shown, console.width, console.height), console=console, auto_refresh=False) as live:
        while shown.state == "running":
            started = time.process_time()
            shown = from_ledger(reader, rate)
            live.update(panel(shown, console.width, console.height), refresh=True)
            if shown.state == "running":
                time.sleep(max(EVERY, (time.process_time() - started) / SHARE))
    return shown
