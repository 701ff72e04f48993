"""Threefry written out round by round instead of as a loop. Same bits.

On a CPU JAX lowers threefry to a loop of five passes over its arrays. That takes four times as long as the same rounds
in one piece: most of the time in which a lane is initialised, and a part of each step that draws a dropout.

It takes one key of threefry, and words of 32 bits. There are no rounded numbers in it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vmaptune.rewrite._walk import alone, call_instead

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # of the key schedule
DRAWS = {"random_bits": "bits", "random_fold_in": "fold_in", "random_split": "split"}


@dataclasses.dataclass(frozen=True)
class Draw:
    """What is made of one threefry key: 32-bit words ("bits"), another key ("fold_in"), or several ("split")."""

    kind: str
    shape: tuple[int, ...]  # of the words, or of the keys


def draw_shape(eqn: Any) -> Draw | None:
    """The record of an equation that runs threefry on one key, or None."""
    kind = DRAWS.get(eqn.primitive.name)
    config: Any = jax.config
    if kind is None or not config.jax_threefry_partitionable:
        return None
    key = eqn.invars[0].aval
    if key.shape != () or str(key.dtype) != "key<fry>":
        return None
    if kind == "fold_in":
        data = eqn.invars[1].aval
        return Draw(kind, ()) if data.shape == () and data.dtype == np.uint32 else None
    if kind == "bits" and eqn.params["bit_width"] != 32:
        return None
    shape = tuple(eqn.params["shape"])
    return Draw(kind, shape) if 0 < math.prod(shape) < 2**32 else None


def in_one_piece(eqn: Any) -> Any:
    """The equation to compute in the place of one that draws from a key; others as they are."""
    record = draw_shape(eqn)
    return eqn if record is None else call_instead(eqn, record.kind, (draw, record))


def draw(record: Draw, key: jax.Array, *data: jax.Array) -> jax.Array:
    """What `jax.random.bits`, `fold_in` or `split` make of the key, to the bit.

    Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (Threefry-2x32 of 20 rounds), over the
    counters that JAX takes: a place's number, or what is folded in.
    """
    words = jax.random.key_data(key)
    if record.kind == "bits":
        return alone(lambda words: _bits(words, math.prod(record.shape)), words).reshape(record.shape)
    if record.kind == "fold_in":
        return jax.random.wrap_key_data(alone(_pair, words, data[0]), impl="threefry2x32")
    count = lax.iota(np.uint32, math.prod(record.shape)).reshape(record.shape)
    return jax.random.wrap_key_data(_pair(words, count), impl="threefry2x32")


def _bits(words: jax.Array, n: int) -> jax.Array:
    first, second = threefry(words[0], words[1], jnp.zeros(n, np.uint32), lax.iota(np.uint32, n))
    return first ^ second


def _pair(words: jax.Array, count: jax.Array) -> jax.Array:
    return jnp.stack(threefry(words[0], words[1], jnp.zeros_like(count), count), axis=-1)


def threefry(key0: jax.Array, key1: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of 20 rounds of the counters `(x0, x1)`; all uint32."""
    schedule = (key0, key1, key0 ^ key1 ^ np.uint32(PARITY))
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1
