"""Loading a person's exp.py: every way in which it can be wrong has a message of its own."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from vmaptune.errors import InputError
from vmaptune.experiment._experiment import Experiment
from vmaptune.experiment._places import at_line, described, inside, is_own, place_in

CONSTRUCTORS = {
    "uniform", "loguniform", "reverseloguniform", "randint", "lograndint", "choice", "ordinal",
}  # fmt: skip


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment and the file that it came from."""

    experiment: Experiment
    path: str  # absolute
    source: str
    sha256: str
    name: str
    spec: str = ""  # the path, with `:NAME` where one was named
    files: dict[str, str] = field(default_factory=dict)  # of the person's own that it imports: path -> sha256


_importing: ContextVar[Path | None] = ContextVar("importing", default=None)


def not_while_importing(what: str) -> None:
    """Raises InputError where a person's file trains while it is imported: it would do so each time it is looked at."""
    path = _importing.get()
    if path is not None:
        raise InputError(
            f"{path.name} is imported to find its experiment, so it must not call {what} then; put the call under "
            f'`if __name__ == "__main__":`, which holds for `python {path.name}` alone'
        )


def load_experiment(spec: str | Path, folder: str | None = None) -> LoadedExperiment:
    """Loads `exp.py`, or `exp.py:NAME` where the file holds several experiments.

    Args:
      folder: where its study ran, from which its relative paths are read; by default the current one.

    Raises:
      InputError: no such file, an error while it is imported, no experiment in it, or two.
    """
    text, _, wanted = str(spec).partition(".py:")
    path = Path(text + ".py" if wanted else text)
    if path.is_dir() or not path.exists():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(
            f"the experiment must be a Python file, but {str(path)!r} {what}; "
            f"`python -m vmaptune new exp.py` writes one to start from"
        )
    try:
        content = path.read_bytes()
        source = importlib.util.decode_source(content)
        tree = ast.parse(source, filename=str(path))
        code = compile(source, str(path.resolve()), "exec", dont_inherit=True)
    except SyntaxError as error:
        place = f":{error.lineno}: {(error.text or '').strip()}" if error.lineno else ""
        raise InputError(f"the experiment is not valid Python: {error.msg}\n  at {path.resolve()}{place}") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as a Python file: {error}") from error
    _check_names(tree, path)
    _check_assigned_once(tree, path, wanted or "experiment")
    whole = path.resolve()
    with inside(folder):
        module = _import(whole, code)
    experiment = _choose(vars(module), path, wanted)
    digest = hashlib.sha256(content).hexdigest()
    name = experiment.name or path.stem + (f"-{wanted}" if wanted else "")
    place = str(path.resolve())
    files = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in _own_files(whole, tree)}
    experiment.found_in(folder)
    return LoadedExperiment(experiment, place, source, digest, name, f"{place}:{wanted}" if wanted else place, files)


def _own_files(path: Path, tree: ast.Module) -> list[Path]:
    """The person's own files that a file imports, and those that these import."""
    found: dict[Path, None] = {}
    waiting = [(tree, "")]
    while waiting:
        tree, package = waiting.pop()
        for name in _imported(tree, package):
            module = sys.modules.get(name)
            file = Path(getattr(module, "__file__", None) or "")
            if file.suffix != ".py" or not is_own(str(file)) or file.resolve() in (path, *found) or not file.is_file():
                continue
            found[file.resolve()] = None
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):  # it was another one when it was imported
                continue
            waiting.append((tree, getattr(module, "__package__", None) or ""))
    return sorted(found)


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The modules that a text imports by name, and the packages that they lie in."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _import(path: Path, code: types.CodeType) -> types.ModuleType:
    """Runs the text that was read, so that it is what the digest says; no bytecode is left beside it."""
    name = "vmaptune_experiment_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    token = _importing.set(path)
    try:
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        place = place_in(error, str(path))
        if isinstance(error, InputError):
            raise InputError(f"{error}{at_line(place)}") from error
        hint = ""
        if isinstance(error, SystemExit):
            hint = (
                "\n  way out: the file is imported, so it must not end the process or read the command line (argparse, "
                'sys.argv) then: put that under `if __name__ == "__main__":`, and give settings by --set'
            )
        elif isinstance(error, ImportError) and "relative import" in str(error):
            hint = f"\n  way out: {path.parent} is where modules are looked for, so import from there, without a dot"
        elif isinstance(error, ModuleNotFoundError):
            hint = f"\n  way out: install {error.name!r} in this environment, or correct the import"
        raise InputError(f"the experiment does not import: {described(error)}{at_line(place)}{hint}") from error
    finally:
        _importing.reset(token)
    return module


def _choose(names: dict, path: Path, wanted: str) -> Experiment:
    found: dict[int, tuple[str, Experiment]] = {}
    for name, value in names.items():
        if isinstance(value, Experiment):
            found.setdefault(id(value), (name, value))
    if wanted:
        value = names.get(wanted)
        if not isinstance(value, Experiment):
            raise InputError(
                f"{path} must define {wanted!r} as a vt.Experiment, but the experiments in it are: "
                f"{', '.join(n for n, _ in found.values()) or 'none'}"
            )
        return value
    if not found:
        other = names.get("experiment")
        got = "none" if other is None else f"`experiment` as {type(other).__name__}"
        raise InputError(
            f"{path} must define `experiment = vt.Experiment(...)`, but it defines {got}; "
            f"`python -m vmaptune new exp.py` writes a file to start from"
        )
    if len(found) > 1:
        listed = ", ".join(name for name, _ in found.values())
        raise InputError(
            f"{path} must define one experiment, but it defines {len(found)}: {listed}; "
            f"name the one to run: {' or '.join(f'{path}:{name}' for name, _ in found.values())}"
        )
    return next(iter(found.values()))[1]


def _check_names(tree: ast.Module, path: Path) -> None:
    """A dict display silently keeps the last of two equal names, so a doubled setting is found in the text."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Dict) or not any(_is_constructor(v) for v in node.values):
            continue
        seen: dict[str, int] = {}
        for key in node.keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                if key.value in seen:
                    raise InputError(
                        f"the setting {key.value!r} must be named once, but it is also at line "
                        f"{seen[key.value]}; give one of them another name\n  at {path.resolve()}:{key.lineno}"
                    )
                seen[key.value] = key.lineno


def _check_assigned_once(tree: ast.Module, path: Path, wanted: str) -> None:
    lines = [
        node.lineno
        for node in tree.body
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == wanted for t in node.targets)
    ]
    if len(lines) > 1:
        raise InputError(
            f"{path} must define one {wanted!r}, but it does so at lines {', '.join(map(str, lines))}; "
            f"give them different names and run {path}:NAME"
        )


def _is_constructor(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in CONSTRUCTORS
