"""The round loop, and the study that it leaves on disk."""

from vmaptune.study._again import resume, retest
from vmaptune.study._api import Check, Replay, changed_space, check, replay, run
from vmaptune.study._batches import batches
from vmaptune.study._options import Options
from vmaptune.study._panda import Panda, panda
from vmaptune.study._progress import Listener, Progress, Silent
from vmaptune.study._study import Study, load

__all__ = [
    "Check", "Listener", "Options", "Panda", "Progress", "Replay", "Silent", "Study", "batches", "changed_space",
    "check", "load", "panda", "replay", "resume", "retest", "run",
]  # fmt: skip
