"""The report in a real browser.  python -m pytest -m browser  (needs Chromium: apt-get install chromium)

These tests are left out of a plain `pytest`, which says so ("deselected"); .ci/run installs Chromium and runs them.
Where they are asked for and no Chromium is found they fail.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_studies import make_study

from vmaptune.store.reader import LedgerReader
from vmaptune.view.report import gather, write_pictures, write_report
from vmaptune.view.report._page import pictures

pytestmark = pytest.mark.browser
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MOST_BYTES = 10_000_000
FIRST_PAINT = 2_000  # ms


def chromium() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "no Chromium: apt-get install chromium, or set CHROMIUM to its path, or leave out -m browser"
    return found


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


@contextmanager
def opened(browser, path: Path, **options):
    """The page, ready; afterwards it has had no error and has asked for nothing but itself."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    yield page
    assert errors == []
    assert requests == [path.as_uri()]
    context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_study(tmp_path_factory.mktemp("browser") / "made", trials=90, stop=True))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = make_study(tmp_path_factory.mktemp("browser") / "large", trials=10_000, rounds=4, points=12, stop=True)
    return write_report(path)


def first_paint(page) -> float:
    return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")


def names_of(report: Path) -> list[str]:
    with LedgerReader.open(report.parent) as reader:
        return [picture.name for picture in pictures(gather(reader))]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (800, "light"), (400, "dark")])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_page(browser, report, width, scheme):
    with opened(browser, report, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.evaluate("vmaptuneReport.drawAll()")
        assert page.evaluate("vmaptuneReport.ids") == names_of(report)
        for name in names_of(report):
            plot = page.locator(f'[id="{name}"]')
            assert plot.get_attribute("data-drawn") == "yes", name
            assert plot.get_attribute("role") == "img"
            assert len(plot.get_attribute("aria-label")) > 40
            assert plot.locator("svg.main-svg, canvas").count() > 0, name
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(15, 19, 24)") == (scheme == "dark")


def test_figures_are_drawn_when_they_come_into_view(browser, report):
    with opened(browser, report) as page:
        assert page.locator('[id="seconds"]').get_attribute("data-drawn") is None
        page.locator('[id="seconds"]').scroll_into_view_if_needed()
        page.wait_for_selector('[id="seconds"][data-drawn="yes"]')


def test_the_points_are_the_ledgers(browser, report):
    with LedgerReader.open(report.parent) as reader:
        data = gather(reader)
    with opened(browser, report) as page:
        page.evaluate("vmaptuneReport.drawAll()")
        drawn = page.evaluate(
            "document.getElementById('axis-learning_rate').data.filter(t => t.customdata)"
            ".flatMap(t => t.customdata.map(c => c[0]))"
        )
    assert sorted(drawn) == sorted(int(t) for t in data.trial)


def test_brushing_with_the_mouse_and_from_the_keyboard(browser, report):
    with opened(browser, report) as page:
        page.locator('[id="parallel"]').scroll_into_view_if_needed()
        page.wait_for_selector("#brush-words")
        assert "Nothing is chosen" in page.inner_text("#brush-words")
        # The upper half of the first axis, with the mouse.
        axis = page.locator("#parallel .axis-brush .background").first.bounding_box()
        x = axis["x"] + axis["width"] / 2
        page.mouse.move(x, axis["y"] + 0.1 * axis["height"])
        page.mouse.down()
        page.mouse.move(x, axis["y"] + 0.3 * axis["height"], steps=5)
        page.mouse.move(x, axis["y"] + 0.5 * axis["height"], steps=5)
        page.mouse.up()
        page.wait_for_function("document.getElementById('brush-words').textContent.includes('are chosen')")
        chosen = page.evaluate("document.getElementById('parallel').data[0].dimensions[0].constraintrange")
        assert chosen is not None
        expected = page.evaluate(
            "(() => { const d = document.getElementById('parallel').data[0].dimensions[0];"
            " const [a, b] = d.constraintrange;"
            " return Array.from(d.values).filter(v => v >= a && v <= b).length; })()"
        )
        assert page.inner_text("#brush-words").startswith(f"{expected} of ")
        page.click("#brush-clear")
        page.wait_for_function("document.getElementById('brush-words').textContent.includes('Nothing')")
        # The lowest part of the objective's axis, from the keyboard: the best trials.
        page.focus("#brush-high")
        for _ in range(70):
            page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.getElementById('brush-words').textContent.includes('the best of them')")
        with LedgerReader.open(report.parent) as reader:
            data = gather(reader)
        # What Plotly itself selects is what the words count.
        agree = page.evaluate(
            "(() => { const inner = [...document.querySelectorAll('#parallel .axis-brush')].at(-1).__data__;"
            " const kept = inner.brush.filter.getConsolidated();"
            " const within = Array.from(inner.paddedUnitValues).filter(u => kept.some(([a, b]) => u >= a && u <= b));"
            " return [within.length, document.getElementById('brush-words').textContent, kept,"
            "         document.getElementById('parallel').data[0].dimensions.at(-1).constraintrange]; })()"
        )
        assert agree[1].startswith(f"{agree[0]} of "), agree
        first = page.inner_text("#brush-table tr:nth-child(2) td:first-child")
        assert int(first.split()[0]) == data.trial[data.order[0]]  # behind it the mark of the winner


def test_the_answer_is_there_without_scripts(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.inner_text("#answer-title") == "The setting to use"
    assert page.locator("noscript").count() == 1
    page.locator("details.numbers summary").first.click()
    assert page.locator("details.numbers[open] td").count() > 3
    context.close()


def test_a_hostile_name_runs_nothing(browser, report):
    with opened(browser, report) as page:
        page.evaluate("vmaptuneReport.drawAll()")
        assert page.title() == "made <b>up</b> & {{body}} · vmaptune"
        assert page.locator("h1 b, .plot img, td img").count() == 0


def test_a_change_of_the_colour_scheme_redraws(browser, report):
    with opened(browser, report, color_scheme="light") as page:
        page.wait_for_selector('[id="zoom"][data-drawn="yes"]')
        colour = "document.getElementById('zoom').layout.paper_bgcolor"
        assert page.evaluate(colour) == "#ffffff"
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(colour + " === '#171c22'")


def test_it_prints_light_and_whole(browser, report):
    with opened(browser, report, color_scheme="dark") as page:
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        page.wait_for_selector('[id="seconds"][data-drawn="yes"]', state="attached")
        assert page.evaluate("document.getElementById('zoom').layout.paper_bgcolor") == "#ffffff"


@pytest.mark.parametrize("width", [1600, 420])
def test_on_paper_every_figure_is_as_wide_as_its_card(browser, report, width):
    with opened(browser, report, viewport={"width": width, "height": 900}) as page:
        page.evaluate("vmaptuneReport.drawAll()")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        widths_of = (
            "vmaptuneReport.ids.map(id => [document.getElementById(id).clientWidth,"
            " document.getElementById(id).querySelector('.main-svg').getBoundingClientRect().width])"
        )
        page.wait_for_function(f"{widths_of}.every(([place, drawn]) => Math.abs(place - drawn) <= 1)")
        widths = page.evaluate(widths_of)
        assert max(place for place, _ in widths) < 690  # A4 less its margins


def test_nothing_on_the_page_sends_a_figure_away(browser, report):
    with opened(browser, report) as page:
        page.evaluate("vmaptuneReport.drawAll()")
        titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
        assert titles
        assert not [title for title in titles if "loud" in title or "Share" in title or "Edit" in title]


def test_names_of_axes_stay_apart_on_a_small_screen(browser, report):
    with opened(browser, report, viewport={"width": 420, "height": 900}) as page:
        page.evaluate("vmaptuneReport.drawAll()")
        apart = page.evaluate(
            """() => {
              const names = [...document.querySelectorAll('#parallel .axis-title')];
              const angle = (name) => /rotate\\((-?[\\d.]+)/.exec(name.getAttribute('transform'))[1];
              return names.map((name) => [Number(angle(name)), name.getBoundingClientRect().left]);
            }"""
        )
        assert len(apart) > 4
        assert all(angle == -35 for angle, _ in apart), apart  # side by side they would lie over each other


def test_ten_thousand_trials_are_within_the_limits(browser, large):
    assert large.stat().st_size <= MOST_BYTES
    with opened(browser, large) as page:
        assert first_paint(page) <= FIRST_PAINT
        page.evaluate("vmaptuneReport.drawAll()")
        assert page.locator('[data-drawn="yes"]').count() == len(names_of(large))
        assert "10,000" in page.inner_text("header") or "10,008" in page.inner_text("header")


def test_png_for_slides(report, monkeypatch, tmp_path):
    monkeypatch.setenv("BROWSER_PATH", chromium())  # Kaleido's name for it
    written = write_pictures(report.parent, tmp_path)
    assert [path.stem for path in written] == names_of(report)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
