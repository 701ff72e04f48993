"""What a person types: `python -m vmaptune COMMAND ...`. JAX is imported by the commands that need it."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmaptune.errors import InputError, VmaptuneError

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
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
    except KeyboardInterrupt:
        print("\ninterrupted: the study's ledger holds every trial that had finished", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def build_parser() -> argparse.ArgumentParser:
    """The command line. Its help is a contract: a test checks that every option has one."""
    parser = argparse.ArgumentParser(
        prog="vmaptune", description="Hyperparameter search that trains hundreds of small JAX models at once."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = commands.add_parser("run", help="search an experiment's settings, coarse to fine")
    _add_experiment(command)
    _add_search(command)
    command.add_argument("--seed", type=int, default=0, help="the study's seed (default 0)")
    command.add_argument("--out", metavar="DIR", help="the study's directory (default runs/<experiment>)")
    command.add_argument(
        "--keep", type=float, metavar="FRACTION", help="share of a round that seeds the next (default 0.15)"
    )
    command.add_argument("--method", help="how a round is drawn: sobol (default), random, halton, grid")
    command.add_argument(
        "--expand", action="store_true", help="let the zoom leave the first space where the best lean on it"
    )
    command.add_argument("--lanes", type=int, metavar="L", help="most lanes alive at once (default: all)")
    command.add_argument("--quiet", action="store_true", help="no progress line")
    command.add_argument("--json", action="store_true", help="print one JSON object last")
    command.set_defaults(function=_run)

    command = commands.add_parser("check", help="resolve and compile an experiment; train nothing")
    _add_experiment(command)
    _add_search(command)
    command.set_defaults(function=_check)

    command = commands.add_parser("status", help="where a study stands")
    _add_study(command)
    command.set_defaults(function=_status)

    command = commands.add_parser("best", help="a study's best setting")
    _add_study(command)
    command.set_defaults(function=_best)

    command = commands.add_parser("trials", help="every trial of a study")
    _add_study(command)
    command.set_defaults(function=_trials)

    command = commands.add_parser("replay", help="train one trial again, alone, and compare with the ledger")
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument("trial", metavar="TRIAL", type=int, help="the trial's number")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    command.set_defaults(function=_replay)

    command = commands.add_parser("new", help="write a commented experiment to start from")
    command.add_argument("file", metavar="FILE", help="the file to write; it must not exist yet")
    command.set_defaults(function=_new)
    return parser


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", metavar="EXP", help="the experiment's file, or FILE.py:NAME")


def _add_search(command: argparse.ArgumentParser) -> None:
    command.add_argument("--trials", type=int, metavar="N", help="trainings in all, confirmation included")
    command.add_argument("--rounds", type=int, metavar="R", help="rounds, each finer than the last (default 4)")
    command.add_argument("--steps", type=int, metavar="K", help="training steps of a trial")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=EXPR", dest="changes",
        help="replace a setting, e.g. --set 'learning_rate=loguniform(1e-4,1e-2)' or --set width=64",
    )  # fmt: skip
    command.add_argument(
        "--plan", metavar="PLAN", help="pin the plan, e.g. devices=2,lanes=16,every=50 (any of the three)"
    )


def _add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", metavar="DIR", help="the study's directory")
    command.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print (default table)"
    )


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
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


def _run(args: argparse.Namespace) -> int:
    from vmaptune.engine.devices import prepare_devices
    from vmaptune.study import run
    from vmaptune.view.progress import ProgressLine
    from vmaptune.view.summary import summary

    changes = _changes(args.changes)
    if args.out is not None and not args.out.strip():
        raise InputError("--out must name a directory, but got an empty name; leave it out for runs/<experiment>")
    prepare_devices()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends a study as Ctrl-C does
    line = None if args.quiet else ProgressLine(notes=args.json)
    try:
        study = run(
            args.experiment, trials=args.trials, rounds=args.rounds, steps=args.steps, seed=args.seed,
            out=args.out, keep=args.keep, method=args.method, changes=changes, expand=args.expand,
            plan=args.plan, lanes=args.lanes, listener=line,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
        if line:
            line.close()
    print(_strict_json(study.result) if args.json else summary(study.result))
    return OK


def _check(args: argparse.Namespace) -> int:
    from vmaptune.study import check
    from vmaptune.view.summary import check_text

    changes = _changes(args.changes)
    found = check(
        args.experiment, trials=args.trials, rounds=args.rounds, steps=args.steps, changes=changes,
        plan=args.plan,
    )  # fmt: skip
    print(check_text(found))
    return OK


def _status(args: argparse.Namespace) -> int:
    from vmaptune.store.ledger import LedgerReader
    from vmaptune.store.tables import format_rows

    reader = LedgerReader.open(args.study)
    counts = reader.counts()
    row: dict[str, Any] = {
        "study": args.study,
        "state": "finished" if reader.finished() else "unfinished",
        "rounds": len(reader.rounds()),
        "trials": sum(counts.values()),
        **{str(state): counts[state] for state in sorted(counts)},
    }
    print(format_rows([row], list(row), args.format))
    return OK


def _best(args: argparse.Namespace) -> int:
    from vmaptune.store.tables import format_rows
    from vmaptune.study._study import load
    from vmaptune.view.summary import best_lines

    study = load(args.study)
    if args.format == "table":
        print("\n".join(best_lines(study.result)))
    elif args.format == "json":
        print(_strict_json(study.best))
    else:
        best = dict(study.best)
        row = {**{n: v for n, v in best.items() if n != "params"},
               **{f"params.{n}": v for n, v in best["params"].items()}}  # fmt: skip
        print(format_rows([row], list(row), "csv"))
    return OK


def _trials(args: argparse.Namespace) -> int:
    from vmaptune.store.ledger import LedgerReader
    from vmaptune.store.tables import format_rows, trials_csv

    reader = LedgerReader.open(args.study)
    if args.format == "csv":
        print(trials_csv(reader), end="")
        return OK
    rows = [
        {"trial": t.trial, "round": t.round, "state": str(t.state), "reason": t.reason, "seed": t.seed,
         "steps": t.steps, "value": t.value, **{f"params.{n}": v for n, v in t.params.items()}}
        for t in reader.trials()
    ]  # fmt: skip
    print(format_rows(rows, list(rows[0]) if rows else [], args.format))
    return OK


def _replay(args: argparse.Namespace) -> int:
    from vmaptune.study import replay
    from vmaptune.view.summary import replay_text

    found = replay(args.study, args.trial)
    print(_strict_json(vars(found)) if args.json else replay_text(found))
    return OK if found.agrees else FAILED


def _new(args: argparse.Namespace) -> int:
    path = Path(args.file)
    template = (Path(__file__).parent / "template.py.txt").read_text(encoding="utf-8")
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


def _strict_json(value: Any) -> str:
    def clean(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {str(k): clean(v) for k, v in item.items()}
        if isinstance(item, (list, tuple)):
            return [clean(v) for v in item]
        return item

    return json.dumps(clean(value), allow_nan=False)
