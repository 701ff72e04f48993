"""What was measured on this machine, kept as JSON in the user's cache folder from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def digest(what: Any) -> str:
    """A file's name for what a measurement holds for, by its `repr`."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def read(file: Path) -> Any:
    """What a file holds, or None where there is none or it is damaged: then it is measured again."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write(file: Path, measured: Any) -> None:
    """Writes a file in one piece; a cache that cannot be written costs the next run the measurement."""
    beside = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(measured), encoding="utf-8")
        beside.replace(file)
