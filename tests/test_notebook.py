"""The notebook of experiments/, run as it is in a kernel of its own, but for fewer trials."""

from __future__ import annotations

import os
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "colab.ipynb"


def outputs(cell, kind: str) -> list[str]:
    return [out["data"][kind] for out in cell.get("outputs", []) if kind in out.get("data", {})]


def test_it_runs_from_top_to_bottom_and_shows_its_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parent.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 15
    assert all(not cell.get("outputs") for cell in notebook.cells)  # kept without results
    (search,) = [cell for cell in notebook.cells if "TRIALS = 256" in cell.source]
    search.source = search.source.replace("TRIALS = 256", "TRIALS = 32").replace("rounds=3", "rounds=2")
    (code,) = [cell for cell in notebook.cells if "steps=400" in cell.source]
    code.source = code.source.replace("steps=400", "steps=60")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    (line,) = outputs(search, "text/plain")  # one line, which was changed in place
    assert "32/32 trials" in line
    assert "best" in line
    shown = notebook.cells.index(search) + 1
    assert "best" in outputs(notebook.cells[shown], "text/html")[0]
    figures = [out for cell in notebook.cells for out in outputs(cell, "application/vnd.plotly.v1+json")]
    assert len(figures) == 3
    assert all(figure["data"] for figure in figures)
    printed = "".join(out.get("text", "") for out in notebook.cells[-1].outputs)
    assert "learning_rate" in printed
    assert 0 <= float(printed.split()[-1]) <= 1
    (study,) = (tmp_path / "runs").iterdir()
    assert (study / "best" / "best.weights").exists()
