"""Kills, stops, damage, full disks, bad numbers and two writers, against the real command.

    python benchmarks/reliability/reliability.py [--quick] [--json FILE] [--only PART ...] [--place DIR]

Every row is "n of N": studies killed with SIGKILL at random moments, many of them within a save, and resumed; Ctrl-C
and SIGTERM, once and twice; state files with flipped bits and cut short; a disk that is full; NaN and infinities forced
in one lane; two processes on one study; what checkpoints cost; and whether `retest` tells old data from new. With
`--place DIR` the tallies are kept there after every try: the benchmark may be interrupted, and the same command goes on
with it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import _cost
import _damage
import _disk
import _kills
import _numbers
import _retest
import _stops
import _writers
from _processes import Command
from _report import finish
from _studies import Bench

# the part's name -> its tries, the rows of what was counted, and how many tries it takes
PARTS: dict[str, tuple[Callable[[Bench, int], None], Callable[[Bench, int], list[dict]], int]] = {
    "kills": (_kills.kills, _kills.rows, 200),
    "stops": (_stops.stops, _stops.rows, 40),
    "damage": (_damage.damage, _damage.rows, 100),
    "rescue": (_damage.rescues, _damage.rescue_rows, 100),
    "disk": (_disk.full_disk, _disk.rows, 20),
    "writers": (_writers.two_writers, _writers.rows, 20),
    "bad": (_numbers.bad_numbers, _numbers.rows, 50),
    "retest": (_retest.retests, _retest.rows, 5),
    "cost": (_cost.saves, _cost.save_rows, 3),
    "default": (_cost.default_run, _cost.default_rows, 1),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tries; the bars stay")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="which parts (default all)")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further try after so long")
    parser.add_argument("--place", metavar="DIR", help="where studies and tallies are kept, to go on with them later")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        place = Path(args.place or folder).absolute()
        with Command(place / "cache") as command:
            bench = Bench(place, command, until)
            for name in args.only:
                tries, _, wanted = PARTS[name]
                tries(bench, max(1, wanted // 10) if args.quick else wanted)
            rows = [r for _, of, n in PARTS.values() for r in of(bench, max(1, n // 10) if args.quick else n)]
    return finish("reliability", rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
