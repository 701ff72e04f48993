"""report: the study as a page, and its pictures as PNG."""

from __future__ import annotations

import argparse

from vmaptune.cli._common import OK


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's commands to the parser."""
    command = commands.add_parser("report", help="write a study's report: one HTML file that needs no network")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument("--out", metavar="FILE", help="the file to write (default DIR/report.html)")
    command.add_argument(
        "--png", action="store_true", help="write every picture as PNG too, into DIR/pictures (or beside --out)"
    )
    command.set_defaults(function=_report)


def _report(args: argparse.Namespace) -> int:
    from pathlib import Path

    from vmaptune.errors import InputError
    from vmaptune.view.report import write_pictures, write_report

    if args.out is not None and not args.out.strip():
        raise InputError("--out must name a file, but got an empty name; leave it out for DIR/report.html")
    path = write_report(args.study, args.out)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
    if args.png:
        written = write_pictures(args.study, Path(args.out).parent / "pictures" if args.out else None)
        print(f"wrote {len(written)} pictures into {written[0].parent}")
    return OK
