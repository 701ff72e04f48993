"""From the runs to ranks, regrets, paired tests and bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from _report import row
from public._methods import OURS, Found
from public._tables import FAMILY
from quality._judge import compared
from scipy import stats

TPE = "tpe"
NAS = "NASBench201"
Runs = Mapping[tuple[str, str, int], Mapping[int, Found]]


def judged(runs: Runs, tables: Sequence[str], methods: Sequence[str], sizes: Sequence[int]) -> dict[str, Any]:
    """The whole result: `rows` (the bars) and, by size, what they follow from."""
    found = {str(size): at_size(runs, tables, methods, size) for size in sizes}
    rows = [r for size in sizes for r in bars(found[str(size)], size, tables)]
    return {"rows": rows, "sizes": found}


def at_size(runs: Runs, tables: Sequence[str], methods: Sequence[str], size: int) -> dict[str, Any]:
    """One size: `ranks` of the methods with as many seeds as vmaptune, `ranks_of_all` on the seeds that all have, and
    for each method `regret` and `seconds` by table and, but for vmaptune, the paired comparison with it."""
    there = [m for m in methods if all(runs.get((m, t, size)) for t in tables)]
    seeds = {m: set.intersection(*(set(runs[m, t, size]) for t in tables)) for m in there}
    there = [m for m in there if seeds[m]]
    result: dict[str, Any] = {"methods": {m: {"seeds": len(seeds[m])} for m in there}, "ranks": {}, "ranks_of_all": {}}
    for m in there:
        rows = {t: [runs[m, t, size][s] for s in sorted(seeds[m])] for t in tables}
        one = result["methods"][m]
        one["regret"] = {t: float(np.mean([r.regret for r in found])) for t, found in rows.items()}
        one["seconds"] = {t: float(np.mean([r.seconds for r in found])) for t, found in rows.items()}
        one["trainings"] = float(np.mean([r.trainings for found in rows.values() for r in found]))
        if m != OURS and OURS in there:
            one["beaten"] = against(runs, tables, m, size, sorted(seeds[m] & seeds[OURS]))
    if OURS in there:
        full = [m for m in there if seeds[m] >= seeds[OURS]]
        result["ranks"] = mean_ranks(runs, tables, full, size, sorted(seeds[OURS]))
        result["ranks_of_all"] = mean_ranks(runs, tables, there, size, sorted(set.intersection(*seeds.values())))
        result["seeds"] = len(seeds[OURS])
        result["seeds_of_all"] = len(set.intersection(*seeds.values()))
    return result


def against(runs: Runs, tables: Sequence[str], rival: str, size: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Table -> vmaptune's gain over the rival, in regret, and its two-sided p, paired by seed; `p` over the tables."""
    by_table, differences = {}, []
    for t in tables:
        mine, theirs = (np.array([runs[m, t, size][s].regret for s in seeds]) for m in (OURS, rival))
        one, other = compared(mine, theirs), compared(theirs, mine)
        by_table[t] = {"gain": one["gain"], "better": one["beaten"], "worse": other["beaten"],
                       "p": min(1.0, 2 * min(one["p"], other["p"]))}  # fmt: skip
        differences.append(float((mine - theirs).mean()))
    over = np.array(differences)
    return {"tables": by_table, "p": float(stats.wilcoxon(over).pvalue) if over.any() else 1.0}


def mean_ranks(
    runs: Runs, tables: Iterable[str], methods: Sequence[str], size: int, seeds: Sequence[int]
) -> dict[str, float]:
    """The mean rank over tables and seeds; 1 is best, ties share."""
    if not seeds:
        return {}
    each = [
        stats.rankdata([[runs[m, t, size][s].regret for s in seeds] for m in methods], axis=0).mean(axis=1)
        for t in tables
    ]
    return {m: float(r) for m, r in zip(methods, np.mean(each, axis=0), strict=True)}


def bars(found: Mapping[str, Any], size: int, tables: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, ranks in (("ranks", found["ranks"]), ("ranks_of_all", found["ranks_of_all"])):
        rivals = {m: r for m, r in ranks.items() if m != OURS}
        if not rivals or (name == "ranks_of_all" and rivals.keys() == found["ranks"].keys() - {OURS}):
            continue
        best = min(rivals, key=lambda m: rivals[m])
        seeds = found["seeds" if name == "ranks" else "seeds_of_all"]
        rows.append(
            row(f"{size} trainings, {seeds} seeds: best rival's mean rank ({best}) less vmaptune's",
                rivals[best] - ranks[OURS], "> 0", rivals[best] > ranks[OURS] + 1e-9, best=best)
        )  # fmt: skip
    tpe = found["methods"].get(TPE, {})
    if "beaten" not in tpe:
        return rows
    by_table = tpe["beaten"]["tables"]
    for words, names, most in (
        ("tables", list(tables), 15),
        ("NAS-Bench-201 tables", [t for t in tables if FAMILY.get(t) == NAS], 3),
    ):
        better = [t for t in names if by_table[t]["better"]]
        need = 0.8 if most == 15 else 2 / 3  # 12 of 15, 2 of 3
        least = int(np.ceil(need * len(names) - 1e-9))
        if names:
            rows.append(
                row(f"{size} trainings: {words} on which vmaptune beats TPE", len(better),
                    f">= {least} of {len(names)}", len(better) >= least, tables=better,
                    worse=[t for t in names if by_table[t]["worse"]],
                    significant=sum(by_table[t]["p"] < 0.05 for t in better))
            )  # fmt: skip
    mine, theirs = (sum(found["methods"][m]["seconds"].values()) for m in (OURS, TPE))
    rows.append(row(f"{size} trainings: processor time of proposals over TPE's", mine / theirs, "<= 1", mine <= theirs))
    return rows
