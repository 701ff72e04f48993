"""What checkpoints cost: a save after every call against none at all, and a long run at the default setting."""

from __future__ import annotations

import statistics

from _report import row
from _studies import DIGITS, Bench, fresh, run

from vmaptune.store.checkpoints import Checkpoints
from vmaptune.store.ledger import LedgerReader

NEVER = "1000000"
LONG = ["--trials", "512", "--steps", "800", "--quiet", "--no-report"]


def saves(bench: Bench, pairs: int) -> None:
    """The digits study with a save whenever one can be begun, and with none but at the end."""
    tally = bench.tally("cost")
    study = bench.place / "cost"
    bench.command.run(run(fresh(study)))  # its programs are compiled
    while len(tally.get("pairs", [])) < pairs and not bench.over:
        often, never = (timed(bench, run(fresh(study), "--save-every", every)) for every in ("0", NEVER))
        tally.note("pairs", [often["train"], often["saves"]["taken"], never["train"], never["saves"]["taken"]])
        tally.keep()
    tally["bytes"] = max((p.stat().st_size for p in Checkpoints(bench.place / "killed-late")._files()), default=0)
    tally.keep()


def default_run(bench: Bench, tries: int) -> None:
    """A run of a minute or more at the default setting, which says itself how long it waited."""
    tally = bench.tally("default")
    if not tally and not bench.over:
        found = timed(bench, ["run", str(DIGITS), "--out", str(fresh(bench.place / "long")), *LONG])
        tally.update(found)
        tally.keep()


def timed(bench: Bench, arguments: list[str]) -> dict:
    ended = bench.command.run(arguments)
    assert ended.code == 0, ended.errors
    with LedgerReader.open(arguments[arguments.index("--out") + 1]) as reader:
        meta = reader.meta()
    seconds = meta["result"]["seconds"]
    return {"train": seconds["train"] + seconds["evaluate"], "saves": meta["saves"]}


def save_rows(bench: Bench, pairs: int) -> list[dict]:
    tally = bench.tally("cost")
    if not tally:
        return []
    each = [(a - c) / (b - d) for a, b, c, d in tally["pairs"]]
    share = statistics.median(each) / 60
    return [
        row("seconds that training loses by one save (a save after each call, less none; median)",
            statistics.median(each), "at most 1.8, 3 % of a minute", share <= 0.03, each=each, bytes=tally["bytes"],
            saves=[b for _, b, *_ in tally["pairs"]]),
    ]  # fmt: skip


def default_rows(bench: Bench, tries: int) -> list[dict]:
    tally = bench.tally("default")
    if not tally:
        return []
    share = tally["saves"]["seconds"] / tally["train"]
    return [
        row("checkpoints' share of the training time at the default setting, the device's waiting included", share,
            "at most 0.03", share <= 0.03, training_seconds=tally["train"], **tally["saves"]),
    ]  # fmt: skip
