"""What the command line says at the end of a study, and what `check`, `status` and `replay` say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmaptune.space import Space
from vmaptune.store.states import NOTHING_TRAINED
from vmaptune.view.words import (
    chance,
    configuration,
    counted,
    duration,
    interval,
    left_open,
    number,
    single_values,
    size,
)

ABSENT = "does not exist"
LOST = "every trial was infeasible: "  # begins the warning of a study without a winner


def summary(result: Mapping[str, Any], space: Space | None = None) -> str:
    """A finished study: the setting to use, how sure that is, and where everything lies. By its space it is known which
    settings exist, and on which scale they are."""
    seconds = result["seconds"]
    lines = [
        f"{result['trials']} trials in {counted(result['rounds'], 'round')}, "
        f"{number(result['model_steps'])} model-steps, {duration(seconds['total'])} "
        f"(compile {duration(seconds['compile'])}, train "
        f"{duration(seconds['train'])}, evaluate {duration(seconds['evaluate'])}); "
        f"{result['infeasible']} diverged",
        *_lane_lines(result),
        "",
    ]
    if "retest" in result:
        lines += [*retest_lines(result["retest"], result["objective"], space), ""]
    lines += best_lines(result, space)
    lines += _ensemble_lines(result)
    for warning in result["warnings"]:
        if not warning.startswith(LOST):  # in the place of a best setting
            lines += ["", f"note: {warning}"]
    study = result["study"]
    lines += [
        "",
        *_report_lines(study),
        f"everything is in {study}: study.db, trials.csv" + (", best/" if result["best"] is not None else ""),
    ]
    if result["best"] is not None:
        lines.append(f'the trained model: vmaptune.load("{study}").best_model()')
    return "\n".join(lines)


def _lane_lines(result: Mapping[str, Any]) -> list[str]:
    """What early stopping did, and which programs trained a searched shape."""
    lines = []
    programs = result.get("programs") or []
    if len(programs) > 1:
        took = sorted(program["compile_seconds"] or 0.0 for program in programs)
        lines.append(
            f"{len(programs)} programs, each compiled in {duration(took[0])} to {duration(took[-1])}; "
            f"{duration(result['seconds']['compile'])} of it was waited for"
        )
    if result.get("stopped"):
        lines.append(
            f"{result['stopped']} stopped early, {result['refilled']} lanes refilled; {result['occupancy']:.1%} of the "
            f"lanes' steps went to live trials"
        )
    structure = result.get("structure")
    if structure:
        what = f"a program for each {', '.join(structure['static'])}" if structure["static"] else "one program for all"
        padding = structure["padded_to_true"]
        more = "" if padding is None else f"; {number(padding)} x the operations needed"
        lines.append(f"shapes: {what}, by measured time{more}")
    return lines


def _ensemble_lines(result: Mapping[str, Any]) -> list[str]:
    ensemble = result.get("ensemble")
    if not ensemble:
        return []
    part = "test_" if "test_value" in ensemble else ""
    return [
        f"{result['objective']} {number(ensemble[part + 'value'])} with the ensemble of {len(ensemble['members'])} "
        f"models, {number(ensemble[f'single_{part}value'])} with the best of them alone "
        f"({'test' if part else 'validation'} part): vmaptune.load(...).ensemble().predict(x)"
    ]


def _report_lines(study: str) -> list[str]:
    page = Path(study) / "report.html"
    return [f"look at it: {page}, in any browser"] if page.exists() else []


def retest_lines(found: Mapping[str, Any], objective: str, space: Space | None = None) -> list[str]:
    """The verdict of a retest, and its evidence."""

    def figure(one: Mapping[str, Any]) -> str:
        failed = f" ({one['failed']} of {one['n']} failed)" if one.get("failed") else ""
        return f"{number(one['mean'])} ± {number(one['std'])}{failed}"

    old, new, n = found["old"], found["new"], found["repeats"]
    lines = [
        f"verdict on {found['of']}: {retest_verdict(found)}",
        f"  the old best: {objective} {figure(old['now'])} over {n} fresh seeds ({number(old['then']['value'])} then)",
    ]
    if found["gain"] is not None and abs(found["gain"]) != float("inf"):
        low, high = found["interval"]
        sure = f"{100 * (1 - found.get('level', 0.05)):.4g} %"
        lines.append(
            f"  its best rival: {figure(new['now'])}; {_better(found['gain'])} "
            f"({sure} from {_better(low)} to {_better(high)}; p = {found['p']:.2g})"
        )
    if found["verdict"] == "still best" and found.get("margin") is not None:
        lines.append(f"  a rival that is better by {number(found['margin'])} would hardly have been missed")
    if found["verdict"] == "moved":
        before, after = configuration(old["params"], space), configuration(new["params"], space)
        lines += [
            f"  {name}: {before.get(name, ABSENT)} → {after.get(name, ABSENT)}"
            for name in new["params"]
            if before.get(name) != after.get(name)
        ]
    return lines


def retest_verdict(found: Mapping[str, Any]) -> str:
    """Whether the old best is still best, in a few words."""
    most = found.get("most", found["repeats"])  # studies of before have no such number
    return {"unclear": f"unclear: run again with more than {most} --repeats"}.get(found["verdict"], found["verdict"])


def _better(gain: float) -> str:
    """A gain in words: less than none is worse."""
    return f"{'worse' if gain < 0 else 'better'} by {number(abs(gain))}"


def best_lines(result: Mapping[str, Any], space: Space | None = None) -> list[str]:
    """The winner and its numbers."""
    best = result["best"]
    if best is None:
        return [next((w.removeprefix(LOST) for w in result["warnings"] if w.startswith(LOST)), NOTHING_TRAINED)]
    lines = ["the setting to use:", *_setting_lines(best["params"], space)]
    lines.append("")
    objective = result["objective"]
    if best["repeats"]:
        spread = "" if best["value_std"] is None else f" ± {number(best['value_std'])}"
        between = f" (its mean: {interval(best)} at 95 %)" if interval(best) else ""
        lines.append(f"{objective} {number(best['value'])}{spread} over {best['repeats']} fresh seeds{between}")
        lines += [f"  {text}" for text in (left_open(best), single_values(best)) if text]
    else:
        lines.append(f"{objective} {number(best['best_seen'])} (seen once, not confirmed)")
    if "test_value" in best:
        spread = "" if best["test_std"] is None else f" ± {number(best['test_std'])}"
        lines.append(f"{objective} {number(best['test_value'])}{spread} on the test part, measured once")
    return lines


def _setting_lines(params: Mapping[str, Any], space: Space | None) -> list[str]:
    words = configuration(params, space)
    width = max(map(len, words), default=0)
    return [f"  {name.ljust(width)} = {text}" for name, text in words.items()]


def finalist_lines(result: Mapping[str, Any], space: Space | None = None) -> list[str]:
    """Every configuration that was confirmed, the winner first; nothing where there are no others."""
    found = result.get("finalists") or []
    if len(found) < 2:
        return []
    head = ["", "trial", result["objective"], "±", "95 % of the mean", "seeds", "chance", *found[0]["params"]]
    rows = [
        [
            f"{i + 1}.", str(one["trial"]), number(one["value"]),
            "" if one["value_std"] is None else number(one["value_std"]), interval(one),
            str(one["repeats"]), chance(one["chance"]),
            *_cells(one["params"], space),
        ]
        for i, one in enumerate(found)
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
    return ["", f"the {len(found)} that were confirmed (chance: of being the best of them):", *lines]


def _cells(params: Mapping[str, Any], space: Space | None) -> list[str]:
    """A configuration as cells; empty for a setting that does not exist in it."""
    there = configuration(params, space)
    return [number(value) if name in there else "" for name, value in params.items()]


def check_text(check: Any) -> str:
    """What `check` found."""
    budget = check.options.budget()
    lines = [line for text in (check.note, *check.notes) if text for line in (f"note: {text}", "")]
    lines += [f"{check.name}: nothing was trained", "", "space"]
    width = max(len(name) for name in check.space)
    for name, distribution in check.space.items():
        kind = "static" if name in check.static else "traced"
        lines.append(f"  {name.ljust(width)}  {kind}  {distribution!r}")
    lines += ["", "first samples"]
    for params in check.samples:
        lines.append("  " + ", ".join(f"{n}={number(v)}" for n, v in params.items()))
    confirm = f" + {budget.finalists} finalists × {budget.repeats} seeds" if budget.finalists else ""
    lines.append("")
    if check.minutes is not None:
        rounds, each = counted(len(budget.rounds), "round"), number(check.seconds_per_trial * 1000, 3)
        lines.append(
            f"minutes   {number(check.minutes)}: about {check.options.trials:,} trials in {rounds}, by a first timing "
            f"of {each} ms a trial; the run measures again as it goes"
        )
    lines += [
        f"trials    {' + '.join(map(str, budget.rounds))}{confirm}",
        f"groups    {len(check.groups)} in the first round: one compiled program each",
    ]
    for static, count in check.groups[:12]:
        named = ", ".join(f"{n}={v}" for n, v in static.items()) or "no static setting"
        lines.append(f"  {named}: {count} trials")
    if len(check.groups) > 12:
        lines.append(f"  ... and {len(check.groups) - 12} more")
    plan = check.plan
    lines += [
        f"plan      {plan} (the first group's): {plan.width} lanes train in one call, "
        f"{plan.every} steps between evaluations",
        f"          {check.why}",
        f"memory    about {size(check.memory_bytes)} for one call's lanes; {size(check.costs.state_bytes)} of "
        f"state a lane",
        f"compile   {check.compile_seconds:.1f} s for the first group",
    ]
    return "\n".join(lines)


def replay_text(replay: Any) -> str:
    """How far a trial trained alone is from the ledger."""
    curves = [("loss", replay.ledger, replay.alone), ("objective", replay.objective, replay.objective_alone)]
    if replay.ledger == replay.objective:  # a task without a loss
        curves = curves[1:]
    lines = ["  step" + "".join(f"  {name:>10}       alone  difference" for name, _, _ in curves)]
    for i, step in enumerate(replay.steps):
        line = f"{step:6d}"
        for _, ledger, alone in curves:
            was, now = ledger[i], alone[i]
            off = abs(was - now) / max(abs(was), abs(now), 1e-12) if was is not None else float("nan")
            line += f"  {number(was, 6):>10}  {number(now, 6):>10}  {off:10.1e}"
        lines.append(line)
    chaos = (
        f"step {replay.chaotic_from}, where it differs and training is chaotic: a change of one part in a million of "
        f"the initial state has grown past the tolerance"
    )
    if not replay.compared:
        lines.append(f"trial {replay.trial} trained alone cannot be compared: its first segment ends at {chaos}")
        return "\n".join(lines)
    verdict = "agrees with" if replay.agrees else "DIFFERS from"
    until = "to the end" if replay.chaotic_from is None else f"up to {chaos}"
    lines.append(
        f"trial {replay.trial} trained alone {verdict} the ledger: largest relative difference "
        f"{replay.difference:.1e} (tolerance 1e-4), compared {until}"
    )
    return "\n".join(lines)


def panda_text(result: Mapping[str, Any], space: Space | None = None) -> str:
    """The end of a babysat model: what it came to, with which settings, and where it lies."""
    best = result["best"]
    if best is None:
        lines = ["the loss is not finite: nothing was kept; roll back earlier, or lower the learning rate"]
    else:
        lines = [f"{result['objective']} {number(best['value'])} (best on the way: {number(best['best_seen'])})", ""]
        lines += _setting_lines(best["params"], space)
        lines += ["", f'the trained model: vmaptune.load("{result["study"]}").best_model()']
    lines += [f"note: {warning}" for warning in result["warnings"]]
    return "\n".join([*lines, f"everything is in {result['study']}"])
