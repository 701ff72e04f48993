"""Programs that ended a process while they were compiled, so that no second process ends by them.

XLA checks itself by ending the process (SIGABRT), and some products take all memory while they are compiled; no Python
code can catch either. So a process writes down which programs it is compiling in a file of its own, beside the compiled
ones. Python's fault handler writes there as well if the process crashes, and a thread that watches the memory does.
Whoever comes next reads it, and such a program is compiled plainly from then on, on this machine and these versions.
A process that somebody killed leaves no such word, and changes nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vmaptune.engine import kept
from vmaptune.engine.devices import cache_folder, machine, memory_bytes

CRASH, MEMORY = "Fatal Python error", "memory"  # what faulthandler writes, and what the watch does
SHARE = 0.6  # of the memory at hand, that compiling may take
WATCH = 0.25  # seconds between two looks at the memory


def crashed(program: str) -> bool:
    """Whether a program, known by its jaxprs' text, ended a process on this machine and these versions."""
    folder = _folder()
    if not folder.is_dir():
        return False
    _read_what_the_dead_left(folder)
    return any(folder.glob("crashed-*")) and _mark(folder, program).exists()


class Journal:
    """What this process is compiling, in a file that outlives it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        self._under_way: list[str] = []

    @contextlib.contextmanager
    def compiling(self, program: str) -> Iterator[None]:
        """While it holds, a program is compiled that may end the process."""
        name = _name(program)
        with self._lock:
            self._under_way.append(name)
            self._write()
            if len(self._under_way) == 1:
                self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._under_way.remove(name)
                if self._under_way:
                    self._write()
                else:
                    self._end()

    def note(self, word: str) -> None:
        """Adds a word on what happens to the programs under way."""
        with self._lock:
            if self._file is not None:
                self._file.write(f"{word}\n")
                self._file.flush()

    @property
    def busy(self) -> bool:
        """Whether a program is being compiled."""
        return bool(self._under_way)

    def _begin(self) -> None:
        self._handled = faulthandler.is_enabled()
        if self._file is not None:
            faulthandler.enable(self._file, all_threads=False)
        threading.Thread(target=_watch, args=(self,), daemon=True).start()

    def _end(self) -> None:
        if self._file is None:
            return
        if self._handled and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        else:
            faulthandler.disable()
        self._file.close()
        with contextlib.suppress(OSError):
            Path(self._file.name).unlink()
        self._file = None

    def _write(self) -> None:
        """The names of what is under way; what a crash adds comes after them."""
        with contextlib.suppress(OSError):  # a folder that cannot be written: nothing is remembered
            if self._file is None:
                _folder().mkdir(parents=True, exist_ok=True)
                self._file = open(_folder() / f"{os.getpid()}.log", "w", encoding="utf-8")  # noqa: SIM115
            self._file.seek(0)
            self._file.truncate()
            self._file.write("".join(f"{name}\n" for name in self._under_way))
            self._file.flush()


JOURNAL = Journal()


def _watch(journal: Journal) -> None:
    """Says so, once, when compiling has taken most of the memory that there was."""
    most, before = SHARE * memory_bytes(), _resident()
    pause = threading.Event()
    while journal.busy and before is not None:
        now = _resident()
        if now is not None and now - before > most:
            journal.note(MEMORY)
            print(
                f"vmaptune: compiling a program has taken {(now - before) / 2**30:.1f} GiB of memory. If the process "
                f"ends here, run the same command again: the program is compiled plainly then, and the study goes on",
                file=sys.stderr,
            )
            return
        pause.wait(WATCH)


def _resident() -> int | None:
    """The memory of this process in bytes, where the system says it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _read_what_the_dead_left(folder: Path) -> None:
    for file in folder.glob("*.log"):
        if not file.stem.isdigit() or _lives(int(file.stem)):
            continue
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
            names, crash, _ = text.partition(CRASH)
            for name in names.split() if crash or MEMORY in names.split() else ():
                if name != MEMORY:
                    (folder / f"crashed-{name}").touch()
            file.unlink()


def _lives(process: int) -> bool:
    if process == os.getpid():
        return JOURNAL.busy  # else it is one that had the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _name(program: str) -> str:
    return kept.digest([program, sorted(machine().items())])


def _mark(folder: Path, program: str) -> Path:
    return folder / f"crashed-{_name(program)}"


def _folder() -> Path:
    return cache_folder() / "compiling"
