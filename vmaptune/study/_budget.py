"""Another number of trials or rounds for a study that is under way, or finished (`run --force`)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from vmaptune.errors import InputError
from vmaptune.search.confirm import Budget
from vmaptune.store.ledger import FINISHED, Ledger
from vmaptune.study._options import Options

CHANGEABLE = ("trials", "rounds")


def change_budget(ledger: Ledger, given: Mapping[str, Any]) -> None:
    """Gives a study the trials and rounds of `given`, where they are not None and not its own.

    Rounds that have begun stay as they are; what is left of the trials is split over the rounds to come, and the
    confirmation's share is that of the new number. The study keeps the new split, and a note of the change. A finished
    study becomes an unfinished one: its confirmation is taken back, since the finalists will be others, and the note
    keeps what it had found. Where no number of rounds is given, the new ones are about as large as its last one.

    Raises:
      InputError: it is too late, or the numbers leave nothing for the rounds that have begun.
    """
    meta, rows, finished = ledger.meta(), ledger.rounds(), ledger.finished()
    old = Options(**meta["options"])
    asked = {n: given[n] for n in CHANGEABLE if given.get(n) not in (None, getattr(old, n))}
    if finished and "trials" not in asked:
        raise InputError(
            f"{ledger.directory}: a finished study can only go on with more trials than its {old.trials}; say "
            f"--trials N --force, or begin another study with --fresh DIR"
        )
    if not asked:
        return
    confirmed = [row for row in rows if row.kind == "confirm"]
    if finished:
        rows = [row for row in rows if row.kind == "search"]
        if "rounds" not in asked:
            to_come = sum(replace(old, **asked).budget().rounds) - sum(row.trials for row in rows)
            asked["rounds"] = len(rows) + max(1, round(to_come / rows[-1].trials))
    new = replace(old, **asked)
    where = f"{ledger.directory}: {' and '.join(f'{n} cannot become {v}' for n, v in asked.items())}"
    if "retest" in meta or old.method == "pbt":
        raise InputError(f"{where}: it has no rounds to add to; begin another study with --fresh DIR")
    if confirmed and not finished:
        raise InputError(
            f"{where}: all of its rounds have begun; resume it to its end, then give it more with --trials N --force"
        )
    begun = [row.trials for row in rows]
    split, before = new.budget(), recorded_budget(meta) or old.budget()
    if bool(split.finalists) != bool(before.finalists):
        raise InputError(f"{where}: it would confirm its winner in the one case, not in the other; take other numbers")
    left, more = sum(split.rounds) - sum(begun), new.rounds - len(begun)
    least = more * new.repeats
    if more < 0 or left < least or (more == 0 and left > 0):
        raise InputError(
            f"{where}: {len(begun)} rounds with {sum(begun)} trials have begun, and {new.trials} trials in "
            f"{new.rounds} rounds would leave {left} for {max(more, 0)} more; take other --trials and --rounds"
        )
    each = left // more if more else 0
    rounds = [*begun, *([left - each * (more - 1), *[each] * (more - 1)] if more else [])]
    budget = replace(split, rounds=tuple(rounds))
    note = {"time": time.time(), **{n: [getattr(old, n), v] for n, v in asked.items()}}
    if finished:
        note["found"] = (meta.get("result") or {}).get("best")
    changes = [*meta.get("changes", []), note]
    with ledger.transaction():
        if finished:
            if confirmed:
                ledger.roll_back(confirmed[0].seq - 1)
            for key, value in {"state": "running", FINISHED: False, "result": None, "weights": None}.items():
                ledger.set_meta(key, value)
            for row in confirmed:  # the rounds to come have these numbers
                ledger.set_meta(f"occupancy.{row.round}", None)
        ledger.set_meta("options", asdict(new))
        ledger.set_meta("budget", {**asdict(budget), "rounds": rounds})
        ledger.set_meta("changes", changes)


def recorded_budget(meta: Mapping[str, Any]) -> Budget | None:
    """The split that a study keeps since its numbers were changed; None where its options' own holds."""
    found = meta.get("budget")
    return Budget(tuple(found["rounds"]), found["finalists"], found["repeats"]) if found else None
