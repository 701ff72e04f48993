"""The main job on real data: the digits MLP through the real command, then replays of its trials.

    python benchmarks/digits.py [--quick] [--json FILE]

Bars: a confirmed validation error of at most 3 % in at most 90 s on two cores, import and compile included; the
replays of 20 trials, each trained alone without vmap, within 1e-4 relative of the ledger's loss curve while the
curve is not chaotic (until any of eight runs, each number of the first state times 1 ± 1e-6, has moved by as much).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import finish, row

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "digits_mlp.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials and replays; the bars stay")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    trials, replays = (192, 5) if args.quick else (768, 20)
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "digits"
        command = [sys.executable, "-m", "vmaptune", "run", str(EXPERIMENT), "--trials", str(trials), "--rounds", "3",
                   "--quiet", "--json", "--out", str(study)]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
        result = json.loads(done.stdout.splitlines()[-1])
        best = result["best"]
        rows = [
            row("confirmed validation error", best["value"], "at most 0.03", best["value"] <= 0.03,
                std=best["value_std"], test=best.get("test_value"), params=best["params"]),
            row("seconds of the whole command", seconds, "at most 90", seconds <= 90, parts=result["seconds"]),
            row("compilations", result["compilations"], "one per group, one for the test part",
                result["compilations"] <= 5),
        ]  # fmt: skip
        rows += replay_rows(study, replays)
    return finish("digits MLP, end to end", rows, args.json)


def replay_rows(study: Path, count: int) -> list[dict]:
    """Replays of trials drawn at random from those that finished."""
    import vmaptune as vt
    from vmaptune.study import replay

    finished = [t.trial for t in vt.load(study).trials(state="COMPLETE")]
    chosen = sorted(random.Random(0).sample(finished, count))
    found = [replay(study, trial) for trial in chosen]
    agree = sum(r.agrees for r in found)
    segments = sum(r.compared for r in found), sum(len(r.steps) for r in found)
    worst = max(r.difference for r in found)
    detail = [{"trial": r.trial, "difference": r.difference, "chaotic_from": r.chaotic_from} for r in found]
    return [
        row(f"replays that agree, of {count}", agree, f"{count}", agree == count, trials=detail),
        row("largest relative difference", worst, "at most 1e-4", worst <= 1e-4),
        row("segments compared, before chaos", segments[0], f"of {segments[1]}; for the record", segments[0] > 0),
    ]


if __name__ == "__main__":
    sys.exit(main())
