"""Random small models through the package's whole path, against plain JAX in float32 and float64.

    python benchmarks/fuzz.py [--seconds N] [--cases N] [--seed S] [--jobs J] [--json FILE] [--speed]
    python benchmarks/fuzz.py --only CASE        one case again, by its number
    python benchmarks/fuzz.py --spec JSON        one case as it was printed, such as a minimised one
    python benchmarks/fuzz.py --known            faults that were found once

A case is a model of a few random layers, a loss, an optimiser, data and a plan, all drawn from one number. Its trials
are trained by a study, and each of them by a plain loop of jitted steps on the same batches. A number of the ledger is
wrong when it is further from the loop's in float64 than ten times what float32 costs a plain loop there, and than
rounding: losses, metrics, and of each array of the weights a sum that tells it from any other. What float32 costs is
the most of several plain loops whose first weights differ in their last bits, so that a chaotic model is judged as one.

Every case runs in a process with a limit of memory and of time: one that ends the process has failed. A case is caught
where the package found its own program wrong and trained the model as written: its numbers are right, and it is told.
With --speed a case fails instead where a study takes 20 % longer than a plain loop; that needs a quiet machine. Exit
code 1 if any case fails. Takes some 5 s of one core a case.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing._processes import Failure, Limits, Run
from fuzzing._smaller import smaller

MOST_CASES = 2000
MOST_MINIMISED = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, help="stop after so many seconds")
    parser.add_argument("--cases", type=int, help=f"how many, {MOST_CASES} by default")
    parser.add_argument("--seed", type=int, help="of all cases; a fresh one is drawn and printed")
    parser.add_argument("--only", help="the number of one case, or the name of a known one")
    parser.add_argument("--spec", help="one case as JSON")
    parser.add_argument("--known", action="store_true", help="faults that were found once, and nothing else")
    parser.add_argument("--json", type=Path, help="a file for the summary")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of addresses that a process may have")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a processor that a case may take")
    parser.add_argument("--speed", action="store_true", help="time the cases instead of judging their numbers")
    parser.add_argument("--as-found", action="store_true", help="do not look for smaller cases that fail")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def requests(given: argparse.Namespace) -> tuple[list[dict[str, Any]], int | None]:
    """The cases to run and the seed they come from."""
    if given.spec:
        return [{"spec": json.loads(given.spec)}], None
    if given.known or (given.only and not given.only.isdigit()):
        from fuzzing._known import KNOWN

        names = list(KNOWN) if given.known else [given.only]
        if not KNOWN.keys() >= set(names):
            sys.exit(f"--only must be a number or one of {', '.join(KNOWN)}, but got {given.only!r}")
        return [{"spec": KNOWN[name], "name": name} for name in names], None
    if given.only:
        return [{"seed": int(given.only)}], None
    seed = random.SystemRandom().randrange(100_000) if given.seed is None else given.seed
    count = given.cases or (MOST_CASES if given.seconds is None else 100_000)
    return [{"seed": seed * 100_000 + i} for i in range(count)], seed


def main() -> int:
    given = arguments()
    if given.child:
        from fuzzing._child import main as child

        child(given.child, given.memory, given.limit, given.speed)
        return 0
    todo, seed = requests(given)
    if seed is not None:
        print(f"--seed {seed}", flush=True)
    started = time.perf_counter()
    limits = Limits(given.memory, given.limit, given.speed)
    run = Run(limits, given.jobs, said, None if given.seconds is None else started + given.seconds)
    run.cases(todo)
    seconds = time.perf_counter() - started
    for failure in [] if given.as_found else run.failures[:MOST_MINIMISED]:
        found = smaller(failure, limits)
        print(
            f"smaller than case {failure.name}: {described(found.spec)}\n  {found.told}\n  {found.command}", flush=True
        )
        failure.smaller = found.spec
    from fuzzing._child import versions

    summary = {
        "seed": seed, "cases": run.count, "verdicts": dict(run.verdicts), "notes": dict(run.notes),
        "seconds": round(seconds, 1), "cases_per_minute": round(run.count / seconds * 60, 1), "versions": versions(),
        "failures": [vars(failure) for failure in run.failures],
    }  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(summary, indent=1))
    print(", ".join(f"{n} {verdict}" for verdict, n in sorted(run.verdicts.items())), end="")
    print(f": {run.count} cases in {seconds:.0f} s, {summary['cases_per_minute']} a minute")
    for note, n in run.notes.items():
        print(f"note of {n} studies: {note}")
    return 1 if run.failures else 0


def said(failure: Failure) -> None:
    word = "caught" if failure.verdict == "caught" else "FAILED"
    print(f"{word} {failure.name}: {failure.told}\n  {described(failure.spec)}\n  {failure.command}", flush=True)


def described(spec: dict[str, Any] | None) -> str:
    """A case on one line."""
    if spec is None:
        return "not drawn"
    layers = []
    for name, settings, wrap in spec["layers"]:
        inside = " ".join(str(value) for value in settings.values())
        layers.append(f"{name}({inside})" + (f" in {wrap}" if wrap else ""))
    plan = "×".join(str(spec["plan"][part]) for part in ("devices", "tiles", "lanes"))
    return (
        f"{spec['input']['kind']} {[spec['batch'], *spec['input']['shape']]} -> {' -> '.join(layers) or 'nothing'} -> "
        f"{spec['outputs']} by {spec['head']['form']}; {spec['loss']}, {spec['optimizer']}, {spec['kind']}, "
        f"{spec['via']}, {spec['order']}, {spec['mode']}, {plan}"
    )


if __name__ == "__main__":
    sys.exit(main())
