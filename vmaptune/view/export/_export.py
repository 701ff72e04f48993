"""`export`: which format is written by whom, and where it goes."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmaptune.errors import InputError, StudyError
from vmaptune.store.files import inside
from vmaptune.store.ledger import LedgerReader
from vmaptune.view.export._source import Source


@dataclass(frozen=True)
class Format:
    """One way out."""

    about: str
    module: str  # of this package; its `write(source, path)` makes the path
    name: str  # of the file or directory
    library: str | None = None  # the module that must be importable
    install: str = ""  # what pip calls it


FORMATS = {
    "csv": Format("every trial with its setting and metrics, one row each", "_tables", "trials.csv"),
    "json": Format("the whole study, curves and decisions included", "_tables", "study.json"),
    "parquet": Format("every trial with its curve, one row each", "_parquet", "trials.parquet", "pyarrow", "pyarrow"),
    "optuna": Format("a storage for optuna.visualization and optuna-dashboard", "_optuna", "optuna.db", "optuna",
                     "optuna"),
    "tensorboard": Format("HParams and scalars, one run a trial", "_tensorboard", "tensorboard", "tensorboard",
                          "tensorboard"),
    "mlflow": Format("a tracking store, one run a trial", "_mlflow", "mlflow.db", "mlflow", "mlflow"),
    "wandb-csv": Format("runs.csv and history.csv as Weights & Biases names their columns", "_wandb", "wandb"),
    "weights": Format("the winner's trained weights, as safetensors", "_weights", "weights.safetensors"),
}  # fmt: skip


def export(
    directory: str | Path,
    to: str,
    out: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a study in another tool's format; returns the file or directory that was made.

    Args:
      directory: the study's directory. It may still be running: what it has by now goes out.
      to: csv, json, parquet, optuna, tensorboard, mlflow, wandb-csv or weights.
      out: where to; `<directory>/export/<name>` by default, which is replaced. A path that is given must not
        exist.
      progress: is called with the trials that are done and with all of them, where each takes its time.

    Raises:
      InputError: an unknown format, a library that is not installed, a path that exists or cannot be written.
      StudyError: the study cannot be read.
    """
    if to not in FORMATS:
        raise InputError(f"--to must be one of {', '.join(FORMATS)}, but got {to!r}")
    form = FORMATS[to]
    write = _writer(to, form)
    if out is not None and not str(out).strip():
        raise InputError("--out must name a path, but got an empty name; leave it out for DIR/export")
    path = Path(out) if out is not None else inside(directory, "export") / form.name
    with LedgerReader.open(directory) as reader:
        source = Source.read(reader, progress)
    if out is not None and (path.exists() or path.is_symlink()):
        raise InputError(f"--out {path} exists already and is left as it is; name a path that does not exist")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(beside)
        write(source, beside)
        if out is None:
            _remove(path)
        os.replace(beside, path)
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written: {error.strerror or error}; name another place with --out"
        ) from error
    finally:
        _remove(beside)
    return path


def _writer(to: str, form: Format) -> Callable[[Source, Path], None]:
    if form.library is not None:
        try:
            importlib.import_module(form.library)
        except ImportError as error:
            raise InputError(
                f"--to {to} needs {form.install}, which is not installed ({error}): pip install {form.install}"
            ) from None
    module = importlib.import_module(f"vmaptune.view.export.{form.module}")
    return getattr(module, f"write_{to.replace('-', '_')}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
