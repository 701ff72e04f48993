"""The protocol between `throughput.py` and a peer: one process a method, one line of JSON a command.

A peer is a class with `prepare()` (compile and warm up), `time()` (one timed repeat; returns seconds and
model-steps) and, where it can, `evaluate()` (seconds and models). It lives in a process of its own, so that
neither its imports nor its thread pools touch another one's, and repeats of all peers can be interleaved.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from works import WORKS

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints goes to standard error


def reply(**values: Any) -> None:
    replies.write(json.dumps(values) + "\n")
    replies.flush()


def tell_missing(kind: Any, error: Any, trace: Any) -> None:
    """A peer that cannot be imported is not installed, whole."""
    if issubclass(kind, ImportError):
        reply(missing=str(error).splitlines()[0])
    sys.__excepthook__(kind, error, trace)


sys.excepthook = tell_missing  # while the peer's own imports run


def serve(make: Any, packages: tuple[str, ...]) -> None:
    """Answers commands from standard input until `quit`; `make(work, method, options)` builds the peer."""
    peer = None
    work, method, options = WORKS[sys.argv[1]], sys.argv[2], json.loads(sys.argv[3])
    if options.get("lanes"):
        work = dataclasses.replace(work, lanes=options["lanes"])
    try:
        peer = make(work, method, options)
        reply(versions={name: importlib.metadata.version(name) for name in packages})
        for line in sys.stdin:
            command = json.loads(line)["do"]
            if command == "quit":
                return
            started = time.perf_counter()
            values = getattr(peer, command)()
            reply(wall=time.perf_counter() - started, **(values or {}))
    except ImportError:
        raise
    except Exception as error:
        traceback.print_exc()
        reply(error=f"{type(error).__name__}: {error}"[:500])
    finally:
        if hasattr(peer, "close"):
            peer.close()
