"""An accelerator that is there while JAX computes on the CPU, as happens where jax was upgraded without its plugin.

JAX says so in one line of its log, and everything still runs, some hundred times slower.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

ROOT = Path("/")
PLUGINS = {"gpu": r"jax-cuda\d+-plugin", "tpu": "libtpu"}  # what jax needs beside jaxlib
OF_A_TPU = ("TPU_NAME", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "COLAB_TPU_ADDR")


def unused_accelerator() -> str | None:
    """A note for the person where an accelerator is there and JAX computes on the CPU unasked; else None.

    It starts JAX's backend where an accelerator is found.
    """
    if _asked_for_the_cpu():
        return None
    found = _accelerator()
    if found is None or jax.default_backend() != "cpu":
        return None
    kind, seen = found
    return (
        f"this machine has a {kind.upper()} ({seen}), but JAX computes on the CPU: {_why(kind)}. "
        f"Way out: {_way_out(kind)}, then start Python anew; or set JAX_PLATFORMS=cpu if the CPU is meant"
    )


def _asked_for_the_cpu() -> bool:
    config: Any = jax.config
    return (config.jax_platforms or "").split(",")[0].strip().lower() == "cpu"


def _accelerator() -> tuple[str, str] | None:
    """("gpu" or "tpu", what it was found by), or None. JAX has no accelerator of these kinds but on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    tpu = next((name for name in OF_A_TPU if os.environ.get(name)), None)
    for pattern in ("dev/accel[0-9]*", *(("dev/vfio/[0-9]*",) if tpu else ())):
        for path in sorted(ROOT.glob(pattern)):
            return "tpu", str(path)
    if tpu:
        return "tpu", f"the environment's {tpu}"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None  # hidden by the person
    for pattern in ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*"):
        for path in sorted(ROOT.glob(pattern)):
            return "gpu", str(path)
    if os.environ.get("COLAB_GPU", "0") not in ("", "0"):
        return "gpu", "the environment's COLAB_GPU"
    return ("gpu", "nvidia-smi lists one") if _nvidia_smi_lists_one() else None


def _nvidia_smi_lists_one() -> bool:
    """Asked last: it is on some machines that have no such GPU, and it takes a while."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and "GPU " in done.stdout


def _plugin(kind: str) -> tuple[str, str] | None:
    """The name and version of the installed package that brings JAX's `kind`."""
    for found in metadata.distributions():
        name = (found.metadata["Name"] or "").lower().replace("_", "-")
        if re.fullmatch(PLUGINS[kind], name):
            return name, found.version
    return None


def _why(kind: str) -> str:
    plugin = _plugin(kind)
    if plugin is None:
        return f"jax {jax.__version__} is installed without what it needs for it"
    name, version = plugin
    if kind == "gpu" and version != jax.__version__:
        return f"{name} {version} does not go with jax {jax.__version__}"
    return f"{name} {version} is installed, but did not start (JAX's own warning says why)"


def _way_out(kind: str) -> str:
    extra = "tpu" if kind == "tpu" else "cuda12"
    if kind == "gpu":
        offered = [e for e in metadata.metadata("jax").get_all("Provides-Extra") or [] if re.fullmatch(r"cuda\d+", e)]
        plugin = _plugin(kind)
        own = [e for e in offered if plugin and plugin[0] == f"jax-{e}-plugin"]
        extra = min(own or offered, default=extra)
    return f'pip install -U "jax[{extra}]"'
