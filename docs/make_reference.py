"""Writes docs/reference.md from the docstrings and docs/commands.md from the command line.

python docs/make_reference.py            write both
python docs/make_reference.py --check    say which is not current, and fail
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vmaptune
from vmaptune.cli import build_parser

DOCS = Path(__file__).parent
NOTE = "<!-- written by docs/make_reference.py; change the docstrings, not this file -->"
ORDER = (
    ("An experiment", ("Experiment", "Data", "Task")),
    ("Settings and their scales", ("Space", "uniform", "loguniform", "reverseloguniform", "randint", "lograndint",
                                   "choice", "ordinal")),
    ("Studies", ("run", "resume", "retest", "check", "load", "Study", "replay", "panda", "live",
                 "batches", "prepare_devices")),
    ("Ask and tell", ("Sampler",)),
    ("Errors", ("VmaptuneError", "InputError", "StudyError")),
)  # fmt: skip


def commands() -> str:
    """Every command with every argument, as Markdown."""
    parser = build_parser()
    (sub,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    about = {action.dest: action.help for action in sub._choices_actions}
    lines = [NOTE, "# Commands", "", "`python -m vmaptune COMMAND ...`; with `--help` a command says this too.", ""]
    lines += [f"{str(parser.epilog)[0].upper()}{str(parser.epilog)[1:]}.", "", "| command | |", "| --- | --- |"]
    lines += [f"| [`{name}`](#{name}) | {about[name]} |" for name in sub.choices]
    for name, command in sub.choices.items():
        lines += ["", f"## {name}", "", f"{str(about[name])[0].upper()}{str(about[name])[1:]}.".replace("?.", "?"), ""]
        lines += ["| argument | |", "| --- | --- |"]
        for action in command._actions:
            if not isinstance(action, argparse._HelpAction):
                lines.append(f"| `{_argument(action)}` | {_cell(action.help or '')} |")
    return "\n".join(lines) + "\n"


def _argument(action: argparse.Action) -> str:
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else None)
    if not action.option_strings:
        return str(value or action.dest)
    takes = action.nargs != 0
    return ", ".join(action.option_strings) + (f" {value or action.dest.upper()}" if takes else "")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("%%", "%")


def reference() -> str:
    """Every public name with its signature and docstring, as Markdown."""
    modules = [name for name in vmaptune.__all__ if isinstance(getattr(vmaptune, name), types.ModuleType)]
    listed = [name for _, names in ORDER for name in names]
    rest = [name for name in vmaptune.__all__ if name not in listed and name not in modules]
    sections = [*ORDER, *([("More", tuple(rest))] if rest else [])]
    lines = [NOTE, "# Reference", "", "`import vmaptune as vt`. The [commands](commands.md) have a page of their own."]
    for title, names in sections:
        lines += ["", f"## {title}"]
        for name in names:
            lines += _entry(f"vt.{name}", getattr(vmaptune, name))
    for name in modules:
        module = getattr(vmaptune, name)
        lines += ["", f"## vt.{name}", "", _prose(inspect.getdoc(module) or "")]
        for member, value in _members(module):
            lines += _entry(f"vt.{name}.{member}", value)
    return "\n".join(lines) + "\n"


def _members(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, name)
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith(module.__name__):
            yield name, value


def _entry(name: str, value: Any) -> list[str]:
    lines = ["", f"### {name}", "", "```python", f"{name}{_signature(value)}", "```", "", _doc(value)]
    if inspect.isclass(value) and not issubclass(value, BaseException) and not _of_flax(value):
        for member, function in vars(value).items():
            if member.startswith("_") or not (inspect.isfunction(function) or isinstance(function, property)):
                continue
            call = "" if isinstance(function, property) else _signature(function).replace("(self, ", "(", 1)
            call = call.replace("(self)", "()", 1)
            doc = inspect.getdoc(function)
            if doc:
                lines += ["", f"**`.{member}{call}`**", "", _prose(doc)]
    return lines


def _of_flax(value: Any) -> bool:
    return inspect.isclass(value) and any(base.__module__.startswith("flax") for base in value.__mro__)


def _signature(value: Any) -> str:
    if _of_flax(value):
        return "(...)"  # Flax's own arguments, which change with its version
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    signature = re.sub(r" at 0x[0-9a-f]+", "", signature)
    signature = re.sub(r", _\w+: [^=]+ = <factory>|, _\w+: [^=,]+ = [^,)]+", "", signature)  # what is not public
    return re.sub(
        r"(: |-> )'([^']*)'", r"\1\2", signature
    )  # annotations are strings, and are shown as they were written


def _doc(value: Any) -> str:
    return _prose(inspect.cleandoc(value.__doc__ or ""))


def _prose(doc: str) -> str:
    """A docstring as Markdown: its Args, Returns and Raises as lists, all else as it is."""
    lines: list[str] = []
    inside = False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            lines += [f"*{line[:-1]}*", ""]
            inside = True
        elif inside and re.match(r"  \S", line):
            found = re.match(r"  ([\w, ]+): (.*)", line)
            lines.append(f"- `{found[1]}`: {found[2]}" if found else f"- {line.strip()}")
        elif inside and line.startswith("    "):
            lines.append("  " + line.strip())
        else:
            inside = inside and not line
            lines.append(line)
    return "\n".join(lines).strip()


def main() -> int:
    """Writes the pages, or with --check compares them."""
    stale = []
    for name, text in (("commands.md", commands()), ("reference.md", reference())):
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"not current: {', '.join(stale)}; run python docs/make_reference.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
