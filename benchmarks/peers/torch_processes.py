"""PyTorch, eager, fused Adam, model after model, in as many processes as there are cores with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import _worker
from works import WORKS, Work


def train_models(name: str, jobs: Any, done: Any) -> None:
    """One process: trains a model for each `(rate, steps)` that comes, until None."""
    import torch
    from _torch_models import OneModel

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    one = OneModel(WORKS[name])
    done.put(one.train(1e-3, 20))
    while (job := jobs.get()) is not None:
        done.put(one.train(*job))


class Processes:
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        import torch  # noqa: F401  (so that a missing package is told at once)

        self.work, self.target = work, options.get("seconds", 1.0)
        self.count = len(os.sched_getaffinity(0))

    def prepare(self) -> dict[str, Any]:
        started = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self.jobs, self.done = context.Queue(), context.Queue()
        for _ in range(self.count):
            context.Process(target=train_models, args=(self.work.name, self.jobs, self.done), daemon=True).start()
        for _ in range(self.count):
            self.done.get()
        prepare_s = time.perf_counter() - started
        self.steps = 100
        self.steps = max(20, round(100 * self.target / self.time()["seconds"]))
        return {"compile_s": prepare_s, "setting": f"{self.count} processes of one thread"}

    def time(self) -> dict[str, Any]:
        """Two models for each process, of so many steps that a repeat takes about the time aimed for."""
        models = 2 * self.count
        started = time.perf_counter()
        for _ in range(models):
            self.jobs.put((1e-3, max(1, self.steps // 2)))
        losses = [self.done.get() for _ in range(models)]
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "model_steps": models * max(1, self.steps // 2), "loss": losses[-1]}


if __name__ == "__main__":
    _worker.serve(Processes, ("torch",))
