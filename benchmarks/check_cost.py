"""What comparing every program with the model as it is written costs of a whole command.

    python benchmarks/check_cost.py [--repeats N] [--json FILE]

The README's command runs with the check and without it, in turns, each time with nothing cached and then again. Bars:
at most a tenth of the command's time with nothing cached, and at most a twentieth, which is their spread, when
everything is cached.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import finish, row

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "digits_mlp.py"
UNCHECKED = """
from vmaptune.engine.check import Checked, Memory
Memory.found = lambda self, program: Checked(True)
"""
COMMAND = "import sys\n{more}\nfrom vmaptune.cli import command\nsys.argv[0] = 'vmaptune'\nsys.exit(command())"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(args.repeats):
        both = [("checked", ""), ("unchecked", UNCHECKED)]
        for how, more in both if turn % 2 == 0 else both[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                for when in ("nothing cached", "again"):
                    taken = timed(more, Path(folder), when)
                    seconds.setdefault((how, when), []).append(taken)
    rows = []
    for when, most in (("nothing cached", 1.10), ("again", 1.05)):
        with_check, without = (seconds[how, when] for how in ("checked", "unchecked"))
        ratio = statistics.median(with_check) / statistics.median(without)
        name = f"time of the whole command with the check, {when}, to that without"
        rows.append(row(name, ratio, f"at most {most:.2f}", ratio <= most, checked=with_check, unchecked=without))
    return finish("what the check costs", rows, args.json)


def timed(more: str, folder: Path, when: str) -> float:
    """Seconds of one run in a process of its own."""
    command = [sys.executable, "-c", COMMAND.format(more=more), "run", str(EXPERIMENT), "--quiet",
               "--out", str(folder / when.replace(" ", "-"))]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "VMAPTUNE_CACHE": str(folder / "cache")}
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
