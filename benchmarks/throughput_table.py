"""From timings to the rows, ratios and bars of `throughput.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]

OWN = ("vmaptune", "torch_vmap_compile_own")  # each lane its own batches; all others share theirs or train one model
OURS = ("vmaptune", "vmaptune_shared")
MLPS = ("mlp_8_32", "mlp_32_64", "mlp_64_128", "mlp_256_128")
JOB = 256 * 1000  # model-steps of the job that compile and import times are spread over in `us_included`

# How many times faster than each method ours must be, at each of the MLPS (two CPU cores).
FASTER_THAN = {
    "loop": (28, 7, 3, 1.6),
    "scan": (4.5, 2.4, 2, 1.3),
    "vmap": (1.8, 2, 2, 1.5),
    "torch_vmap_compile": (2, 1.6, 1.7, 1.7),
    "torch_vmap_compile_own": (2.3, 1.65, 1.8, 2),
    "torch_bmm": (4.5, 3, 2.5, 3),
    "sklearn": (38, 12, 4.5, 2),
    "torch_processes": (90, 22, 7.5, 1.6),
}
SHARE = (0.22, 0.6, 0.9, 0.9)  # of the bound, shared batches
CNNS = {"vmap": 8, "scan": 5}  # how many times faster, at each CNN
GPU = (
    ("mlp_32_64", "scan", 200),
    ("mlp_256_128", "bound", 0.5),
    ("cnn_28_8", "scan", 20),
    ("cnn_8_16", "scan", 20),
)
BASELINES = ("loop", "scan", "vmap")  # none of them may be faster than ours at the transformer and the GRU


def row_of(work: str, method: str, times: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Row:
    """One method's row: the median time of a model-step, and its repeats' interquartile range over it.

    Args:
      times: each repeat's `seconds` and `model_steps`; whatever else they hold is kept as medians.
      about: `compile_s`, `startup_s`, `setting`, and whatever else belongs to the row.
    """
    us = [t["seconds"] / t["model_steps"] * 1e6 for t in times]
    middle = statistics.median(us)
    quarters = statistics.quantiles(us, n=4, method="inclusive") if len(us) > 1 else us * 3
    extra = {
        name: statistics.median(t[name] for t in times)
        for name in times[0]
        if name not in ("seconds", "model_steps", "wall")
    }
    fixed = about["compile_s"] + about["startup_s"]
    return {
        "work": work,
        "method": method,
        "us_per_model_step": middle,
        "spread": (quarters[2] - quarters[0]) / middle,
        "us_included": middle + fixed * 1e6 / JOB,
        "repeats": us,
        **about,
        **extra,
    }


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows of one run, each with `ratio`, its time over vmaptune's, and the times that were divided by.

    Own batches are compared with own (`us_own`), all else with shared (`us_shared`); `ratio_to_own` is over own for
    every row. The bound's ratio is the share of it that vmaptune reaches. None where there is nothing to compare.
    """
    times = {(r["work"], r["method"]): r["us_per_model_step"] for r in rows if r.get("us_per_model_step")}
    disturbed = {(r["work"], r["method"]) for r in rows if r.get("disturbed")}
    done = []
    for row in rows:
        own, shared = (times.get((row["work"], method)) for method in OURS)
        mine = row.get("us_per_model_step")
        reference = OURS[0] if row["method"] in OWN else OURS[1]
        against = own if row["method"] in OWN else shared
        done.append(
            {
                **row,
                "disturbed": bool({(row["work"], row["method"]), (row["work"], reference)} & disturbed),
                "us_own": own,
                "us_shared": shared,
                "ratio": mine / against if mine and against else None,
                "ratio_to_own": mine / own if mine and own else None,
            }
        )
    return done


def bars(rows: Sequence[Row], device: str = "cpu") -> list[Row]:
    """Every bar that the undisturbed rows allow to judge: `work`, `bar`, `value`, `target` and `ok`."""
    ratio = {(r["work"], r["method"]): r.get("ratio") for r in rows if not r.get("disturbed")}
    judged = []

    def judge(work: str, bar: str, value: float | None, target: float) -> None:
        if value is not None:
            judged.append({"work": work, "bar": bar, "value": value, "target": target, "ok": value >= target})

    if device == "gpu":
        for work, method, target in GPU:
            bar = "share of the bound" if method == "bound" else f"faster than {method}"
            judge(work, bar, ratio.get((work, method)), target)
    if device != "cpu":
        return judged
    for method, targets in FASTER_THAN.items():
        for work, target in zip(MLPS, targets, strict=True):
            judge(work, f"faster than {method}", ratio.get((work, method)), target)
    for work, target in zip(MLPS, SHARE, strict=True):
        judge(work, "share of the bound", ratio.get((work, "bound")), target)
    for work in ("cnn_28_8", "cnn_8_16"):
        for method, target in CNNS.items():
            judge(work, f"faster than {method}", ratio.get((work, method)), target)
    for work in ("transformer", "gru"):
        known = [ratio[work, m] for m in BASELINES if ratio.get((work, m)) is not None]
        judge(work, "faster than the best of " + ", ".join(BASELINES), min(known, default=None), 1)
    return judged


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows, with those of the same work and method replaced; each keeps the ratio of its own run."""
    fresh = {(r["work"], r["method"]) for r in new}
    return [r for r in old if (r["work"], r["method"]) not in fresh] + list(new)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, one block for each work."""
    lines = []
    for work in dict.fromkeys(r["work"] for r in rows):
        lines.append(
            f"{work:24}{'us/model-step':>14}{'spread':>8}{'ratio':>8}{'to own':>8}"
            f"{'compile s':>11}{'startup s':>11}{'included':>10}  setting"
        )
        for row in (r for r in rows if r["work"] == work):
            if row.get("us_per_model_step") is None:
                lines.append(f"  {row['method']:22}{row['note']:>14}")
                continue
            ratios = "".join(
                f"{row[name]:>8.2f}" if row.get(name) else f"{'-':>8}" for name in ("ratio", "ratio_to_own")
            )
            lines.append(
                f"  {row['method']:22}{row['us_per_model_step']:>14.2f}{row['spread']:>8.0%}{ratios}"
                f"{row['compile_s']:>11.1f}{row['startup_s']:>11.1f}{row['us_included']:>10.1f}  "
                f"{'~ ' if row.get('disturbed') else ''}{row['setting']}"
            )
            if "us_per_evaluation" in row:
                lines.append(f"    {'evaluation of a model':20}{row['us_per_evaluation']:>14.2f}")
            if row["method"] == "bound":
                lines.append(
                    f"    {row['gigaflops']:.0f} GFLOP/s, {row['gigabytes_per_s']:.0f} GB/s; share reached: "
                    + " and ".join(
                        f"{row[name]:.2f} ({what})"
                        for name, what in (("ratio", "shared batches"), ("ratio_to_own", "own"))
                        if row.get(name)
                    )
                )
        lines.append("")
    return "\n".join(lines)


def verdict(judged: Sequence[Row]) -> str:
    """The bars, each with ok or MISS."""
    return "\n".join(
        f"  {'ok  ' if bar['ok'] else 'MISS'} {bar['work']:12} {bar['bar']}: {bar['value']:.2f} "
        f"(bar: at least {bar['target']})"
        for bar in judged
    )
