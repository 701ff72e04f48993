"""A disk that is full: a small file system in memory where one can be mounted, else a limit on the size of files."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from _damage import studies
from _report import row
from _studies import Bench, digest, fresh, run


def full_disk(bench: Bench, wanted: int) -> None:
    """Studies that find no more space at a random moment, and go on when there is some."""
    tally = bench.tally("disk")
    peak = sum(p.stat().st_size for p in studies(bench)["killed late"].rglob("*") if p.is_file())
    while tally["full"] < wanted and not bench.over:
        draw = random.Random(f"disk {tally['tries']}")
        limit = draw.randrange(64 * 1024, peak)
        with small_disk(bench.place / "disk", limit) as disk:
            study = (disk or fresh(bench.place / "limited")) / "s"
            arguments = run(study, "--save-every", draw.choice(("0", "0.5")))
            ended = bench.command.run(arguments, file_limit=None if disk else max(4096, limit // 4))
            tally.add(tries=1, mounted=disk is not None)
            if ended.code == 0:
                tally.keep()
                continue
            clean = ended.code in (1, 2) and "error:" in ended.errors and "Traceback" not in ended.errors
            if disk:
                subprocess.run(["mount", "-o", f"remount,size={64 << 20}", disk], check=True)
            again = bench.command.run(run(study))
            same = again.code == 0 and digest(study) == digest(bench.reference)
            tally.add(full=1, clean=clean, same=same)
            if not clean:
                tally.note("errors", ended.errors[-400:])
            elif not same:
                tally.note("errors", f"{ended.errors[-300:]} THEN {again.errors[-300:]}")
        tally.keep()
        print(f"disk: {tally['full']} full, {tally['clean']} clean, {tally['same']} the same", flush=True)


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path | None]:
    """A file system of `size` bytes; None where it cannot be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if done.returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def rows(bench: Bench, wanted: int) -> list[dict]:
    tally = bench.tally("disk")
    if not tally:
        return []
    how = "a file system of that size" if tally["mounted"] else "a limit on the size of files"
    return [
        row(f"full disk ({how}): a clean exit with a named error, of {wanted}", tally["clean"], f"{wanted}",
            tally["clean"] == tally["full"] >= wanted, tries=tally["tries"], errors=tally.get("errors", [])[:3]),
        row(f"full disk: the same bits once there is space, of {wanted}", tally["same"], f"{wanted}",
            tally["same"] == tally["full"] >= wanted),
    ]  # fmt: skip
