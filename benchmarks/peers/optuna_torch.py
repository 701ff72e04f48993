"""Optuna's default sampler driving PyTorch, one trial after another, each an eager training with fused Adam."""

from __future__ import annotations

import time
from typing import Any

import _worker
import optuna
import torch
from _torch_models import OneModel
from works import LEARNING_RATES, Work

STEPS = 500  # of a trial, so that the sampler's own time is a small part, as it is in real searches


class Optuna:
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work, self.target = work, options.get("seconds", 1.0)
        torch.set_num_threads(options.get("threads", 1))
        self.one = OneModel(work)
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def prepare(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.steps = 10
        self.search(1)
        prepare_s = time.perf_counter() - started
        self.steps, self.trials = 100, 1
        seconds = self.time()["seconds"]
        self.steps = min(STEPS, max(20, round(100 * self.target / seconds)))
        self.trials = max(1, round(self.target / (seconds * self.steps / 100)))
        return {"compile_s": prepare_s, "setting": "one trial at a time"}

    def search(self, trials: int) -> float:
        def objective(trial: optuna.Trial) -> float:
            return self.one.train(trial.suggest_float("learning_rate", *LEARNING_RATES, log=True), self.steps)

        study = optuna.create_study()
        study.optimize(objective, n_trials=trials)
        return study.best_value

    def time(self) -> dict[str, Any]:
        started = time.perf_counter()
        loss = self.search(self.trials)
        return {"seconds": time.perf_counter() - started, "model_steps": self.trials * self.steps, "loss": loss}


if __name__ == "__main__":
    _worker.serve(Optuna, ("optuna", "torch"))
