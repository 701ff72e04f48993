"""Draws docs/pictures: the live view and panda mode, dark and light, from the ledgers of two real studies.

  python docs/make_pictures.py STUDY PANDA

STUDY is best one that was killed while it ran; PANDA one that `panda` made.
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI

from vmaptune.store.ledger import LedgerReader
from vmaptune.view.live import from_ledger, panel
from vmaptune.view.live._panda import Picture, panda_panel

PICTURES = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 104, 30


def live(directory: str) -> Any:
    """The panel as `watch` would have shown it when the study last wrote."""
    with LedgerReader.open(directory) as reader:
        said = reader.meta()["live"]
        rate = said["steps_seen"] / (said["time"] - reader.rounds()[0].started)  # since everything was compiled
        shown = replace(
            from_ledger(reader),
            state="running",
            silent=None,
            seconds=said["seconds"],
            rate=rate,
            directory="runs/digits_mlp",
        )
    return panel(shown, WIDTH, HEIGHT)


def panda(directory: str) -> Any:
    """The last picture of a babysat model."""
    with LedgerReader.open(directory) as reader:
        meta, trial = reader.meta(), reader.trials()[-1]
        curve = reader.curve(trial.trial)
        before = reader.curve(trial.trial - 1) if trial.trial else []
        marks, changed = [], {}
        for decision in reader.decisions():
            data = decision.data
            text = {"snapshot": "snapshot", "rollback": f"back from {data.get('from')}"}.get(
                decision.kind, f"{data.get('name')} {data.get('from', 0)!s:.8} → {data.get('to', 0)!s:.8}"
            )
            if decision.kind != "adjust" or data["trial"] == trial.trial:
                marks.append((data["step"], decision.kind, text))
                changed |= {data["name"]: data["to"]} if decision.kind == "adjust" else {}
    static = set(meta["static"])
    settings = {name: value for name, value in {**trial.params, **changed}.items() if name not in static}
    picture = Picture(
        name="runs/digits_mlp-panda", objective=meta["objective"], step=trial.steps, steps=meta["options"]["steps"],
        losses=[(p.step, p.loss) for p in curve], values=[(p.step, p.value) for p in curve], settings=settings,
        chosen=next(iter(settings)), marks=marks, given_up=[(p.step, p.value) for p in before],
        fixed={name: trial.params[name] for name in static},
    )  # fmt: skip
    return panda_panel(picture, WIDTH, HEIGHT)


def main() -> None:
    """Draws the four pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, picture in (("live", live(sys.argv[1])), ("panda", panda(sys.argv[2]))):
        for shade, theme in (("dark", MONOKAI), ("light", DEFAULT_TERMINAL_THEME)):
            console = Console(
                record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
            )
            console.print(picture)
            svg = console.export_svg(
                title=f"vmaptune {'run' if name == 'live' else 'panda'}", theme=theme, unique_id=name
            )
            (PICTURES / f"{name}-{shade}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
