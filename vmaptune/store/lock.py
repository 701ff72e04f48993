"""One writer for a study. The lock ends with its process, however that ends; a note beside it says who it is."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from vmaptune.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NOTE = "writer.json"


class Lock:
    """A study's directory, held by this process until `release`."""

    def __init__(self, directory: Path, handle: int | None):
        self.directory, self._handle = directory, handle

    @classmethod
    def take(cls, directory: Path) -> Lock:
        """Takes the lock, or that of a process that is gone.

        Raises:
          InputError: another process holds it; the message says which. OSError: the directory cannot be used.
        """
        handle = None
        if fcntl is not None:
            handle = os.open(directory, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise _held(directory) from None
            except OSError:  # a file system without locks: the note alone tells
                os.close(handle)
                handle = None
        if handle is None and _note_is_alive(directory):
            raise _held(directory)
        lock = cls(directory, handle)
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        try:
            (directory / NOTE).write_text(json.dumps(note), encoding="utf-8")
        except BaseException:
            lock.release()
            raise
        return lock

    def release(self) -> None:
        """Gives the lock back."""
        with suppress(OSError):
            (self.directory / NOTE).unlink(missing_ok=True)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def holder(directory: Path) -> str | None:
    """Who writes this study now, in words; None when nobody does. Takes no lock that a writer would meet."""
    note = _read(directory)
    if note is None or (note.get("host") == socket.gethostname() and not alive(note.get("pid"))):
        return None
    return _words(note)


def held_by_another(directory: Path) -> InputError | None:
    """The error of a study that another process writes, a lock of this one's own included; None where nobody does.
    Nothing is written."""
    if fcntl is None:
        return _held(directory) if _note_is_alive(directory) else None
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _held(directory)
    except OSError:
        return _held(directory) if _note_is_alive(directory) else None
    finally:
        os.close(handle)  # with it the lock
    return None


def _held(directory: Path) -> InputError:
    note = _read(directory)
    who = f" ({_words(note)})" if note else ""
    return InputError(
        f"{directory} is being written by another run{who}; wait for it, stop it, or choose another --out"
    )


def _words(note: dict) -> str:
    since = note.get("since")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, (int, float)) else "?"
    return f"process {note.get('pid')} on {note.get('host')}, since {when}"


def _read(directory: Path) -> dict | None:
    try:
        note = json.loads((directory / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def _note_is_alive(directory: Path) -> bool:
    note = _read(directory)
    return note is not None and note.get("host") == socket.gethostname() and alive(note.get("pid"))


def alive(pid: object) -> bool:
    """Whether a process of this machine runs; False where that cannot be told."""
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0 or os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
