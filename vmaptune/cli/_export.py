"""export: a study in another tool's format."""

from __future__ import annotations

import argparse
import sys

from vmaptune.cli._common import OK


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's command to the parser."""
    command = commands.add_parser("export", help="write a study in another tool's format")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument(
        "--to", required=True, metavar="FORMAT",
        help="csv, json, parquet, optuna, tensorboard, mlflow, wandb-csv or weights",
    )  # fmt: skip
    command.add_argument("--out", metavar="PATH", help="the file or directory to make (default in DIR/export)")
    command.set_defaults(function=_export)


def _export(args: argparse.Namespace) -> int:
    from vmaptune.view.export import export

    path = export(args.study, args.to, args.out, _progress if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(path)
    return OK


def _progress(done: int, total: int) -> None:
    if done % 100 == 0:
        print(f"\r{done:,} of {total:,} trials", end="", file=sys.stderr, flush=True)
