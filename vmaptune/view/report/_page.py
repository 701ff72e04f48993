"""The page: the answer, the pictures in their order, and all that is needed to draw them without a network."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from importlib.resources import files

from vmaptune.view.report import _budget, _course, _relations, _settings, _training
from vmaptune.view.report._answer import (
    answer,
    best_table,
    changes_table,
    esc,
    finalists_table,
    glossary,
    plan_table,
    table_html,
)
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._marks import DIAMOND, STAR, foremost_words, why_not_lowest
from vmaptune.view.report._pack import Pool, packed, packed_json
from vmaptune.view.report._picture import Picture, themes
from vmaptune.view.report._plotly import packed_javascript


def pictures(data: StudyData) -> list[Picture]:
    """Every picture that this study gives cause for, in the page's order."""
    names = data.by_importance
    found: Iterable[Picture | None]
    if data.babysat:  # one model: there is no setting to compare
        found = [_training.curves(data), _training.train_valid(data), _course.seconds(data)]
        return [picture for picture in found if picture is not None]
    found = [
        _settings.zoom(data),
        *(_settings.axis(data, name) for name in names),
        *(_settings.isolation(data, name) for name in names),
        _training.curves(data),
        _training.train_valid(data),
        _relations.importance(data),
        _relations.parallel(data),
        _relations.pair(data),
        _course.infeasible(data),
        _course.rungs(data),
        _budget.budget(data),
        _course.occupancy(data),
        _course.seconds(data),
    ]
    return [picture for picture in found if picture is not None]


def page(data: StudyData) -> str:
    """The whole page. Raises InputError when Plotly, whose JavaScript it carries, is not installed."""
    script = packed_javascript()
    found = pictures(data)
    pool = Pool()
    figures = [
        {"id": p.name, "height": p.height, "data": pool.encode(list(p.data)), "layout": pool.encode(p.layout)}
        for p in found
    ]
    by_name = {p.name: p for p in found}
    body = [answer(data), *_sections(data, by_name), _footer(data)]
    payload = {
        "figures": figures, "arrays": pool.table(), "words": _relations.parallel_words(data),
    }  # fmt: skip
    here = files("vmaptune.view.report")
    parts = {
        "title": esc(f"{data.name} · vmaptune"), "style": _colours(data) + (here / "page.css").read_text("utf-8"),
        "script": (here / "page.js").read_text("utf-8"), "payload": packed_json(payload),
        "arrays": packed(pool.bytes()), "plotly": script, "body": "\n".join(body),
    }  # fmt: skip
    # In one pass: a name from outside may hold anything, our own marks too.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], (here / "page.html").read_text("utf-8"))


def _colours(data: StudyData) -> str:
    """The palettes as CSS variables; the script reads them from there."""
    found = themes(len(data.rounds))
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in (found[theme] | {"page": page}).items())
        for theme, page in (("light", "#f5f6f8"), ("dark", "#0f1318"))
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root:not(.printing){{{dark}}}}}\n"


def _sections(data: StudyData, found: dict[str, Picture]) -> list[str]:
    sections = _babysat_sections if data.babysat else _search_sections
    titles = {"s-settings": "Settings", "s-training": "Training", "s-relations": "What matters",
              "s-course": "The study", "s-trials": "Best trials"}  # fmt: skip
    made = sections(data, found)
    words = "" if data.babysat or data.winner is None else glossary(data)
    links = "".join(f'<a href="#{key}">{titles[key]}</a>' for key in made)
    return [f'<nav aria-label="Sections">{links}</nav>', "<main>", words, *made.values(), "</main>"]


def _babysat_sections(data: StudyData, found: dict[str, Picture]) -> dict[str, str]:
    """By key: what was changed while the one model trained, its curves, and its numbers."""
    changes = table_html(changes_table(data), "What was changed", folded=False)
    return {
        "s-settings": f'<section id="s-settings"><h2>What was changed</h2><div class="card">{changes}</div></section>',
        "s-training": _pictured("s-training", "Training", found, ("curves", "train-valid")),
        "s-course": _pictured("s-course", "The study", found, ("seconds",), _plan(data)),
    }


