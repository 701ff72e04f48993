"""How much of the machine other processes took while something was timed. Linux alone; elsewhere always 0."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Moment:
    """Seconds of processor time up to now."""

    wall: float
    all: float  # of all processes and, on a virtual machine, what the host took away
    ours: float  # of one process and those that descend from it


def moment(process: int) -> Moment:
    """The present, as seen from a process and its descendants."""
    try:
        user, nice, system, _, _, irq, softirq, steal = (int(n) for n in Path("/proc/stat").read_text().split()[1:9])
        parents, times = {}, {}
        for folder in os.listdir("/proc"):
            if folder.isdigit():
                try:
                    fields = Path(f"/proc/{folder}/stat").read_text().rpartition(")")[2].split()
                except OSError:  # it has just ended
                    continue
                parents[int(folder)], times[int(folder)] = int(fields[1]), sum(int(n) for n in fields[11:15])
    except (OSError, ValueError):
        return Moment(time.perf_counter(), 0.0, 0.0)
    ours = sum(spent for pid, spent in times.items() if process in lineage(pid, parents))
    return Moment(time.perf_counter(), (user + nice + system + irq + softirq + steal) / TICK, ours / TICK)


def lineage(pid: int, parents: dict[int, int]) -> list[int]:
    """A process and its ancestors."""
    found = [pid]
    while (pid := parents.get(pid, 0)) not in (0, *found):
        found.append(pid)
    return found


def foreign_share(before: Moment, after: Moment) -> float:
    """The share of all cores that others took between two moments, from 0 to 1."""
    available = (after.wall - before.wall) * (os.cpu_count() or 1)
    return max(0.0, (after.all - before.all) - (after.ours - before.ours)) / available if available > 0 else 0.0
