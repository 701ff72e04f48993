"""A snapshot as text: one line for a log or a notebook, a panel for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vmaptune.space import Distribution, Space
from vmaptune.view.live._snapshot import Curve, Snapshot
from vmaptune.view.live._spark import bounds_of, sparkline
from vmaptune.view.words import counted, duration, existing, number

WHERE = {"search": "round {round}/{rounds}", "confirm": "confirming", "compile": "compiling"}
FOLDS_FROM = 16  # lines of a terminal: with fewer, what is too long for a line ends in dots
ENDED = {"finished": "finished", "interrupted": "interrupted", "failed": "failed"}


def where(s: Snapshot) -> str:
    """Where the study is, in two or three words."""
    if s.state in ENDED:
        return ENDED[s.state]
    return WHERE.get(s.phase, s.phase).format(round=s.round + 1, rounds=s.rounds)


def rungs(s: Snapshot) -> str:
    """How many of the round's trials came to each rung."""
    steps = [f"step {step:,}: {count:,}" for step, count in s.rungs[:-1]]
    return " → ".join([*steps, f"end: {s.rungs[-1][1]:,}"]) if s.rungs else ""


def settings(params: Mapping[str, Any], space: Space | None = None) -> str:
    """A configuration in one line; a value just below 1 on the scale of 1 - x as its distance from 1."""
    return "  ".join(
        f"{name}={_short(value, space[name] if space is not None and name in space else None)}"
        for name, value in existing(params, space).items()
    )


def _short(value: Any, d: Distribution | None) -> str:
    if not isinstance(value, float):
        return str(value)
    if 0.9 < value < 1 and (d is None or d.kind == "reverseloguniform"):
        return f"1-{number(1 - value, 3)}"
    text = number(value, 3)
    return f"{value:.8g}" if text == "1" else text


def speed(s: Snapshot) -> str | None:
    """Model-steps a second, and their share of what the machine could do."""
    if not s.rate:
        return None
    share = f" ({s.rate / s.bound:.0%} of the machine's bound)" if s.bound else ""
    return f"{s.rate:,.0f} model-steps/s{share}"


def line(s: Snapshot) -> str:
    """The study in one line, for a log or a notebook."""
    parts = [where(s), f"{s.done}/{s.trials} trials", speed(s)]
    if s.left is not None:
        parts.append(f"{duration(s.left)} left")
    if s.winner is not None:
        parts.append(f"{confirmed(s.winner)}, best single value {number(s.winner['best_seen'])}")
    elif s.best is not None:
        parts.append(f"best {number(s.best)}")
    if s.stopped:
        parts.append(f"{s.stopped} stopped")
    if s.infeasible:
        parts.append(f"{s.infeasible} diverged")
    return f"[{duration(s.seconds)}] " + " · ".join(part for part in parts if part)


def confirmed(winner: Mapping[str, Any]) -> str:
    """The winner of a finished study in a few words: not the best single value, which is partly luck."""
    if not winner.get("repeats"):
        return f"winner {number(winner['value'])} (not confirmed)"
    spread = winner.get("value_std")
    plus = f" ± {number(spread)}" if isinstance(spread, float) and math.isfinite(spread) else ""
    return f"winner {number(winner['value'])}{plus} over {counted(winner['repeats'], 'fresh seed')}"


