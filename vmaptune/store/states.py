"""The states of a trial. Each is a plain string too, as it stands in the ledger and in every table."""

from enum import StrEnum


class State(StrEnum):
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    STOPPED = "STOPPED"  # by early stopping
    INFEASIBLE = "INFEASIBLE"  # with its reason: diverged at step n, not finite, ...
    FAIL = "FAIL"

    @property
    def ended(self) -> bool:
        return self is not State.RUNNING
