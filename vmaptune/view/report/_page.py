"""The page: the answer, the pictures in their order, and all that is needed to draw them without a network."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from importlib.resources import files

from vmaptune.view.report import _course, _relations, _settings, _training
from vmaptune.view.report._answer import answer, best_table, esc, plan_table, table_html
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._pack import Pool, packed, packed_json
from vmaptune.view.report._picture import Picture, themes
from vmaptune.view.report._plotly import packed_javascript


def pictures(data: StudyData) -> list[Picture]:
    """Every picture that this study gives cause for, in the page's order."""
    names = data.by_importance
    found: Iterable[Picture | None] = [
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
        _course.budget(data),
        _relations.random_not_grid(data),
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
    parts = ['<nav aria-label="Sections"><a href="#s-settings">Settings</a><a href="#s-training">Training</a>'
             '<a href="#s-relations">What matters</a><a href="#s-course">The study</a>'
             '<a href="#s-trials">Best trials</a></nav>', "<main>"]  # fmt: skip
    legend = "".join(
        f'<span><i class="dot" style="background:var(--round{r})"></i>round {r + 1}</span>'
        for r in range(len(data.rounds))
    )
    legend += '<span><i class="star">★</i>winner</span>'
    if data.infeasible.any():
        legend += '<span><i class="cross">×</i>infeasible</span>'
    parts.append(f'<section id="s-settings"><h2>Each setting</h2><p class="key">{legend}</p>')
    if any(decision.kind == "pbt" for decision in data.decisions):
        parts.append(
            "<p class='lead'>Population-based training changed settings while the models trained: the pictures of "
            "settings show what each model began with, the answer what the winner ended with.</p>"
        )
    parts.append(_card(found["zoom"]))
    shade = " The shading is the rounds' narrowing spaces." if len(data.rounds) > 1 else ""
    parts.append(
        f"<h3>Axis plots</h3><p class='lead'>Every trial's best {esc(data.objective)} over training, on each setting's "
        f"own scale, the settings that matter most first.{shade}{esc(data.thinned)}</p><div class='grid'>"
    )
    parts += [_card(found[f"axis-{name}"]) for name in data.by_importance]
    parts.append(
        "</div><h3>Isolation plots</h3><p class='lead'>The best trial of each range: what a value of this setting can "
        "do when all others are chosen well. Grey: the next three trials.</p><div class='grid'>"
    )
    parts += [_card(found[f"isolation-{name}"]) for name in data.by_importance]
    parts.append("</div></section>")
    for key, title, names in (
        ("s-training", "Training", ("curves", "train-valid")),
        ("s-relations", "What matters", ("importance", "parallel", "pair", "infeasible")),
        ("s-course", "The study", ("budget", "rungs", "random-not-grid", "occupancy", "seconds")),
    ):
        parts.append(f'<section id="{key}"><h2>{title}</h2>')
        if key == "s-relations":
            if "importance" not in found:
                parts.append(
                    "<p class='lead'>Too few trials to say which setting matters: it takes 20 in one round.</p>"
                )
            if "infeasible" not in found:
                parts.append("<p class='lead'>No trial was infeasible.</p>")
        parts += [_card(found[name]) for name in names if name in found]
        if key == "s-course" and data.groups:
            parts.append(
                f'<div class="card"><h3>The plan</h3>{table_html(plan_table(data), "The plan", folded=False)}</div>'
            )
        parts.append("</section>")
    table = table_html(best_table(data), "Best trials", folded=False)
    parts.append(f'<section id="s-trials"><h2>Best trials</h2><div class="card">{table}</div></section></main>')
    return parts


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
