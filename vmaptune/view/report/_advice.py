"""What to do next, from what the ledger shows: plain sentences, each with a command if there is one."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from vmaptune.search.decide import seed_spread
from vmaptune.search.verdict import MARGIN
from vmaptune.space import Distribution
from vmaptune.store.states import nothing_trained
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._scales import column
from vmaptune.view.report._settings import axis_of
from vmaptune.view.words import number

MANY = 0.3  # infeasible trials in the first round: worth a word
REGION = 0.6  # infeasible in a region: leave it out
FEW = 64  # trials, for which a range is cut into fewer regions
LEAST_TRAININGS, LEAST_EVALUATIONS = 4, 5  # to say anything of how training ends
LOST = "every trial was infeasible"  # begins the study's own warning of it
EARLY = 0.7  # of training: best before that is long before its end


@dataclass(frozen=True)
class Advice:
    """One step."""

    text: str
    command: str | None = None


def state_words(data: StudyData) -> str:
    """Where the study stands, in one sentence."""
    state = data.meta.get("state", "running")
    planned = (data.meta.get("options") or {}).get("rounds")
    of = f" of {planned}" if planned else ""
    at = f"round {len(data.rounds)}{of}"
    if data.result is not None:
        return "finished"
    if state in ("interrupted", "failed"):
        return f"{state} in {at}; what follows is what was known then"
    confirming = " (confirming the best settings)" if data.confirming else ""
    return f"running, {at}{confirming}; what follows is what is known so far"


def advice(data: StudyData) -> list[Advice]:
    """The steps, the most useful first."""
    found: list[Advice] = []
    result = data.result
    best = (result or {}).get("best")
    directory = shlex.quote(str(data.directory))
    if result is None and data.meta.get("state") in ("interrupted", "failed"):
        found.append(
            Advice("The study ended before its time: take it up where it stopped.", f"vmaptune resume {directory}")
        )
    elif best is not None:
        found.append(
            Advice(
                "Use the winner: its trained model is in the study.", f'vmaptune.load("{data.directory}").best_model()'
            )
        )
    if data.winner is None:
        why = nothing_trained(data.reasons)
        found.append(Advice(f"{why[:1].upper()}{why[1:]}."))
        return found
    found += _widen(data)
    found += _leave_out(data)
    found += _steps(data)
    found += _fix(data)
    return found


def warnings(data: StudyData) -> list[str]:
    """What the study itself warned of, and what the numbers say against trusting them."""
    result = data.result or {}
    said = list(result.get("warnings", []))
    touching = {lean.message for lean in data.leanings}
    said = [w for w in said if w not in touching and not w.startswith(LOST)]  # those are under "what to do next"
    best = result.get("best")
    if best and _finite(best.get("best_seen")) and _finite(best.get("value")) and best.get("repeats", 0) > 1:
        spread = best.get("value_std") or 0.0
        of = best.get("best_seen_trial", best["trial"])
        again = {one["trial"]: one["value"] for one in result.get("finalists") or []} | {best["trial"]: best["value"]}
        gap = data.sign * (again.get(of, math.nan) - best["best_seen"])
        if gap > max(0.0, 2 * (spread if _finite(spread) else 0.0)):
            whose = "the winner" if of == best["trial"] else f"its configuration (trial {of})"
            said.append(
                f"the best single value seen, {number(best['best_seen'])}, was luck to a good part: on fresh seeds "
                f"{whose} gives {number(again[of])}"
            )
    lost = sum(row.state == "INFEASIBLE" for row in data.confirming)
    if lost:
        said.append(
            f"{lost} of the {len(data.confirming)} repeats on fresh seeds diverged: the settings near them are unsafe"
        )
    failed = int((data.state == "FAIL").sum())
    if failed:
        said.append(f"{failed} trials did not end: the study was interrupted or failed while they ran")
    return said


def _widen(data: StudyData) -> list[Advice]:
    found = []
    for lean in data.leanings:
        d = data.first[lean.name]
        wider = _wider(d, lean.side)
        setting = shlex.quote(f"{lean.name}={wider!r}")
        command = f"vmaptune run {_experiment(data)} --set {setting} --out {_beside(data)}" if wider else None
        bound = axis_of(data, lean.name).words(lean.bound)
        text = f"Widen {lean.name}: the best trials touch its {lean.side} bound {bound}."
        found.append(Advice(text, command))
    return found


def _wider(d: Distribution, side: str) -> Distribution | None:
    """One decade (or half the range) more on that side; None where a person has to say what comes next."""
    if d.low is None or d.high is None or (d.step is not None and d.kind == "uniform"):
        return None
    low, high = d.low, d.high
    if d.kind in ("loguniform", "lograndint"):
        low, high = (low / 10, high) if side == "lower" else (low, high * 10)
    elif d.kind == "reverseloguniform":
        low, high = (1 - 10 * (1 - low), high) if side == "lower" else (low, 1 - (1 - high) / 10)
        low = max(0.0, low)
    else:
        room = (high - low) / 2
        low, high = (low - room, high) if side == "lower" else (low, high + room)
        low = max(0, low) if d.low >= 0 else low
    if d.is_integer:
        low, high = max(1 if d.kind == "lograndint" else low, math.floor(low)), math.ceil(high)
        return d.with_bounds(int(low), int(high)) if (low, high) != (d.low, d.high) else None
    low, high = float(f"{low:.6g}"), float(f"{high:.6g}")
    return d.with_bounds(low, high) if (low, high) != (d.low, d.high) else None


def _leave_out(data: StudyData) -> list[Advice]:
    """Regions at an end of a range where most trials of the first round were infeasible."""
    first = data.round == data.rounds[0].round
    share = float(data.infeasible[first].mean()) if first.any() else 0.0
    if share < MANY:
        return []
    found = []
    for name, d in data.first.items():
        if d.kind == "choice":
            continue
        ax = axis_of(data, name)
        c = ax.place(column(data.seen, name))
        edges, labels = ax.buckets(8 if first.sum() >= FEW else 4)
        inside = np.clip(np.searchsorted(edges, c, side="right") - 1, 0, len(labels) - 1)
        bad = []
        for b in range(len(labels)):
            mask = first & (inside == b) & np.isfinite(c)
            bad.append(mask.sum() >= 4 and data.infeasible[mask].mean() >= REGION)
        top = len(bad) - next((k for k, v in enumerate(reversed(bad)) if not v), len(bad))
        if top < len(bad) and not ax.listed:
            found.append(Advice(f"Leave out {name} above {labels[top].split(' to ')[0]}: most trials there diverged."))
    if not found:
        found.append(
            Advice(
                f"{share:.0%} of the first round's trials diverged: narrow the space, the learning rate's top first."
            )
        )
    return found


def _steps(data: StudyData) -> list[Advice]:
    """Whether the confirmed configurations still improved at their end, or were best long before it.

    By their trainings on fresh seeds alone: of the search's trials the best at their end were picked for being so.
    """
    few = set(data.trial[data.finalists].tolist())
    curves = [
        (one.of, data.sign * one.value) for one in data.fresh
        if one.of in few and len(one.value) >= LEAST_EVALUATIONS and np.isfinite(one.value).all()
    ]  # fmt: skip
    if len(curves) < LEAST_TRAININGS or len({len(c) for _, c in curves}) > 1:
        return []
    values = np.array([c for _, c in curves])  # [n, P]
    ends = {of: [float(c[-1]) for other, c in curves if other == of] for of, _ in curves}
    worth = MARGIN / 2 * seed_spread(ends)
    gain = _change(values[:, -1 - values.shape[1] // 5] - values[:, -1])
    if gain.clear(worth):
        return [Advice(
            f"Train for longer: over the last fifth of training {len(curves)} trainings on fresh seeds still improved "
            f"{data.objective} by {gain.words()}."
        )]  # fmt: skip
    # Each training's best step is told by the others: its own would be the one where it was lucky.
    tops = [int(np.delete(values, k, axis=0).mean(axis=0).argmin()) for k in range(len(values))]
    loss = _change(values[:, -1] - values[np.arange(len(values)), tops])
    after = float(np.median(tops)) / (values.shape[1] - 1)
    if after < EARLY and loss.clear(worth):
        return [Advice(
            f"Fewer steps, or more regularisation: {len(curves)} trainings on fresh seeds were best after {after:.0%} "
            f"of training, and their {data.objective} has worsened by {loss.words()} since."
        )]  # fmt: skip
    return []


@dataclass(frozen=True)
class Change:
    """A mean difference, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def clear(self, worth: float) -> bool:
        """Whether it is above 0 for sure, and not less than what is worth a word (NaN where that is unknown)."""
        return self.low > 0 and not self.mean < worth

    def words(self) -> str:
        """The difference and its interval."""
        return f"{number(self.mean)} ({number(self.low)} to {number(self.high)} at 95 %)"


