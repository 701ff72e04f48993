"""The digits study that is killed, damaged and filled up here, and the tallies that outlive the benchmark itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _processes import Command

from vmaptune.store.ledger import LedgerReader

DIGITS = Path(__file__).parent.parent.parent / "experiments" / "digits_mlp.py"
STUDY = ["--trials", "96", "--rounds", "2", "--steps", "300", "--set", "width=ordinal([16, 32])", "--quiet",
         "--no-report", "--plan", "devices=1,tiles=1,lanes=8,every=10"]  # fmt: skip


# other studies that are killed too: trials that are stopped early, wait for one another and flow into the next round;
# and settings that another library's sampler proposes, which is asked again when a study goes on
KINDS = {
    "plain": [],
    "hyperband": ["--stopping", "hyperband", "--halving", "eta=3,min_steps=30"],
    "asha": ["--stopping", "asha", "--halving", "eta=3,min_steps=30"],
    "optuna:tpe": ["--method", "optuna:tpe"],
    "optuna:cmaes": ["--method", "optuna:cmaes"],
    "optuna:gp": ["--method", "optuna:gp", "--trials", "48", "--rounds", "3"],
}


def run(study: Path, *more: str) -> list[str]:
    """The command that begins the study, or goes on with it."""
    return ["run", str(DIGITS), "--out", str(study), *STUDY, *more]


@dataclass
class Bench:
    """What every part needs: a place on disk that stays between runs, the command, and when to stop."""

    place: Path
    command: Command
    until: float = float("inf")  # of time.monotonic(): no try begins later

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    @property
    def reference(self) -> Path:
        """The study that nothing happened to; made once."""
        return self.reference_of("plain")

    def reference_of(self, kind: str) -> Path:
        """The study of a kind that nothing happened to; made once."""
        study = self.place / ("reference" if kind == "plain" else f"reference-{kind.replace(':', '-')}")
        if not is_finished(study):
            shutil.rmtree(study, ignore_errors=True)
            whole = self.command.run(run(study, *KINDS[kind]))
            assert whole.code == 0, whole.errors
        return study

    def tally(self, part: str) -> Tally:
        """What a part has counted so far."""
        return Tally(self.place / f"{part}.json")


class Tally(dict[str, Any]):
    """Counts and lists by name, written to disk after each try, so that an interrupted benchmark goes on."""

    def __init__(self, path: Path):
        super().__init__(json.loads(path.read_text()) if path.exists() else {})
        self.path = path

    def add(self, **counts: float) -> None:
        for name, count in counts.items():
            self[name] = self.get(name, 0) + count

    def note(self, name: str, value: Any) -> None:
        self.setdefault(name, []).append(value)

    def keep(self) -> None:
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self))
        os.replace(beside, self.path)

    def __missing__(self, name: str) -> int:
        return 0


def digest(study: Path) -> str:
    """Of the table, the curves and the weights."""
    found = hashlib.sha256((study / "trials.csv").read_bytes())
    with LedgerReader.open(study) as reader:
        found.update(repr(list(reader.curves())).encode())
    for path in sorted((study / "best").iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def is_finished(study: Path) -> bool:
    """Whether a study is there and came to its end."""
    if not (study / "study.db").exists():
        return False
    with LedgerReader.open(study) as reader:
        return reader.finished()


def fresh(study: Path) -> Path:
    """The same place, empty."""
    shutil.rmtree(study, ignore_errors=True)
    return study
