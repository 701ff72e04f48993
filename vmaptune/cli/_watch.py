"""watch: a running study from another terminal."""

from __future__ import annotations

import argparse
import contextlib

from vmaptune.cli._common import OK


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's command to the parser."""
    command = commands.add_parser("watch", help="follow a running study from another terminal")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument("--once", action="store_true", help="show it once and return")
    command.set_defaults(function=_watch)


def _watch(args: argparse.Namespace) -> int:
    from vmaptune.view.live import watch

    with contextlib.suppress(KeyboardInterrupt):  # the person has seen enough; the study goes on
        watch(args.study, once=args.once)
    return OK
