"""Each trial's own data order: every example once an epoch, from key, epoch and position alone.

A table of orders would be `[L, examples]`, and a sort per lane slow, so the order is a keyed bijection of the
index: the swap-or-not shuffle (Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle",
CRYPTO 2012). It works for any number of examples as it is, without the cycle walking that a Feistel network
needs, and is elementwise arithmetic on uint32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def shuffle_rounds(n: int) -> int:
    """How many rounds mix `n` examples well enough that no statistic tells them from a random order."""
    return 2 * max(1, (n - 1).bit_length()) + 8


def batch_indices(
    key_words: jax.Array, step: jax.Array, batch_size: int | jax.Array, n: int, most: int | None = None
) -> jax.Array:
    """The examples of one batch, as int32 indices below `n`, shape `[B]`.

    Batches run through the epochs' orders without a gap: batch `step` holds positions `step * B` to
    `step * B + B - 1`, and position `p` is the `p mod n`-th example of epoch `p // n`. A batch may reach into
    the next epoch, so `B <= n`; `steps * B` must stay below 2^32.

    Args:
      key_words: uint32[2], the trial's own.
      step: the number of the batch, from 0.
      most: how many indices are wanted where `batch_size` is traced; those from `batch_size` on are of the next batch.
    """
    count = batch_size if most is None else most
    if n == 1:
        return jnp.zeros(count, jnp.int32)
    size = jnp.uint32(n)
    start = jnp.asarray(step).astype(jnp.uint32) * jnp.asarray(batch_size).astype(jnp.uint32)
    epoch, first = start // size, start % size
    position = first + jnp.arange(count, dtype=jnp.uint32)
    in_next = position >= size
    x = jnp.where(in_next, position - size, position)
    rounds = shuffle_rounds(n)
    now, after = (_round_keys(key_words, epoch + jnp.uint32(i), rounds, size) for i in (0, 1))

    def swapped(r: Any, x: jax.Array) -> jax.Array:
        pivot = jnp.where(in_next, after[0][r], now[0][r])
        salt = jnp.where(in_next, after[1][r], now[1][r])
        # (pivot - x) mod n, an involution: the one of the two that has not wrapped around is the smaller
        partner = jnp.minimum(pivot - x, (pivot + size) - x)
        mixed = _scattered(jnp.maximum(x, partner) ^ salt)
        return x ^ ((x ^ partner) & -(mixed >> 31))

    return jax.lax.fori_loop(0, rounds, swapped, x, unroll=_rounds_at_once(rounds)).astype(jnp.int32)


def batches(
    key_words: jax.Array, step: jax.Array, count: int, batch_size: int | jax.Array, n: int, most: int | None = None
) -> jax.Array:
    """The `batch_indices` of `count` batches from batch `step` on, `[count, B]`: cheaper together than one by one."""
    width: Any = batch_size if most is None else most
    at_once = min(count, max(1, n // width))  # these reach into one more epoch at most

    def some(first: jax.Array) -> jax.Array:
        rows = batch_indices(key_words, first, batch_size, n, at_once * width)
        if most is None:
            return rows.reshape(at_once, width)
        starts = jnp.arange(at_once) * batch_size
        return jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(rows, start, width))(starts)

    firsts = step + at_once * jnp.arange(-(-count // at_once), dtype=jnp.int32)
    return jax.vmap(some)(firsts).reshape(-1, width)[:count]


def _rounds_at_once(rounds: int) -> int:
    """How many rounds follow one another in one pass over the indices.

    Each round waits for the one before, so on a CPU, which looks ahead some hundred operations, all rounds in one pass
    take three times as long as these; an accelerator waits for none and takes them all.
    """
    return next(k for k in (5, 4, 3, 2) if rounds % k == 0) if jax.default_backend() == "cpu" else rounds


def _round_keys(key_words: jax.Array, epoch: jax.Array, rounds: int, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each round of an epoch a pivot below `size` and a random word, each uint32[rounds]."""
    count = jnp.arange(2 * rounds, dtype=jnp.uint32)
    words = _mix(key_words[0] ^ _mix(epoch + jnp.uint32(0x9E3779B9)) ^ _mix(count * jnp.uint32(0x85EBCA6B)))
    words = _mix(words + key_words[1])
    # a barrier, or each round's remainder becomes a kernel of its own
    return jax.lax.optimization_barrier((words[:rounds] % size, words[rounds:]))


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every input bit reaches every output bit."""
    x = _scattered(x)
    return x ^ (x >> 16)


def _scattered(x: jax.Array) -> jax.Array:
    """`_mix` before its last step, which leaves the upper half of the bits as it is."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    return (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
