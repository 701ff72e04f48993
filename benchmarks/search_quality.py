"""How good is the setting that each method hands to its user?

python benchmarks/search_quality.py [--quick] [--tasks A,B] [--seeds N] [--json FILE] [--docs] [--work DIR]
python benchmarks/search_quality.py --closed [--sizes 64,256,512,2048,8192] [--seeds N] [--jobs N] [--json FILE]

Real trainings of the tasks in `quality/_tasks.py`, through the engine. Every method spends the same number of
trainings, confirmation included; what counts is the setting that it hands over, trained again on 16 seeds that no
method has seen (their median). `--times` only measures how long a study and a single training take on this machine,
for the comparison at equal wall-clock; do that on an idle one. `--docs` writes the figure and the tables of
docs/search_quality.md. What was trained is kept under `--work`, so that a run that was broken off goes on.

`--closed` runs the tasks of `quality/_closed.py`, whose values are formulas, with the same bars at each number of
trainings, and two more: rounds get better, and so do winners with more trainings.

Needs scikit-learn, optuna, and for its samplers cmaes and torch: pip install '.[bench]'
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import vmaptune as vt

ROOT = Path(__file__).resolve().parent
TRIALS, FRESH = 256, 16
FIRST_SEED = 200  # of the proof; no default was chosen on these
SEARCH = (  # what the zoom consists of
    "sampler", "coarse_to_fine", "zoom", "refine", "worth", "surrogate", "kernel", "decide", "confirm", "repeats",
)  # fmt: skip
RESULTS = ROOT / "results" / "search_quality_cpu2.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four small tasks, three seeds, no one-at-a-time sampler")
    parser.add_argument("--tasks", help="names, with commas between (default: all)")
    parser.add_argument("--seeds", type=int, help="studies of each method (default 10)")
    parser.add_argument(
        "--close-seeds", type=int, help="studies of the zoom and of random search, which are close (default 20)"
    )
    parser.add_argument(
        "--first-seed", type=int, default=FIRST_SEED, help=f"of the studies (default {FIRST_SEED}); others to tune on"
    )
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"trainings of a study (default {TRIALS})")
    parser.add_argument("--methods", help="names, with commas between (default: all)")
    parser.add_argument("--closed", action="store_true", help="tasks in closed form, at many numbers of trainings")
    parser.add_argument("--sizes", default="64,256,512,2048,8192", help="of --closed: trainings (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="of --closed: processes (default 1)")
    parser.add_argument("--times", action="store_true", help="only measure the times")
    parser.add_argument("--rows", action="store_true", help="only judge what has been trained")
    parser.add_argument("--docs", action="store_true", help="write docs/search_quality.md and its figure")
    parser.add_argument(
        "--work", metavar="DIR", help="where trained values are kept (default: the user's cache folder)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows and tables as JSON")
    args = parser.parse_args()

    if args.closed:
        return closed(args)
    vt.prepare_devices()
    from quality._judge import judged
    from quality._run import (
        CLOSE,
        METHODS,
        QUICK_METHODS,
        QUICK_TASKS,
        SEQUENTIAL,
        Records,
        measure_times,
        run_equal_time,
        run_methods,
    )
    from quality._tasks import WORKS

    from vmaptune.engine.devices import cache_folder
    from vmaptune.engine.processor import cpu_cores

    names = args.tasks.split(",") if args.tasks else QUICK_TASKS if args.quick else [w.name for w in WORKS]
    works = [w for w in WORKS if w.name in names]
    if len(works) != len(set(names)):
        parser.error(f"--tasks: the tasks are {', '.join(w.name for w in WORKS)}")
    methods = args.methods.split(",") if args.methods else QUICK_METHODS if args.quick else list(METHODS)
    few = args.seeds or (3 if args.quick else 10)
    many = args.close_seeds or (args.seeds or 3 if args.quick else 20)
    seeds = {m: range(args.first_seed, args.first_seed + (many if m in CLOSE else few)) for m in methods}
    folder = Path(args.work) if args.work else cache_folder() / "search_quality"
    folder.mkdir(parents=True, exist_ok=True)
    records = Records(folder, source_versions(), args.trials)
    for work in works:
        timed = "zoom" in methods and any(name in methods for name in SEQUENTIAL)
        if args.times or (timed and not args.rows and work.name not in records.times):
            records.add_time(measure_times(work, args.trials))
            print(work.name, records.times[work.name], flush=True)
        if args.times or args.rows:
            continue
        run_methods(work, records, methods, seeds, args.trials, FRESH, folder, cpu_cores())
        if timed:
            run_equal_time(work, records, methods, seeds, args.trials, FRESH, folder, cpu_cores())
        print(f"{work.name}: done", flush=True)
    if args.times:
        return 0
    found = judged(records, works, methods, seeds)
    if args.docs:
        from quality._page import write_page

        write_page(found, ROOT.parent / "docs")
    from _report import finish, machine_and_versions

    code = finish("search quality", found["rows"], None)
    if args.json:
        machine, versions = machine_and_versions()
        whole = {"machine": machine, "versions": versions, **found}
        Path(args.json).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return code


def closed(args: argparse.Namespace) -> int:
    """The tasks in closed form."""
    from _report import finish, machine_and_versions
    from quality._closed import WORKS
    from quality._sizes import judged, run

    from vmaptune.engine.devices import cache_folder

    names = args.tasks.split(",") if args.tasks else [w.name for w in WORKS]
    sizes = [int(n) for n in args.sizes.split(",")]
    folder = Path(args.work) if args.work else cache_folder() / "search_quality"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = args.seeds or 10
    tables = run(sizes, names, args.first_seed, seeds, folder, source_versions()["closed"], args.jobs)
    rows = judged(tables)
    if args.docs:
        from quality._page import write_closed

        write_closed(rows, seeds, ROOT.parent / "docs")
    code = finish("search quality, closed form", rows, None)
    if args.json:
        machine, versions = machine_and_versions()
        settings = {"sizes": sizes, "first_seed": args.first_seed, "seeds": seeds, "sources": source_versions()}
        whole = {"machine": machine, "versions": versions, "settings": settings, "rows": rows, "tasks": tables}
        Path(args.json).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return code


def source_versions() -> dict[str, str]:
    """Of the sources that a trained value depends on, a rival's choice besides, and the zoom's choice besides."""
    quality, package = ROOT / "quality", ROOT.parent / "vmaptune"
    files = [quality / "_tasks.py", quality / "_trainer.py"]
    found = {"value": files}
    found["rival"] = [*files, quality / "_methods.py"]
    search = [package / "search" / f"{name}.py" for name in SEARCH]
    found["zoom"] = [*found["rival"], *search, *sorted((package / "space").glob("*.py"))]
    found["closed"] = [*found["zoom"], quality / "_closed.py", quality / "_sizes.py"]
    return {
        name: hashlib.sha256(b"".join(f.read_bytes() for f in parts)).hexdigest()[:16] for name, parts in found.items()
    }


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
