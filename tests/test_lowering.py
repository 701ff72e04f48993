"""Nothing in the engine assumes a CPU or a GPU: a segment lowers for a TPU, ahead of time, on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from jax import export

from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.experiment import find_statics, lane_arguments, load_experiment

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "char_lm", "toy"])
def test_a_segment_lowers_for_another_platform(name, platform, monkeypatch):
    # what is fitted for a CPU's compiler is not part of another platform's program
    monkeypatch.setattr("vmaptune.engine.program.jax.default_backend", lambda: platform)
    experiment = load_experiment(EXPERIMENTS / f"{name}.py").experiment
    task = experiment.build()
    statics = find_statics(experiment, task)
    traced = lane_arguments(experiment.space, statics.traced)
    sample = {n: column[0] for n, column in experiment.space.sample(1, seed=0).items()}
    functions = LaneFunctions(task, {n: sample[n] for n in statics.static}, traced)
    jitted, shapes = Program(functions, traced, Plan(devices=1, lanes=8, every=4, tiles=2), compile=False).segment()
    segment = export.export(jitted, platforms=[platform])(*shapes)
    assert segment.platforms == (platform,)
    assert "stablehlo.while" in segment.mlir_module()
