"""Lanes that never idle: early stopping with refill, quarantine, structure, ensembles; through the real `vt.run`.

    python benchmarks/lanes.py [--quick] [--json FILE] [--only PART]

Parts: occupancy, refill, halving, bits, quarantine, structure, ensemble. `--quick` takes fewer seeds and trials and
estimates the time of one program per combination from a sample of the combinations; the bars stay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _report import finish, row

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent / "experiments"
Row = dict[str, Any]


def run(experiment: Path, out: Path, cold: bool = False, **options: Any) -> dict[str, Any]:
    """A study through the real command; its result, with the seconds of the whole process, and of its processors.

    `cold` leaves the cache of compiled programs out: where compilation is part of what is measured.
    """
    words = [str(word) for name, value in options.items() for word in _option(name, value)]
    command = [sys.executable, "-m", "vmaptune", "run", str(experiment), "--quiet", "--json", "--no-report", "--out",
               str(out), *words]  # fmt: skip
    started = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = used.ru_utime + used.ru_stime
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"} if cold else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = {"wall": time.perf_counter() - started, "processor": after.ru_utime + after.ru_stime - before}
    return json.loads(done.stdout.splitlines()[-1]) | spent


def _option(name: str, value: Any) -> list[Any]:
    if isinstance(value, list):
        return [word for one in value for word in _option(name, one)]
    return [f"--{name}", value]


def occupancy(quick: bool, folder: Path) -> Iterator[Row]:
    found = run(EXPERIMENTS / "digits_mlp.py", folder / "occupancy", trials=512 if quick else 1024, rounds=4, lanes=64,
                halving="eta=3,min_steps=20", set="width=64")  # fmt: skip
    yield row("occupancy, digits MLP, 64 lanes", found["occupancy"], "at least 0.95", found["occupancy"] >= 0.95,
              trials=found["trials"], stopped=found["stopped"], refilled=found["refilled"], moved=found["moved"],
              wall=found["wall"], error=found["best"]["value"])  # fmt: skip
    yield row("compilations with refills", found["compilations"], "one program, one for the test part",
              found["compilations"] <= 2)  # fmt: skip


def refill(quick: bool, folder: Path) -> Iterator[Row]:
    """What refills add: to a segment in which two thirds of the lanes are refilled, and to a whole stream of trials."""
    import jax

    program, hp, seeds = digits_program(lanes=8, width=64)
    steps, width = 100, program.plan.width
    some = np.arange(width) % 3 > 0
    limits = np.full(width, 2**30)
    table = program.table(hp, seeds, limits, some)
    state, _ = program.run(program.empty(), program.table(hp, seeds, limits, True), steps, fill=True)
    times: dict[bool, list[float]] = {False: [], True: []}
    for i in range(24 if quick else 80):
        started = time.perf_counter()
        state, result = program.run(state, table, steps, fill=bool(i % 2))
        jax.block_until_ready(result)
        times[bool(i % 2)].append(time.perf_counter() - started)
    plain, refilled = (float(np.median(t)) for t in (times[False], times[True]))
    share = refilled / plain - 1
    yield row("time that refilling two thirds of the lanes adds to a segment", share, "at most 0.02", share <= 0.02,
              segment_steps=steps, milliseconds=[plain * 1e3, refilled * 1e3])  # fmt: skip
    for first in (20, 100):  # steps to the first rung, where two trials in three end
        real, still = (
            [stream(program, refilled, first) for _ in range(1 if quick else 2)] for refilled in (True, False)
        )
        with_, without = (min(seconds for seconds, _ in runs) for runs in (real, still))
        share = with_ / without - 1
        yield row(f"time that refills add to a stream of trials, first rung at {first} steps", share, "at most 0.02",
                  share <= 0.02, refilled=real[0][1], milliseconds_a_call=[without * 1e3, with_ * 1e3])  # fmt: skip


def stream(program: Any, refilled: bool, first: int) -> tuple[float, int]:
    """Seconds of one call of 16 of 64 lanes, host work and all, in segments up to the first rung: with trials that end
    as halving ends them and lanes that are refilled, or with trials that train on; and how many were refilled."""
    from dataclasses import replace

    from vmaptune.engine.lanes import Lanes

    calls = max(40, 4000 // first)
    life = np.random.default_rng(0).choice([1, 3, 9, 20], 64 * calls, p=[2 / 3, 2 / 9, 2 / 27, 1 / 27]) * first
    jobs = [replace(job, keep=False, steps=10**7) for job in _jobs(program, len(life) if refilled else 64, 1)]
    lanes = Lanes(replace_every(program, first), capacity=64, prompt=True,
                  on_points=lambda ps: [p.trial for p in ps if refilled and p.step >= life[p.trial]])  # fmt: skip
    lanes.submit(jobs)
    for _ in range(8):
        lanes.advance()
    started = time.perf_counter()
    for _ in range(calls):
        lanes.advance()
    lanes.settle()
    return (time.perf_counter() - started) / calls, lanes.refilled


def replace_every(program: Any, every: int) -> Any:
    """The program with segments of another length; nothing is compiled for that."""
    from dataclasses import replace

    program.plan = replace(program.plan, every=every)
    return program


def halving(quick: bool, folder: Path) -> Iterator[Row]:
    tasks = {
        "digits MLP": (EXPERIMENTS / "digits_mlp.py", {"trials": 256, "rounds": 3, "set": "width=64"}),
        "digits CNN": (EXPERIMENTS / "digits_cnn.py", {"trials": 96, "rounds": 2}),
    }
    for name, (experiment, options) in tasks.items():
        found: dict[str, list[dict[str, Any]]] = {"full": [], "halving": []}
        for seed in range(2 if quick else 5):
            for how, more in (("full", {}), ("halving", {"halving": "eta=3", "lanes": 64})):
                out = folder / f"{name}-{how}-{seed}"
                found[how].append(run(experiment, out, seed=seed, **options, **more))
        errors = {how: np.array([r["best"]["value"] for r in results]) for how, results in found.items()}
        steps = {how: sum(r["model_steps"] for r in results) for how, results in found.items()}
        spread = float(np.sqrt(np.mean([r["best"]["value_std"] ** 2 for r in found["full"]])))
        more_error = float(errors["halving"].mean() - errors["full"].mean())
        yield row(f"{name}: confirmed error with halving, minus full training's", more_error,
                  f"within its spread, {spread:.4f}", more_error <= spread,
                  errors={how: list(map(float, e)) for how, e in errors.items()})  # fmt: skip
        share = steps["halving"] / steps["full"]
        yield row(f"{name}: model-steps, of full training's", share, "at most 0.40", share <= 0.40, steps=steps,
                  occupancy=float(np.mean([r["occupancy"] for r in found["halving"]])),
                  wall={how: float(np.mean([r["wall"] for r in runs])) for how, runs in found.items()})  # fmt: skip


def digits_program(lanes: int, width: int) -> tuple[Any, Any, Any]:
    """The digits MLP's program with drawn settings for every lane."""
    import vmaptune as vt

    vt.prepare_devices()
    from vmaptune.engine.functions import LaneFunctions
    from vmaptune.engine.plan import Plan
    from vmaptune.engine.program import Program
    from vmaptune.experiment import find_statics, lane_arguments, load_experiment

    experiment = load_experiment(EXPERIMENTS / "digits_mlp.py").experiment
    task = experiment.build()
    statics = find_statics(experiment, task)
    traced = lane_arguments(experiment.space, statics.traced)
    import jax

    plan = Plan(devices=jax.local_device_count(), lanes=lanes, every=20)
    program = Program(LaneFunctions(task, {"width": width}, traced), traced, plan)
    samples = experiment.space.sample(plan.width, seed=0)
    hp = {n: samples[n].astype(s.dtype) for n, s in traced.items()}
    return program, hp, np.arange(plan.width, dtype=np.uint32)


