"""The workloads in plain PyTorch, and one model's training as a person would write it: eager, with fused Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from works import ADAM, Work, order


def model_of(work: Work) -> nn.Module:
    """One freshly initialised model."""
    if work.kind == "mlp":
        h = work.hidden
        return nn.Sequential(nn.Linear(64, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 10))
    a, b = work.channels
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 10),
    )  # fmt: skip


def data_of(work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """The training part: `(x, y)`; images with their channel first."""
    (x, y), _ = work.data()
    x = torch.from_numpy(x)
    return (x.permute(0, 3, 1, 2).contiguous() if work.kind == "cnn" else x), torch.from_numpy(y).long()


class OneModel:
    """Trains models of a workload, one after another."""

    def __init__(self, work: Work):
        self.work = work
        self.x, self.y = data_of(work)

    def train(self, rate: float, steps: int) -> Any:
        """One fresh model for `steps` steps; returns its last loss."""
        model = model_of(self.work)
        adam = torch.optim.Adam(model.parameters(), lr=rate, betas=ADAM[:2], eps=ADAM[2], fused=True)
        rows = torch.from_numpy(order(self.work, steps)).long()
        cross_entropy = nn.functional.cross_entropy
        for batch in rows:
            loss = cross_entropy(model(self.x[batch]), self.y[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()
        return float(loss.detach())
