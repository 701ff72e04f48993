"""State files of a finished and of two killed studies: cut at random lengths, and with single bits flipped.

After each of them everything that a study tells is read again: it must be the same, or whole transactions earlier, or
an error with a name. For some the real command goes on with the damaged study, and the end is compared to the bit.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from _report import row
from _studies import Bench, digest, fresh, run

from vmaptune.errors import InputError, StudyError, VmaptuneError
from vmaptune.store.checkpoints import Checkpoints
from vmaptune.store.ledger import Ledger, LedgerReader
from vmaptune.store.rescue import rescue
from vmaptune.store.weights import load_weights
from vmaptune.study._resume import COPY, code_of

KILLED = {"killed early": 700, "killed late": 2600}  # after so many rows of the ledger
GONE_ON_WITH = 4  # of each file's tries


def damage(bench: Bench, each: int) -> None:
    """`each` cuts and as many flipped bits of every state file."""
    for kind, study in studies(bench).items():
        true = readable(study)
        for name in state_files(study):
            tally = bench.tally(f"damage-{kind}-{name.replace('/', '-')}".replace(" ", "-"))
            whole = (study / name).read_bytes()
            for i in range(tally["tries"], 2 * each):
                if bench.over:
                    return
                draw = random.Random(f"{kind} {name} {i}")
                copy = fresh(bench.place / "damaged")
                shutil.copytree(study, copy)
                (copy / name).write_bytes(flipped(whole, draw) if i % 2 else whole[: draw.randrange(len(whole))])
                found = judge(copy, name, true)
                tally.add(tries=1, **{found: 1})
                if found == "CHANGED":
                    tally.note("wrong", i)
                if kind != "finished" and i < GONE_ON_WITH:
                    ended = bench.command.run(run(copy))
                    named = ended.code in (1, 2) and "error:" in ended.errors and "Traceback" not in ended.errors
                    same = ended.code == 0 and digest(copy) == digest(bench.reference)
                    tally.add(gone_on=1, gone_on_same=same, gone_on_named=named)
                    if not same and not named:
                        tally.note("wrong", ended.errors[-400:])
                tally.keep()
        print(f"damage: {kind} done", flush=True)


def rows(bench: Bench, each: int) -> list[dict]:
    found = []
    for path in sorted(bench.place.glob("damage-*.json")):
        tally = bench.tally(path.stem)
        good = tally["tries"] - tally["CHANGED"]
        what = path.stem.removeprefix("damage-")
        found.append(
            row(f"{what}, cut or flipped: recovered, or refused by name, of {2 * each}", good, f"{2 * each}",
                good == 2 * each, **{k: tally[k] for k in ("same", "earlier", "error", "CHANGED")},
                wrong=tally.get("wrong", [])[:3])
        )  # fmt: skip
        if tally["gone_on"]:
            well = tally["gone_on_same"] + tally["gone_on_named"]
            found.append(
                row(f"{what}: gone on with, of {tally['gone_on']}", well, "all", well == tally["gone_on"],
                    same_bits=tally["gone_on_same"], refused_by_name=tally["gone_on_named"])
            )  # fmt: skip
    return found


def rescues(bench: Bench, each: int) -> None:
    """What `rescue` saves of damaged ledgers: rows that were written, and no other."""
    tally = bench.tally("rescue")
    whole = (bench.reference / "study.db").read_bytes()
    true = written(bench.reference)
    for i in range(tally["tries"], 2 * each):
        if bench.over:
            return
        draw = random.Random(f"rescue {i}")
        copy = fresh(bench.place / "damaged")
        shutil.copytree(bench.reference, copy)
        (copy / "study.db").write_bytes(flipped(whole, draw) if i % 2 else whole[: draw.randrange(len(whole))])
        try:
            found = rescue(copy, fresh(bench.place / "rescued"))
        except StudyError as error:
            tally.add(tries=1, nothing=1, good="nothing to rescue" in str(error))
        else:
            there = written(bench.place / "rescued")
            good = there[0] <= true[0] and there[1] <= true[1] and found.kept["trials"] == len(there[0])
            tally.add(tries=1, good=good, rows=len(there[0]) + len(there[1]), of=len(true[0]) + len(true[1]))
        tally.keep()


def rescue_rows(bench: Bench, each: int) -> list[dict]:
    tally = bench.tally("rescue")
    return [] if not tally else [
        row(f"rescue of a study.db, cut or flipped: rows that were written and no other, of {2 * each}",
            tally["good"], f"{2 * each}", tally["good"] == 2 * each, nothing_left=tally["nothing"],
            share_of_rows_saved=tally["rows"] / max(1, tally["of"])),
    ]  # fmt: skip


def written(study: Path) -> tuple[set[str], set[str]]:
    """A study's trials and curve points."""
    with LedgerReader.open(study) as reader:
        return {repr(t) for t in reader.trials()}, {repr(p) for _, curve in reader.curves() for p in curve}


