"""vmaptune: hyperparameter search that trains hundreds of small JAX models at once.

Names are loaded when they are first used, so that `python -m vmaptune --help` does not start JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "uniform": "space", "loguniform": "space", "reverseloguniform": "space", "randint": "space",
    "lograndint": "space", "choice": "space", "ordinal": "space", "Space": "space",
    "Data": "experiment", "Experiment": "experiment",
    "Task": "task",
    "run": "study", "check": "study", "load": "study", "replay": "study", "panda": "study", "Study": "study",
    "resume": "study", "retest": "study", "batches": "study",
    "prepare_devices": "engine.devices",
    "live": "view.live",
    "Sampler": "search.sampler",
    "InputError": "errors", "StudyError": "errors", "VmaptuneError": "errors",
}  # fmt: skip
_MODULES = ("schedules", "nn")

__all__ = [
    "Data",
    "Experiment",
    "InputError",
    "Sampler",
    "Space",
    "Study",
    "StudyError",
    "Task",
    "VmaptuneError",
    "batches",
    "check",
    "choice",
    "live",
    "load",
    "lograndint",
    "loguniform",
    "nn",
    "ordinal",
    "panda",
    "prepare_devices",
    "randint",
    "replay",
    "resume",
    "retest",
    "reverseloguniform",
    "run",
    "schedules",
    "uniform",
]  # fmt: skip

if TYPE_CHECKING:
    from vmaptune import nn, schedules
    from vmaptune.engine.devices import prepare_devices
    from vmaptune.errors import InputError, StudyError, VmaptuneError
    from vmaptune.experiment import Data, Experiment
    from vmaptune.search.sampler import Sampler
    from vmaptune.space import (
        Space,
        choice,
        lograndint,
        loguniform,
        ordinal,
        randint,
        reverseloguniform,
        uniform,
    )
    from vmaptune.study import Study, batches, check, load, panda, replay, resume, retest, run
    from vmaptune.task import Task
    from vmaptune.view.live import live


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"vmaptune.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'vmaptune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vmaptune.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
