"""The data order: a permutation for any size, every example once an epoch, and no visible pattern."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vmaptune.experiment._order import batch_indices, batches, shuffle_rounds

M = 0xFFFFFFFF


def mix(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & M
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & M
    return x ^ (x >> 16)


def by_hand(words: tuple[int, int], position: int, n: int) -> int:
    """Swap-or-not with Python's own integers: the oracle."""
    epoch, x = divmod(position, n)
    rounds = shuffle_rounds(n)

    def word(i: int) -> int:
        return mix((mix(words[0] ^ mix((epoch + 0x9E3779B9) & M) ^ mix((i * 0x85EBCA6B) & M)) + words[1]) & M)

    for r in range(rounds):
        partner = (word(r) % n - x) % n
        if mix(max(x, partner) ^ word(rounds + r)) >> 31:
            x = partner
    return x


@partial(jax.jit, static_argnums=(2, 3))
def each_of(words, steps, size, n):
    """The batches of so many `steps`, one by one, `[steps, size]`."""
    return jax.lax.map(lambda step: batch_indices(words, step, size, n), steps)


def epoch_of(words, epoch: int, n: int) -> np.ndarray:
    return np.asarray(each_of(jnp.asarray(words, jnp.uint32), jnp.array([epoch]), n, n)[0])


@pytest.mark.parametrize("n", [*range(1, 40), 64, 97, 100, 255, 256, 257, 300])
def test_a_permutation_for_every_size(n):
    assert sorted(epoch_of((1, 2), 3, n)) == list(range(n))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 100_000), a=st.integers(0, M), b=st.integers(0, M), epoch=st.integers(0, 20))
def test_a_permutation_for_any_size_and_key(n, a, b, epoch):
    assert np.array_equal(np.sort(epoch_of((a, b), epoch, n)), np.arange(n))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 5000), a=st.integers(0, M), b=st.integers(0, M), step=st.integers(0, 300), data=st.data())
def test_agrees_with_the_plain_integers(n, a, b, step, data):
    size = data.draw(st.integers(1, min(n, 32)))
    got = batch_indices(jnp.array([a, b], jnp.uint32), jnp.int32(step), size, n)
    assert list(map(int, got)) == [by_hand((a, b), step * size + i, n) for i in range(size)]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 300), step=st.integers(0, 300), count=st.integers(1, 12), data=st.data())
def test_batches_together_are_the_batches_one_by_one(n, step, count, data):
    size = data.draw(st.integers(1, min(n, 32)))
    words = jnp.array([3, 4], jnp.uint32)
    one_by_one = each_of(words, jnp.arange(step, step + count), size, n)
    together = jax.jit(lambda step: batches(words, step, count, size, n))(jnp.int32(step))
    np.testing.assert_array_equal(together, one_by_one)
    most = data.draw(st.integers(size, min(n, 40)))  # a traced size: so many places, of which the first are the batch's
    traced = jax.jit(lambda size: batches(words, jnp.int32(step), count, size, n, most))(jnp.int32(size))
    np.testing.assert_array_equal(traced[:, :size], one_by_one)


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 7), (48, 16), (101, 32), (5, 4)])
def test_every_example_once_an_epoch_across_straddling_batches(n, batch):
    words = jnp.array([5, 6], jnp.uint32)
    stream = np.concatenate(each_of(words, jnp.arange(4 * n), batch, n))
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_keys_and_epochs_give_different_orders():
    orders = {tuple(epoch_of((key, 0), epoch, 50)) for key in range(20) for epoch in range(20)}
    assert len(orders) == 400


@pytest.mark.parametrize("n", [7, 97])
def test_no_position_favours_an_example_nor_do_neighbours(n):
    keys = jax.random.bits(jax.random.key(0), (200 * n, 2), jnp.uint32)
    orders = np.asarray(jax.jit(jax.vmap(lambda w: batch_indices(w, jnp.int32(0), n, n)))(keys))
    following = np.asarray(jax.jit(jax.vmap(lambda w: batch_indices(w, jnp.int32(1), n, n)))(keys))
    for position in (0, n // 2, n - 1):
        assert stats.chisquare(np.bincount(orders[:, position], minlength=n)).pvalue > 1e-4
    gaps = (orders[:, 1] - orders[:, 0]) % n  # of two neighbours: any but 0, evenly
    assert stats.chisquare(np.bincount(gaps, minlength=n)[1:]).pvalue > 1e-4
    shift = (following[:, 0] - orders[:, 0]) % n  # from one epoch to the next
    assert stats.chisquare(np.bincount(shift, minlength=n)).pvalue > 1e-4


def test_the_same_under_vmap_and_jit():
    keys = jax.random.bits(jax.random.key(1), (16, 2), jnp.uint32)
    together = jax.jit(jax.vmap(lambda w: batch_indices(w, jnp.int32(9), 12, 100)))(keys)
    np.testing.assert_array_equal(together, [batch_indices(w, jnp.int32(9), 12, 100) for w in keys])
