"""rescue: what can be saved of a damaged study."""

from __future__ import annotations

import argparse
import shlex

from vmaptune.cli._common import OK


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's command to the parser."""
    command = commands.add_parser("rescue", help="save what can be saved of a damaged study")
    command.add_argument("study", metavar="DIR", help="the damaged study's directory; it is only read")
    command.add_argument("--to", required=True, metavar="NEW", help="the directory of the study to write it into")
    command.set_defaults(function=_rescue)


def _rescue(args: argparse.Namespace) -> int:
    from vmaptune.store.rescue import rescue

    found = rescue(args.study, args.to)
    for table in ("rounds", "trials", "curves", "decisions"):
        lost = found.lost[table]
        what = "curve points" if table == "curves" else table
        print(f"{found.kept[table]} {what}" + (f", {lost} lost" if lost else "" if lost == 0 else ", others unknown"))
    print(f"{len(found.models)} models" + (f"; damaged: {', '.join(found.lost_models)}" if found.lost_models else ""))
    if found.missing:
        print(f"the study's {', '.join(found.missing)} are gone, and what is made from them")
    print(f"written into {args.to}; look at it: python -m vmaptune trials {shlex.quote(args.to)}")
    return OK
