"""How busy the lanes were while a round trained: what the report draws. Nothing is decided from it."""

from __future__ import annotations

MOST = 200  # points of one round


class Occupancy:
    """Sums of lane-steps over time, thinned as they grow."""

    def __init__(self) -> None:
        self._sums: list[tuple[float, int, int]] = [(0.0, 0, 0)]
        self._every, self._since = 1, 0

    def note(self, seconds: float, live_steps: int, lane_steps: int) -> None:
        """After a call: seconds since the round began, steps of lanes that held a trial, and of all lanes, so far."""
        self._since += 1
        if self._since < self._every or lane_steps <= self._sums[-1][2]:
            return
        self._since = 0
        self._sums.append((seconds, live_steps, lane_steps))
        if len(self._sums) > 2 * MOST:
            self._sums = self._sums[::2]
            self._every *= 2

    def points(self) -> list[list[float]]:
        """`[seconds, share]` for each stretch of time, from its beginning: the share of lane-steps with a trial."""
        found = []
        for (begun, live, all_), (_, live_then, all_then) in zip(self._sums, self._sums[1:], strict=False):
            found.append([round(begun, 3), round((live_then - live) / max(1, all_then - all_), 4)])
        if found:
            found.append([round(self._sums[-1][0], 3), found[-1][1]])
        return found
