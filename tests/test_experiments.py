"""Every experiment that comes with the project runs to its end, through the real command, and hands over its model."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
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


@pytest.fixture
def width_transfer(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS[0].parent))
    return importlib.import_module("width_transfer")


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("mup", [0, 1])
def test_the_maximal_update_rates_by_layer(width_transfer, width, mup):
    """Adam's updates, times 16 / width where a matrix reads a hidden layer, and only under that parametrisation."""
    layers = {"first": (64, width), "second": (width, width), "third": (width, width), "last": (width, 10)}
    params = {n: {"kernel": np.ones(shape), "bias": np.ones(shape[1])} for n, shape in layers.items()}
    grads = jax.tree.map(lambda p: np.random.default_rng(p.size).normal(size=p.shape), params)
    hp = SimpleNamespace(width=width, mup=mup, learning_rate=0.01)
    ours, adam = width_transfer.optimizer(hp, 100), optax.adam(0.01)
    found, _ = ours.update(grads, ours.init(params), params)
    plain, _ = adam.update(grads, adam.init(params), params)
    for name in layers:
        share = 16 / width if mup and name != "first" else 1.0
        np.testing.assert_allclose(found[name]["kernel"], share * plain[name]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(found[name]["bias"], plain[name]["bias"], rtol=1e-6)


def test_the_best_rate_is_the_bottom_of_the_valley(width_transfer):
    rates = np.geomspace(1e-4, 1.0, 40)
    losses = np.exp(0.3 * np.log(rates / 0.02) ** 2)
    assert width_transfer.best_rate(rates, losses) == pytest.approx(0.02, rel=1e-6)
    assert width_transfer.best_rate(rates, rates) == pytest.approx(1e-4)  # no bottom: the least that was seen


def test_the_best_rates_leave_repeats_and_failures_out(width_transfer):
    rates = np.geomspace(1e-3, 1.0, 30)
    trials = [
        SimpleNamespace(of=None, value=np.exp(np.log(rate * width) ** 2), params={"learning_rate": rate, "width": width,
                        "mup": mup})
        for width in width_transfer.WIDTHS for mup in (0, 1) for rate in rates
    ]  # fmt: skip
    odd = {"learning_rate": 0.9, "width": 64, "mup": 1}
    trials += [
        SimpleNamespace(of=of, value=value, params=odd) for of, value in ((3, 1e-9), (None, None), (None, np.inf))
    ]
    found = width_transfer.best_rates(trials)
    assert found == {(w, m): pytest.approx(1 / w, rel=1e-6) for w in width_transfer.WIDTHS for m in (0, 1)}
