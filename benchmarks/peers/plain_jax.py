"""JAX without vmaptune, on the same nnx models and with settings as traced scalars too.

loop   a jitted training step in a Python loop, model after model
scan   `jit(scan)` over a segment's steps, model after model
vmap   `jit(vmap(scan))` of all lanes at once, batches shared by the lanes
"""

from __future__ import annotations

import time
from typing import Any

import _worker
import jax
import jax.numpy as jnp
import optax
from _jax_models import loss, metrics, model_of
from flax import nnx
from works import ADAM, Work, learning_rates, order


class Plain:
    """`loop`, `scan` and `vmap`."""

    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work, self.method, self.target = work, method, options.get("seconds", 1.0)
        (x, y), valid = work.data()
        self.train, self.valid = (jnp.array(x), jnp.array(y)), jax.tree.map(jnp.array, valid)
        # what is no parameter, such as a GRU's own keys, does not change in training
        self.graph, _, self.rest = nnx.split(model_of(work, nnx.Rngs(0)), nnx.Param, ...)
        self.order = order(work, work.segment)

    # ---- one model -----------------------------------------------------------------------------------

    def init(self, hp: Any, key: Any) -> Any:
        params = nnx.state(model_of(self.work, nnx.Rngs(key)), nnx.Param)
        return params, self.adam(hp).init(params)

    def adam(self, hp: Any) -> Any:
        return optax.adam(hp["learning_rate"], b1=hp["beta1"], b2=hp["beta2"], eps=ADAM[2])

    def step(self, state: Any, hp: Any, data: Any, rows: Any) -> Any:
        params, opt = state
        batch = jax.tree.map(lambda a: a[rows], data)
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(self.graph, p, self.rest, copy=True), batch))(params)
        updates, opt = self.adam(hp).update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    def segment(self, state: Any, hp: Any, data: Any, rows: Any) -> Any:
        state, losses = jax.lax.scan(lambda s, r: self.step(s, hp, data, r), state, rows)
        return state, losses[-1]

    def error(self, state: Any, data: Any) -> Any:
        return metrics(nnx.merge(self.graph, state[0], self.rest, copy=True), data)["error"]

    # ---- the peer ------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any]:
        lanes = self.work.lanes
        rates = learning_rates(lanes)
        self.hps = {
            "learning_rate": jnp.array(rates),
            "beta1": jnp.full(lanes, ADAM[0], jnp.float32),
            "beta2": jnp.full(lanes, ADAM[1], jnp.float32),
        }
        self.states = jax.block_until_ready(
            jax.jit(jax.vmap(self.init))(self.hps, jax.random.split(jax.random.key(0), lanes))
        )
        both = (self.states, self.hps)
        self.models = [jax.tree.map(lambda a, i=i: a[i], both) for i in range(min(lanes, 8))]
        jax.block_until_ready(self.models)
        self.rows = jnp.array(self.order)
        started = time.perf_counter()
        if self.method == "vmap":
            states = jax.tree.map(jnp.copy, self.states)
            self.compiled = jax.jit(jax.vmap(self.segment, (0, 0, None, None)), donate_argnums=0)
            self.compiled = self.compiled.lower(states, self.hps, self.train, self.rows).compile()
        elif self.method == "scan":
            self.compiled = jax.jit(self.segment, donate_argnums=0)
            self.compiled = self.compiled.lower(*self.models[0], self.train, self.rows).compile()
        else:
            self.compiled = jax.jit(self.step, donate_argnums=0)
            state = jax.tree.map(jnp.copy, self.models[0][0])
            jax.block_until_ready(self.compiled(state, self.models[0][1], self.train, self.order[0]))
        compile_s = time.perf_counter() - started
        self.calls = 1
        seconds = self.time()["seconds"]
        self.calls = max(1, round(self.target / self.time()["seconds"]))
        return {
            "compile_s": compile_s,
            "setting": f"{lanes} lanes" if self.method == "vmap" else f"{seconds:.3g} s a call",
        }

    def time(self) -> dict[str, Any]:
        return self._all_lanes() if self.method == "vmap" else self._one_by_one()

    def _all_lanes(self) -> dict[str, Any]:
        states = jax.block_until_ready(jax.tree.map(jnp.copy, self.states))
        started = time.perf_counter()
        for _ in range(self.calls):
            states, value = self.compiled(states, self.hps, self.train, self.rows)
        jax.block_until_ready((states, value))
        seconds = time.perf_counter() - started
        model_steps = self.calls * self.work.segment * self.work.lanes
        return {"seconds": seconds, "model_steps": model_steps, "loss": float(value.mean())}

    def _one_by_one(self) -> dict[str, Any]:
        """One call is a segment of one model; the models take turns, each waited for before the next."""
        states = [jax.block_until_ready(jax.tree.map(jnp.copy, state)) for state, _ in self.models]
        started = time.perf_counter()
        for call in range(self.calls):
            which = call % len(states)
            state, hp = states[which], self.models[which][1]
            if self.method == "scan":
                state, value = self.compiled(state, hp, self.train, self.rows)
            else:
                for rows in self.order:
                    state, value = self.compiled(state, hp, self.train, rows)
            states[which] = jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "model_steps": self.calls * self.work.segment, "loss": float(value)}

    def evaluate(self) -> dict[str, Any]:
        if self.method == "vmap":
            call = jax.jit(jax.vmap(self.error, (0, None)))
            state, models = self.states, self.work.lanes
        else:
            call, state, models = jax.jit(self.error), self.models[0][0], 1
        jax.block_until_ready(call(state, self.valid))
        calls = 8
        started = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(call(state, self.valid))
        return {"seconds": time.perf_counter() - started, "models": calls * models}


if __name__ == "__main__":
    _worker.serve(Plain, ("jax", "jaxlib", "flax", "optax"))
