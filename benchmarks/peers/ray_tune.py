"""Ray Tune, one process a trial and a core a process, each an eager PyTorch training with fused Adam."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import _worker
import ray
from ray import tune
from works import LEARNING_RATES, WORKS, Work

HERE = str(Path(__file__).parent)
TRIALS = 4


def trial(config: dict[str, Any]) -> None:
    """One trial, in its own process."""
    import torch
    from _torch_models import OneModel

    torch.set_num_threads(1)
    tune.report({"loss": OneModel(WORKS[config["work"]]).train(config["learning_rate"], config["steps"])})


class Ray:
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        import torch  # noqa: F401  (so that a missing package is told at once)

        self.work, self.quick = work, options.get("quick", False)
        self.steps = 1000

    def prepare(self) -> dict[str, Any]:
        started = time.perf_counter()
        os.environ["PYTHONPATH"] = f"{HERE}:{Path(HERE).parent}"  # of the trials' processes
        os.environ.update(
            RAY_AIR_NEW_OUTPUT="0", RAY_DISABLE_IMPORT_WARNING="1", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1"
        )
        self.folder = tempfile.TemporaryDirectory()
        ray.init(
            num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, logging_level=logging.ERROR,
            log_to_driver=False, configure_logging=True,
        )  # fmt: skip
        prepare_s = time.perf_counter() - started
        return {
            "compile_s": prepare_s,
            "setting": f"{TRIALS} trials of {self.steps} steps, their processes' start included",
        }

    def time(self) -> dict[str, Any]:
        space = {
            "learning_rate": tune.loguniform(*LEARNING_RATES), "work": self.work.name, "steps": self.steps
        }  # fmt: skip
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(num_samples=TRIALS, metric="loss", mode="min"),
            run_config=tune.RunConfig(storage_path=self.folder.name, verbose=0),
        )
        started = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - started
        if results.num_errors:
            raise RuntimeError(f"{results.num_errors} trials failed: {results.errors[0]}")
        loss = results.get_best_result().metrics["loss"]
        return {"seconds": seconds, "model_steps": TRIALS * self.steps, "loss": loss}

    def close(self) -> None:
        ray.shutdown()


if __name__ == "__main__":
    _worker.serve(Ray, ("ray", "torch"))
