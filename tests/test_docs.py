"""The pages of docs/: every Python snippet runs, every command line is one, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vmaptune.cli import build_parser

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
GENERATED = ("reference.md", "commands.md")
ELSEWHERE = ("report.md",)  # its snippet needs a study of its own: test_report.py runs it
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.name not in GENERATED + ELSEWHERE and blocks(p, "python")],
    ids=lambda page: page.stem,
)
def test_every_python_snippet_runs(page, tmp_path, monkeypatch):
    """The snippets of a page one after the other, as a reader would, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for number, code in enumerate(blocks(page, "python"), 1):
        exec(compile(code, f"{page.name}, snippet {number}", "exec"), names)


def test_there_are_snippets_to_run():
    assert sum(len(blocks(page, "python")) for page in PAGES if page.name not in GENERATED) >= 15


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_every_command_line_is_one(page):
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line.split(" #")[0]):
            words = shlex.split(command)
            if words[:3] == ["python", "-m", "vmaptune"]:
                try:
                    build_parser().parse_args(words[3:])
                except SystemExit as stopped:
                    pytest.fail(f"{page.name}: {command.strip()} is not read ({stopped.code})")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        there = (page.parent / path) if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [p.name for p in PAGES if p.name != "README.md" and f"({p.name})" not in index]
    assert missing == [], "add them to docs/README.md"


def test_reference_and_commands_are_current():
    """Generated from docstrings and parser: every public name, every command and every option is in them."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"], capture_output=True, text=True, cwd=ROOT,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "run: python docs/make_reference.py"
