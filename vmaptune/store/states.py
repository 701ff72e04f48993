"""The states of a trial. Each is a plain string too, as it stands in the ledger and in every table."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

UNDEFINED = "the objective is not finite at step"  # begins the reason of a trial whose training was going well
NOTHING_TRAINED = (
    "no setting trained to a finite result: lower the upper end of the learning rate, look for log(0) or a division by "
    "zero in the loss, or train for fewer steps"
)


class State(StrEnum):
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    STOPPED = "STOPPED"  # by early stopping
    INFEASIBLE = "INFEASIBLE"  # with its reason: diverged at step n, not finite, ...
    FAIL = "FAIL"

    @property
    def ended(self) -> bool:
        return self is not State.RUNNING


def nothing_trained(reasons: Iterable[str | None]) -> str:
    """What to do about a study of which no trial came to a finite result, by the reasons of its trials."""
    why = [reason for reason in reasons if reason]
    where = Counter(reason.removeprefix(UNDEFINED).strip() for reason in why if reason.startswith(UNDEFINED))
    if not where or sum(where.values()) < len(why) / 2:
        return NOTHING_TRAINED
    ((step, _),) = where.most_common(1)
    return (
        f"no setting trained to a finite result: at step {step}, its first evaluation that counts, the objective was "
        f"not finite, though training had not diverged; return a finite number there, or, if it is defined only from a "
        f"later step M on, evaluate it no sooner: --halving min_steps=M with early stopping, --plan every=M without"
    )
