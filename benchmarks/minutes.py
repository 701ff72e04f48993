"""A time instead of a count: does `run --minutes M` end when it said it would?

    python benchmarks/minutes.py [--minutes 0.5 1 2] [--experiment EXP] [--json FILE] [-- OPTION ...]

Bar: the whole command ends within a tenth of its time, at least 10 s, with its winner confirmed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import finish, row

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "digits_mlp.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="the times to ask for")
    parser.add_argument("--experiment", default=str(EXPERIMENT), help="whose settings are searched")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("options", nargs="*", help="more options of `run`, after --")
    args = parser.parse_args()
    rows = [timed(minutes, args.experiment, args.options) for minutes in args.minutes]
    return finish("a time instead of a count", rows, args.json)


def timed(minutes: float, experiment: str, options: list[str]) -> dict:
    """One run, as a person types it, from the prompt to the prompt."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vmaptune", "run", experiment, "--minutes", str(minutes), "--quiet", "--json",
                   "--out", str(Path(folder) / "study"), *options]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
    result = json.loads(done.stdout.splitlines()[-1])
    wanted = 60 * minutes
    slack = max(10.0, 0.1 * wanted)
    confirmed = result["best"]["repeats"] > 1
    return row(
        f"seconds of {Path(experiment).stem} {' '.join(['', *options]).strip()} --minutes {minutes:g}", seconds,
        f"{wanted:.0f} ± {slack:.0f}, confirmed", abs(seconds - wanted) <= slack and confirmed,
        trials=result["trials"], rounds=result["rounds"], repeats=result["best"]["repeats"], parts=result["seconds"],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
