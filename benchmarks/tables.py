"""The tuned estimators beside what people type today, on tables that come with packages.

    python benchmarks/tables.py [--quick] [--json FILE]

Each method gets the wall-clock that vmaptune took, on the same splits: scikit-learn's MLP under a random search, and
gradient boosting and random forests under one too. Scores are accuracy or R² on held-out rows, mean and spread over the
seeds; `seconds` is the time of each.
`--quick`: one seed, two tables, a tenth of the time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import loguniform, randint
from sklearn import datasets, ensemble, neural_network
from sklearn.model_selection import ParameterSampler, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vmaptune.sklearn import TunedMLPClassifier, TunedMLPRegressor

SEEDS, MINUTES = 5, 2.0
TABLES: dict[str, Callable[..., Any]] = {
    "breast cancer": datasets.load_breast_cancer, "diabetes": datasets.load_diabetes, "wine": datasets.load_wine,
    "digits": datasets.load_digits,
}  # fmt: skip
MLP = {
    "hidden_layer_sizes": [(w,) * d for w in (32, 64, 128) for d in (1, 2, 3)], "alpha": loguniform(1e-6, 1e-1),
    "learning_rate_init": loguniform(1e-4, 3e-2), "activation": ["relu", "tanh"], "early_stopping": [True],
    "max_iter": [300],
}  # fmt: skip
BOOSTING = {
    "learning_rate": loguniform(0.01, 0.5), "max_leaf_nodes": [7, 15, 31, 63], "min_samples_leaf": [5, 20, 50],
    "l2_regularization": loguniform(1e-6, 10),
}  # fmt: skip
FOREST = {"n_estimators": [100, 300], "max_features": ["sqrt", 0.5, 1.0], "min_samples_leaf": randint(1, 10)}


def searched(make: Callable[..., Any], space: dict[str, Any], data: Any, seconds: float, seed: int) -> float:
    """The test score of the best configuration that a random search finds in so long; at least one is tried."""
    X, y, X_test, y_test = data
    X_fit, X_valid, y_fit, y_valid = train_test_split(X, y, test_size=0.2, random_state=seed)
    end, best, tried = time.perf_counter() + seconds, -np.inf, None
    for params in ParameterSampler(space, 10**6, random_state=seed):
        model = make(params, seed).fit(X_fit, y_fit)
        score = model.score(X_valid, y_valid)
        if score > best:
            best, tried = score, params
        if time.perf_counter() > end:
            break
    return make(tried, seed).fit(X, y).score(X_test, y_test)


def scores(regression: bool, data: Any, minutes: float, seed: int) -> dict[str, float]:
    """method -> test score, and the `seconds` that vmaptune took and each of the others was given."""
    kind = "Regressor" if regression else "Classifier"
    mlp, boosting, forest = (
        getattr(module, name + kind)
        for module, name in ((neural_network, "MLP"), (ensemble, "HistGradientBoosting"), (ensemble, "RandomForest"))
    )
    tuned = TunedMLPRegressor if regression else TunedMLPClassifier
    X, y, X_test, y_test = data
    started = time.perf_counter()
    own = tuned(minutes=minutes, random_state=seed).fit(X, y)
    seconds = time.perf_counter() - started
    found = {"vmaptune": own.score(X_test, y_test), "seconds": seconds}
    rivals = {
        "random search, MLP": (lambda p, s: make_pipeline(StandardScaler(), mlp(random_state=s, **p)), MLP),
        "gradient boosting": (lambda p, s: boosting(random_state=s, **p), BOOSTING),
        "random forest": (lambda p, s: forest(random_state=s, n_jobs=2, **p), FOREST),
    }
    for name, (make, space) in rivals.items():
        found[name] = searched(make, space, data, seconds, seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two tables, a tenth of the time")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args()
    seeds, minutes = (1, MINUTES / 10) if args.quick else (SEEDS, MINUTES)
    results: dict[str, dict[str, list[float]]] = {}
    for table in list(TABLES)[: 2 if args.quick else None]:
        X, y = TABLES[table](return_X_y=True)
        for seed in range(seeds):
            regression = table == "diabetes"
            X_fit, X_test, y_fit, y_test = train_test_split(
                X, y, test_size=0.25, random_state=seed, stratify=None if regression else y
            )
            for method, score in scores(regression, (X_fit, y_fit, X_test, y_test), minutes, seed).items():
                results.setdefault(table, {}).setdefault(method, []).append(float(score))
        found = ", ".join(f"{m} {np.mean(s):.4f} ± {np.std(s):.4f}" for m, s in results[table].items())
        print(f"{table}: {found}", flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps({"minutes": minutes, "seeds": seeds, "scores": results}, indent=1))


if __name__ == "__main__":
    main()
