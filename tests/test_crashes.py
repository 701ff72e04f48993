"""A program that ended a process while it was compiled is compiled plainly by the next one; a kill is no crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vmaptune.engine import crashes
from vmaptune.engine.crashes import Journal, crashed

COMPILE = """
import os, signal, sys
import vmaptune as vt
vt.prepare_devices()
from vmaptune.engine.crashes import JOURNAL
with JOURNAL.compiling("before"):
    pass
with JOURNAL.compiling("one"), JOURNAL.compiling("two"):
    {ends}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAPTUNE_CACHE", str(tmp_path))
    return tmp_path


def ended(how: str) -> int:
    """A process that ends while it compiles two programs; its exit code."""
    done = subprocess.run([sys.executable, "-c", COMPILE.format(ends=how)], capture_output=True, timeout=120)
    return done.returncode


@pytest.mark.parametrize("how", ["os.abort()", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_crash_is_remembered_of_every_program_under_way(how):
    assert ended(how) < 0
    assert [crashed(name) for name in ("one", "two", "before", "other")] == [True, True, False, False]
    assert crashed("one")  # the word of the dead is read once, and kept


def test_a_kill_is_no_crash(cache):
    assert ended("os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    assert not crashed("one")
    assert not list((cache / "compiling").glob("*.log"))


def test_an_error_or_an_end_leaves_nothing(cache):
    journal = Journal()
    with pytest.raises(ValueError), journal.compiling("one"):  # noqa: PT011 - the block's own
        raise ValueError
    assert not journal.busy
    assert list((cache / "compiling").iterdir()) == []
    assert not crashed("one")


def test_memory_that_runs_out_is_said_and_remembered(cache, monkeypatch, capsys):
    sizes = iter([2**30, 2**30, 60 * 2**30])
    monkeypatch.setattr(crashes, "_resident", lambda: next(sizes))
    monkeypatch.setattr(crashes, "memory_bytes", lambda: 24 * 2**30)
    monkeypatch.setattr(crashes, "WATCH", 0.0)
    monkeypatch.setattr(crashes.threading, "Thread", lambda **_: type("Now", (), {"start": lambda self: None})())
    journal = Journal()
    with journal.compiling("large"):
        crashes._watch(journal)
        (log,) = (cache / "compiling").glob("*.log")
        left = log.read_text()
    assert "59.0 GiB" in capsys.readouterr().err
    log.with_name("999999999.log").write_text(left)  # as a process that the kernel has ended leaves it
    assert crashed("large")
    assert not crashed("small")


def test_what_a_living_process_compiles_is_its_own(cache):
    with crashes.JOURNAL.compiling("one"):
        crashes.JOURNAL.note(crashes.MEMORY)
        (log,) = (cache / "compiling").glob("*.log")
        log.with_name(f"{os.getppid()}.log").write_text(log.read_text())
        assert not crashed("one")


def test_a_cache_that_cannot_be_written_holds_nothing_up(cache):
    (cache / "compiling").write_text("a file, where a folder belongs")
    with Journal().compiling("one"):
        pass
    assert not crashed("one")
