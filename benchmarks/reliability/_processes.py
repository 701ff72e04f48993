"""The real command in processes that can be killed, each begun in a few milliseconds.

A server process imports the libraries once, computes nothing, and forks a child for each command; the child starts
JAX afresh and is killed with SIGKILL like any process. Compiled programs are kept on disk between the commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = """
import os, signal, sys, json
import vmaptune.cli, vmaptune.study, vmaptune.experiment, flax.nnx, optax, jax
try:
    import sklearn.datasets
except ImportError:
    pass
print("ready", flush=True)
for line in sys.stdin:
    arguments, errors, limit = json.loads(line)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have its background ignore it
        out = os.open(os.devnull, os.O_RDWR)
        to = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 0); os.dup2(out, 1); os.dup2(to, 2)
        if limit:
            import resource
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = 70
        try:
            code = vmaptune.cli.main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None  # None when it was killed
    seconds: float
    errors: str


class Command:
    """Runs `python -m vmaptune ...` in a fresh process each time; use it in a `with`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._errors = folder / "stderr.txt"
        self._environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def __enter__(self) -> Command:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=self._environment,
        )  # fmt: skip
        assert self._line() == "ready"
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def run(
        self, arguments: list[str], *, kill_after: float | None = None, with_signal: int = signal.SIGKILL,
        file_limit: int | None = None,
    ) -> Ended:  # fmt: skip
        """One command, killed after so many seconds unless it has ended. `file_limit`: bytes that a file may have."""
        pid, started = self.start(arguments, file_limit=file_limit)
        if kill_after is not None:
            time.sleep(max(0.0, kill_after - (time.monotonic() - started)))
            self.kill(pid, with_signal)
        return self.end(started)

    def start(self, arguments: list[str], *, file_limit: int | None = None) -> tuple[int, float]:
        """Begins a command; `end` waits for it."""
        assert self._server.stdin is not None
        started = time.monotonic()
        print(json.dumps([arguments, str(self._errors), file_limit]), file=self._server.stdin, flush=True)
        return int(self._line()), started

    def kill(self, pid: int, with_signal: int = signal.SIGKILL) -> None:
        """Sends a signal; nothing happens when the command has ended, for its number is reaped only by `end`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, with_signal)

    def end(self, started: float) -> Ended:
        """Waits for the command that was begun."""
        code = int(self._line())
        seconds = time.monotonic() - started
        errors = self._errors.read_text(errors="replace") if self._errors.exists() else ""
        return Ended(None if code == -signal.SIGKILL else code, seconds, errors)

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()
