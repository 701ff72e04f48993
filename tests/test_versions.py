"""The versions that the package takes, held against those that people have."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / ".ci" / "colab.txt").read_text(encoding="utf-8").splitlines()
COLAB = {line.split("==")[0]: line.split("==")[1] for line in LINES if "==" in line and not line.startswith("#")}


@pytest.mark.parametrize("extra", [None, "report", "experiments", "test"])
def test_what_colab_has_is_enough_so_that_pip_lifts_nothing(extra):
    wanted = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name in COLAB:
            assert requirement.specifier.contains(COLAB[requirement.name]), text
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "scipy", "plotly"} == set(COLAB)


def test_the_notebook_installs_beside_what_is_there():
    """Where pip may lift jax, it lifts neither the CUDA plugin nor libtpu: the accelerator is lost."""
    notebook = json.loads((ROOT / "experiments" / "colab.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if "%pip" in "".join(cell["source"])]
    assert len(cells) == 1
    assert "-c kept.txt" in cells[0]
    assert "--upgrade" not in cells[0]
    assert " -U" not in cells[0]


def test_every_line_of_the_chosen_tenth_is_there():
    for line in (ROOT / ".ci" / "tenth.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            path, _, name = line.partition("::")
            assert (ROOT / path).exists(), line
            assert f"def {name.split('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8") if name else True, line
