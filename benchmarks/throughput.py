"""Throughput, side by side: vmaptune against what a person would pick instead, and against the machine's limit.

    python benchmarks/throughput.py [--quick] [--json FILE [--append]] [--work W,W] [--methods M,M]
                                    [--repeats N] [--seconds S] [--plan PLAN] [--device gpu]

Every method runs in a process of its own, gets its best honest setting (a few are tried, the fastest kept), is
warmed up, and is then timed in repeats that are interleaved with all others' (Ray's come after them, since its
services would disturb them); a row is the median. A repeat in which other processes took more than 4 % of the machine
is taken again, at most as often as there are repeats; a row of which most were disturbed is marked with ~ and not
judged. Training alone is timed; evaluation, imports and compilation are given apart, the latter two also included
(`us_included`: spread over a job of 256 models and 1,000 steps). `ratio` is a row's time over vmaptune's of the same
run: own batches per lane against own, all others against one order shared by the lanes. Needs the extra `.[bench]`;
without a peer its row says "not installed".

On a GPU (`--device gpu`) workloads have more lanes, and other bars; it needs JAX's own CUDA extra.

In the middle of tuning the engine:

    python benchmarks/throughput.py --quick --work mlp_32_64 --methods vmaptune,vmaptune_shared,scan,vmap,bound
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _disturbance import foreign_share, moment
from throughput_table import Row, bars, merged, row_of, table, verdict, with_ratios
from works import WORKS

GPU_LANES = {"mlp_32_64": 1024, "mlp_256_128": 4096, "cnn_28_8": 256, "cnn_8_16": 256}
DISTURBED = 0.04  # a repeat is taken again when others had more of the machine than this
PEERS = Path(__file__).parent / "peers"
Candidate = tuple[dict[str, str], dict[str, Any]]  # environment, options

ONE_EIGEN_THREAD: Candidate = ({"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}, {})
PLAIN: Candidate = ({}, {})


@dataclass(frozen=True)
class Method:
    """Where a method lives, and which of its settings are tried."""

    script: str
    candidates: tuple[Candidate, ...] = (PLAIN,)
    kinds: tuple[str, ...] = ("mlp", "cnn", "transformer", "gru")
    evaluates: bool = False
    slow: bool = False  # a repeat is a whole search: a few of them, after the others


def chunks(*sizes: int, **options: Any) -> tuple[Candidate, ...]:
    """The same settings with so many lanes at once each."""
    return tuple(({}, {"chunk": size, **options}) for size in sizes)


MLP = ("mlp",)
MLP_AND_CNN = ("mlp", "cnn")
VMAP_COMPILE = (*chunks(256, flat=True), *chunks(256, 64, 16, 8, 4))
BMM = (*chunks(256, 64, 16, 8, 4), *chunks(64, compile=False))
# What has been the fastest of these at each work, or close to it, on two CPU cores; the rest with --all-settings.
LIKELY = {
    "mlp_8_32": (*chunks(256, flat=True), *chunks(256)),
    "mlp_32_64": chunks(64, 256),
    "mlp_64_128": chunks(16, 64),
    "mlp_256_128": chunks(8, 16),
}
METHODS = {
    "vmaptune": Method("ours.py", evaluates=True),
    "vmaptune_shared": Method("ours.py"),
    "loop": Method("plain_jax.py", (PLAIN, ONE_EIGEN_THREAD)),
    "scan": Method("plain_jax.py", (PLAIN, ONE_EIGEN_THREAD), evaluates=True),
    "vmap": Method("plain_jax.py", (PLAIN, ONE_EIGEN_THREAD), evaluates=True),
    "torch_vmap_compile": Method("packed_torch.py", VMAP_COMPILE, kinds=MLP_AND_CNN),
    "torch_vmap_compile_own": Method("packed_torch.py", VMAP_COMPILE, kinds=MLP_AND_CNN),
    "torch_bmm": Method("packed_torch.py", BMM, kinds=MLP),
    "torch_processes": Method("torch_processes.py", kinds=MLP_AND_CNN),
    "sklearn": Method("sklearn_search.py", (({}, {"jobs": -1}), ({}, {"jobs": 2})), kinds=MLP),
    "optuna_torch": Method("optuna_torch.py", (({}, {"threads": 1}), ({}, {"threads": 2})), kinds=MLP_AND_CNN),
    "hyperoptax": Method("hyperoptax_search.py", chunks(256, 64, 16)),
    "ray_tune": Method("ray_tune.py", kinds=MLP_AND_CNN, slow=True),
    "bound": Method("bound.py"),
}


@dataclass
class Worker:
    """A peer's process."""

    work: str
    method: str
    candidate: Candidate
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    about: Row = field(default_factory=dict)
    times: list[Row] = field(default_factory=list)
    note: str | None = None  # why there is no time

    def start(self) -> None:
        environment, options = self.candidate
        script = PEERS / METHODS[self.method].script
        if not script.exists():
            self.note = "not installed"
            return
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(script), self.work, self.method, json.dumps({**self.options, **options})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, 
            stderr=None if self.options["verbose"] else subprocess.DEVNULL, text=True,
            env={**os.environ, **self.environment, **environment},
        )  # fmt: skip
        before = moment(self.process.pid)
        ready = self._reply()
        self.about = {"startup_s": time.perf_counter() - started, "versions": ready.get("versions", {})}
        self.about |= self.ask("prepare")
        self.about["foreign_at_start"] = foreign_share(before, moment(self.process.pid))

    def ask(self, command: str) -> Row:
        """Sends a command and waits for its answer; {} where the peer has failed, which is noted."""
        if self.note is not None:
            return {}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> Row:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"error": "its process ended"}
        if "missing" in reply:
            self.note = f"not installed ({reply['missing']})"
        elif "error" in reply:
            self.note = f"failed: {reply['error']}"
        return reply if self.note is None else {}

    def measure(self) -> None:
        """One repeat, with the share of the machine that other processes took meanwhile."""
        if self.note is not None:
            return
        before = moment(self.process.pid)
        reply = self.ask("time")
        if self.note is None:
            self.times.append({**reply, "foreign": foreign_share(before, moment(self.process.pid))})

    def clean(self) -> list[Row]:
        """The repeats that nothing disturbed; a slow method's services count as others'."""
        slow = METHODS[self.method].slow
        return [t for t in self.times if slow or t["foreign"] <= DISTURBED]

    def quit(self) -> None:
        if hasattr(self, "process"):
            if self.process.stdin is not None and self.process.poll() is None:
                try:
                    self.process.stdin.write(json.dumps({"do": "quit"}) + "\n")
                    self.process.stdin.close()
                except BrokenPipeError:
                    pass
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def row(self) -> Row:
        if self.note is not None or not self.times:
            note = self.note or "no time"
            return {"work": self.work, "method": self.method, "us_per_model_step": None, "note": note}
        about = {k: v for k, v in self.about.items() if k != "wall"}
        clean = self.clean()
        about["disturbed"] = 2 * len(clean) < len(self.times)
        return row_of(self.work, self.method, self.times if about["disturbed"] else clean, about)


