"""docs/search-quality.md and its figure, from a result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = (  # method, words, colour
    ("zoom", "vmaptune", "#d6336c"),
    ("random 2x", "random, twice the trials", "#adb5bd"),
    ("random 4x", "random, four times the trials", "#495057"),
    ("sobol", "Sobol", "#74b816"),
    ("tpe batch", "TPE in batches of 32", "#74c0fc"),
    ("tpe", "TPE, one at a time", "#1971c2"),
    ("cmaes", "CMA-ES, one at a time", "#f08c00"),
)
TABLES = "## On public tables"
LEFT, TOP, WIDE, HIGH, LEAST, MOST = 150, 64, 620, 34, -1.5, 4.0


CLOSED = "## From 64 to 8,192 trainings"  # both are written by other benchmarks


def write_page(found: Mapping[str, Any], docs: Path) -> None:
    file = docs / "search-quality.md"
    (docs / "pictures" / "search-quality.svg").write_text(figure(found), encoding="utf-8")
    written = file.read_text(encoding="utf-8") if file.exists() else ""
    others = [f"\n{each.rstrip()}\n" for each in sections(written) if each.startswith((TABLES, CLOSED))]
    file.write_text(page(found) + "".join(others), encoding="utf-8")


def sections(text: str) -> list[str]:
    """A page in pieces, each but the first with its heading."""
    return re.split(r"^(?=## )", text, flags=re.M)


def put_section(file: Path, heading: str, lines: Sequence[str]) -> None:
    """Puts a section, of which `heading` is the first line, in its own place, or at the end of a page."""
    pieces = sections(file.read_text(encoding="utf-8"))
    new = "\n".join(lines).rstrip() + "\n"
    place = next((i for i, piece in enumerate(pieces) if piece.startswith(heading)), len(pieces))
    pieces[place : place + 1] = [new]
    file.write_text("\n".join(f"{piece.rstrip()}\n" for piece in pieces), encoding="utf-8")


def write_closed(rows: Sequence[Mapping[str, Any]], seeds: int, docs: Path) -> None:
    """The last section of the page, from the bars of the tasks in closed form."""
    file = docs / "search-quality.md"
    lines = [
        CLOSED, "",
        f"Tasks whose values are formulas, so that the winner's true worth is known: {seeds} studies of each method, "
        "of TPE fewer above 512 trainings. A round is judged against the median of the first; seconds are of one core. "
        "Written by `python benchmarks/search_quality.py --closed --docs`.", "",
        "| | found | wanted | met |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        value = f"{row['value']:.3g}" if isinstance(row["value"], float) else str(row["value"])
        lines.append(f"| {row['name']} | {value} | {row['target']} | {'yes' if row['ok'] else '**no**'} |")
    put_section(file, CLOSED, lines)


def gains(found: Mapping[str, Any], task: str, method: str) -> tuple[float, float] | None:
    """How much better than random, in standard deviations of random's results over studies; mean, standard error."""
    methods = found["tasks"][task]["methods"]
    if method not in methods or "random" not in methods or not methods["random"]["std"] > 0:
        return None
    d = [r - v for r, v in zip(methods["random"]["values"], methods[method]["values"], strict=False)]
    mean = sum(d) / len(d)
    error = (sum((x - mean) ** 2 for x in d) / max(1, len(d) - 1) / len(d)) ** 0.5
    return mean / methods["random"]["std"], error / methods["random"]["std"]


