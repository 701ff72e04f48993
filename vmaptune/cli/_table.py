"""table, predict: from a CSV or Parquet file to a tuned ensemble of networks, and its predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vmaptune.cli._common import OK
from vmaptune.errors import InputError

MOST_CLASSES = 20  # distinct whole numbers in a target, beyond which it is taken for a quantity
TEST_FRACTION = 0.2


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's commands to the parser."""
    command = commands.add_parser("table", help="tune networks on a CSV or Parquet file")
    command.add_argument("data", metavar="FILE", help="the table, .csv or .parquet, with names in its first row")
    command.add_argument("--target", required=True, metavar="COLUMN", help="the column to predict")
    command.add_argument("--minutes", type=float, metavar="M", help="how long to search (default 2)")
    command.add_argument("--trials", type=int, metavar="N", help="instead of --minutes: trainings in all")
    command.add_argument(
        "--task", choices=("classification", "regression"), help="what the target is (default: by what it holds)"
    )
    command.add_argument("--group", metavar="COLUMN", help="rows that agree in it are never split; no input")
    command.add_argument("--time", metavar="COLUMN", help="the latest rows validate and test; no input")
    command.add_argument("--ensemble", type=int, default=16, metavar="M", help="most members (default 16)")
    command.add_argument("--seed", type=int, default=0, help="from it come all random numbers (default 0)")
    command.add_argument("--out", metavar="DIR", help="the directory to make (default runs/FILE)")
    command.set_defaults(function=_table)
    command = commands.add_parser("predict", help="predict the rows of a file by what `table` made")
    command.add_argument("study", metavar="DIR", help="the directory that `table` made")
    command.add_argument("data", metavar="FILE", help="the rows, .csv or .parquet")
    command.add_argument("--out", metavar="FILE", help="the CSV file to write (default FILE-predicted.csv)")
    command.set_defaults(function=_predict)


def _read(path: str) -> Any:
    try:
        import pandas  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise InputError(
            'reading tables needs pandas, which is not installed: pip install "vmaptune[sklearn]" pandas'
        ) from None
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give a .csv or .parquet")
    try:
        return pandas.read_parquet(path) if path.endswith(".parquet") else pandas.read_csv(path)
    except (ValueError, ImportError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from error


def _table(args: argparse.Namespace) -> int:
    import numpy as np

    from vmaptune.sklearn import TunedMLPClassifier, TunedMLPRegressor, save_table
    from vmaptune.tables import STUDY, validation_rows

    table = _read(args.data)
    used = [name for name in (args.target, args.group, args.time) if name is not None]
    for name in used:
        if name not in table.columns:
            raise InputError(f"{args.data} has no column {name!r}; it has: {', '.join(map(str, table.columns))}")
    directory = Path(args.out) if args.out else Path("runs") / Path(args.data).stem
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is there already; give another --out DIR, or remove it")
    known = table[table[args.target].notna()].reset_index(drop=True)
    target = known[args.target]
    task = args.task or _task_of(target)
    X = known.drop(columns=used)
    y = target.to_numpy(dtype=float) if task == "regression" else target.astype(str).to_numpy()
    codes = None if task == "regression" else np.unique(y, return_inverse=True)[1]
    group, time = (
        None if n is None else np.unique(known[n].to_numpy(), return_inverse=True)[1] for n in (args.group, args.time)
    )
    test = validation_rows(np.random.default_rng(args.seed), TEST_FRACTION, codes, group, time, n=len(y))
    how = f"the latest by {args.time}" if args.time else f"whole groups of {args.group}" if args.group else (
        "stratified" if codes is not None else "drawn"
    )  # fmt: skip
    metric = "R²" if task == "regression" else "accuracy"
    print(f"{task} of {args.target!r}: {len(y):,} rows, {X.shape[1]} columns")
    print(f"held out for a test: {int(test.sum()):,} rows ({how}); measured by {metric}")
    options: dict[str, Any] = {
        "minutes": args.minutes or 2.0, "trials": args.trials, "ensemble": args.ensemble, "random_state": args.seed,
        "directory": directory / STUDY,
    }  # fmt: skip
    estimator = (TunedMLPRegressor if task == "regression" else TunedMLPClassifier)(**options)
    part = {name: None if c is None else c[~test] for name, c in (("groups", group), ("time", time))}
    estimator.fit(X[~test], y[~test], **part)
    score = float(estimator.score(X[test], y[test]))
    save_table(estimator, directory, {"target": args.target, "task": task, "metric": metric, "score": score})
    trainings = len(estimator.study_.trials())
    print(
        f"{metric} on the held-out rows: {score:.4g}, by {len(estimator.networks_)} networks of {trainings} trainings"
    )
    print(f"in {directory}; predict: python -m vmaptune predict {directory} NEW.csv")
    return OK


def _task_of(target: Any) -> str:
    kind = getattr(target.dtype, "kind", "O")
    whole = kind in "iu" or (kind == "f" and bool((target % 1 == 0).all()))
    return "regression" if kind in "iuf" and not (whole and target.nunique() <= MOST_CLASSES) else "classification"


def _predict(args: argparse.Namespace) -> int:
    from vmaptune.sklearn import load_table

    estimator, info = load_table(args.study)
    table = _read(args.data)
    missing = [name for name in estimator.feature_names_in_ if name not in table.columns]
    if missing:
        raise InputError(f"{args.data} lacks columns that the model was fitted with: {', '.join(missing)}; add them")
    inputs = table[list(estimator.feature_names_in_)]
    found = table.copy()
    found[f"predicted_{info['target']}"] = estimator.predict(inputs)
    if info["task"] == "classification":
        for label, column in zip(estimator.classes_, estimator.predict_proba(inputs).T, strict=True):
            found[f"probability_{label}"] = column
    path = Path(args.out) if args.out else Path(args.data).with_name(f"{Path(args.data).stem}-predicted.csv")
    found.to_csv(path, index=False)
    print(path)
    return OK
