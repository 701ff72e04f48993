"""Every test runs with a host device per core, as the command line does. What the tests of several files begin with."""

from pathlib import Path

import jax
import pytest

import vmaptune as vt

vt.prepare_devices()

from interrupted import OPTIONS, TASK  # noqa: E402 - it may start JAX


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """What a file's tests compiled is let go of after them: a process that keeps it all takes five gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def file(request, tmp_path_factory) -> Path:
    """The experiment that is interrupted, or a module's own `TASK`, as a file."""
    path = tmp_path_factory.mktemp("code") / "task.py"
    path.write_text(getattr(request.module, "TASK", TASK))
    return path


@pytest.fixture(scope="module")
def reference(file, tmp_path_factory) -> Path:
    """The study that nothing happened to."""
    out = tmp_path_factory.mktemp("reference") / "s"
    vt.run(file, out=out, **OPTIONS)
    return out
