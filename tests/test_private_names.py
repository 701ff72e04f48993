"""JAX's private and passing names: each is used under a guard, and what happens without it is tested here."""

from __future__ import annotations

import ast
import atexit
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewritten import normal

import vmaptune
from vmaptune.engine import compiling
from vmaptune.rewrite import _columns, _walk

ROOT = Path(vmaptune.__file__).parent
LIBRARIES = {"jax", "jaxlib", "flax", "optax", "numpy", "scipy", "plotly", "optuna", "atexit"}
PASSING = ("jax.experimental", "jax.interpreters", "jax.lib", "jax.core")  # no promise is made of these
KEPT = {"jax.core.eval_jaxpr", "jax.core.Tracer"}  # of jax.core, what JAX documents and doesn't deprecate
# Each guarded name, and the test here of what happens without it.
FALLBACKS = {
    "jax._src.compiler": "test_without_xla_s_own_flags_the_environment_is_asked",
    "jax.experimental.layout": "test_without_layouts_rows_stay_as_they_are",
    "jax.experimental.xla_metadata": "test_without_metadata_a_call_is_inlined",
    "atexit._run_exitfuncs": "test_without_python_s_own_exit_functions_a_command_ends_as_usual",
}


def is_private(name: str) -> bool:
    library, *parts = name.split(".")
    if library not in LIBRARIES or name in KEPT:
        return False
    return any(part.startswith("_") and not part.startswith("__") for part in parts) or name.startswith(PASSING)


def dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def private_names(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every private name that a module takes from a library, its line, and whether a `try` catches its absence."""
    for node in ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module] if is_private(module) else [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [dotted(node)]
        yield from ((name, getattr(node, "lineno", 0), guarded) for name in names if is_private(name))
        if isinstance(node, ast.Try):
            caught = {n.id for handler in node.handlers if handler.type for n in ast.walk(handler.type)
                      if isinstance(n, ast.Name)}  # fmt: skip
            for part in node.body:
                inner = ast.Module([part], [])
                yield from private_names(inner, guarded or bool(caught & {"ImportError", "AttributeError"}))
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                yield from private_names(part, guarded)
        elif not (isinstance(node, ast.Attribute) and names != [""]):
            yield from private_names(node, guarded)


def test_no_private_name_is_used_without_a_guard_and_a_test_of_the_fallback():
    found = {
        (name, f"{path.relative_to(ROOT)}:{line}", guarded)
        for path in sorted(ROOT.rglob("*.py"))
        for name, line, guarded in private_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert [(name, where) for name, where, guarded in found if not guarded] == []
    assert {name for name, _, _ in found} == set(FALLBACKS)
    assert set(FALLBACKS.values()) <= set(globals())


@pytest.mark.parametrize(("code", "found"), [
    ("import jax._src.core", [("jax._src.core", False)]),
    ("from jax import _src", [("jax._src", False)]),
    ("import jax\njax.interpreters.mlir.x", [("jax.interpreters.mlir.x", False)]),
    ("try:\n  from jax._src.a import b\nexcept ImportError: pass", [("jax._src.a", True)]),
    ("try:\n  from jax._src.a import b\nexcept ValueError: pass", [("jax._src.a", False)]),
    ("jax.core.eval_jaxpr(x); jax.core.jaxpr_as_fun(y)", [("jax.core.jaxpr_as_fun", False)]),
    ("import jax.numpy as jnp\njnp.ones(3).__class__", []),
])  # fmt: skip
def test_the_search_finds_what_it_looks_for(code, found):
    assert [(name, guarded) for name, _, guarded in private_names(ast.parse(code))] == found


def absent(monkeypatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError


@pytest.fixture
def anew(monkeypatch):
    """Imports a module of the package anew, as a copy that nobody else sees."""

    def load(module):
        spec = importlib.util.spec_from_file_location(f"{module.__name__}_anew", module.__file__)
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy

    return load


def test_without_xla_s_own_flags_the_environment_is_asked(monkeypatch):
    absent(monkeypatch, "jax._src.compiler")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_backend_extra_options={compiling.BY_XLA}")
    assert compiling.BY_XLA in compiling._flags_of_xla()
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiling._flags_of_xla() == ""
    assert not compiling.products_are_compiled()


def test_without_layouts_rows_stay_as_they_are(monkeypatch, anew):
    absent(monkeypatch, "jax.experimental.layout")
    columns = anew(_columns)
    assert columns.Layout is None
    jaxpr = jax.make_jaxpr(lambda x: jax.nn.softmax(x))(normal(0, 64, 10)).jaxpr
    assert columns.short_rows_in_columns(jaxpr) is jaxpr
    tree = {"w": normal(0, 64, 10)}
    assert columns.weights_in_columns(tree) is tree


def test_without_metadata_a_call_is_inlined(monkeypatch, anew):
    absent(monkeypatch, "jax.experimental.xla_metadata")
    walk = anew(_walk)
    assert walk.set_xla_metadata is None
    x = normal(0, 5, 3)
    np.testing.assert_array_equal(walk.alone(jnp.transpose, x), x.T)
    assert str(jax.make_jaxpr(lambda x: walk.alone(jnp.transpose, x))(x)).count("jit") == 0


def test_without_python_s_own_exit_functions_a_command_ends_as_usual():
    assert hasattr(atexit, "_run_exitfuncs")  # where it is gone, the test says so and the guard may go
    code = (
        "import atexit; atexit.register(print, 'at the end'); del atexit._run_exitfuncs\n"
        "from vmaptune.cli import _process; print('begun'); _process.end(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (3, ["begun", "at the end"]), done.stderr