def _search_sections(data: StudyData, found: dict[str, Picture]) -> dict[str, str]:
    """By key: every setting, training, what matters, the study's course, and the best trials."""
    relations = []
    if "importance" not in found:
        relations.append("<p class='lead'>Too few trials to say which setting matters: it takes 20 in one round.</p>")
    if "infeasible" not in found:
        relations.append("<p class='lead'>No trial was infeasible.</p>")
    best = best_table(data)
    table, shown = table_html(best, "Best trials", folded=False), foremost_words(data, len(best.rows))
    confirmed = finalists_table(data)
    finalists = ""
    if confirmed:
        numbers = table_html(confirmed, "Confirmed configurations", folded=False)
        finalists = f'<h2>Confirmed on fresh seeds</h2><div class="card">{numbers}</div>'
    return {
        "s-settings": _settings_section(data, found),
        "s-training": _pictured("s-training", "Training", found, ("curves", "train-valid")),
        "s-relations": _pictured(
            "s-relations", "What matters", found, ("importance", "parallel", "pair", "infeasible"), lead=relations
        ),
        "s-course": _pictured("s-course", "The study", found, ("budget", "rungs", "occupancy", "seconds"), _plan(data)),
        "s-trials": f'<section id="s-trials">{finalists}<h2>Best trials</h2><div class="card">'
        f'<p class="lead">{esc(shown[:1].upper() + shown[1:])}.</p>{table}</div></section>',
    }


def _pictured(
    key: str, title: str, found: dict[str, Picture], names: Iterable[str], end: str = "", lead: Iterable[str] = ()
) -> str:
    """A section of those of the pictures that there are."""
    cards = [_card(found[name]) for name in names if name in found]
    return "\n".join([f'<section id="{key}"><h2>{title}</h2>', *lead, *cards, end, "</section>"])


def _plan(data: StudyData) -> str:
    if not data.groups:
        return ""
    return f'<div class="card"><h3>The plan</h3>{table_html(plan_table(data), "The plan", folded=False)}</div>'


def _settings_section(data: StudyData, found: dict[str, Picture]) -> str:
    legend = "".join(
        f'<span><i class="dot" style="background:var(--round{r})"></i>round {r + 1}</span>'
        for r in range(len(data.rounds))
    )
    legend += f'<span><i class="star">{STAR}</i>{data.star}</span>'
    if len(data.finalists) > 1:
        legend += f'<span><i class="star">{DIAMOND}</i>confirmed too</span>'
    if data.infeasible.any():
        legend += '<span><i class="cross">×</i>infeasible</span>'
    parts = [f'<section id="s-settings"><h2>Each setting</h2><p class="key">{legend}</p>']
    if any(decision.kind == "pbt" for decision in data.decisions):
        parts.append(
            "<p class='lead'>Population-based training changed settings while the models trained: the pictures of "
            "settings show what each model began with, the answer what the winner ended with.</p>"
        )
    parts.append(_card(found["zoom"]))
    shade = " The shading is the rounds' narrowing spaces." if len(data.rounds) > 1 else ""
    parts.append(
        f"<h3>Axis plots</h3><p class='lead'>Every trial's {esc(data.best_name)} over training, on each setting's own "
        f"scale, the settings that matter most first.{shade}{esc(data.thinned)} {esc(why_not_lowest(data))}</p>"
        "<div class='grid'>"
    )
    parts += [_card(found[f"axis-{name}"]) for name in data.by_importance]
    parts.append(
        "</div><h3>Isolation plots</h3><p class='lead'>The best trial of each range: what a value of this setting can "
        "do when all others are chosen well. Grey: the next three trials. "
        "Above: how many trials each range has.</p><div class='grid'>"
    )
    parts += [_card(found[f"isolation-{name}"]) for name in data.by_importance]
    parts.append("</div></section>")
    return "\n".join(parts)


def _card(picture: Picture) -> str:
    name, title = esc(picture.name), esc(picture.title)
    table = table_html(picture.table, picture.title) if picture.table else ""
    extra = '<div class="brush" id="brush"></div>' if picture.name == "parallel" else ""
    # The sentence is for those who don't see the picture, so it is not shown twice to those who do.
    return (
        f'<figure class="card" id="card-{name}"><h3 class="name">{title}</h3>'
        f'<div class="plot" id="{name}" role="img" aria-label="{esc(picture.spoken)}" '
        f'style="height:{picture.height}px"></div>'
        f"<figcaption>{esc(picture.caption)}</figcaption>{extra}{table}</figure>"
    )


def _footer(data: StudyData) -> str:
    machine = data.meta.get("machine") or {}
    versions = ", ".join(f"{n} {machine[n]}" for n in ("jax", "flax", "optax", "numpy", "python") if machine.get(n))
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"<footer><p>Written {written} from {esc(data.directory / 'study.db')}. {esc(versions)}</p></footer>"
