"""export: a study in another tool's format."""

from __future__ import annotations

import argparse

from vmaptune.cli._common import OK


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's command to the parser."""
    command = commands.add_parser("export", help="write a study in another tool's format")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument(
        "--to", required=True, metavar="FORMAT",
        help="csv, json, parquet, optuna, tensorboard, mlflow or wandb-csv",
    )  # fmt: skip
    command.add_argument("--out", metavar="PATH", help="the file or directory to make (default in DIR/export)")
    command.set_defaults(function=_export)


def _export(args: argparse.Namespace) -> int:
    from vmaptune.view.export import export

    print(export(args.study, args.to, args.out))
    return OK
