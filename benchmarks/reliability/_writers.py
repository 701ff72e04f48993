"""A second process on a study that is being written, at a random moment."""

from __future__ import annotations

import random
import time

from _processes import Command
from _report import row
from _studies import Bench, digest, fresh, run


def two_writers(bench: Bench, wanted: int) -> None:
    tally = bench.tally("writers")
    true = digest(bench.reference)
    with Command(bench.place / "cache2") as second:
        while tally["tries"] < wanted and not bench.over:
            draw = random.Random(f"writers {tally['tries']}")
            study = fresh(bench.place / "two")
            pid, started = bench.command.start(run(study))
            while not (study / "writer.json").exists():
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 1.0))
            other = second.run(run(study))
            refused = other.code == 2 and f"process {pid} on" in other.errors
            one = bench.command.end(started)
            tally.add(tries=1, refused=refused, unharmed=one.code == 0 and digest(study) == true)
            if not refused:
                tally.note("errors", other.errors[-400:])
            tally.keep()
    print(f"writers: {tally['refused']} refused of {tally['tries']}", flush=True)


def rows(bench: Bench, wanted: int) -> list[dict]:
    tally = bench.tally("writers")
    return [] if not tally else [
        row(f"a second writer is refused at once and told who holds the study, of {wanted}", tally["refused"],
            f"{wanted}", tally["refused"] == tally["tries"] >= wanted, errors=tally.get("errors", [])[:3]),
        row(f"the first writer's study is the reference to the bit, of {wanted}", tally["unharmed"], f"{wanted}",
            tally["unharmed"] == tally["tries"] >= wanted),
    ]  # fmt: skip
