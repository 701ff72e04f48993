"""From what was found to tables and rows: ranks, paired comparisons, the bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from _report import row
from scipy import stats

OURS = "zoom"
FEWER = ("gp",)  # run with fewer trials, for the comparison in the same time alone
RIVALS_IN_RANK = ("sobol", "tpe batch", "tpe")


def judged(records: Any, works: Sequence[Any], methods: Sequence[str], seeds: Mapping[str, range]) -> dict[str, Any]:
    """The whole result: `rows` (the bars), `tasks` (the tables), `ranks`, `settings` of the run."""
    tables = {w.name: table(records, w.name, methods, seeds) for w in works}
    listed = [w.name for w in works if not w.trap]
    ranked = [m for m in methods if m not in FEWER]
    common = min((seeds[m] for m in ranked), key=len)
    ranks = mean_ranks(records, [w.name for w in works], ranked, common)
    rows = []
    for rival, least in (("random 2x", 0.9), ("random 4x", 0.6)):
        if rival in methods and OURS in methods:
            beaten = [t for t in listed if tables[t]["methods"][rival]["beaten"]]
            sure = [t for t in beaten if tables[t]["methods"][rival]["p"] < 0.05]
            need = int(np.ceil(least * len(listed) - 1e-9))
            rows.append(
                row(f"tasks on which the zoom beats {rival}", len(beaten), f">= {need} of {len(listed)}",
                    len(beaten) >= need, significant=len(sure), tasks=beaten)
            )  # fmt: skip
    for rival in RIVALS_IN_RANK:
        if rival in ranks and OURS in ranks:
            rows.append(
                row(f"mean rank of {rival} less the zoom's", ranks[rival] - ranks[OURS], "> 0",
                    ranks[rival] > ranks[OURS])
            )  # fmt: skip
    for sampler in ("tpe", "gp", "cmaes"):
        label = f"{sampler}, equal time"
        there = [t for t in tables if label in tables[t]["methods"]]
        if there:
            beaten = [t for t in there if tables[t]["methods"][label]["beaten"]]
            rows.append(
                row(f"tasks on which the zoom beats {sampler} in the same time", len(beaten), f"{len(there)} of "
                    f"{len(there)}", len(beaten) == len(there), tasks=beaten)
            )  # fmt: skip
    if OURS in methods:
        off = [tables[t]["methods"][OURS]["off"] for t in tables]
        rows.append(
            row("reported less re-trained value, in seed-spreads, mean over tasks", float(np.mean(off)),
                "within ±0.5", abs(float(np.mean(off))) < 0.5, by_task=dict(zip(tables, off, strict=True)))
        )  # fmt: skip
    if "random" in methods and OURS in methods:
        worse = [t for t in tables if tables[t]["methods"]["random"]["trapped"]]
        rows.append(
            row("tasks on which the zoom is worse than random by more than random's spread", len(worse),
                f"0 of {len(tables)}", not worse, tasks=worse)
        )  # fmt: skip
    return {
        "rows": rows, "ranks": ranks, "tasks": tables, "times": {t: records.times.get(t) for t in tables},
        "settings": {
            "trials": records.trials, "seeds": {m: list(s) for m, s in seeds.items()}, "methods": list(methods),
            "versions": records.versions,
        },
    }  # fmt: skip


def medians(records: Any, task: str, method: str, seeds: Iterable[int]) -> np.ndarray:
    return np.array([records.rows[task, method, s]["median"] for s in seeds])


def table(records: Any, task: str, methods: Sequence[str], seeds: Mapping[str, range]) -> dict[str, Any]:
    """One task: what each method's setting came to, and the paired comparison with the zoom."""
    found: dict[str, Any] = {}
    timed = {f"{m}, equal time": s for m, s in seeds.items() if (task, f"{m}, equal time", s[0]) in records.rows}
    ours = medians(records, task, OURS, seeds[OURS]) if OURS in methods else None
    for label, studies in ({m: seeds[m] for m in methods} | timed).items():
        rows = [records.rows[task, label, s] for s in studies]
        values = np.array([r["median"] for r in rows])
        spread = np.array([max(r["std"], 1e-12) for r in rows])
        off = np.array([r["told"] - r["mean"] for r in rows]) / spread
        found[label] = {
            "mean": float(values.mean()), "std": float(values.std(ddof=1)), "values": values.tolist(),
            "off": float(np.mean(off)), "trainings": float(np.mean([r["trainings"] for r in rows])),
        }  # fmt: skip
        if ours is not None and label != OURS:
            found[label] |= compared(ours[: len(values)], values[: len(ours)])
    return {"methods": found}


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Paired by study seed. Beaten: by the mean difference and by Wilcoxon's signed ranks both; p is one-sided."""
    d = ours - theirs
    d = np.where(np.isnan(d), 0.0, d)
    gain = -float(d.mean())
    if not d.any():
        return {"gain": 0.0, "beaten": False, "p": 1.0, "trapped": False}
    ranked = stats.rankdata(np.abs(d[d != 0]))
    lower = float(ranked[d[d != 0] < 0].sum()) > float(ranked[d[d != 0] > 0].sum())
    p = float(stats.wilcoxon(d, alternative="less").pvalue)
    return {
        "gain": gain, "beaten": bool(gain > 0 and lower), "p": p,
        "trapped": bool(-gain > float(theirs.std(ddof=1)) if len(theirs) > 1 else False),
    }  # fmt: skip


def mean_ranks(records: Any, tasks: Sequence[str], methods: Sequence[str], seeds: range) -> dict[str, float]:
    """The mean rank over tasks and seeds, of the methods that every study was run with; 1 is best."""
    sums = np.zeros(len(methods))
    for task in tasks:
        values = np.array([medians(records, task, m, seeds) for m in methods])
        sums += stats.rankdata(values, axis=0).mean(axis=1)
    return {m: float(s) for m, s in zip(methods, sums / len(tasks), strict=True)}
