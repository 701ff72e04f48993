"""run, check, replay: the commands that compile and train."""

from __future__ import annotations

import argparse
import signal
import sys

from vmaptune.cli._common import FAILED, OK, add_experiment, add_search, parse_changes, strict_json
from vmaptune.errors import InputError


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's commands to the parser."""
    _add_run(commands)
    _add_check(commands)
    _add_replay(commands)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("run", help="search an experiment's settings, coarse to fine")
    add_experiment(command)
    add_search(command)
    command.add_argument("--seed", type=int, default=0, help="the study's seed (default 0)")
    command.add_argument("--out", metavar="DIR", help="the study's directory (default runs/<experiment>)")
    command.add_argument(
        "--keep", type=float, metavar="FRACTION", help="share of a round that seeds the next (default 0.15)"
    )
    command.add_argument("--method", help="how a round is drawn: sobol (default), random, halton, grid; or pbt")
    command.add_argument(
        "--expand", action="store_true", help="let the zoom leave the first space where the best lean on it"
    )
    command.add_argument("--lanes", type=int, metavar="L", help="most lanes alive at once (default: all)")
    command.add_argument(
        "--stopping", metavar="RULE", help="stop trials early and refill their lanes: none (default), asha, median"
    )
    command.add_argument(
        "--halving", metavar="NUMBERS", help="the rule's numbers, e.g. eta=3,min_steps=100; alone it means asha"
    )
    command.add_argument("--repeats", type=int, metavar="K", help="seeds of each setting in the search (default 1)")
    command.add_argument("--rank", metavar="BY", help="how repeats are ranked: mean (default), median, lower")
    command.add_argument("--ensemble", type=int, metavar="M", help="pick an ensemble of up to M finalists' models")
    command.add_argument(
        "--structure", metavar="HOW", help="settings of masked layers: auto (default, by measured time), groups, masks"
    )
    command.add_argument("--quiet", action="store_true", help="no live view")
    command.add_argument("--json", action="store_true", help="print one JSON object last")
    command.add_argument("--no-report", action="store_true", help="don't write DIR/report.html")
    command.set_defaults(function=_run)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("check", help="resolve and compile an experiment; train nothing")
    add_experiment(command)
    add_search(command)
    command.set_defaults(function=_check)


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("replay", help="train one trial again, alone, and compare with the ledger")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument("trial", metavar="TRIAL", type=int, help="the trial's number")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    command.set_defaults(function=_replay)


def _run(args: argparse.Namespace) -> int:
    from vmaptune.engine.devices import prepare_devices
    from vmaptune.study import run
    from vmaptune.view.live import live
    from vmaptune.view.summary import summary

    changes = parse_changes(args.changes)
    if args.out is not None and not args.out.strip():
        raise InputError("--out must name a directory, but got an empty name; leave it out for runs/<experiment>")
    prepare_devices()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends a study as Ctrl-C does
    view = None if args.quiet else live(sys.stderr, notes=args.json)
    try:
        study = run(
            args.experiment, trials=args.trials, rounds=args.rounds, steps=args.steps, seed=args.seed,
            out=args.out, keep=args.keep, method=args.method, changes=changes, expand=args.expand,
            plan=args.plan, lanes=args.lanes, stopping=args.stopping, halving=args.halving,
            repeats=args.repeats, rank=args.rank, ensemble=args.ensemble, structure=args.structure,
            listener=view, report=not args.no_report,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
        if view:
            view.close()
    print(strict_json(study.result) if args.json else summary(study.result))
    return OK


def _check(args: argparse.Namespace) -> int:
    from vmaptune.study import check
    from vmaptune.view.summary import check_text

    changes = parse_changes(args.changes)
    found = check(
        args.experiment, trials=args.trials, rounds=args.rounds, steps=args.steps, changes=changes,
        plan=args.plan,
    )  # fmt: skip
    print(check_text(found))
    return OK


def _replay(args: argparse.Namespace) -> int:
    from vmaptune.study import replay
    from vmaptune.view.summary import replay_text

    found = replay(args.study, args.trial)
    print(strict_json(vars(found)) if args.json else replay_text(found))
    return OK if found.agrees else FAILED
