"""scikit-learn's `RandomizedSearchCV` over `MLPClassifier`, one job a core.

One split, no refit, no early stopping: the search trains each model once for a fixed number of epochs. The
processes of joblib are warm, and each uses one thread.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from typing import Any

import _worker
import numpy as np
from scipy.stats import loguniform
from sklearn.model_selection import PredefinedSplit, RandomizedSearchCV
from sklearn.neural_network import MLPClassifier
from works import LEARNING_RATES, Work

MODELS = 8


class Search:
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work, self.target = work, options.get("seconds", 1.0)
        self.jobs = options.get("jobs", -1)
        (x, y), (xv, yv) = work.data()
        self.x, self.y = np.concatenate([x, xv]), np.concatenate([y, yv])
        self.split = PredefinedSplit(np.repeat([-1, 0], [len(x), len(xv)]))
        self.batches = math.ceil(len(x) / work.batch)  # of an epoch; its last batch is smaller
        os.environ["PYTHONWARNINGS"] = "ignore"  # for joblib's processes: not having converged is the aim here
        warnings.simplefilter("ignore")

    def prepare(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.epochs = 1
        self.time()
        prepare_s = time.perf_counter() - started
        self.epochs = 4
        seconds = self.time()["seconds"]
        self.epochs = max(4, round(4 * self.target / seconds))
        jobs = os.cpu_count() if self.jobs == -1 else self.jobs
        return {"compile_s": prepare_s, "setting": f"n_jobs={self.jobs} ({jobs} processes)"}

    def time(self) -> dict[str, Any]:
        h = self.work.hidden
        model = MLPClassifier(
            (h, h), solver="adam", alpha=0.0, batch_size=self.work.batch, max_iter=self.epochs, tol=0.0,
            n_iter_no_change=self.epochs + 1,
        )  # fmt: skip
        search = RandomizedSearchCV(
            model, {"learning_rate_init": loguniform(*LEARNING_RATES)}, n_iter=MODELS, cv=self.split, refit=False,
            n_jobs=self.jobs, random_state=0, error_score="raise",
        )  # fmt: skip
        started = time.perf_counter()
        search.fit(self.x, self.y)
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "model_steps": MODELS * self.epochs * self.batches,
            "best_accuracy": float(search.cv_results_["mean_test_score"].max()),
        }


if __name__ == "__main__":
    _worker.serve(Search, ("scikit-learn", "joblib"))