def _jobs(program: Any, n: int, steps: int, bad: int = 0) -> list[Any]:
    """`n` digits trainings; with `bad`, each `bad`-th has a learning rate that diverges."""
    from vmaptune.engine.lanes import Job
    from vmaptune.experiment import load_experiment

    space = load_experiment(EXPERIMENTS / "digits_mlp.py").experiment.space
    samples = space.sample(n, seed=1)
    settings = [{name: samples[name][i] for name in program.traced} for i in range(n)]
    for i in range(0, n, bad or n + 1):
        if bad:
            settings[i]["learning_rate"] = 1e38
    return [Job(i, 1000 + i, settings[i], steps, keep=True) for i in range(n)]


def _train(program: Any, jobs: list[Any], capacity: int, stop: Any = lambda p: False) -> tuple[Any, dict, dict]:
    from vmaptune.engine.lanes import Lanes

    curves: dict[int, list] = {}
    states: dict[int, Any] = {}

    def on_points(points: list[Any]) -> list[int]:
        for p in points:
            curves.setdefault(p.trial, []).append((p.step, p.loss, p.metrics["error"], p.bad))
        return [p.trial for p in points if p.bad is not None or stop(p)]

    lanes = Lanes(program, capacity=capacity, on_points=on_points, prompt=True,
                  on_state=lambda job, state: states.__setitem__(job.trial, state))  # fmt: skip
    lanes.train(jobs)
    return lanes, curves, states


