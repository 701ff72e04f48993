"""hyperoptax's random search: its own vmap over a jitted training written in JAX.

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
        space = {"learning_rate": LogSpace(*LEARNING_RATES)}
        self.state, self.optimizer = RandomSearch.init(space, n_parallel=self.parallel)
        self.device_rows = jnp.array(self.order)
        self.one_model = jax.jit(self.train_one)
        started = time.perf_counter()
        self.run(1)
        compile_s = time.perf_counter() - started
        self.rounds = 1
        self.rounds = max(1, round(self.target / self.time()["seconds"]))
        return {"compile_s": compile_s, "setting": f"n_parallel={self.parallel}"}

    def train_one(self, key: Any, config: Any, data: Any, rows: Any, rounds: Any) -> Any:
        hp = {"learning_rate": config["learning_rate"], "beta1": ADAM[0], "beta2": ADAM[1]}
        first = self.init(hp, key), jnp.float32(0)
        return jax.lax.fori_loop(0, rounds, lambda _, c: self.segment(c[0], hp, data, rows), first)[1]

    def run(self, rounds: int) -> tuple[float, Any]:
        def train(key: Any, config: Any) -> Any:
            return self.one_model(key, config, self.train, self.device_rows, jnp.int32(rounds))

        started = time.perf_counter()
        searches = self.work.lanes // self.parallel
        losses = self.optimizer.optimize(self.state, jax.random.key(1), train, searches)[1][1]
        jax.block_until_ready(losses)
        return time.perf_counter() - started, losses

    def time(self) -> dict[str, Any]:
        longer, losses = self.run(1 + self.rounds)
        first, _ = self.run(1)
        model_steps = self.rounds * self.work.segment * self.work.lanes
        return {"seconds": longer - first, "model_steps": model_steps, "loss": float(losses[-1].mean())}


if __name__ == "__main__":
    _worker.serve(Search, ("hyperoptax", "jax"))
