"""What a person sees of the one model that they babysit, and the keys that they press."""

from __future__ import annotations

import contextlib
import math
import os
import select
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from vmaptune.view.live._lines import put
from vmaptune.view.live._plot import plot
from vmaptune.view.words import duration, number

KEYS = {
    "p": "pause / go on", "+": "up", "-": "down", "*": "up", "/": "down", "\t": "next setting", "s": "snapshot",
    "r": "roll back", "q": "stop and keep",
}  # fmt: skip
HELP = "p pause · Tab setting · + - up, down · s snapshot · r roll back · q stop and keep"
EVERY = 0.25  # seconds between two drawings
LINES_EVERY = 2.0
SHARE = 0.01


@dataclass(frozen=True)
class Picture:
    """One model at one moment."""

    name: str
    objective: str
    step: int
    steps: int
    losses: Sequence[tuple[int, float | None]]  # mean training loss
    values: Sequence[tuple[int, float | None]]  # the objective
    settings: Mapping[str, Any]  # those that can be changed
    chosen: str | None
    marks: Sequence[tuple[int, str, str]] = ()  # (step, kind, text)
    paused: bool = False
    message: str = ""
    seconds: float = 0.0
    rate: float | None = None  # steps a second
    fixed: Mapping[str, Any] = field(default_factory=dict)  # static settings
    given_up: Sequence[tuple[int, float | None]] = ()  # the objective before the last return to a snapshot


def panda_panel(p: Picture, width: int, height: int, keys: bool = True) -> Any:
    """The curve, the settings and the last changes as a rich renderable."""
    from rich import box
    from rich.markup import escape
    from rich.panel import Panel
    from rich.text import Text

    inner = max(24, width - 4)
    last = p.values[-1][1] if p.values else None
    loss = p.losses[-1][1] if p.losses else None
    rows: list[Any] = []
    head = Text.assemble((f"step {p.step:,}/{p.steps:,}", "bold"))
    if p.rate:
        head.append(f"  {p.rate:,.0f} steps/s  {duration(max(0, p.steps - p.step) / p.rate)} left", style="dim")
    if p.paused:
        head.append("  paused", style="bold yellow")
    rows.append(head)
    legend = Text(f"⣿ {p.objective} {number(last) if last is not None else '-'}", style="green")
    if not p.losses or any(value is not None and math.isfinite(value) for _, value in p.losses):  # else it has none
        legend.append(f"   ⣿ training loss {number(loss) if loss is not None else '-'}", style="blue")
    rows.append(legend)
    tall = max(3, min(14, height - 11 - min(3, len(p.marks))))
    curves = [("bright_black", p.given_up), ("blue", p.losses), ("green", p.values)]
    rows += plot(curves, p.steps, inner, tall, [(step, kind) for step, kind, _ in p.marks])
    line = Text()
    for name, value in p.settings.items():
        chosen = name == p.chosen
        line.append(f"{'▸' if chosen else ' '}{name}={_value(value)}  ", style="bold cyan" if chosen else "")
    for name, value in p.fixed.items():
        line.append(f" {name}={number(value)}  ", style="dim")
    rows.append(line)
    rows += [Text(f"{step:>7,}  {text}", style="yellow") for step, _, text in list(p.marks)[-3:]]
    if p.message:
        rows.append(Text(p.message, style="bold yellow"))
    text = Text("\n").join(rows)
    return Panel(
        text, title=f"[bold]{escape(p.name)}[/] · one model", title_align="left", box=box.ROUNDED, border_style="dim",
        subtitle=HELP if keys else None, subtitle_align="left", width=width,
    )  # fmt: skip


def panda_line(p: Picture) -> str:
    """The same in one line, for a log."""
    last = p.values[-1][1] if p.values else None
    loss = p.losses[-1][1] if p.losses else None
    parts = [f"step {p.step}/{p.steps}"]
    if loss is not None and any(value is not None and math.isfinite(value) for _, value in p.losses):
        parts.append(f"loss {number(loss)}")
    if last is not None:
        parts.append(f"{p.objective} {number(last)}")
    return f"[{duration(p.seconds)}] " + " · ".join([*parts, *(f"{n}={_value(v)}" for n, v in p.settings.items())])


def _value(value: Any) -> str:
    return f"1-{number(1 - value, 3)}" if isinstance(value, float) and 0.99 < value < 1 else number(value)


class PandaScreen:
    """Draws pictures: redrawn in a terminal, now and then a line elsewhere."""

    def __init__(self, stream: TextIO | None = None, *, keys: bool = True, quiet: bool = False):
        self.stream, self.keys, self.quiet = stream or sys.stderr, keys, quiet
        self._live: Any = None
        self._next = 0.0
        self._marks = 0
        if not quiet and self.stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            self._console = Console(file=self.stream, highlight=False)
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
            self._live.start()

    def show(self, picture: Picture, now: bool = False) -> None:
        """Draws, unless it was done a moment ago."""
        new = len(picture.marks) > self._marks
        if self.quiet or (time.monotonic() < self._next and not now and not new):
            return
        self._marks = len(picture.marks)
        if self._live is not None:
            started = time.thread_time()
            width, height = self._console.size
            self._live.update(panda_panel(picture, width, height, self.keys), refresh=True)
            self._next = time.monotonic() + max(EVERY, (time.thread_time() - started) / SHARE)
            return
        with contextlib.suppress(BrokenPipeError):
            if new:
                step, _, text = picture.marks[-1]
                put(f"step {step}: {text}", self.stream)
            put(panda_line(picture), self.stream)
        self._next = time.monotonic() + LINES_EVERY

    def close(self) -> None:
        """Leaves the last picture."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Keyboard:
    """Single keys from a terminal, without waiting for Enter; none where standard input is no terminal."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdin
        self._saved: Any = None
        self.there = False

    def __enter__(self) -> Keyboard:
        try:
            import termios
            import tty

            if self.stream.isatty():
                self._saved = termios.tcgetattr(self.stream)
                tty.setcbreak(self.stream)
                self.there = True
        except (ImportError, ValueError, OSError):  # not on Windows
            self.there = False
        return self

    def __exit__(self, *_: Any) -> None:
        if self._saved is not None:
            import termios

            termios.tcsetattr(self.stream, termios.TCSADRAIN, self._saved)

    def pressed(self, wait: float = 0.0) -> str | None:
        """The next key, or None when none comes within `wait` seconds."""
        if not self.there:
            return None
        ready, _, _ = select.select([self.stream], [], [], wait)
        return os.read(self.stream.fileno(), 1).decode("utf-8", "ignore") if ready else None
