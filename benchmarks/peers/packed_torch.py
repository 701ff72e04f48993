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

State = tuple[Any, Any, Any]  # parameters and both moments: lists of tensors, each [L, ...]


def adam(state: State, grads: Any, rate: torch.Tensor, corrections: torch.Tensor) -> State:
    """One update; `rate` broadcasts against each parameter, `corrections` are both moments' [2]."""
    beta1, beta2, epsilon = ADAM
    new: State = ([], [], [])
    for p, m, v, g in zip(*state, grads, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        r = rate.reshape(rate.shape + (1,) * (p.dim() - rate.dim()))
        new[0].append(p - r * (m * corrections[0]) / ((v * corrections[1]).sqrt() + epsilon))
        new[1].append(m)
        new[2].append(v)
    return new


class Packed:
    def __init__(self, work: Work, method: str, options: dict[str, Any]):
        self.work, self.method, self.target = work, method, options.get("seconds", 1.0)
        torch.set_num_threads(options.get("threads", 2))
        self.device = "cuda" if options.get("device") == "gpu" and torch.cuda.is_available() else "cpu"
        self.chunk = min(options.get("chunk", work.lanes), work.lanes)
        self.flat, self.compiled = options.get("flat", False), options.get("compile", True)
        self.own, self.bmm = method.endswith("_own"), method == "torch_bmm"
        torch.manual_seed(0)
        self.x, self.y = (part.to(self.device) for part in data_of(work))
        self.model = model_of(work).to(self.device)
        params = stack_module_state([model_of(work) for _ in range(work.lanes)])[0]
        self.names = list(params)
        params = [p.detach().to(self.device) for p in params.values()]
        if self.bmm:  # weights as [L, in, out]
            params = [p.transpose(1, 2).contiguous() if p.dim() == 3 else p.unsqueeze(1) for p in params]
        self.shapes = [p.shape[1:] for p in params]
        self.params = [torch.cat([p.flatten(1) for p in params], 1)] if self.flat else params
        self.rates = torch.from_numpy(learning_rates(work.lanes)).to(self.device)
        rows = torch.from_numpy(order(work, work.segment, lanes=self.chunk if self.own else None)).long()
        t = torch.arange(1, work.segment + 1)
        corrections = torch.stack([1 / (1 - ADAM[0] ** t), 1 / (1 - ADAM[1] ** t)], 1)
        self.rows, self.corrections = list(rows.to(self.device)), list(corrections.to(self.device))

    # ---- the two ways of a step ----------------------------------------------------------------------

    def vmap_step(self, state: State, rates: Any, x: Any, y: Any, rows: Any, corrections: Any) -> Any:
        """`rows` is `[B]`, or `[L, B]` with own batches."""

        def loss(params: Any, xb: Any, yb: Any) -> Any:
            named = dict(zip(self.names, params, strict=True))
            return torch.nn.functional.cross_entropy(functional_call(self.model, named, (xb,)), yb)

        def lane(params: Any, m: Any, v: Any, rate: Any, xb: Any, yb: Any) -> Any:
            leaves = params
            if self.flat:  # one buffer for all parameters, so that Adam is one pass
                pieces = params[0].split([shape.numel() for shape in self.shapes])
                leaves = [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
            grads, value = grad_and_value(loss)(leaves, xb, yb)
            if self.flat:
                grads = [torch.cat([g.reshape(-1) for g in grads])]
            return adam((params, m, v), grads, rate, corrections), value

        batch = 0 if self.own else None
        return vmap(lane, (0, 0, 0, 0, batch, batch))(*state, rates, x[rows], y[rows])

    def bmm_step(self, state: State, rates: Any, x: Any, y: Any, rows: Any, corrections: Any) -> Any:
        params = [p.requires_grad_() for p in state[0]]
        h = x[rows].expand(self.chunk, -1, -1)  # [L, B, 64]
        for layer in range(3):
            h = torch.baddbmm(params[2 * layer + 1], h, params[2 * layer])
            h = h.relu() if layer < 2 else h
        labels = y[rows].expand(self.chunk, -1)
        value = torch.nn.functional.cross_entropy(h.flatten(0, 1), labels.flatten(), reduction="none")
        value = value.view(self.chunk, -1).mean(1)
        grads = torch.autograd.grad(value.sum(), params)
        with torch.no_grad():
            return self.update(state, grads, rates, corrections), value.detach()

    # ---- the peer ------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any]:
        if self.bmm:
            self.step: Any = self.bmm_step
            self.update = torch.compile(adam, dynamic=False) if self.compiled else adam
        else:
            self.step = torch.compile(self.vmap_step, dynamic=False)
        self.states: list[State] = []
        for i in range(0, self.work.lanes, self.chunk):
            params = [p[i : i + self.chunk].clone() for p in self.params]
            self.states.append((params, [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]))
        started = time.perf_counter()
        self.run(self.states[0], self.rates[: self.chunk], 2)
        compile_s = time.perf_counter() - started
        self.calls = 1
        self.calls = max(1, round(self.target / self.time()["seconds"]))
        return {"compile_s": compile_s, "setting": f"{self.work.lanes} lanes"}

    def run(self, state: State, rates: torch.Tensor, steps: int) -> tuple[State, torch.Tensor]:
        for i in range(steps):
            state, value = self.step(state, rates, self.x, self.y, self.rows[i], self.corrections[i])
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


if __name__ == "__main__":
    _worker.serve(Packed, ("torch",))
