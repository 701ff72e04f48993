"""How a command's process begins and ends (cli/_process.py): each in a process of its own."""

import os
import subprocess
import sys
import time

import pytest


def end(code: int, before: str = "", stdout=subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    script = f"import sys\nfrom vmaptune.cli import _process\n_process.begin()\n{before}\n_process.end({code})"
    return subprocess.run(
        [sys.executable, "-c", script], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_a_process_ends_with_its_code_and_all_that_it_printed(code):
    done = end(code, "print('out'); print('err', file=sys.stderr)")
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")


def test_what_was_registered_for_the_end_is_called_except_after_an_interruption():
    register = "import atexit; atexit.register(print, 'at the end')"
    assert end(0, register).stdout == "at the end\n"
    assert end(130, register).stdout == ""


def test_threads_of_the_experiment_are_waited_for_except_after_an_interruption():
    thread = "import threading, time; threading.Thread(target=lambda: (time.sleep(0.3), print('done'))).start()"
    assert end(0, thread).stdout == "done\n"
    assert end(130, thread).stdout == ""


def test_a_daemon_thread_is_not_waited_for():
    started = time.monotonic()
    end(0, "import threading, time; threading.Thread(target=time.sleep, args=(50,), daemon=True).start()")
    assert time.monotonic() - started < 40


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk is a file here")
def test_a_full_disk_is_told():
    with open("/dev/full", "w") as full:
        done = end(0, "print('lost')", stdout=full)
    assert done.returncode != 0
    assert "No space left" in done.stderr


def test_a_reader_that_has_gone_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    done = end(0, "print('nobody reads')", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_blas_threads_sleep_unless_the_person_says_otherwise():
    show = "import os; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    assert end(0, show).stdout == "4\n"
    assert end(0, show, OPENBLAS_THREAD_TIMEOUT="20").stdout == "20\n"
