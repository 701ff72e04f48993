"""The top of the page, in plain HTML: it is there before any script runs, and where none does."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from vmaptune.view.report._advice import advice, state_words, warnings
from vmaptune.view.report._course import duration_or_less
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._marks import DIAMOND, STAR, foremost, foremost_words, key, named
from vmaptune.view.report._picture import Table
from vmaptune.view.report._scales import ABSENT
from vmaptune.view.report._settings import axis_of
from vmaptune.view.summary import retest_lines, retest_verdict
from vmaptune.view.words import chance, configuration, existing, interval, left_open, number, single_values


def answer(data: StudyData) -> str:
    """The best setting, how sure it is, what to do next, and what to beware of."""
    best = (data.result or {}).get("best")
    params = best["params"] if best else data.params[data.winner] if data.winner is not None else None
    parts = [f'<header><p class="over">vmaptune study</p><h1>{esc(data.name)}</h1>', f"<p>{_facts(data)}</p></header>"]
    verdict = (data.result or {}).get("retest")
    if verdict:
        said = retest_lines(verdict, data.objective, data.first)[1:]
        lines = "".join(f"<li>{esc(line.strip())}</li>" for line in said)
        title = f"Retest of {verdict['of']}: {retest_verdict(verdict)}"
        parts.append(f'<div class="card"><h2>{esc(title)}</h2><ul class="next">{lines}</ul></div>')
    parts.append('<section class="answer" aria-labelledby="answer-title"><div class="card winner">')
    if params is None:
        parts.append('<h2 id="answer-title">No setting trained to a finite result</h2>')
    else:
        title = "The setting to use" if best else "The best setting so far"
        parts.append(f'<h2 id="answer-title">{title}</h2>{_big(data, best)}')
        rows = "".join(
            f'<tr><th scope="row">{esc(name)}</th><td>{esc(text)}</td></tr>'
            for name, text in configuration(params, data.first).items()
        )
        parts.append(f'<table class="params"><tbody>{rows}</tbody></table>')
    parts.append('</div><div class="card"><h2>What to do next</h2><ol class="next">')
    steps = advice(data)
    for step in steps:
        command = f"<code>{esc(step.command)}</code>" if step.command else ""
        parts.append(f"<li>{esc(step.text)}{command}</li>")
    if not steps:
        parts.append("<li>Let it go on.</li>")
    parts.append("</ol>")
    said = warnings(data)
    if said:
        items = "".join(f"<li>{esc(text[:1].upper() + text[1:])}.</li>" for text in said)
        parts.append(f'<h2 class="beware">Beware</h2><ul class="beware">{items}</ul>')
    parts.append("</div></section>")
    return "\n".join(parts)


def notebook_card(data: StudyData) -> str:
    """The answer for a notebook's cell: plain HTML that takes the notebook's own colours."""
    best = (data.result or {}).get("best")
    params = best["params"] if best else data.params[data.winner] if data.winner is not None else {}
    rows = "".join(
        f'<tr><td style="text-align:left">{esc(name)}</td><td>{esc(text)}</td></tr>'
        for name, text in configuration(params, data.first).items()
    )
    said = "".join(f"<li>{esc(text)}</li>" for text in warnings(data))
    return (
        f"<div><p><b>{esc(data.name)}</b> · {_facts(data)}</p>"
        + (_big(data, best) if data.winner is not None else "<p>No setting trained to a finite result.</p>")
        + (f"<table><tbody>{rows}</tbody></table>" if rows else "")
        + (f"<ul>{said}</ul>" if said else "")
        + f"<p>More: <code>study.plot.axis(...)</code>, and {esc(data.directory / 'report.html')}</p></div>"
    )


def plan_table(data: StudyData) -> Table:
    """The groups and the plan by which each ran."""
    static = list(dict.fromkeys(name for g in data.groups if isinstance(g.static, dict) for name in g.static))
    plan = list(dict.fromkeys(name for g in data.groups if isinstance(g.plan, dict) for name in g.plan))
    rows = []
    for g in data.groups:
        rows.append([
            str(g.group), *(str((g.static or {}).get(n, "")) for n in static),
            *(_short((g.plan or {}).get(n, "")) for n in plan),
            f"{g.compile_seconds:.1f}" if g.compile_seconds is not None else "",
        ])  # fmt: skip
    return Table(["group", *static, *plan, "compile seconds"], rows)


def _big(data: StudyData, best: dict[str, Any] | None) -> str:
    if best is None:
        assert data.winner is not None
        one = float(data.final[data.winner])
        return (
            f'<p class="big"><span class="what">{esc(data.last_name)}</span> <strong>{number(one)}</strong></p>'
            f'<p class="how">One value of one trial ({data.trial[data.winner]}), not yet confirmed on fresh seeds.</p>'
        )
    what, value = esc(data.confirmed_name if best.get("repeats") else data.last_name), number(best["value"])
    big = f'<p class="big"><span class="what">{what}</span> <strong>{value}</strong>'
    big += f'<span class="spread">{_plus(best.get("value_std"))}</span></p>'
    if best.get("repeats"):
        text = f"Mean and spread over {best['repeats']} fresh seeds"
        text += f"; the mean over all seeds lies in {interval(best)} at 95 %." if interval(best) else "."
        text += "".join(f" {esc(s[:1].upper() + s[1:])}." for s in (left_open(best), single_values(best)) if s)
    else:
        text = f"One value of one trial ({best['trial']}): there were too few trials to confirm it on fresh seeds."
    if best.get("test_value") is not None:
        test = f"{number(best['test_value'])}{_plus(best.get('test_std'))}"
        text += f" On the test part, measured once: <b>{test}</b>."
    return f'{big}<p class="how">{text}</p>'


def _plus(spread: Any) -> str:
    """A spread after its value; nothing where there is none."""
    known = isinstance(spread, (int, float)) and math.isfinite(spread)
    return f" ± {number(float(spread))}" if known else ""


def _facts(data: StudyData) -> str:
    trials = data.n + len(data.confirming)
    lost = int(data.infeasible.sum())
    parts = [f"<b>{esc(state_words(data))}</b>", f"{trials:,} trials", f"{len(data.rounds)} rounds"]
    parts.append(f"{lost:,} infeasible" if lost else "none infeasible")
    if data.stopped.any():
        parts.append(f"{int(data.stopped.sum()):,} stopped early")
    spent = (data.result or {}).get("seconds") or {}
    if spent.get("total"):
        parts.append(duration_or_less(float(spent["total"])))
    machine = data.meta.get("machine") or {}
    if machine.get("device"):
        parts.append(esc(f"{machine.get('devices', 1)} × {machine['device']}"))
    return " · ".join(parts)


def table_html(table: Table, label: str, folded: bool = True) -> str:
    """The numbers behind a picture, folded away or not."""
    head = "".join(f'<th scope="col">{esc(h)}</th>' for h in table.headers)
    body = "".join("<tr>" + "".join(f"<td>{esc(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    inside = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(label)}: the numbers">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if not folded:
        return inside
    note = f" ({esc(table.note)})" if table.note else ""
    return f'<details class="numbers"><summary>The numbers{note}</summary>{inside}</details>'


def finalists_table(data: StudyData) -> Table | None:
    """The configurations that were confirmed, by their fresh seeds; None where there are none."""
    found = (data.result or {}).get("finalists") or []
    if not found:
        return None
    names = list(data.first)
    axes = {name: axis_of(data, name) for name in names}
    rows = [
        [f"{i + 1} {DIAMOND if i else STAR}", str(one["trial"]), f"{number(one['value'])}{_plus(one['value_std'])}",
         interval(one), str(one["repeats"]), chance(one["chance"]),
         *(axes[n].words(existing(one["params"], data.first).get(n, ABSENT)) for n in names)]
        for i, one in enumerate(found)
    ]  # fmt: skip
    head = ["", "trial", data.confirmed_name, "95 % of the mean", "seeds", "chance to be the best"]
    return Table([*head, *names], rows)


def best_table(data: StudyData, most: int = 20) -> Table:
    """The best trials with all their settings."""
    names: Sequence[str] = list(data.first)
    axes = {name: axis_of(data, name) for name in names}
    again = {i: number(one["value"]) for i, one in data.confirmed.items()}
    rows = [
        [named(data, i), str(data.round[i] + 1), number(float(data.final[i])), number(float(data.best[i])),
         again.get(data.first_of[i], ""), str(data.steps[i]),
         *(axes[n].words(data.seen[i].get(n, ABSENT)) for n in names)]
        for i in foremost(data, most)
    ]  # fmt: skip
    head = ["trial", "round", data.last_name, data.best_name, data.confirmed_name, "steps"]
    return Table([*head, *names], rows, foremost_words(data, len(rows)))


def glossary(data: StudyData) -> str:
    """The three numbers that the objective's name may mean, and the marks, as a sentence of HTML."""
    last, best, again = (f"<b>{esc(_upper(n))}</b>" for n in (data.last_name, data.best_name, data.confirmed_name))
    text = (
        f"Three numbers are called {esc(data.objective)} here. {last}: of one training at its end, by which the "
        f"search ranks. {best}: the {'largest' if data.maximize else 'smallest'} of one training on its way. "
        f"{again}: the mean over fresh seeds, by which the winner is chosen. "
    )
    return f'<p class="lead">{text}{esc(key(data))}.</p>'


def changes_table(data: StudyData) -> Table:
    """What a person did while one model trained, in order: a row for each change, snapshot and rollback."""
    rows = []
    for decision in data.decisions:
        done = decision.data
        if decision.kind == "adjust":
            what = f"{done['name']}: {number(done['from'])} → {number(done['to'])}"
        elif decision.kind == "snapshot":
            what = "a snapshot"
        elif decision.kind == "rollback":
            what = f"back to step {done['step']}"
        else:
            continue
        at = done["from"] if decision.kind == "rollback" else done["step"]
        rows.append([str(at), what])
    return Table(["step", "what"], rows, "")


def esc(text: object) -> str:
    """Text for HTML, in or out of an attribute."""
    return html.escape(str(text), quote=True)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)
