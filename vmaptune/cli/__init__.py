"""What a person types: `python -m vmaptune COMMAND ...`.

One module for each family of commands; each adds its commands with `add_commands`, and a command imports what it
needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import vmaptune
from vmaptune.cli import _export, _look, _new, _panda, _process, _report, _rescue, _search, _table, _watch
from vmaptune.cli._common import FAILED, INTERRUPTED, MISTAKE, NOTHING_TRAINED, OK
from vmaptune.errors import InputError, VmaptuneError

FAMILIES = (
    _search,
    _panda,
    _table,
    _watch,
    _look,
    _report,
    _export,
    _rescue,
    _new,
)  # in the order in which --help lists their commands


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    started = time.perf_counter()  # before anything slow is imported
    parser = build_parser()
    args = parser.parse_args(argv)
    args.started = started
    if not args.command:
        parser.print_help()
        return MISTAKE
    try:
        return args.function(args) or OK
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except VmaptuneError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.filename is not None:
            raise
        print(f"error: the output could not be written: {error.strerror or error}", file=sys.stderr)
        return FAILED


def command() -> None:
    """One command as a process."""
    _process.begin()
    _process.end(main())


def build_parser() -> argparse.ArgumentParser:
    """The command line. Its help is a contract: a test checks that every option has one."""
    parser = argparse.ArgumentParser(
        prog="vmaptune", description="Hyperparameter search that trains hundreds of small JAX models at once.",
        epilog=f"exit codes: {OK} done, {FAILED} failed, {MISTAKE} a mistake in what was typed, {NOTHING_TRAINED} "
        f"nothing trained to a finite result, {INTERRUPTED} interrupted",
    )  # fmt: skip
    parser.add_argument(
        "--version", action="version", version=f"vmaptune {vmaptune.__version__}", help="say which this is"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for family in FAMILIES:
        family.add_commands(commands)
    return parser