def studies(bench: Bench) -> dict[str, Path]:
    """The finished study, and killed ones; made once."""
    found = {"finished": bench.reference}
    for kind, after in KILLED.items():
        study = found[kind] = bench.place / kind.replace(" ", "-")
        while not ((study / "study.db-wal").exists() and len(list((study / "checkpoints").glob("*.ckpt"))) == 2):
            fresh(study)
            pid, started = bench.command.start(run(study, "--save-every", "0"))
            while not any(int(p.stem) > after for p in (study / "checkpoints").glob("*.ckpt")):
                time.sleep(0.002)
            bench.command.kill(pid)
            bench.command.end(started)
    return found


def state_files(study: Path) -> list[str]:
    """What a study is read from or gone on with; not what is made from it for people to open."""
    names = ["study.db", "study.db-wal", "study.db-shm", "writer.json", COPY]
    names += sorted(str(p.relative_to(study)) for f in ("checkpoints", "best") for p in (study / f).glob("[!.]*"))
    return [name for name in names if (study / name).exists()]


def flipped(whole: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(whole)
    damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def readable(study: Path) -> tuple:
    """Everything that a study tells: trials, curve points, rounds, the rest of the ledger, its models."""
    with LedgerReader.open(study) as reader:
        trials = {repr((t.trial, t.state, t.seed, t.value, dict(t.params))) for t in reader.trials()}
        points = {repr(point) for _, curve in reader.curves() for point in curve}
        rounds = [repr((r.round, r.space, r.trials)) for r in reader.rounds()]
        rest = repr((reader.meta(), reader.decisions(), reader.groups(), reader.counts()))
    arrays = {}
    for path in sorted((study / "best").glob("*.weights")):
        arrays |= {(path.name, name): array.tobytes() for name, array in load_weights(path).items()}
    return trials, points, rounds, arrays, rest


def judge(study: Path, name: str, true: tuple) -> str:
    """same, error, earlier (whole transactions are missing at the end), or CHANGED."""
    if name.startswith("checkpoints"):
        said: list[str] = []
        kept = Checkpoints(study).newest(2**62, said.append)
        return "error" if len(kept) == 1 and any(Path(name).name in text for text in said) else "CHANGED"
    if name == COPY:
        with LedgerReader.open(study) as reader:
            meta = reader.meta()
        meta["experiment"]["path"] = str(study / "gone.py")
        try:
            code_of(study, meta, False, lambda text: None)
        except InputError as error:
            return "error" if "has changed" in str(error) else "CHANGED"
        return "CHANGED"
    if name == "writer.json":
        Ledger.open(study).close()
    try:
        found = readable(study)
    except VmaptuneError:
        return "error"
    if found == true:
        return "same"
    if name.endswith("-wal") and found[1] <= true[1] and true[2][: len(found[2])] == found[2]:
        return "earlier"
    return "CHANGED"
