"""Loading a person's exp.py: every way in which it can be wrong has a message of its own."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from vmaptune.errors import InputError
from vmaptune.experiment._experiment import Experiment
from vmaptune.experiment._places import at_line, described, place_in

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


def load_experiment(spec: str | Path) -> LoadedExperiment:
    """Loads `exp.py`, or `exp.py:NAME` where the file holds several experiments.

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
    module = _import(path.resolve(), code)
    experiment = _choose(vars(module), path, wanted)
    digest = hashlib.sha256(content).hexdigest()
    name = experiment.name or path.stem + (f"-{wanted}" if wanted else "")
    place = str(path.resolve())
    return LoadedExperiment(experiment, place, source, digest, name, f"{place}:{wanted}" if wanted else place)


def _import(path: Path, code: types.CodeType) -> types.ModuleType:
    """Runs the text that was read, so that it is what the digest says; no bytecode is left beside it."""
    name = "vmaptune_experiment_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        place = place_in(error, str(path))
        if isinstance(error, InputError):
            raise InputError(f"{error}{at_line(place)}") from error
        hint = ""
        if isinstance(error, ModuleNotFoundError):
            hint = f"\n  way out: install {error.name!r} in this environment, or correct the import"
        raise InputError(f"the experiment does not import: {described(error)}{at_line(place)}{hint}") from error
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