def panel(s: Snapshot, width: int, height: int) -> Any:
    """The study as a rich renderable, no larger than the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    inner = max(20, width - 4)
    folds = height >= FOLDS_FROM
    wrapping: dict[str, Any] = {"overflow": "fold" if folds else "ellipsis", "no_wrap": not folds}
    grid = Table.grid(padding=0)
    grid.add_column(style="dim", no_wrap=True, width=8)
    grid.add_column(no_wrap=True, overflow="ellipsis", width=max(8, inner - 8))
    grid.add_row("rounds", _rounds(s))
    if s.rungs:
        grid.add_row("rungs", Text(rungs(s), **wrapping))
    grid.add_row("done", _bar(s, inner - 8))
    lanes = _lanes(s, wrapping)
    grid.add_row("lanes", lanes)
    if speed(s):
        grid.add_row("speed", Text(speed(s) or "", overflow="ellipsis"))
    params = s.winner["params"] if s.winner is not None else s.best_params
    if s.winner is not None:
        text = confirmed(s.winner).removeprefix("winner ")
        grid.add_row("winner", Text.assemble((f"{s.objective} {text}", "bold green"), overflow="ellipsis"))
    elif s.best is not None:
        grid.add_row("best", Text.assemble((f"{s.objective} {number(s.best)}", "bold green")))
    if params:
        grid.add_row("", Text(settings(params, s.space), overflow="fold", no_wrap=False))
    room = (
        height
        - 7
        - sum(-(-len(text) // max(1, inner - 8)) for text in (rungs(s), lanes.plain, settings(params, s.space)))
    )
    shown = s.curves[: max(0, min(len(s.curves), room))]
    if shown:
        longest = max(len(curve.values) for curve in shown)
        lines = _curves(shown, max(8, min(32, inner // 3, longest)), s.space)
        for line_ in lines:
            line_.truncate(inner - 8, overflow="ellipsis")
        grid.add_row("curves", Text("\n").join(lines))
    title = escape(s.name or s.directory)
    goal = escape(f"{s.direction} {s.objective}")
    quiet = s.silent is not None and s.silent > 60
    foot = f"nothing written for {duration(s.silent or 0)}: is it still running?" if quiet else escape(s.directory)
    return Panel(
        grid, title=f"[bold]{title}[/] · {goal}", title_align="left", box=box.ROUNDED, border_style="dim",
        subtitle=f"[yellow]{foot}[/]" if quiet else f"{foot} · {duration(s.seconds)}", subtitle_align="right",
        width=width,
    )  # fmt: skip


def _curves(shown: Sequence[Curve], width: int, space: Space | None) -> list[Any]:
    """A line for each curve: the trial, its sparkline, where it is now, and its setting."""
    from rich.text import Text

    bounds = bounds_of([curve.values for curve in shown])
    digits = max(len(str(curve.trial)) for curve in shown)
    lines = []
    for curve in shown:
        last = next((v for v in reversed(curve.values) if v is not None), None)
        colour = "cyan" if curve.running else "green"
        lines.append(
            Text.assemble(
                (f"{'★' if curve.winner else '#'}{curve.trial}".rjust(digits + 1), "dim"),
                (" " + sparkline(curve.values, width, bounds).ljust(width), colour),
                (" " + (number(last) if last is not None else "").rjust(8), colour),
                ("  " + settings(curve.params, space), "dim"),
            )
        )
    return lines


def _rounds(s: Snapshot) -> Any:
    from rich.text import Text

    text = Text()
    over = s.state == "finished"
    for number_ in range(s.rounds):
        past = over or number_ < s.round or s.phase == "confirm"
        now = not past and number_ == s.round
        text.append("●" if past else "◉" if now else "○", style="green" if past else "bold cyan" if now else "dim")
        text.append("━" if past else "─", style="green" if past else "dim")
    confirming = s.phase == "confirm" and not over
    text.append("◆" if over or confirming else "◇", style="green" if over else "bold cyan" if confirming else "dim")
    text.append(f"  {where(s)}", style="bold")
    return text


def _bar(s: Snapshot, width: int) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    share = s.model_steps / s.total_steps if s.total_steps else s.done / max(1, s.trials)
    share = 1.0 if s.state == "finished" else min(1.0, share)
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column()
    row.add_column(no_wrap=True, overflow="ellipsis")
    text = f"{share:4.0%}  {s.done}/{s.trials} trials"
    if s.left is not None:
        text += f"  {duration(s.left)} left"
    row.add_row(ProgressBar(total=1.0, completed=share, width=max(6, min(36, width - len(text) - 4))), Text(text))
    return row


def _lanes(s: Snapshot, wrapping: Mapping[str, Any]) -> Any:
    from rich.text import Text

    parts = []
    if s.alive is not None:
        parts.append((f"{s.alive} alive", "cyan"))
    if s.waiting:
        parts.append((f"{s.waiting} waiting", ""))
    if s.complete is not None:
        parts.append((f"{s.complete} complete", "green"))
    parts.append((f"{s.stopped} stopped", "" if s.stopped else "dim"))
    if s.refilled is not None:
        parts.append((f"{s.refilled} refilled", "" if s.refilled else "dim"))
    parts.append((f"{s.infeasible} infeasible", "yellow" if s.infeasible else "dim"))
    text = Text(**wrapping)
    for i, (words, style) in enumerate(parts):
        text.append(" · " if i else "", style="dim")
        text.append(words, style=style)
    return text
