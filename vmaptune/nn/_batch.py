"""A batch size per lane: batches as long as the largest one, of which only the first examples count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vmaptune.nn._sizes import Size


@dataclass
class _Batch:
    size: Size
    averaged: bool = False  # whether the loss has asked for the mean over the examples that are there


_batch: ContextVar[_Batch | None] = ContextVar("batch", default=None)


def batch_mean(values: Any) -> jax.Array:
    """The mean over a batch's examples: `vt.nn.batch_mean(optax.softmax_cross_entropy(logits, labels))`.

    `values` is `[B, ...]`. Where the batch size is a setting of which each lane has its own, batches are padded to
    the largest, and only the lane's own examples count; everywhere else it is `values.mean()`. A loss that takes
    its means with it lets batch sizes share one program.
    """
    values = jnp.asarray(values)
    batch = _batch.get()
    if batch is None:
        return values.mean()
    batch.averaged = True
    others = values.size // values.shape[0]
    return batch.size.keep(values, 0).sum() / (batch.size.value * others).astype(values.dtype)


@contextmanager
def padded_batch(size: Size) -> Iterator[_Batch]:
    """While a loss is traced on a batch of `size.most` examples, of which `size.value` count."""
    batch = _Batch(size)
    token = _batch.set(batch)
    try:
        yield batch
    finally:
        _batch.reset(token)


def example_mask(x: jax.Array) -> jax.Array | None:
    """Which examples of a batch `[B, ...]` count, to be broadcast over the rest; None where all do."""
    batch = _batch.get()
    if batch is None or x.shape[0] != batch.size.most:
        return None
    return batch.size.mask().reshape(-1, *[1] * (x.ndim - 1))
