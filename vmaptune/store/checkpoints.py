"""Checkpoints: what a study holds in memory at one moment between two segments, each in a file of its own.

A file is named after the ledger's `seq` at that moment, written whole or not at all, and lies under a SHA-256
(the format of weights.py: it holds data only). The newest two are kept, so that a damaged one has a predecessor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmaptune.errors import InputError, StudyError
from vmaptune.store.encoding import from_json, to_json
from vmaptune.store.weights import load_weights, save_weights

FOLDER = "checkpoints"
KEPT = 2


@dataclass(frozen=True)
class Snapshot:
    """One moment: plain data and arrays by name."""

    seq: int  # the ledger's last row then
    plain: Mapping[str, Any]
    arrays: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one study. Writing happens in one thread beside the caller's."""

    def __init__(self, directory: str | Path):
        self.folder = Path(directory) / FOLDER
        self._thread: ThreadPoolExecutor | None = None
        self._saving: Future | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Hands a snapshot, whose arrays nobody changes any more, to the thread that writes it.

        Raises:
          StudyError: the one before could not be written.
        """
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving = self._thread.submit(self._write, snapshot)

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written now."""
        return self._saving is not None and not self._saving.done()

    def wait(self) -> None:
        """Until what was handed over is on disk. Raises StudyError when it could not be written."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Ends the thread; what it writes is finished first, and an error of it is nobody's any more."""
        with suppress(StudyError):
            self.wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def newest(self, seq: int, warn: Callable[[str], None]) -> list[Snapshot]:
        """The readable checkpoints up to the ledger's row `seq`, the newest first; `warn` hears of damaged ones."""
        found = []
        for path in self._files():
            try:
                snapshot = _read(path)
            except StudyError as error:
                warn(f"{error}; the checkpoint before it is used")
                continue
            if snapshot.seq <= seq:
                found.append(snapshot)
        return found

    def forget(self, after: int) -> None:
        """Removes the checkpoints of moments later than the row `after`."""
        for path in self._files():
            if int(path.stem) > after:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes every checkpoint; for a finished study."""
        with suppress(OSError, StudyError):
            self.forget(-1)
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        """Newest first. Only files of our own naming, and never through a link."""
        try:
            if self.folder.is_symlink() or not self.folder.is_dir():
                return []
            names = [p for p in self.folder.glob("*.ckpt") if p.stem.isdigit() and not p.is_symlink()]
        except OSError as error:
            raise StudyError(f"{self.folder} cannot be read: {error.strerror}; check its rights") from error
        return sorted(names, key=lambda p: int(p.stem), reverse=True)

    def _write(self, snapshot: Snapshot) -> None:
        with suppress(OSError):  # where nothing may be looked at, writing tells
            if self.folder.is_symlink():
                raise StudyError(f"{self.folder} is a link, and checkpoints stay inside the study; remove it")
        tree = {"plain": to_json(dict(snapshot.plain), "checkpoint"), "arrays": dict(snapshot.arrays)}
        save_weights(self.folder / f"{snapshot.seq:012d}.ckpt", tree | {"seq": snapshot.seq})
        for path in self._files()[KEPT:]:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _read(path: Path) -> Snapshot:
    tree = load_weights(path)
    try:
        snapshot = Snapshot(int(tree["seq"]), from_json(tree["plain"]), tree["arrays"])
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise StudyError(f"{path} is no checkpoint: {error}") from error
    if snapshot.seq != int(path.stem):
        raise StudyError(f"{path} is the checkpoint of another moment ({snapshot.seq}); it was renamed")
    return snapshot
