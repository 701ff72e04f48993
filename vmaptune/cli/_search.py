"""run, resume, retest, check, replay: the commands that compile and train."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmaptune.cli._common import (
    FAILED,
    NOTHING_TRAINED,
    OK,
    add_as_written,
    add_experiment,
    add_search,
    parse_changes,
    strict_json,
)
from vmaptune.errors import InputError

CHANGED = "go on although the experiment's file has changed"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's commands to the parser."""
    _add_run(commands)
    _add_resume(commands)
    _add_retest(commands)
    _add_check(commands)
    _add_replay(commands)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("run", help="search an experiment's settings, coarse to fine")
    add_experiment(command)
    add_search(command)
    command.add_argument("--seed", type=int, help="the study's seed (default 0)")
    command.add_argument("--out", metavar="DIR", help="the study's directory (default runs/<experiment>)")
    command.add_argument(
        "--keep", type=float, metavar="FRACTION", help="share of a round that seeds the next (default 0.15)"
    )
    command.add_argument(
        "--method",
        help="how a round is drawn: sobol (default), random, halton, grid; or pbt; or optuna:tpe, gp, cmaes, ...",
    )
    command.add_argument(
        "--expand", action="store_true", help="let the zoom leave the first space where the best lean on it"
    )
    command.add_argument("--lanes", type=int, metavar="L", help="most lanes alive at once (default: all)")
    command.add_argument(
        "--stopping", metavar="RULE",
        help="stop trials early and refill their lanes: none (default), asha, sync, hyperband, median, patience[=K]",
    )  # fmt: skip
    command.add_argument(
        "--halving", metavar="NUMBERS", help="the rule's numbers, e.g. eta=3,min_steps=100; alone it means asha"
    )
    command.add_argument("--repeats", type=int, metavar="K", help="seeds of each setting in the search (default 1)")
    command.add_argument("--rank", metavar="BY", help="how repeats are ranked: mean (default), median, lower")
    command.add_argument("--ensemble", type=int, metavar="M", help="pick an ensemble of up to M finalists' models")
    command.add_argument(
        "--enqueue", metavar="FILE|STUDY",
        help="try these configurations first: a study's finalists, or those of a CSV or JSON file",
    )  # fmt: skip
    command.add_argument(
        "--structure", metavar="HOW", help="settings of masked layers: auto (default, by measured time), groups, masks"
    )
    add_as_written(command)
    command.add_argument("--resume", action="store_true", help="insist that there is an unfinished study to go on with")
    command.add_argument("--fresh", metavar="DIR", help="begin another study in DIR, which must not hold one")
    _add_going_on(
        command, force=f"{CHANGED}, or with other --trials or --rounds; a finished study goes on with more --trials"
    )
    command.set_defaults(function=_run)


