"""Who may import whom: imports point downwards only."""

from __future__ import annotations

import ast
from pathlib import Path

import vmaptune

ROOT = Path(vmaptune.__file__).parent
# Each room and the rooms that it may import, besides its own modules.
ROOMS = {
    "errors": set(),
    "schedules": set(),
    "nn": {"errors"},
    "arguments": {"errors"},
    "task": {"errors", "arguments"},
    "space": {"errors"},
    "search": {"errors", "space"},
    "store": {"errors"},
    "rewrite": set(),
    "experiment": {"errors", "arguments", "space", "task", "rewrite", "nn"},
    "engine": {"errors", "task", "rewrite"},
    "study": {"errors", "space", "task", "experiment", "engine", "search", "store"},
    "tables": {"errors", "space", "nn", "experiment"},
    "sklearn": {"errors", "store", "study", "tables"},
    "view": {"errors", "space", "search", "store"},
    "cli": {"errors", "space", "store", "engine", "study", "view", "experiment", "sklearn", "tables"},
    "__main__": {"cli"},
}
# What a room may use inside a function only: a study shows itself where it is asked to.
LAZILY = {"study": {"view"}}
NO_JAX = ("errors", "space", "search", "store", "view", "cli")


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so at the top (not inside a function)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.append((node.module or "", id(node) in top))
            if node.module == "vmaptune":
                found += [(f"vmaptune.{alias.name}", id(node) in top) for alias in node.names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_point_downwards_only():
    wrong, seen = [], set()
    for path in sorted(ROOT.rglob("*.py")):
        room = room_of(path)
        if room == "__init__":
            continue
        seen.add(room)
        for module, top in imports_of(path):
            parts = module.split(".")
            allowed = ROOMS[room] | {room} | (set() if top else LAZILY.get(room, set()))
            if parts[0] == "vmaptune" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []
    assert seen == set(ROOMS)


def test_rooms_that_need_no_jax_import_none():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted(ROOT.rglob("*.py"))
        if room_of(path) in NO_JAX
        for module, top in imports_of(path)
        if top and module.split(".")[0] in ("jax", "flax", "optax")
    ]
    assert wrong == []


def test_scikit_learn_is_imported_by_its_own_room_alone_and_pandas_where_it_is_asked_for():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted(ROOT.rglob("*.py"))
        if room_of(path) != "sklearn"
        for module, top in imports_of(path)
        if module.split(".")[0] == "sklearn" or (top and module.split(".")[0] == "pandas")
    ]
    assert wrong == []


def test_there_is_one_vmap():
    found = []
    for path in sorted((ROOT / "engine").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "vmap":
                found.append(path.name)
    assert set(found) == {"tiles.py"}


def test_the_public_names_are_these():
    assert sorted(vmaptune.__all__) == [
        "Data", "Experiment", "InputError", "Sampler", "Space", "Study", "StudyError", "Task", "VmaptuneError",
        "batches", "check", "choice", "live", "load", "lograndint", "loguniform", "nn", "ordinal", "panda",
        "prepare_devices", "randint", "replay", "resume", "retest", "reverseloguniform", "run", "schedules", "uniform",
    ]  # fmt: skip
    for name in vmaptune.__all__:
        assert getattr(vmaptune, name).__doc__, name