def best_worker(work: str, method: str, args: argparse.Namespace) -> Worker:
    """The method's fastest setting, ready to be timed; the others' processes have ended."""
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TORCHINDUCTOR_CACHE_DIR": args.torch_cache,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }  # compile times are those of a first run
    if args.device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
    lanes = args.lanes or (GPU_LANES.get(work) if args.device == "gpu" else None)
    options = {"seconds": args.seconds, "plan": args.plan, "quick": args.quick, "device": args.device,
               "verbose": args.verbose, "lanes": lanes}  # fmt: skip
    candidates = METHODS[method].candidates
    if METHODS[method].script == "packed_torch.py" and not args.all_settings:
        likely = LIKELY.get(work, chunks(64, 4))
        candidates = tuple(c for c in likely if c in candidates)
    candidates = candidates[:1] if args.quick else candidates
    best, best_speed = None, float("inf")
    tried = []
    for candidate in candidates:
        worker = Worker(work, method, candidate, options, environment)
        worker.start()
        if len(candidates) > 1:
            for _ in range(2):
                worker.measure()
        speed = min((t["seconds"] / t["model_steps"] for t in worker.times), default=float("inf"))
        worker.times.clear()
        tried.append({"environment": candidate[0], "options": candidate[1], "us": speed * 1e6})
        if best is None or speed < best_speed:
            if best is not None:
                best.quit()
            best, best_speed = worker, speed
        else:
            worker.quit()
    assert best is not None
    if len(tried) > 1:
        best.about["tried"] = tried
    flags = " ".join([*best.candidate[0].values(), *(f"{k}={v}" for k, v in best.candidate[1].items())])
    if flags:
        best.about["setting"] = f"{best.about.get('setting', '')} {flags}".strip()
    return best


def prepared(work: str, methods: Sequence[str], args: argparse.Namespace) -> list[Worker]:
    """A worker for each method that this workload has, compiled and warm."""
    workers = []
    for method in methods:
        if WORKS[work].kind in METHODS[method].kinds:
            started = time.perf_counter()
            workers.append(best_worker(work, method, args))
            seconds = time.perf_counter() - started
            print(f"{work} {method}: {workers[-1].note or 'ready'} after {seconds:.1f} s", file=sys.stderr, flush=True)
    return workers


