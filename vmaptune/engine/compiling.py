"""How a CPU's compiler is asked to compile the training of lanes.

XLA's CPU compiler hands matrix products to libraries of kernels, which are made for large ones: a product of 32 × 8
by 8 × 8 runs at a tenth of the machine's speed there, at two thirds of it in a loop that XLA can write itself and
compile with the program. It writes that loop where one of its backend options asks for it and Eigen's threads are
ruled out. The option reaches XLA through the environment alone, so it has to be there before JAX starts its backend;
by itself it changes nothing, since a program must rule out Eigen's threads as well, as only ours do.

Transpositions are copies to XLA, which cuts them into tiles of its own (0.18 ns a number here) where its plain routine
for them takes half as long; a recurrent network's step takes 30 % less without those tiles. That is another option of
the environment, which holds for every program of the process: what is computed is the same.

XLA also keeps to vectors of 256 bits, which suits processors that do 512 bits in two halves or slow down for them.
Where they are done whole, all of training is asked for in 512 bits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from typing import Any

import jax

from vmaptune.engine.processor import cpu_cores, does_512_bits_whole, has_512_bits

BY_XLA = "xla_force_enable_experimental_llvm_ir_gemm"
TILE = "xla_llvm_ir_gemm_tile_size"  # rows : inner products : columns in vectors, held in registers
PLAIN_COPIES = "xla_cpu_disable_tiled_emitter"
EXTRA = "--xla_backend_extra_options"
PRODUCTS = {"xla_cpu_multi_thread_eigen": False, "xla_cpu_experimental_ynn_fusion_type": ""}
# Level 3 unrolls loops over 32 numbers before they become vectors: a step of the smallest model takes 40 % longer.
LEVEL = {"xla_backend_optimization_level": 2}
# XLA splits large loops over threads, two and more for a device, while each core has a device of its own to compute.
UNSPLIT = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
# XLA copies weights that a step reads in two places before it updates them, unless it looks where each is read last.
IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}
WIDE = {"xla_cpu_prefer_vector_width": 512}  # all of training took 3 to 20 % less on AMD's Zen 5

# The older way to fuse, all in one piece, compiles in a third of the time.
HURRY: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}

_unknown: set[str] = set()  # options that this version of XLA does not have


def ask_for_compiled_products() -> None:
    """Puts XLA's option into the environment; without effect where JAX has started, or where there are such options."""
    flags = os.environ.get("XLA_FLAGS", "")
    if EXTRA not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {EXTRA}={BY_XLA},{TILE}={_tile()},{PLAIN_COPIES}".strip()


def products_are_compiled() -> bool:
    """Whether products are compiled with the program here: on CPUs of which each core is a device, if XLA was asked."""
    return _every_core_is_a_device() and BY_XLA in _flags_of_xla()


def compiled(lowered: Any, *, products: bool) -> Any:
    """The executable of a lowered program that trains or measures lanes.

    Args:
      products: whether its products are to be compiled with it, where they can be.
    """
    while options := {n: value for n, value in _options(products).items() if n not in _unknown}:
        try:
            return lowered.compile(compiler_options=options)
        except Exception as error:  # JAX has no name of its own for this one
            unknown = [name for name in options if re.search(rf"No such compile option.*{name}", str(error))]
            if not unknown:
                raise
            _unknown.update(unknown)
    return lowered.compile()


def compiled_in_a_hurry(lowered: Any) -> Any:
    """The executable of a lowered program that runs a few times: XLA's own way, with as little work as it knows."""
    return lowered.compile(compiler_options=hurry())


@functools.cache
def hurry() -> dict[str, Any]:
    """The options of such a program: those that this version of XLA has."""
    if jax.default_backend() != "cpu":
        return {}
    nothing = jax.jit(lambda: 0).lower()
    found = {}
    for name, value in HURRY.items():
        with contextlib.suppress(Exception):  # JAX has no name for this one
            nothing.compile(compiler_options={name: value})
            found[name] = value
    return found


def vector_bits() -> int:
    """The width of vectors that programs are compiled for, where it is asked for: 512, or 0 for XLA's own choice."""
    return 512 if jax.default_backend() == "cpu" and does_512_bits_whole() else 0


def _options(products: bool) -> dict[str, Any]:
    if jax.default_backend() != "cpu":
        return {}
    compiled_products = PRODUCTS if products and products_are_compiled() else {}
    unsplit = UNSPLIT if _every_core_is_a_device() else {}
    return LEVEL | IN_PLACE | unsplit | compiled_products | (WIDE if does_512_bits_whole() else {})


def _every_core_is_a_device() -> bool:
    return jax.default_backend() == "cpu" and jax.local_device_count() >= cpu_cores()


def _tile() -> str:
    """Six rows and two vectors fill the 16 registers of AVX2; with AVX-512 there are 32."""
    return "8:16:2*vectwidth" if has_512_bits() else "6:16:2*vectwidth"


def _flags_of_xla() -> str:
    """The options that XLA has read, whatever the environment says by now."""
    try:
        from jax._src.compiler import get_compile_options

        return get_compile_options(num_replicas=1, num_partitions=1).SerializeAsString().decode("latin-1")
    except (ImportError, AttributeError, TypeError):
        return os.environ.get("XLA_FLAGS", "")  # another JAX keeps them elsewhere: the environment is the next best
