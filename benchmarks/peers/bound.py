"""No training: this machine's matrix-product and memory rates, and the least time that they allow a step."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import _worker  # first: puts the benchmarks' folder on the path
import jax
import numpy as np
from works import Work

from vmaptune.engine.compiling import compiled, products_are_compiled
from vmaptune.engine.devices import prepare_devices

if jax.config.jax_platforms in (None, "", "cpu"):
    prepare_devices()


class Bound:
    """What the machine's measured rates allow: operations over the one, bytes over the other, the larger.

    The rate of products is that of the faster of two: large ones by XLA's library and, on a CPU, smaller ones compiled
    with their program, as vmaptune's are, which no library reaches on some processors.
    """

    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work = work

    def prepare(self) -> dict[str, Any]:
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("cores",))
        P = jax.sharding.PartitionSpec
        by_core, everywhere = (jax.sharding.NamedSharding(mesh, P(*axes)) for axes in (("cores",), ()))
        on_gpu = devices[0].platform != "cpu"
        rng = np.random.default_rng(0)

        def over_cores(function: Any, specs: Any) -> Any:
            return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("cores"), check_vma=False))

        def multiply(n: int, products: int, by_library: bool) -> tuple[Any, float]:
            """One call's products of n x n on every device, and their operations."""
            x = jax.device_put(rng.normal(size=(len(devices), n, n)).astype(np.float32), by_core)
            w = jax.device_put((rng.normal(size=(n, n)) / n**0.5).astype(np.float32), everywhere)
            lowered = over_cores(
                lambda x, w: jax.lax.fori_loop(0, products, lambda _, a: a @ w, x[0])[None], (P("cores"), P())
            ).lower(x, w)
            executable = lowered.compile() if by_library else compiled(lowered, products=True)
            return partial(executable, x, w), 2.0 * n**3 * products * len(devices)

        started = time.perf_counter()
        if on_gpu:
            self.multiply = {"library": multiply(8192, 20, True)}
        else:
            self.multiply = {"library": multiply(512, 30, True)}
            if products_are_compiled():
                self.multiply["compiled"] = multiply(256, 240, False)
        self.array = jax.device_put(np.ones((len(devices), 2**28 if on_gpu else 2**24), np.float32), by_core)
        self.passes = 10
        self.moved = 2.0 * self.array.nbytes * self.passes
        self.copy = over_cores(
            lambda a: jax.lax.fori_loop(0, self.passes, lambda _, b: b * 0.999 + 1e-6, a), (P("cores"),)
        )
        jax.block_until_ready(self.copy(self.array))
        compile_s = time.perf_counter() - started
        self.time()
        return {"compile_s": compile_s, "setting": f"float32 products, the fastest of: {', '.join(self.multiply)}"}

    def time(self) -> dict[str, Any]:
        rates = {}
        for name, (call, operations) in self.multiply.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            rates[name] = operations / (time.perf_counter() - started)
        started = time.perf_counter()
        jax.block_until_ready(self.copy(self.array))
        memory = self.moved / (time.perf_counter() - started)
        rate = max(rates.values())
        by = {"operations": self.work.operations() / rate, "bytes": self.work.moved_bytes() / memory}
        counted = max(self.work.counted_operations() / rate, by["bytes"])
        return {
            "seconds": max(by.values()),
            "model_steps": 1,
            "gigaflops": rate / 1e9,
            **{f"gigaflops_{name}": each / 1e9 for name, each in rates.items()},
            "gigabytes_per_s": memory / 1e9,
            "counted_us": counted * 1e6,
        }


if __name__ == "__main__":
    _worker.serve(Bound, ("jax", "jaxlib"))
