"""The processor that this process runs on, as far as programs are compiled for it."""

from __future__ import annotations

import os
import platform
from functools import lru_cache


def cpu_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def cpuinfo() -> dict[str, str]:
    """What Linux says of the first core, by name; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            pairs = (line.split(":", 1) for line in lines if ":" in line)
            found: dict[str, str] = {}
            for name, value in pairs:
                found.setdefault(name.strip(), value.strip())
    except OSError:
        return {}
    return found


def processor_name() -> str:
    """The processor's name as its maker has it, or what Python knows of it."""
    return cpuinfo().get("model name") or platform.processor() or platform.machine()


def has_512_bits() -> bool:
    """Whether it has vectors of 512 bits and the 32 registers that come with them."""
    return "avx512vl" in cpuinfo().get("flags", "").split()


def does_512_bits_whole() -> bool:
    """AMD's Zen 5 and later, which do such a vector at once; others do halves, or slow down for them."""
    amd = cpuinfo().get("vendor_id") == "AuthenticAMD"
    return amd and int(cpuinfo().get("cpu family", "0")) >= 26 and has_512_bits()
