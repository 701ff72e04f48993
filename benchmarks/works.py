"""The workloads of `throughput.py`: what is trained, on which data, and how many operations a step needs.

NumPy alone, so that every peer's process can read it. `B` is the batch, `W` a layer's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CONTEXT, WIDTH, HEADS, LAYERS, VOCABULARY = 64, 64, 4, 2, 96  # of the transformer; the GRU shares all but HEADS
LEARNING_RATES = (1e-4, 1e-2)  # the lanes' learning rates, log-spaced
ADAM = (0.9, 0.999, 1e-8)


@dataclass(frozen=True)
class Work:
    """One kind of model and batch, trained with Adam at its own learning rate."""

    name: str
    kind: str  # "mlp", "cnn", "transformer", "gru"
    batch: int
    hidden: int = 0  # MLP: units of both hidden layers
    image: int = 0  # CNN: pixels of a side
    channels: tuple[int, int] = (0, 0)  # CNN
    lanes: int = 256  # models trained at once
    segment: int = 50  # steps of one compiled call

    def data(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """`(x, y)` for training and for validation: float32 or int32 rows, int32 labels."""
        if self.kind == "mlp":
            from sklearn.datasets import load_digits

            x, y = load_digits(return_X_y=True)
            order = np.random.default_rng(0).permutation(len(x))
            x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
            return (x[:1500], y[:1500]), (x[1500:], y[1500:])
        rng = np.random.default_rng(0)
        n = 1500 + 297
        if self.kind == "cnn":
            x = rng.normal(size=(n, self.image, self.image, 1)).astype(np.float32)
            y = rng.integers(0, 10, n, dtype=np.int32)
        else:
            text = rng.integers(0, VOCABULARY, (n, CONTEXT + 1), dtype=np.int32)
            x, y = text[:, :-1], text[:, 1:]
        return (x[:1500], y[:1500]), (x[1500:], y[1500:])

    def products(self) -> list[tuple[float, bool]]:
        """Multiply-adds of each matrix product of one example's forward pass, and whether its input has a gradient."""
        if self.kind == "mlp":
            h = self.hidden
            return [(64 * h, False), (h * h, True), (h * 10, True)]
        if self.kind == "cnn":
            a, b = self.channels
            half = (self.image + 1) // 2
            return [(self.image**2 * 9 * a, False), (half**2 * 9 * a * b, True), (b * 10, True)]
        head = (CONTEXT * WIDTH * VOCABULARY, True)
        if self.kind == "gru":
            return [(CONTEXT * 3 * WIDTH * WIDTH, True), (CONTEXT * 3 * WIDTH * WIDTH, True), head]
        attention = 2 * CONTEXT * CONTEXT * WIDTH  # scores and mixing; both operands have a gradient, as with weights
        block = CONTEXT * (4 * WIDTH * WIDTH + 8 * WIDTH * WIDTH) + attention
        return [(LAYERS * block, True), head]

    def operations(self) -> float:
        """Floating-point operations of one step's matrix products: forward, and back for weights and inputs."""
        return self.batch * sum(products * (6 if gradient else 4) for products, gradient in self.products())

    def counted_operations(self) -> float:
        """The same by the usual rule of six operations for each weight and example."""
        return 6 * self.batch * sum(products for products, _ in self.products())

    def weights(self) -> int:
        """Trained numbers of one model."""
        if self.kind == "mlp":
            h = self.hidden
            return 64 * h + h + h * h + h + h * 10 + 10
        if self.kind == "cnn":
            a, b = self.channels
            return 9 * a + a + 9 * a * b + b + b * 10 + 10
        embedding, head = VOCABULARY * WIDTH, WIDTH * VOCABULARY + VOCABULARY
        if self.kind == "gru":
            return embedding + 6 * WIDTH * WIDTH + 3 * WIDTH + head
        block = 12 * WIDTH * WIDTH + 9 * WIDTH + 4 * WIDTH
        return embedding + CONTEXT * WIDTH + LAYERS * block + 2 * WIDTH + head

    def moved_bytes(self) -> float:
        """What Adam has to move in one step: parameters and both moments, read and written, and the batch."""
        example = {"mlp": 64, "cnn": self.image**2, "transformer": 2 * CONTEXT, "gru": 2 * CONTEXT}[self.kind]
        return 4.0 * (6 * self.weights() + self.batch * example)


WORKS = {
    work.name: work
    for work in (
        Work("mlp_8_32", "mlp", 32, hidden=8, segment=100),
        Work("mlp_32_64", "mlp", 64, hidden=32, segment=50),
        Work("mlp_64_128", "mlp", 128, hidden=64, segment=50),
        Work("mlp_256_128", "mlp", 128, hidden=256, segment=20, lanes=128),
        Work("cnn_28_8", "cnn", 32, image=28, channels=(8, 16), segment=10, lanes=64),
        Work("cnn_8_16", "cnn", 32, image=8, channels=(16, 32), segment=20, lanes=64),
        Work("transformer", "transformer", 8, segment=5, lanes=32),
        Work("gru", "gru", 8, segment=10, lanes=64),
    )
}


def learning_rates(lanes: int) -> np.ndarray:
    """Each lane's own, float32 `[L]`."""
    low, high = np.log10(LEARNING_RATES)
    return np.logspace(low, high, lanes).astype(np.float32)


def order(work: Work, steps: int, seed: int = 0, lanes: int | None = None) -> np.ndarray:
    """Rows of each batch, int32 `[steps, B]`, or `[steps, L, B]` with an order of its own for each lane."""
    rng = np.random.default_rng(seed)
    shape = (steps, work.batch) if lanes is None else (steps, lanes, work.batch)
    return rng.integers(0, 1500, shape, dtype=np.int32)


def describe(work: Work) -> dict[str, Any]:
    """What a table says of a workload."""
    return {"operations": work.operations(), "bytes": work.moved_bytes(), "weights": work.weights()}
