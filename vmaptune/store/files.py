"""Writing a file whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from vmaptune.errors import StudyError
from vmaptune.store.lock import alive

PART = ".part"  # how the name of a file ends that is being written


def write_whole(path: str | Path, *parts: bytes | memoryview) -> None:
    """Writes `parts` as one file: a reader sees the old file or the new one, never a cut one.

    The directory is made if need be. Raises StudyError, naming the file, when it cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:  # a link that lies in wait is not written through
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise StudyError(
            f"{path} cannot be written: {reason}; what was there before is kept. Check the disk's space and rights"
        ) from error


def inside(directory: str | Path, name: str) -> Path:
    """The file or folder of this name in a study's directory.

    Raises:
      StudyError: it is a link, so that it may lead out of the study.
    """
    path = Path(directory) / name
    if path.is_symlink():
        raise StudyError(f"{path} is a link, and what a study keeps stays inside it; remove the link")
    return path


def remove_parts(*folders: Path) -> None:
    """Removes what killed processes had begun to write in these folders, though nothing behind a link."""
    for folder in folders:
        if folder.is_symlink():
            continue
        for path in folder.glob(f".*{PART}"):
            owner = path.name.removesuffix(PART).rpartition(".")[2]
            if owner.isdigit() and (int(owner) == os.getpid() or not alive(int(owner))):
                with suppress(OSError):
                    path.unlink()
