"""status, best, trials: what the ledger says."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from vmaptune.cli._common import OK, add_study, strict_json


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's commands to the parser."""
    for name, text, function in (
        ("status", "where a study stands", _status),
        ("best", "a study's best setting", _best),
        ("trials", "every trial of a study", _trials),
    ):
        command = commands.add_parser(name, help=text)
        add_study(command)
        command.set_defaults(function=function)


def _status(args: argparse.Namespace) -> int:
    from vmaptune.store.ledger import LedgerReader
    from vmaptune.store.tables import format_rows

    reader = LedgerReader.open(args.study)
    counts = reader.counts()
    row: dict[str, Any] = {
        "study": args.study,
        "state": _state(reader),
        "rounds": len(reader.rounds()),
        "trials": sum(counts.values()),
        **{str(state): counts[state] for state in sorted(counts)},
    }
    print(format_rows([row], list(row), args.format))
    if row["state"] not in ("finished", "running") and args.format == "table":
        left = reader.meta().get("options", {}).get("trials", 0) - sum(n for s, n in counts.items() if s.ended)
        how = f"python -m vmaptune resume {shlex.quote(str(args.study))}"
        print(f"{left:,} trials are still to be trained; go on with: {how}")
    return OK


def _state(reader: Any) -> str:
    """finished; running; or how a study that can be gone on with has stopped: interrupted, failed, killed."""
    from vmaptune.store.lock import holder

    if reader.finished():
        return "finished"
    state = str(reader.meta().get("state"))
    if state == "running":
        return "running" if holder(reader.directory) else "killed"
    return state


def _best(args: argparse.Namespace) -> int:
    from vmaptune.store.tables import PLACE, format_rows
    from vmaptune.study._study import load
    from vmaptune.view.summary import best_lines, finalist_lines

    study = load(args.study)
    if args.format == "table":
        print("\n".join([*best_lines(study.result, study.space), *finalist_lines(study.result, study.space)]))
    elif args.format == "json":
        print(strict_json({**study.best, "finalists": study.finalists}))
    else:
        rows = [
            {PLACE: i + 1, **{n: v for n, v in one.items() if n != "params"},
             **{f"params.{n}": v for n, v in one["params"].items()}}
            for i, one in enumerate([study.best, *study.finalists[1:]])
        ]  # fmt: skip
        print(format_rows(rows, list(rows[0]), "csv"))
    return OK


def _trials(args: argparse.Namespace) -> int:
    from vmaptune.store.ledger import LedgerReader
    from vmaptune.store.tables import CONFIRMED, PLACE, finalists_of, format_rows, trials_csv

    reader = LedgerReader.open(args.study)
    if args.format == "csv":
        print(trials_csv(reader), end="")
        return OK
    finalists = finalists_of(reader.meta())
    more = [PLACE, *CONFIRMED] if finalists else []
    rows = [
        {"trial": t.trial, "round": t.round, "state": str(t.state), "reason": t.reason, "seed": t.seed,
         "steps": t.steps, "value": t.value, **{f"params.{n}": v for n, v in t.params.items()},
         **{column: finalists.get(t.trial, {}).get(column) for column in more}}
        for t in reader.trials()
    ]  # fmt: skip
    print(format_rows(rows, list(rows[0]) if rows else [], args.format))
    return OK