def _same(a: Any, b: Any) -> bool:
    import jax

    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def bits(quick: bool, folder: Path) -> Iterator[Row]:
    program, *_ = digits_program(lanes=8, width=32)
    n = 64 if quick else 128
    _, _, first = _train(program, _jobs(program, n, 60), n)
    lanes, _, states = _train(program, _jobs(program, n, 60), 32, lambda p: p.trial % 3 == 0 and p.step == 20)
    equal = sum(_same(state, first[trial]) for trial, state in states.items())
    yield row(f"trials with the same bits, first or refilled, of {len(states)}", equal, str(len(states)),
              equal == len(states), refilled=lanes.refilled, moved=lanes.moves)  # fmt: skip


def quarantine(quick: bool, folder: Path) -> Iterator[Row]:
    program, *_ = digits_program(lanes=8, width=32)
    n = 64 if quick else 128
    _, _, clean = _train(program, _jobs(program, n, 60), 32)
    lanes, curves, states = _train(program, _jobs(program, n, 60, bad=4), 32)
    diverged = [t for t, curve in curves.items() if curve[-1][3] is not None]
    equal = sum(_same(states[t], clean[t]) for t in range(n) if t % 4)
    yield row("trials that diverged and said at which step", len(diverged), str(n // 4),
              diverged == list(range(0, n, 4)) or sorted(diverged) == list(range(0, n, 4)))  # fmt: skip
    yield row("bits of the others unchanged", equal, f"{n - n // 4}", equal == n - n // 4)
    late = sum(len(curves[t]) > 1 for t in diverged)
    yield row("diverged lanes not refilled by the next segment", late, "0", late == 0, refilled=lanes.refilled)


STRUCTURE = EXPERIMENTS / "digits_shapes.py"


def structure(quick: bool, folder: Path) -> Iterator[Row]:
    found = run(STRUCTURE, folder / "auto", cold=True, trials=432, rounds=1)
    chosen = found["structure"]
    if quick:
        groups = run(STRUCTURE, folder / "groups", cold=True, trials=16, rounds=1, structure="groups", method="random")
        import vmaptune as vt

        programs = len(vt.load(folder / "groups").ledger.groups())
        spent = groups["seconds"]
        training = (spent["train"] + spent["evaluate"]) * 432 / groups["trials"]
        seconds = spent["total"] - spent["compile"] - spent["train"] - spent["evaluate"]
        seconds += spent["compile"] * 108 / programs + training
        how = f"estimated from {programs} of 108 programs"
    else:
        groups = run(STRUCTURE, folder / "groups", cold=True, trials=432, rounds=1, structure="groups")
        seconds, how = groups["seconds"]["total"], f"measured, all {len(groups['programs'])} programs"
    share = found["seconds"]["total"] / seconds
    yield row("108 shapes, 432 trials: time of the study, of one program per shape", share, "at most 0.4", share <= 0.4,
              seconds=[found["seconds"]["total"], seconds], processor_seconds=[found["processor"], groups["processor"]],
              how=how, compilations=found["compilations"])  # fmt: skip
    yield row("programs", chosen["programs"], "for the record", True, static=chosen["static"],
              candidates=chosen["candidates"])  # fmt: skip
    yield row("padded to true operations", chosen["padded_to_true"], "for the record", True)


def ensemble(quick: bool, folder: Path) -> Iterator[Row]:
    """The ensemble against the best single model on held-out data, means over seeds: one seed's errors on the 360
    test digits differ by one or two of them either way."""
    tasks = {
        "digits MLP": (EXPERIMENTS / "digits_mlp.py", {"trials": 256, "set": "width=64"}, 8),
        "digits CNN": (EXPERIMENTS / "digits_cnn.py", {"trials": 96, "rounds": 2}, 3),
        "tabular": (EXPERIMENTS / "tabular.py", {"trials": 192, "rounds": 3, "set": "activation=tanh"}, 3),
    }
    for name, (experiment, options, seeds) in tasks.items():
        found = [
            run(experiment, folder / f"ensemble-{name}-{seed}", ensemble=16, seed=seed, **options)["ensemble"]
            for seed in range(1 if quick else seeds)
        ]
        ours, single = ([each[key] for each in found] for key in ("test_value", "single_test_value"))
        mean, target = statistics.mean(ours), statistics.mean(single)
        yield row(f"{name}: held-out {'mse' if name == 'tabular' else 'error'} of the ensemble", mean,
                  f"at most the best single model's, {target:.4g}", mean <= target, each=ours, each_single=single,
                  members=[len(each["members"]) for each in found],
                  library=[each["library"] for each in found])  # fmt: skip


PARTS = (occupancy, refill, halving, bits, quarantine, structure, ensemble)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and trials; the bars stay")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--only", metavar="PART", action="append", help="one part, or several")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            if not args.only or part.__name__ in args.only:
                rows += part(args.quick, Path(folder))
    return finish("lanes: stopping, refill, structure, ensembles", rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
