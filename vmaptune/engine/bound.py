"""What this machine could do at most: its matrix-product and memory rates, and the fastest step that they allow.

The rates are measured once per machine and kept beside the measured plans.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmaptune.engine import kept
from vmaptune.engine.compiling import compiled, products_are_compiled
from vmaptune.engine.devices import cache_folder, lane_mesh, machine
from vmaptune.engine.functions import LaneFunctions


@dataclass(frozen=True)
class MachineRates:
    """Of all devices together, in float32."""

    flops: float  # operations a second, in large matrix products
    bytes: float  # read and written a second, in arrays that no cache holds

    def step_seconds(self, functions: LaneFunctions) -> float:
        """The least time of one training step of one model: its operations over the one, its bytes over the other,
        whichever is larger. Its operations are those of its matrix products and convolutions, its bytes its state,
        read and written once."""
        state = sum(math.prod(s.shape) * s.dtype.itemsize for s in jax.tree.leaves(functions.state))
        return max(linear_flops(functions.step.jaxpr) / self.flops, 2 * state / self.bytes)


def linear_flops(jaxpr: Any) -> float:
    """Operations of the matrix products and convolutions of a jaxpr, those in its loops as often as they run (of a
    loop without a known count, once) and of a branch the most."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * inner
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / max(1, outputs)
        elif name == "cond":
            total += max(linear_flops(branch) for branch in eqn.params["branches"])
        else:
            inside = sum(linear_flops(each) for each in _jaxprs(eqn.params))
            total += inside * (eqn.params["length"] if name == "scan" else 1)
    return total


def _jaxprs(params: Any) -> list[Any]:
    found = []
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(each, "jaxpr", each), "eqns"):
                found.append(each)
    return found


@lru_cache(maxsize=1)
def _file() -> Any:
    name = kept.digest([*sorted(machine().items()), "products by the library and compiled"])
    return cache_folder() / "machines" / f"{name}.json"


def known_rates() -> MachineRates | None:
    """The rates that were measured on this machine before, if they were."""
    try:
        found = kept.read(_file())
        rates = MachineRates(float(found["flops"]), float(found["bytes"]))
    except (ValueError, KeyError, TypeError):
        return None
    return rates if rates.flops > 0 and rates.bytes > 0 else None


def measured_rates() -> MachineRates:
    """Measures the rates, in less than a second on a CPU, and keeps them.

    The rate of products is that of the faster of two: large ones by XLA's library and, where lanes' products are
    compiled with their program, smaller ones compiled so, which no library reaches on some processors.
    """
    devices = jax.local_device_count()
    mesh = lane_mesh(devices)
    cpu = jax.default_backend() == "cpu"
    length, passes = (2**22, 4) if cpu else (2**26, 8)
    rng = np.random.default_rng(0)
    by_device, everywhere = NamedSharding(mesh, P("lanes")), NamedSharding(mesh, P())

    def over_devices(function: Callable[..., Any], specs: Any) -> Any:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("lanes"), check_vma=False))

    def flops(n: int, products: int, by_library: bool) -> float:
        x = jax.device_put(rng.random((devices, n, n), np.float32), by_device)
        w = jax.device_put(rng.random((n, n), np.float32) / n, everywhere)
        multiply = over_devices(lambda a, b: jax.lax.fori_loop(0, products, lambda _, c: c @ b, a[0])[None],
                                (P("lanes"), P()))  # fmt: skip
        executable = multiply if by_library else compiled(multiply.lower(x, w), products=True)
        return 2.0 * n**3 * products * devices / _seconds(executable, x, w)

    array = jax.device_put(np.ones((devices, length), np.float32), by_device)
    copy = over_devices(lambda a: jax.lax.fori_loop(0, passes, lambda _, b: b * 0.999 + 1e-6, a), (P("lanes"),))
    products = [flops(384, 24, True) if cpu else flops(4096, 16, True)]
    if products_are_compiled():
        products.append(flops(256, 80, False))
    rates = MachineRates(flops=max(products), bytes=2.0 * array.nbytes * passes / _seconds(copy, array))
    kept.write(_file(), asdict(rates))
    return rates


def _seconds(function: Any, *arguments: Any) -> float:
    """The least of three calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return min(times)
