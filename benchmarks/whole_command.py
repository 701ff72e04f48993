"""The whole command against its training alone, and compile time at many lanes against few.

    python benchmarks/whole_command.py [--quick] [--json FILE]

Bars: `vmaptune run` of the digits MLP (import, compile, plan, train, confirm, report) takes at most 1.5 times what
its training alone takes, plus 10 s; compiling a group's program for 512 lanes takes at most 1.2 times as long as for 8.
It runs with nothing cached and again, in turns, and medians are compared. With nothing cached training shares the cores
with compilers, so what training takes alone is that of the runs after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import finish, row

HERE = Path(__file__).parent
EXPERIMENT = HERE.parent / "experiments" / "digits_mlp.py"
COMPILE = """
import sys, time
sys.path[:0] = [{peers!r}, {here!r}]
import ours
from works import WORKS
from dataclasses import replace
work = replace(WORKS["mlp_32_64"], lanes={lanes})
experiment = ours.experiment_of(work, None, False)
started = time.perf_counter()
ours.program_of(experiment, work, {plan!r}, work.segment)  # pinned, so that no plan is measured here
ours._worker.reply(seconds=time.perf_counter() - started)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials and repeats; the bars stay")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    trials, repeats = (256, 2) if args.quick else (768, 3)
    rows = [*whole_command(trials, repeats), compile_time(repeats)]
    return finish("the whole command", rows, args.json)


def whole_command(trials: int, repeats: int) -> list[dict]:
    """The digits MLP as a person types it, with nothing cached and again, in turns; medians."""
    runs: dict[str, list[tuple[float, dict]]] = {"nothing cached": [], "again": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for n, what in enumerate(runs):
                runs[what].append(_run(trials, Path(folder), n))
    training = statistics.median(result["seconds"]["train"] for _, result in runs["again"])
    most = 1.5 * training + 10
    target = f"at most 1.5 × {training:.1f} s of training alone + 10 s"
    rows = []
    for what, timed in runs.items():
        seconds = statistics.median(taken for taken, _ in timed)
        steps = timed[0][1]["model_steps"]
        rows.append(
            row(f"seconds of the whole command, {what}", seconds, target, seconds <= most, most=most,
                all=[taken for taken, _ in timed], parts=[result["seconds"] for _, result in timed],
                model_steps=steps, trials=trials, us_per_model_step=training / steps * 1e6)
        )  # fmt: skip
    return rows


def _run(trials: int, folder: Path, n: int) -> tuple[float, dict]:
    command = [sys.executable, "-m", "vmaptune", "run", str(EXPERIMENT), "--trials", str(trials), "--rounds", "3",
               "--quiet", "--json", "--out", str(folder / f"digits{n}")]  # fmt: skip
    environment = {**os.environ, "VMAPTUNE_CACHE": str(folder / "cache")}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return time.perf_counter() - started, json.loads(done.stdout.splitlines()[-1])


def compile_time(repeats: int) -> dict:
    """The same program for 512 and for 8 lanes, each compiled in a process of its own, without any cache."""
    seconds: dict[int, list[float]] = {8: [], 512: []}
    for _ in range(repeats):
        for lanes, times in seconds.items():
            plan = f"devices={len(os.sched_getaffinity(0))}"
            code = COMPILE.format(peers=str(HERE / "peers"), here=str(HERE), lanes=lanes, plan=plan)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE,
                env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
            )  # fmt: skip
            times.append(json.loads(done.stdout)["seconds"])
    few, many = (statistics.median(seconds[lanes]) for lanes in (8, 512))
    return row("compile time at 512 lanes over that at 8", many / few, "at most 1.2", many / few <= 1.2,
               seconds={str(lanes): times for lanes, times in seconds.items()})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
