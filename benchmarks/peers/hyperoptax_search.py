"""hyperoptax's random search: its own vmap over a training written in JAX, all of it in one compiled scan.

The training is that of `plain_jax.py`. A repeat is a search with long trainings less one with short ones, so that
the models' initialisation is not counted, as it is not for the others.
"""

from __future__ import annotations

import time
from typing import Any

import _worker
import jax
import jax.numpy as jnp
from hyperoptax import LogSpace, RandomSearch
from plain_jax import Plain
from works import ADAM, LEARNING_RATES, Work


class Search(Plain):
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        super().__init__(work, method, options)
        self.parallel = min(options.get("chunk", work.lanes), work.lanes)

    def prepare(self) -> dict[str, Any]:
        state, optimizer = RandomSearch.init({"learning_rate": LogSpace(*LEARNING_RATES)}, n_parallel=self.parallel)
        rows = jnp.array(self.order)

        def search(key: Any, data: Any, rounds: Any) -> Any:
            def train(key: Any, config: Any) -> Any:
                hp = {"learning_rate": config["learning_rate"], "beta1": ADAM[0], "beta2": ADAM[1]}
                first = self.init(hp, key), jnp.float32(0)
                return jax.lax.fori_loop(0, rounds, lambda _, c: self.segment(c[0], hp, data, rows), first)[1]

            return optimizer.optimize_scan(state, key, train, self.work.lanes // self.parallel)[1][1]

        started = time.perf_counter()
        self.search = jax.jit(search).lower(jax.random.key(0), self.train, jnp.int32(1)).compile()
        compile_s = time.perf_counter() - started
        self.rounds = 1
        self.rounds = max(1, round(self.target / self.time()["seconds"]))
        return {"compile_s": compile_s, "setting": f"n_parallel={self.parallel}"}

    def run(self, rounds: int) -> tuple[float, Any]:
        started = time.perf_counter()
        losses = jax.block_until_ready(self.search(jax.random.key(1), self.train, jnp.int32(rounds)))
        return time.perf_counter() - started, losses

    def time(self) -> dict[str, Any]:
        longer, losses = self.run(1 + self.rounds)
        first, _ = self.run(1)
        model_steps = self.rounds * self.work.segment * self.work.lanes
        return {"seconds": longer - first, "model_steps": model_steps, "loss": float(losses.mean())}


if __name__ == "__main__":
    _worker.serve(Search, ("hyperoptax", "jax"))
