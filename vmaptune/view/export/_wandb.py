"""Two tables as Weights & Biases names their columns: one row a run, and one row a step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmaptune.store.states import State
from vmaptune.store.tables import format_rows
from vmaptune.view.export._source import Source, measured
from vmaptune.view.export._tables import cell

STATES = {State.COMPLETE: "finished", State.STOPPED: "finished", State.RUNNING: "running", State.INFEASIBLE: "failed",
          State.FAIL: "crashed"}  # fmt: skip


def write_wandb_csv(source: Source, path: Path) -> None:
    """`runs.csv` (Name, State, Tags, a column for each setting and for each metric's last value) and `history.csv`
    (Name, _step, metrics)."""
    path.mkdir()
    runs: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for trial in source.trials:
        name = f"trial-{trial.trial}"
        tags = [
            f"round-{trial.round}",
            source.kind_of(trial),
            *([f"confirms-{trial.of}"] if trial.of is not None else []),
            *(["winner"] if trial.trial == source.confirmed else []),
        ]
        runs.append(
            {"Name": name, "State": STATES[trial.state], "Tags": ", ".join(tags), "Notes": trial.reason,
             "seed": trial.seed, "_step": trial.steps,
             **{f"config.{n}": cell(v) for n, v in trial.params.items()},
             **{f"summary.{n}": v for n, v in trial.metrics.items()}}
        )  # fmt: skip
        history += [{"Name": name, "_step": p.step, **dict(measured(p))} for p in source.curve(trial.trial)]
    for file, rows, first in (
        ("runs.csv", runs, ["Name", "State", "Tags", "Notes", "seed", "_step"]),
        ("history.csv", history, ["Name", "_step"]),
    ):
        columns = list(dict.fromkeys([*first, *(column for row in rows for column in row)]))
        text = format_rows(rows, columns, "csv")
        (path / file).write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
