"""Ctrl-C and SIGTERM at random moments, once or twice: a clean exit, and the same bits at the end."""

from __future__ import annotations

import random
import signal
import time

from _report import row
from _studies import Bench, digest, fresh, is_finished, run

OFTEN = 4  # of one study


def stops(bench: Bench, wanted: int) -> None:
    """Stops studies until that was done so many times."""
    tally = bench.tally("stops")
    true = digest(bench.reference)
    study = bench.place / "stopped"
    while tally["stops"] < wanted and not bench.over:
        number = tally["studies"]
        draw = random.Random(f"stops {number}")
        fresh(study)
        counts: dict[str, int] = {}
        errors = []
        for _ in range(OFTEN):
            pid, started = bench.command.start(run(study, "--save-every", draw.choice(("0", "60"))))
            time.sleep(draw.uniform(0.05, 1.2) * tally.get("seconds", 6.0))
            asked = draw.choice((signal.SIGINT, signal.SIGTERM))
            bench.command.kill(pid, asked)
            twice = draw.random() < 0.4
            if twice:
                time.sleep(draw.uniform(0, 0.2))
                bench.command.kill(pid, asked)
            ended = bench.command.end(started)
            if ended.code == 0:
                break
            counts["stops"] = counts.get("stops", 0) + 1
            counts["twice"] = counts.get("twice", 0) + twice
            # a SIGTERM before the study trains ends the process as it ends any other
            clean = ended.code == -signal.SIGTERM or (ended.code == 130 and "interrupted" in ended.errors)
            clean = clean and "Traceback" not in ended.errors
            counts["clean"] = counts.get("clean", 0) + clean
            if not clean:
                errors.append(f"{ended.code}: {ended.errors[-400:]}")
        if not is_finished(study):
            ended = bench.command.run(run(study))
            tally["seconds"] = ended.seconds
            if ended.code != 0:
                errors.append(f"{ended.code}: {ended.errors[-400:]}")
        tally.add(studies=1, same=is_finished(study) and digest(study) == true, **counts)
        if errors:
            tally.note("errors", errors)
        tally.keep()
        print(f"stops: {tally['clean']} clean of {tally['stops']}, {tally['same']} of {tally['studies']} the same",
              flush=True)  # fmt: skip


def rows(bench: Bench, wanted: int) -> list[dict]:
    tally = bench.tally("stops")
    if not tally:
        return []
    return [
        row(f"Ctrl-C or SIGTERM at random moments: a clean exit, of {tally['stops']}", tally["clean"], "all",
            tally["clean"] == tally["stops"] >= wanted, twice=tally["twice"], errors=tally.get("errors", [])[:3]),
        row(f"stopped studies with identical table, curves and weights, of {tally['studies']}", tally["same"], "all",
            tally["same"] == tally["studies"] > 0),
    ]  # fmt: skip
