"""Many models at once in PyTorch.

    torch_vmap_compile      `torch.func` vmap of a training step, under `torch.compile`; batches shared by all lanes
    torch_vmap_compile_own  the same, each lane its own batches
    torch_bmm               packed parameters and `baddbmm` under autograd; shared batches

Lanes may be split into chunks, each of which trains its whole segment before the next one starts, so that its
state stays in cache. Learning rates differ from lane to lane, so Adam is written out, as it has to be.
"""

from __future__ import annotations

import time
from typing import Any

import _worker
import torch
from _torch_models import data_of, model_of
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from works import ADAM, Work, learning_rates, order

State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]  # parameters, both moments


def adam(state: State, grads: dict[str, torch.Tensor], rate: torch.Tensor, t: torch.Tensor) -> State:
    """One update; `rate` broadcasts against each parameter."""
    beta1, beta2, epsilon = ADAM
    new: State = ({}, {}, {})
    for name, p in state[0].items():
        g = grads[name]
        m = beta1 * state[1][name] + (1 - beta1) * g
        v = beta2 * state[2][name] + (1 - beta2) * g * g
        r = rate.reshape(rate.shape + (1,) * (p.dim() - rate.dim()))
        scaled = r * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + epsilon)
        new[0][name], new[1][name], new[2][name] = p - scaled, m, v
    return new


class Packed:
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work, self.method, self.target = work, method, options.get("seconds", 1.0)
        torch.set_num_threads(options.get("threads", 2))
        self.device = "cuda" if options.get("device") == "gpu" and torch.cuda.is_available() else "cpu"
        self.chunk = min(options.get("chunk", work.lanes), work.lanes)
        self.compiled, self.mode = options.get("compile", True), options.get("mode")
        self.own = method.endswith("_own")
        torch.manual_seed(0)
        self.x, self.y = (part.to(self.device) for part in data_of(work))
        models = [model_of(work) for _ in range(work.lanes)]
        self.params = {n: p.detach().to(self.device) for n, p in stack_module_state(models)[0].items()}
        self.model = model_of(work).to(self.device)
        self.rates = torch.from_numpy(learning_rates(work.lanes)).to(self.device)
        rows = order(work, work.segment, lanes=self.chunk if self.own else None)
        self.rows = torch.from_numpy(rows).long().to(self.device)
        self.counts = [torch.tensor(float(t + 1), device=self.device) for t in range(work.segment)]

    # ---- the two ways of a step ----------------------------------------------------------------------

    def vmap_step(self, state: State, rates: Any, x: Any, y: Any, rows: Any, t: Any) -> Any:
        """`rows` is `[B]`, or `[L, B]` with own batches."""

        def loss(params: Any, xb: Any, yb: Any) -> Any:
            return torch.nn.functional.cross_entropy(functional_call(self.model, params, (xb,)), yb)

        def lane(params: Any, m: Any, v: Any, rate: Any, xb: Any, yb: Any) -> Any:
            grads, value = grad_and_value(loss)(params, xb, yb)
            return adam((params, m, v), grads, rate, t), value

        batch = 0 if self.own else None
        return vmap(lane, (0, 0, 0, 0, batch, batch))(*state, rates, x[rows], y[rows])

    def bmm_step(self, state: State, rates: Any, x: Any, y: Any, rows: Any, t: Any) -> Any:
        names = list(state[0])
        params = {n: p.requires_grad_() for n, p in state[0].items()}
        h = x[rows].expand(self.chunk, -1, -1)  # [L, B, 64]
        for layer in (0, 2, 4):
            weight, bias = params[f"{layer}.weight"], params[f"{layer}.bias"]
            h = torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2))
            h = h.relu() if layer < 4 else h
        labels = y[rows].expand(self.chunk, -1)
        value = torch.nn.functional.cross_entropy(h.flatten(0, 1), labels.flatten(), reduction="none")
        value = value.view(self.chunk, -1).mean(1)
        grads = torch.autograd.grad(value.sum(), [params[n] for n in names])
        with torch.no_grad():
            return self.update(state, dict(zip(names, grads, strict=True)), rates, t), value.detach()

    # ---- the peer ------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any]:
        if self.method == "torch_bmm":
            self.step: Any = self.bmm_step
            self.update = torch.compile(adam, dynamic=False) if self.compiled else adam
        else:
            self.step = torch.compile(self.vmap_step, mode=self.mode, dynamic=False)
        self.states = [
            ({n: p[i : i + self.chunk].clone() for n, p in self.params.items()}, zeros(self.params, self.chunk),
             zeros(self.params, self.chunk))
            for i in range(0, self.work.lanes, self.chunk)
        ]  # fmt: skip
        started = time.perf_counter()
        self.run(self.states[0], self.rates[: self.chunk], 2)
        compile_s = time.perf_counter() - started
        self.calls = 1
        self.calls = max(1, round(self.target / self.time()["seconds"]))
        return {"compile_s": compile_s, "setting": f"{self.work.lanes} lanes in chunks of {self.chunk}"}

    def run(self, state: State, rates: torch.Tensor, steps: int) -> tuple[State, torch.Tensor]:
        for i in range(steps):
            state, value = self.step(state, rates, self.x, self.y, self.rows[i], self.counts[i])
        if self.device == "cuda":
            torch.cuda.synchronize()
        return state, value

    def time(self) -> dict[str, Any]:
        started = time.perf_counter()
        for _ in range(self.calls):
            for i, state in enumerate(self.states):
                rates = self.rates[i * self.chunk : (i + 1) * self.chunk]
                self.states[i], value = self.run(state, rates, self.work.segment)
        seconds = time.perf_counter() - started
        model_steps = self.calls * self.work.segment * self.work.lanes
        return {"seconds": seconds, "model_steps": model_steps, "loss": float(value.mean())}


def zeros(params: dict[str, torch.Tensor], lanes: int) -> dict[str, torch.Tensor]:
    return {n: torch.zeros_like(p[:lanes]) for n, p in params.items()}


if __name__ == "__main__":
    _worker.serve(Packed, ("torch",))
