"""new: an experiment to start from."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from vmaptune.cli._common import OK
from vmaptune.errors import InputError


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's command to the parser."""
    command = commands.add_parser("new", help="write a commented experiment to start from")
    command.add_argument("file", metavar="FILE", help="the file to write; it must not exist yet")
    command.set_defaults(function=_new)


def _new(args: argparse.Namespace) -> int:
    path = Path(args.file)
    template = (Path(__file__).parent.parent / "template.py.txt").read_text(encoding="utf-8")
    text = template.replace("FILE", shlex.quote(path.as_posix())).encode("utf-8", "backslashreplace")
    try:
        with path.open("xb") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"new: {path} exists already and is left as it is; name a file that does not exist") from None
    except OSError as error:
        raise InputError(f"new: {path} cannot be written: {error.strerror}; name another place") from error
    print(f"wrote {path}; try: python -m vmaptune check {shlex.quote(str(path))}")
    return OK
