"""What several commands share: exit codes, arguments, and JSON that any reader accepts."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from vmaptune.errors import InputError

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
NOTHING_TRAINED = 3  # no configuration came to a finite result


def add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", metavar="EXP", help="the experiment's file, or FILE.py:NAME")


def add_search(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trials", type=int, metavar="N", help="trainings in all, confirmation included; fewer where it is sure before"
    )
    command.add_argument("--minutes", type=float, metavar="M", help="instead of --trials: as many as fit, all included")
    command.add_argument("--rounds", type=int, metavar="R", help="rounds, each finer than the last (default 6)")
    command.add_argument("--steps", type=int, metavar="K", help="training steps of a trial")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=EXPR", dest="changes",
        help="replace a setting, e.g. --set 'learning_rate=loguniform(1e-4,1e-2)' or --set width=64",
    )  # fmt: skip
    command.add_argument(
        "--plan", metavar="PLAN", help="pin the plan, e.g. devices=2,lanes=16,every=50 (any of the four)"
    )


def add_as_written(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--as-written", action="store_true", help="train models as they are written, not rewritten to run faster"
    )


def add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print (default table)"
    )


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    from vmaptune.space import parse_expression

    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name or not text.strip():
            raise InputError(f"--set must read NAME=EXPR, e.g. --set learning_rate=0.01, but got {pair!r}")
        if name in changes:
            raise InputError(f"--set {name}=...: a setting must be set once, but {name!r} is set twice")
        try:
            changes[name] = parse_expression(text.strip())
        except InputError as error:
            raise InputError(f"--set {name}: {error}") from error
    return changes


def strict_json(value: Any) -> str:
    def clean(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {str(k): clean(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(v) for v in item]
        return item

    return json.dumps(clean(value), allow_nan=False)
