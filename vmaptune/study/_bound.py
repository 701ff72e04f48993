"""The machine's bound, as the live view shows it: what its arithmetic and memory alone would allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vmaptune.engine.bound import MachineRates, known_rates, measured_rates
from vmaptune.engine.plan import SPEED
from vmaptune.study._groups import Group

LEAST_SECONDS = 20.0  # of training, by operations: below, the third of a second that measuring takes shows


class Bound:
    """Gives model-steps a second for trials of several groups. The machine is measured at most once."""

    def __init__(self, wanted: bool = True):
        self.wanted = wanted  # whether anybody looks
        self._rates: MachineRates | None = None
        self._asked = False
        self._seconds: dict[int, float] = {}  # of a step, by group

    def of(self, groups: Sequence[Group], total_steps: int) -> float | None:
        """The bound for trials of these groups side by side, one each; None where it is not known and the study of
        `total_steps` is too short to measure it."""
        rates = self._machine(groups, total_steps) if groups else None
        if rates is None:
            return None
        counts = Counter(group.number for group in groups)
        by_number: Mapping[int, Group] = {group.number: group for group in groups}
        for number, group in by_number.items():
            if number not in self._seconds:
                self._seconds[number] = rates.step_seconds(group.functions)
        spent = sum(count * self._seconds[number] for number, count in counts.items())
        return len(groups) / spent if spent > 0 else None

    def _machine(self, groups: Sequence[Group], total_steps: int) -> MachineRates | None:
        if self._rates is not None or not self.wanted:
            return self._rates
        if not self._asked:
            self._rates, self._asked = known_rates(), True
        if self._rates is None:
            group = groups[0]
            seconds = total_steps * group.functions.costs().step_flops / SPEED / group.plan.devices
            if seconds >= LEAST_SECONDS:
                self._rates = measured_rates()
        return self._rates