def figure(found: Mapping[str, Any]) -> str:
    """Each task a row, each method a dot: right is better, 0 is random search with the same number of trials."""
    tasks = list(found["tasks"])
    height = TOP + HIGH * len(tasks) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDE + 30} {height}" font-family="sans-serif" '
        'font-size="12">',
        "<style>text{fill:#222}line{stroke:#999}.z{stroke:#222}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}line{stroke:#666}.z{stroke:#ddd}}</style>",
    ]
    shown = [s for s in SHOWN if any(s[0] in found["tasks"][t]["methods"] for t in tasks)]
    for i, (_, words, colour) in enumerate(shown):
        x, y = 12 + 190 * (i % 4), 16 + 20 * (i // 4)
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colour}"/><text x="{x + 10}" y="{y}">{words}</text>')
    for tick in range(-1, 5):
        x = place(tick)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 34}" stroke-width="{0.5 if tick else 1}"'
            f"{'' if tick else ' class=' + chr(34) + 'z' + chr(34)}/>"
            f'<text x="{x:.1f}" y="{height - 20}" text-anchor="middle">{tick}</text>'
        )
    parts.append(
        f'<text x="{LEFT + WIDE / 2}" y="{height - 4}" text-anchor="middle">better than random search, in spreads of '
        "its results (bars: standard errors)</text>"
    )
    for row, task in enumerate(tasks):
        middle = TOP + HIGH * row + HIGH / 2
        parts.append(f'<text x="{LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{task.replace("_", " ")}</text>')
        for i, (method, words, colour) in reversed(list(enumerate(shown))):
            gain = gains(found, task, method)
            if gain is None:
                continue
            y = middle + (i - len(shown) / 2 + 0.5) * (HIGH - 10) / len(shown)
            low, high = place(gain[0] - gain[1]), place(gain[0] + gain[1])
            parts.append(
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:{colour}"/>'
                f'<circle cx="{place(gain[0]):.1f}" cy="{y:.1f}" r="{5 if method == "zoom" else 3.5}" fill="{colour}">'
                f"<title>{words}: {gain[0]:.2f}</title></circle>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def place(value: float) -> float:
    return LEFT + WIDE * (min(max(value, LEAST), MOST) - LEAST) / (MOST - LEAST)


def page(found: Mapping[str, Any]) -> str:
    settings, tasks = found["settings"], found["tasks"]
    methods = [m for m in settings["methods"] if m != "gp"]
    few, many = (choose(map(len, settings["seeds"].values())) for choose in (min, max))
    first = min(seeds[0] for seeds in settings["seeds"].values())
    lines = [
        "# How good is the setting that you get?",
        "",
        f"Real trainings of {len(tasks)} small tasks, {few} studies of each method on each, {many} of the zoom and of "
        "random search, because those come close to one another. A comparison is over the studies that both have, "
        f"which are paired. {settings['trials']} trainings a study with the confirmation counted in. What counts is "
        "the setting that a method hands to its user, trained again on 16 seeds that no method has seen: the median. "
        "The best value that was seen counts for nothing. Random, Sobol, grid and TPE in batches confirm as vmaptune "
        "does, on an eighth of their trainings; the samplers that go one at a time hand over the best that they saw, "
        "as Optuna does.",
        "",
        "The search's defaults were chosen on these tasks with other seeds of studies and of trainings (0 to 9, 10 to "
        f"29 and 100 to 119); those of this page begin at {first}, and nothing was changed after they had been seen. "
        "What a sampler takes for itself is processor time, so that a busy machine does not count against it.",
        "",
        "![Each method on each task against random search](pictures/search-quality.svg)",
        "",
        "This page is written by",
        "",
        "```bash",
        "python benchmarks/search_quality.py --docs --json benchmarks/results/search_quality_cpu2.json",
        "```",
        "",
        "## The bars",
        "",
        "| | found | wanted | met |",
        "| --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        value = f"{row['value']:.2f}" if isinstance(row["value"], float) else str(row["value"])
        more = f" ({row['significant']} of these at p < 0.05)" if "significant" in row else ""
        lines.append(f"| {row['name']} | {value}{more} | {row['target']} | {'yes' if row['ok'] else '**no**'} |")
    lines += [
        "",
        "One method beats another on a task when its mean is lower and Wilcoxon's signed ranks, paired by study, are "
        "on its side.",
        "",
        "## Re-trained values, lower is better",
        "",
        "Means over studies. In brackets: p of a paired, one-sided Wilcoxon test that vmaptune's is lower.",
        "",
        "| task | " + " | ".join("vmaptune" if m == "zoom" else m for m in methods) + " |",
        "| --- |" + " --- |" * len(methods),
    ]
    for task, table in tasks.items():
        cells = []
        least = min(table["methods"][m]["mean"] for m in methods)
        for m in methods:
            one = table["methods"][m]
            value = f"{one['mean']:.4g}"
            p = f" ({one['p']:.2g})" if "p" in one else ""
            cells.append((f"**{value}**" if one["mean"] == least else value) + p)
        lines.append(f"| {task.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines.append("| mean rank | " + " | ".join(f"{found['ranks'][m]:.2f}" for m in methods) + " |")
    timed = {t: s for t, s in found["times"].items() if s}
    if timed:
        lines += [
            "",
            "## In the same time",
            "",
            f"How long a study of {settings['trials']} trainings takes with vmaptune, how long one training takes "
            "alone, and what a sampler that goes one at a time finds in the study's time, its own overhead "
            "included. Compiling is left out on both sides.",
            "",
            "| task | study | alone | vmaptune | TPE | GP | CMA-ES |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for task, time in timed.items():
            there = tasks[task]["methods"]
            cells = [f"{time['zoom']:.2f} s", f"{1000 * time['alone']:.1f} ms", f"{there['zoom']['mean']:.4g}"]
            for sampler in ("tpe", "gp", "cmaes"):
                one = there.get(f"{sampler}, equal time")
                cells.append(
                    "" if one is None else f"{one['mean']:.4g} after {one['trainings']:.0f} trials ({one['p']:.2g})"
                )
            lines.append(f"| {task.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
