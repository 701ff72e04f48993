"""A machine with an accelerator on which JAX computes on the CPU: the person is told first. All presence is faked."""

from __future__ import annotations

import jax
import pytest

from vmaptune.cli import main
from vmaptune.engine import accelerators

VARIABLES = (*accelerators.OF_A_TPU, "COLAB_GPU", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine without anything, of which JAX sees the CPU, unasked."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(accelerators, "ROOT", tmp_path)
    monkeypatch.setattr(accelerators.sys, "platform", "linux")
    monkeypatch.setattr(accelerators, "_asked_for_the_cpu", lambda: False)
    monkeypatch.setattr(accelerators.jax, "default_backend", lambda: "cpu")
    return tmp_path


def place(root, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def test_a_machine_without_one_is_left_in_peace(root):
    assert accelerators.unused_accelerator() is None


@pytest.mark.parametrize(("kind", "files", "variables"), [
    ("GPU", ["dev/nvidia0"], {}),
    ("GPU", ["proc/driver/nvidia/gpus/0000:01:00.0"], {}),
    ("GPU", [], {"COLAB_GPU": "1"}),
    ("TPU", ["dev/accel0"], {}),
    ("TPU", ["dev/vfio/0"], {"TPU_ACCELERATOR_TYPE": "v5e-1"}),
    ("TPU", [], {"TPU_WORKER_ID": "0"}),
    (None, ["dev/nvidiactl"], {}),  # a driver without a device
    (None, ["dev/accel/accel0"], {}),  # an NPU, of which JAX knows nothing
    (None, ["dev/vfio/0"], {}),  # any device that is handed on to a guest
    (None, [], {"COLAB_GPU": "0"}),
    (None, ["dev/nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}),  # hidden by the person
    (None, ["dev/nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}),
])  # fmt: skip
def test_it_is_found_by_its_files_and_by_the_environment(root, monkeypatch, kind, files, variables):
    for path in files:
        place(root, path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    note = accelerators.unused_accelerator()
    assert (note is None) == (kind is None)
    if kind:
        assert note.startswith(f"this machine has a {kind} (")
        assert {"GPU": 'pip install -U "jax[cuda', "TPU": 'pip install -U "jax[tpu]"'}[kind] in note
        monkeypatch.setattr(accelerators.jax, "default_backend", lambda: kind.lower())
        assert accelerators.unused_accelerator() is None


@pytest.mark.parametrize(("script", "found"), [
    ("echo 'GPU 0: NVIDIA T4 (UUID: GPU-1)'", True), ("echo 'No devices were found'", False),
    ("echo 'GPU 0'; exit 9", False), ("kill -9 $$", False),
])  # fmt: skip
def test_nvidia_smi_is_asked_where_there_are_no_files(root, script, found):
    place(root, "bin/nvidia-smi", f"#!/bin/sh\n{script}\n")
    assert (accelerators.unused_accelerator() is not None) == found


def test_a_plugin_of_another_version_is_named_with_its_own_way_out(root, monkeypatch):
    place(root, "dev/nvidia0")
    monkeypatch.setattr(accelerators, "_plugin", lambda kind: ("jax-cuda12-plugin", "0.1.0"))
    note = accelerators.unused_accelerator()
    assert f"jax-cuda12-plugin 0.1.0 does not go with jax {jax.__version__}" in note
    assert 'pip install -U "jax[cuda12]"' in note


@pytest.mark.parametrize(
    ("platforms", "asked"), [("cpu", True), ("cpu,cuda", True), ("cuda,cpu", False), ("", False), (None, False)]
)
def test_who_asked_for_the_cpu_gets_it(platforms, asked):
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", platforms)
        assert accelerators._asked_for_the_cpu() == asked
    finally:
        jax.config.update("jax_platforms", before)


def test_run_and_check_say_so_first(root, file, capsys, tmp_path):
    place(root, "dev/nvidia0")
    assert main(["check", str(file), "--trials", "4", "--steps", "4"]) == 0
    assert capsys.readouterr().out.startswith("note: this machine has a GPU")
    command = ["run", str(file), "--trials", "4", "--rounds", "1", "--steps", "4", "--no-report"]
    assert main([*command, "--quiet", "--out", str(tmp_path / "quiet")]) == 0
    assert capsys.readouterr().err.startswith("note: this machine has a GPU")
    assert main([*command, "--out", str(tmp_path / "seen")]) == 0
    assert capsys.readouterr().err.strip().startswith("note: this machine has a GPU")
