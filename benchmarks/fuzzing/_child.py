"""A process that trains cases both ways, one after another, under a limit of memory and of time each.

It reads one request a line, `{"seed": ...}` or `{"spec": ...}`, and answers in lines of JSON: `{"spec"}` first,
`{"stage"}` as it goes, `{"verdict"}` at last. A case that ends the process leaves its last stage as a witness.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from typing import Any


def main(mode: str, memory: float, seconds: float, speed: bool) -> None:
    most = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    if mode == "library":
        jax.devices()  # JAX has started on its own: one device, and products by the library
    import vmaptune as vt

    vt.prepare_devices()
    from fuzzing._case import Case, spec_of
    from fuzzing._judge import judged
    from fuzzing._pace import paced

    for line in sys.stdin:
        request = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = used.ru_utime + used.ru_stime
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent + seconds) + 1, resource.RLIM_INFINITY))
        answer(stage="draw")
        spec = request.get("spec") or spec_of(request["seed"])
        answer(spec=spec)
        judge = paced if speed else judged
        try:
            found = judge(Case(spec), lambda stage: answer(stage=stage))
        except MemoryError:
            found = {"verdict": "refused", "error": "MemoryError"}
        answer(**found)
        jax.clear_caches()


def _end_with(parent: int) -> None:
    """Ends this process once its parent is gone: a compiler would not be interrupted."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def versions() -> dict[str, str]:
    """What a result hangs on."""
    import importlib.metadata
    import platform

    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
