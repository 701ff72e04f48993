"""What was run, in the result's own JSON file: a run that was broken off, or is to be longer, goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from public._methods import OURS, Found

ROOT = Path(__file__).resolve().parent.parent.parent
Key = tuple[str, str, int]  # method, table, size


def source_versions(package: Path) -> dict[str, str]:
    """Of the sources that every result depends on, and of those that vmaptune's depends on besides."""
    bench = [ROOT / "benchmarks" / "public" / f"{name}.py" for name in ("_tables", "_methods")]
    search = [*sorted((package / "search").glob("*.py")), *sorted((package / "space").glob("*.py"))]
    return {
        name: hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]
        for name, files in (("bench", bench), (OURS, search))
    }


class Store:
    """Results by method, table, size and seed."""

    def __init__(self, sources: Mapping[str, str]):
        self.sources = dict(sources)
        self.runs: dict[Key, dict[int, Found]] = {}

    def read(self, file: Path) -> list[str]:
        """Takes in what an earlier run wrote; returns what of it no longer counts, in words."""
        text = json.loads(file.read_text(encoding="utf-8"))
        notes = []
        if text["sources"]["bench"] != self.sources["bench"]:
            return [f"{file}: written by another version of this benchmark, so everything runs again"]
        if text["sources"][OURS] != self.sources[OURS]:
            notes.append(f"{file}: of another version of vmaptune's search, so its studies run again")
        for r in text["runs"]:
            if notes and r["method"] == OURS:
                continue
            columns = zip(r["seeds"], r["regret"], r["trainings"], r["seconds"], strict=True)
            self.runs[r["method"], r["table"], r["size"]] = {seed: Found(*values) for seed, *values in columns}
        return notes

    def write(self, file: Path, more: Mapping[str, Any]) -> None:
        """In one step, so that a run that is broken off leaves the file before or the file after."""
        rows = []
        for (method, table, size), found in sorted(self.runs.items()):
            seeds = sorted(found)
            row: dict[str, Any] = {"method": method, "table": table, "size": size, "seeds": seeds}
            row |= {name: [getattr(found[s], name) for s in seeds] for name in ("regret", "trainings", "seconds")}
            rows.append(json.dumps(row))
        head = json.dumps({**more, "sources": self.sources}, indent=1)[:-2]  # without its closing bracket
        text = head + ',\n "runs": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)

    def missing(self, method: str, table: str, sizes: list[int], seed: int) -> list[int]:
        return [size for size in sizes if seed not in self.runs.get((method, table, size), {})]

    def add(self, method: str, table: str, seed: int, found: Mapping[int, Found]) -> None:
        for size, one in found.items():
            one = Found(float(f"{one.regret:.7g}"), one.trainings, float(f"{one.seconds:.4g}"))  # as it is written
            self.runs.setdefault((method, table, size), {})[seed] = one