def timed(workers: Sequence[Worker], args: argparse.Namespace) -> list[Row]:
    """The rows of these workers of one workload, timed in turns."""
    began = time.perf_counter()
    for _ in range(2 * args.repeats):
        if args.limit and time.perf_counter() - began > args.limit:
            break
        for worker in workers:  # in turns, so that a slow moment meets all of them
            wanted = 2 if METHODS[worker.method].slow else args.repeats
            if len(worker.clean()) < wanted and len(worker.times) < 2 * wanted:
                worker.measure()
    for worker in workers:
        if METHODS[worker.method].evaluates and not args.no_evaluation:
            each = [worker.ask("evaluate") for _ in range(3)]
            if worker.note is None:
                worker.about["us_per_evaluation"] = statistics.median(e["seconds"] / e["models"] * 1e6 for e in each)
    return [worker.row() for worker in workers]


def run(works: Sequence[str], methods: Sequence[str], args: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of each workload, one after another. With `--wait-for`, all are prepared before any is timed."""
    if args.wait_for:
        all_workers = [prepared(work, methods, args) for work in works]
        print(f"prepared; waiting for {args.wait_for}", file=sys.stderr, flush=True)
        while not Path(args.wait_for).exists():
            time.sleep(0.2)
    else:
        all_workers = [[] for _ in works]
    for work, workers in zip(works, all_workers, strict=True):
        try:
            rows = []
            for slow in (False, True):  # Ray's services take a fifth of two cores even while nothing is asked of them
                workers = workers or prepared(work, [m for m in methods if METHODS[m].slow == slow], args)
                rows += timed(workers, args)
                while workers:
                    workers.pop().quit()
                if args.wait_for:
                    break  # all were prepared, and timed together
            yield with_ratios(rows)
        finally:
            for worker in workers:
                worker.quit()


def machine_and_versions(device: str) -> tuple[Row, Row]:
    """From a process of its own, so that this one holds no device."""
    code = "import json, _report; print(json.dumps(_report.machine_and_versions()))"
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if device == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    machine, versions = json.loads(done.stdout.splitlines()[-1])
    return machine, versions


def names(text: str, known: Mapping[str, Any], what: str) -> list[str]:
    """A comma-separated list of known names."""
    chosen = [name for name in text.split(",") if name]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"--{what}: must be among {', '.join(known)}, but got {', '.join(unknown)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few short repeats, one setting of each peer")
    parser.add_argument("--json", metavar="FILE", help="write machine, versions and rows as JSON")
    parser.add_argument("--append", action="store_true", help="keep the rows of FILE that this run does not measure")
    parser.add_argument("--work", default="", help=f"of {','.join(WORKS)}; default: all")
    parser.add_argument("--methods", default="", help=f"of {','.join(METHODS)}; default: all")
    parser.add_argument("--repeats", type=int, help="interleaved repeats; default: 7, with --quick 3")
    parser.add_argument("--seconds", type=float, help="of one repeat, about; default: 1, with --quick 0.3")
    parser.add_argument("--wait-for", metavar="FILE", help="prepare everything, then wait until FILE exists: the time "
                        "to let the machine become quiet")  # fmt: skip
    parser.add_argument("--limit", type=float, help="seconds of a workload after which no further repeats start")
    parser.add_argument("--plan", default="", help="pin vmaptune's plan, as `vmaptune run --plan` does")
    parser.add_argument("--all-settings", action="store_true", help="try settings that have never been the fastest too")
    parser.add_argument("--lanes", type=int, help="models at once; default: each workload's own")
    parser.add_argument("--no-evaluation", action="store_true", help="do not time evaluations")
    parser.add_argument("--verbose", action="store_true", help="show what the peers print")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    args = parser.parse_args()
    args.repeats = args.repeats or (3 if args.quick else 7)
    args.seconds = args.seconds or (0.3 if args.quick else 1.0)
    works = names(args.work, WORKS, "work") or list(WORKS)
    methods = names(args.methods, METHODS, "methods") or list(METHODS)
    machine, versions = machine_and_versions(args.device)
    print(f"throughput · {machine['processor']}, {machine['cores']} cores, {machine['device']} · "
          + ", ".join(f"{k} {v}" for k, v in versions.items()), flush=True)  # fmt: skip
    cache = tempfile.TemporaryDirectory()  # empty at first, as on a first run
    args.torch_cache = cache.name
    file = Path(args.json) if args.json else None
    rows: list[Row] = []
    if file and args.append and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        rows, versions = before["rows"], before["versions"] | versions
    judged: list[Row] = []
    for mine in run(works, methods, args):
        print(table(mine), flush=True)
        for row in mine:
            versions |= row.pop("versions", {})
        rows = merged(rows, mine)
        judged = bars(rows, args.device)
        if file:  # after each workload, so that nothing is lost when a later one is stopped
            text = json.dumps({"machine": machine, "versions": versions, "rows": rows, "bars": judged}, indent=1)
            file.write_text(text + "\n", encoding="utf-8")
    print(verdict(judged))
    return 0 if all(bar["ok"] for bar in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