def _change(differences: np.ndarray) -> Change:
    """The mean of `differences [n]`, with Student's interval."""
    n = len(differences)
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n)
    reach = float(special.stdtrit(n - 1, 0.975)) * error
    return Change(mean, mean - reach, mean + reach)


def _fix(data: StudyData) -> list[Advice]:
    seen = {i.name for i in (*data.importance, *data.importance_all) if i.matters}
    seen |= {lean.name for lean in data.leanings}
    best = data.params[data.winner] if data.winner is not None else {}
    there = data.first.active(best) if best else {}
    idle = [i.name for i in data.importance if i.name not in seen and there.get(i.name)]
    if not idle or len(idle) == len(data.varied):
        return []
    some = " and ".join([", ".join(idle[:-1]), idle[-1]] if len(idle) > 1 else idle)
    values = " ".join(f"--set {shlex.quote(f'{name}={best[name]!r}')}" for name in idle)
    as_it_is = "as the winner has it" if len(idle) == 1 else "as the winner has them"
    return [
        Advice(
            f"No effect of {some} was seen: fixed {as_it_is}, the same trials search fewer settings.",
            f"vmaptune run {_experiment(data)} {values} --out {_beside(data)}",
        )
    ]


def _beside(data: StudyData) -> str:
    """A directory for the next study; the one of this study is taken."""
    return shlex.quote(f"{data.directory}-next")


def _experiment(data: StudyData) -> str:
    origin: Mapping[str, Any] = data.meta.get("experiment") or {}
    return shlex.quote(str(origin.get("spec") or origin.get("path") or "EXP"))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
