"""How XLA is asked to compile products with a program, and what happens where it cannot be."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from vmaptune.engine import compiling, processor

OPTIONS = compiling.LEVEL | compiling.UNSPLIT | compiling.PRODUCTS | compiling.WIDE
ASKED = """
import os, sys
{before}
import vmaptune as vt
vt.prepare_devices()
import jax, jax.numpy as jnp
from vmaptune.engine.compiling import compiled, products_are_compiled
from vmaptune.engine.devices import machine
lowered = jax.jit(lambda a, b: a @ b).lower(jnp.ones((32, 8)), jnp.ones((8, 8)))
print(products_are_compiled(), "ynn" in compiled(lowered, products=True).as_text(), machine()["products"])
"""


def asked(before=""):
    done = subprocess.run([sys.executable, "-c", ASKED.format(before=before)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_products_are_compiled_where_vmaptune_comes_before_the_backend():
    assert asked() == ["True", "False", "compiled"]


def test_xla_flags_of_the_person_stay_and_win():
    before = "os.environ['XLA_FLAGS'] = '--xla_backend_extra_options=xla_cpu_small_call'"
    assert asked(before)[::2] == ["False", "library"]


def test_a_backend_that_had_started_keeps_its_library():
    assert asked("import jax; jax.devices()")[::2] == ["False", "library"]


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compiling, "PRODUCTS", {"xla_no_such_thing": True, "xla_cpu_multi_thread_eigen": False})
    monkeypatch.setattr(compiling, "products_are_compiled", lambda: True)
    monkeypatch.setattr(compiling, "_unknown", set())
    double = compiling.compiled(jax.jit(lambda x: 2 * x).lower(jnp.ones(3)), products=True)
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]
    assert compiling._unknown == {"xla_no_such_thing"}


def test_other_errors_of_the_compiler_are_raised(monkeypatch):
    monkeypatch.setattr(compiling, "PRODUCTS", {"xla_cpu_multi_thread_eigen": "neither yes nor no"})
    monkeypatch.setattr(compiling, "products_are_compiled", lambda: True)
    with pytest.raises(Exception, match="xla_cpu_multi_thread_eigen"):
        compiling.compiled(jax.jit(lambda x: 2 * x).lower(jnp.ones(3)), products=True)


@pytest.mark.parametrize(
    ("cpuinfo", "bits", "tile"),
    [
        ({"vendor_id": "AuthenticAMD", "cpu family": "26", "flags": "fpu avx512f avx512vl"}, 512, "8:16:2*vectwidth"),
        ({"vendor_id": "AuthenticAMD", "cpu family": "25", "flags": "fpu avx512f avx512vl"}, 0, "8:16:2*vectwidth"),
        ({"vendor_id": "GenuineIntel", "cpu family": "26", "flags": "fpu avx512f avx512vl"}, 0, "8:16:2*vectwidth"),
        ({"vendor_id": "AuthenticAMD", "cpu family": "26", "flags": "fpu avx2"}, 0, "6:16:2*vectwidth"),
        ({}, 0, "6:16:2*vectwidth"),
    ],
)
def test_the_width_of_vectors_goes_with_the_processor(monkeypatch, cpuinfo, bits, tile):
    monkeypatch.setattr(processor, "cpuinfo", lambda: cpuinfo)
    assert compiling.vector_bits() == bits
    assert compiling._tile() == tile
    options = compiling._options(products=False)
    assert options.get("xla_cpu_prefer_vector_width", 0) == bits


def test_this_xla_knows_every_option_that_its_version_has(monkeypatch):
    monkeypatch.setattr(compiling, "_options", lambda products: OPTIONS)
    monkeypatch.setattr(compiling, "_unknown", set())
    affine = compiling.compiled(jax.jit(lambda x: 2 * x + 1).lower(jnp.ones(4096)), products=True)
    assert (affine(jnp.ones(4096)) == 3).all()
    later = {"xla_cpu_experimental_ynn_fusion_type"}  # XLA had no such library of kernels yet
    assert compiling._unknown == (later if jax.__version_info__ < (0, 8) else set())


def test_no_loop_is_split_over_the_threads_of_other_devices(monkeypatch):
    lowered = jax.jit(lambda x: jnp.sin(x) * 2).lower(jnp.ones((512, 2048)))
    split = "outer_dimension_partitions"
    assert split in lowered.compile().as_text() or processor.cpu_cores() == 1
    monkeypatch.setattr(compiling, "_every_core_is_a_device", lambda: True)
    assert split not in compiling.compiled(lowered, products=False).as_text()
    monkeypatch.setattr(compiling, "_every_core_is_a_device", lambda: False)
    assert split in compiling.compiled(lowered, products=False).as_text() or processor.cpu_cores() == 1
