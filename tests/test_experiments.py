"""Every experiment that comes with the project runs to its end, through the real command, and hands over its model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))

# the study's code is loaded by a process of its own too, as a person would do it the next day
RELOAD = """
import sys, vmaptune as vt
study = vt.load(sys.argv[1])
print(type(study.best_model()).__name__, len(study.trials()))
"""


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiment_runs_to_its_end(experiment, tmp_path):
    out = tmp_path / "study"
    command = [sys.executable, "-m", "vmaptune", "run", str(experiment), "--trials", "12", "--rounds", "2",
               "--steps", "4", "--json", "--out", str(out)]  # fmt: skip
    if "width = vt" in experiment.read_text() or '"width": vt' in experiment.read_text():
        command += ["--set", "width=16"]  # one group: this is about running, not about compiling
    if '"batch": vt' in experiment.read_text():
        command += ["--set", "batch=32", "--structure", "masks"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["trials"] == 12
    assert math.isfinite(result["best"]["value"])
    loaded = subprocess.run([sys.executable, "-c", RELOAD, str(out)], capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split()[-1] == "12"
