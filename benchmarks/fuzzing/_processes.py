"""The processes that cases run in, and what became of each."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent.parent / "fuzz.py"
TOGETHER = 20  # cases of one process
LIBRARY = 4  # one case in so many runs where JAX has started before the package
PATIENCE = 20  # times its limit of computing that a case may take by the clock
GOOD = ("right", "caught", "no case")
USUAL = ("too few trials", "JAX had started before", "the best trials touch", "lucky draw")


@dataclass(frozen=True)
class Limits:
    memory: float  # GiB
    seconds: float  # of a processor, for a case
    speed: bool = False


@dataclass
class Failure:
    """A case that failed: a wrong number, an error, or the end of its process."""

    name: str
    verdict: str
    told: str
    spec: dict[str, Any] | None
    command: str
    smaller: dict[str, Any] | None = None


def mode_of(request: dict[str, Any]) -> str:
    """How a case's process begins: it is known before the case is drawn."""
    if "spec" in request:
        return request["spec"]["mode"]
    return "library" if request["seed"] % LIBRARY == LIBRARY - 1 else "compiled"


class Child:
    """A process that answers requests one by one."""

    def __init__(self, mode: str, limits: Limits):
        self.limits = limits
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        command = [sys.executable, str(SCRIPT), "--child", mode,
                   "--memory", str(limits.memory), "--limit", str(limits.seconds),
                   *(["--speed"] if limits.speed else [])]  # fmt: skip
        # what the package remembers of programs that were wrong, or ended a process, would hide them
        self._cache = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, bufsize=1,
            env=os.environ | {"VMAPTUNE_CACHE": self._cache.name},
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The last answer to a request, with the spec of the case in it; of a process that ended, what it said."""
        found: dict[str, Any] = {"spec": request.get("spec"), "stage": "start"}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            return found | self._death()
        until = time.monotonic() + PATIENCE * self.limits.seconds
        while "verdict" not in found:
            line = self._line(until)
            if line is None:
                self._process.kill()
            if not line:
                return found | self._death()
            found.update(json.loads(line))
        return found

    def _line(self, until: float) -> str | None:
        """The next line, "" at the end of the process, or None when it takes too long."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
            return self._process.stdout.readline() if selector.select(until - time.monotonic()) else None  # type: ignore[union-attr]

    def _death(self) -> dict[str, Any]:
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line for line in self._errors.read()[-20_000:].splitlines() if line.strip()]
        telling = [line for line in lines if "Check failed" in line or "bad_alloc" in line or "Error" in line]
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"verdict": "died", "error": f"{why}: {' '.join((telling or lines)[-1:])[:300]}"}

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.stdin.close()  # type: ignore[union-attr]
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._errors.close()
        self._cache.cleanup()


def alone(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """What becomes of a case in a process of its own."""
    child = Child(mode_of(request), limits)
    try:
        return child.ask(request)
    finally:
        child.close()


def failure_of(request: dict[str, Any], found: dict[str, Any]) -> Failure:
    spec = found.get("spec")
    if found["verdict"] == "wrong":
        first = found["wrong"][0]
        told = (
            f"wrong: {first['name']} of trial {first['trial']} is {first['found']:.8g} at step {first['step']}, in "
            f"float64 {first['float64']:.8g}, in float32 {first['float32']:.8g}, allowed ± {first['allowed']:.2g}"
        )
    else:
        told = f"{found['verdict']} ({found['stage']}): {found.get('error', '')}"
    name = request.get("name") or (str(request["seed"]) if "seed" in request else "of --spec")
    which = ["--only", name] if "name" in request or "seed" in request else ["--spec", json.dumps(spec)]
    return Failure(name, found["verdict"], told, spec, shlex.join(["python", "benchmarks/fuzz.py", *which]))


class Run:
    """Many cases, over a few processes at once."""

    def __init__(self, limits: Limits, jobs: int, tell: Callable[[Failure], None], until: float | None = None):
        self.limits, self.jobs, self.tell, self.until = limits, jobs, tell, until
        self.failures: list[Failure] = []
        self.verdicts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()  # of studies, besides the usual ones
        self.count = 0
        self._lock = threading.Lock()

    def cases(self, requests: Sequence[dict[str, Any]]) -> None:
        """Runs them all, or those that come before the end of the time."""
        batches = []
        most = max(1, min(TOGETHER, len(requests) // (2 * self.jobs)))
        for start in range(0, len(requests), TOGETHER * LIBRARY):
            some = requests[start : start + TOGETHER * LIBRARY]
            for mode in ("compiled", "library"):
                these = [request for request in some if mode_of(request) == mode]
                batches += [(mode, these[i : i + most]) for i in range(0, len(these), most)]
        queue = iter(batches)

        def work() -> None:
            while True:
                with self._lock:
                    batch = next(queue, None)
                if batch is None or self._late():
                    return
                self._batch(*batch)

        with ThreadPoolExecutor(self.jobs) as pool:
            for each in [pool.submit(work) for _ in range(self.jobs)]:
                each.result()  # a mistake of the fuzzer's own is no case that passed

    def _late(self) -> bool:
        return self.until is not None and time.perf_counter() > self.until

    def _batch(self, mode: str, requests: Sequence[dict[str, Any]]) -> None:
        child: Child | None = None
        for i, request in enumerate(requests):
            if self._late():
                break
            child = child or Child(mode, self.limits)
            found = child.ask(request)
            ended = found["verdict"] == "died"
            if ended:
                child.close()
                child = None
            if i and found["verdict"] not in (*GOOD, "wrong") and not self.limits.speed:
                found = alone(request, self.limits)  # what came before may have taken the memory
            if found["verdict"] == "died" and found["stage"] in ("draw", "plain"):
                found["verdict"] = "no case"  # plain JAX does not train it either
            self._note(request, found)
        if child is not None:
            child.close()

    def _note(self, request: dict[str, Any], found: dict[str, Any]) -> None:
        with self._lock:
            self.count += 1
            self.verdicts[found["verdict"]] += 1
            for warning in found.get("warnings", []):
                if not any(usual in warning for usual in USUAL):
                    self.notes[warning[:200]] += 1
            if found["verdict"] in ("right", "no case"):
                return
            failure = failure_of(request, found)
            if found["verdict"] != "caught":
                self.failures.append(failure)
            self.tell(failure)
