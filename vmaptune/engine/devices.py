"""The devices that lanes are spread over."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vmaptune.engine.accelerators import unused_accelerator
from vmaptune.engine.compiling import ask_for_compiled_products, products_are_compiled, vector_bits
from vmaptune.engine.processor import cpu_cores, processor_name

CACHE_SIZE = 2**30  # bytes of compiled programs that are kept


def cache_folder() -> Path:
    """Where compiled programs and measured plans are kept from run to run: the user's own cache folder.

    `VMAPTUNE_CACHE` names another one.
    """
    named = os.environ.get("VMAPTUNE_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "vmaptune"


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent cache of compiled programs, unless the person has set one up or turned it off."""
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    try:
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # a home that cannot be written: every run compiles anew
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    _forget_oldest(folder, CACHE_SIZE)


def _forget_oldest(folder: Path, size: int) -> None:
    """Deletes the files that were used longest ago until the rest takes at most `size` bytes."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another run may delete it at this moment
            found = path.stat()
            files.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, taken, path in sorted(files):
        if total <= size:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= taken


def prepare_devices() -> str | None:
    """Makes every CPU core a host device of its own; to be called before JAX starts its backend.

    Turns on the persistent cache of compiled programs as well.

    Returns:
      None, or a note to show the person: an accelerator is there that JAX doesn't use, or JAX had started already and
      lanes therefore share one device.
    """
    keep_compiled_programs()
    ask_for_compiled_products()
    shared = _a_device_per_core()
    return unused_accelerator() or shared


def _a_device_per_core() -> str | None:
    """Asks for it; None, or a note that JAX had started already."""
    cores = cpu_cores()
    if cores == 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return None
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        if jax.default_backend() == "cpu" and jax.local_device_count() < cores:
            return (
                f"JAX had started before vmaptune could give each of the {cores} cores a device of its own, so "
                f"lanes run on {jax.local_device_count()}: small models train up to {cores} times slower. "
                f"Way out: call vt.prepare_devices() before anything computes with JAX"
            )
    return None


def lane_mesh(devices: int) -> Mesh:
    """A mesh with one axis, `lanes`, over the first `devices` local devices."""
    return Mesh(np.array(jax.local_devices()[:devices]), ("lanes",))


def memory_bytes() -> int:
    """The memory that lanes may take: of the accelerators, or what this machine and its container have free."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if jax.default_backend() != "cpu":
        return sum(int((s or {}).get("bytes_limit", 8 * 2**30)) for s in stats)
    free = [_number_in("/proc/meminfo", "MemAvailable:", 1024)]
    limit, used = (_number_in(f"/sys/fs/cgroup/memory.{part}", "", 1) for part in ("max", "current"))
    if limit is not None and used is not None:
        free.append(max(0, limit - used))
    known = [number for number in free if number is not None]
    return min(known) if known else 4 * 2**30


def _number_in(file: str, before: str, unit: int) -> int | None:
    """The whole number that follows `before` in a system file, times `unit`; None where there is none."""
    try:
        with open(file, encoding="ascii") as lines:
            found = next(line.removeprefix(before).split()[0] for line in lines if line.startswith(before))
        return int(found) * unit
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def machine() -> dict[str, str | int]:
    """What a result's bits depend on besides the program: device, core count and versions."""
    import flax
    import jaxlib
    import optax

    device = jax.local_devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "processor": processor_name(),
        "cores": cpu_cores(),
        "numbers": "64 bits" if jax.config.jax_enable_x64 else "32 bits",  # type: ignore[attr-defined]
        "products": "compiled" if products_are_compiled() else "library",
        "vectors": f"{vector_bits()} bits" if vector_bits() else "as XLA takes them",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }
