"""A study while it runs: a panel in a terminal, lines in a log, one line in a notebook."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from vmaptune.view.live._draw import line, panel
from vmaptune.view.live._lines import NotebookLine, PlainLines
from vmaptune.view.live._snapshot import Snapshot, from_ledger, from_progress
from vmaptune.view.live._terminal import TerminalView
from vmaptune.view.live._watch import watch

__all__ = [
    "NotebookLine", "PlainLines", "Snapshot", "TerminalView", "from_ledger", "from_progress", "line", "live", "panel",
    "watch",
]  # fmt: skip


def live(stream: TextIO | None = None, *, notes: bool = True) -> PlainLines | TerminalView:
    """A listener that shows a study as the place allows: `vt.run(experiment, listener=vt.live())`.

    A panel in a terminal, plain lines elsewhere (a log, a dumb terminal), one line in a notebook. `notes`: whether
    it also prints the study's notes.
    """
    if stream is None and in_notebook():
        return NotebookLine(notes=notes)
    out = stream or sys.stderr
    if out.isatty() and os.environ.get("TERM", "") != "dumb":
        try:
            return TerminalView(out, notes=notes)
        except ImportError:  # rich comes with Flax, but need not
            pass
    return PlainLines(out, notes=notes)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None