def _add_resume(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("resume", help="go on with an unfinished study, to the same bits")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    _add_going_on(command)
    command.set_defaults(function=_resume)


def _add_retest(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("retest", help="is an old best setting still the best, on today's code and data?")
    command.add_argument("study", metavar="DIR", help="the old study's directory; it is only read")
    command.add_argument("--exp", metavar="EXP", help="today's experiment (default: the file that the study ran)")
    command.add_argument("--top", type=int, default=3, metavar="K", help="how many of the old settings (default 3)")
    command.add_argument(
        "--repeats", type=int, default=192, metavar="R",
        help="most fresh seeds of the best old and the best new setting, if it takes so many to tell (default 192)",
    )  # fmt: skip
    command.add_argument(
        "--trials", type=int, default=96, metavar="N",
        help="new draws: a quarter around the old, a quarter anywhere, half where these look best (default 96)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, help="the retest's seed (default the old study's plus 1)")
    command.add_argument("--out", metavar="DIR", help="the retest's own directory (default DIR-retest)")
    _add_going_on(command, force=None)
    command.set_defaults(function=_retest)


def _add_going_on(command: argparse.ArgumentParser, *, force: str | None = CHANGED) -> None:
    if force:
        command.add_argument("--force", action="store_true", help=force)
    command.add_argument(
        "--save-every", type=float, default=60.0, metavar="S",
        help="seconds between checkpoints: the most work that a kill can cost (default 60)",
    )  # fmt: skip
    command.add_argument("--quiet", action="store_true", help="no live view")
    command.add_argument("--json", action="store_true", help="print one JSON object last")
    command.add_argument("--no-report", action="store_true", help="don't write DIR/report.html")


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
    from vmaptune.store.ledger import FILE_NAME, taken
    from vmaptune.study import run

    changes = parse_changes(args.changes)
    for name in ("out", "fresh"):
        value = getattr(args, name)
        if value is not None and not value.strip():
            raise InputError(
                f"--{name} must name a directory, but got an empty name; leave it out for runs/<experiment>"
            )
    if args.fresh is not None:
        if args.out is not None or args.resume:
            raise InputError("--fresh DIR begins another study, so leave out --out and --resume")
        if (Path(args.fresh) / FILE_NAME).exists():
            raise taken(Path(args.fresh))
    return _trained(
        args,
        lambda view: run(
            args.experiment, trials=args.trials, minutes=args.minutes, started=args.started, rounds=args.rounds,
            steps=args.steps, seed=args.seed,
            out=args.fresh or args.out, keep=args.keep, method=args.method, changes=changes, expand=args.expand,
            plan=args.plan, lanes=args.lanes, stopping=args.stopping, halving=args.halving,
            repeats=args.repeats, rank=args.rank, ensemble=args.ensemble, enqueue=args.enqueue,
            structure=args.structure, listener=view, as_written=args.as_written,
            resume=args.resume, force=args.force,
            save_every=args.save_every, report=not args.no_report,
        ),
    )  # fmt: skip


def _resume(args: argparse.Namespace) -> int:
    from vmaptune.study import resume

    return _trained(
        args,
        lambda view: resume(
            args.study,
            listener=view,
            force=args.force,
            save_every=args.save_every,
            report=not args.no_report,
            say=lambda text: print(text, file=sys.stderr),
        ),
    )


def _retest(args: argparse.Namespace) -> int:
    from vmaptune.study import retest

    return _trained(
        args,
        lambda view: retest(
            args.study, args.exp, top=args.top, repeats=args.repeats, trials=args.trials, out=args.out,
            seed=args.seed, listener=view,
            save_every=args.save_every, report=not args.no_report, say=lambda text: print(text, file=sys.stderr),
        ),
    )  # fmt: skip


def _trained(args: argparse.Namespace, train: Callable[[Any], Any]) -> int:
    """Trains with a live view, then prints the result."""
    from vmaptune.engine.devices import prepare_devices
    from vmaptune.view.live import live
    from vmaptune.view.summary import summary

    note = prepare_devices()
    if note and (args.quiet or not args.json):  # else the view says it
        print(f"note: {note}", file=sys.stderr)
    view = None if args.quiet else live(sys.stderr, notes=args.json)
    try:
        study = train(view)
    finally:
        if view:
            with contextlib.suppress(OSError):  # the terminal is gone
                view.close()
    print(strict_json(study.result) if args.json else summary(study.result, study.space))
    return OK if study.result["best"] is not None else NOTHING_TRAINED


def _check(args: argparse.Namespace) -> int:
    from vmaptune.study import check
    from vmaptune.view.summary import check_text

    changes = parse_changes(args.changes)
    found = check(
        args.experiment, trials=args.trials, minutes=args.minutes, started=args.started, rounds=args.rounds,
        steps=args.steps, changes=changes, plan=args.plan,
    )  # fmt: skip
    print(check_text(found))
    return OK


def _replay(args: argparse.Namespace) -> int:
    from vmaptune.study import replay
    from vmaptune.view.summary import replay_text

    found = replay(args.study, args.trial)
    print(strict_json(vars(found)) if args.json else replay_text(found))
    return OK if found.agrees else FAILED
