"""Dropout with a rate per lane, against Flax's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from vmaptune.nn import Dropout, LinenDropout

X = jax.random.normal(jax.random.key(3), (64, 32))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_nnx_dropout_has_flax_masks_to_the_bit(rate, dims):
    ours = Dropout(rate, rngs=nnx.Rngs(1), broadcast_dims=dims)
    theirs = nnx.Dropout(rate, rngs=nnx.Rngs(1), broadcast_dims=dims)
    for _ in range(3):  # the stream goes on alike
        np.testing.assert_array_equal(ours(X), theirs(X))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_linen_dropout_has_flax_masks_to_the_bit(rate):
    class Ours(linen.Module):
        @linen.compact
        def __call__(self, x):
            return LinenDropout(rate, name="drop")(x, deterministic=False)

    class Theirs(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dropout(rate, name="drop")(x, deterministic=False)

    rngs = {"dropout": jax.random.key(9)}
    np.testing.assert_array_equal(Ours().apply({}, X, rngs=rngs), Theirs().apply({}, X, rngs=rngs))


def test_a_rate_per_lane_under_vmap_and_grad():
    def lane(rate, x):
        return jax.value_and_grad(lambda x: Dropout(rate, rngs=nnx.Rngs(0))(x).sum())(x)

    rates = jnp.array([0.0, 0.3, 1.0])
    values, grads = jax.jit(jax.vmap(lane, (0, None)))(rates, X)
    np.testing.assert_array_equal(grads[0], np.ones_like(X))
    np.testing.assert_array_equal(grads[2], np.zeros_like(X))
    assert abs((np.asarray(grads[1]) > 0).mean() - 0.7) < 0.03
    assert np.isfinite(values).all()


def test_modes_and_state():
    class Net(nnx.Module):
        def __init__(self, rate):
            self.drop = Dropout(rate, rngs=nnx.Rngs(0))

    net = Net(jnp.float32(0.5))
    kinds = {type(v) for v in jax.tree.leaves(nnx.state(net), is_leaf=lambda v: isinstance(v, nnx.Variable))}
    assert all(issubclass(kind, nnx.Variable) for kind in kinds)  # the random stream; not the rate
    net.eval()
    np.testing.assert_array_equal(net.drop(X), X)
    net.train()
    assert (np.asarray(net.drop(X)) == 0).any()
    with pytest.raises(ValueError, match="rngs"):
        Dropout(0.5)(X)


def test_linen_rates_zero_and_one():
    apply = jax.jit(
        lambda rate: LinenDropout(rate).apply({}, X, deterministic=False, rngs={"dropout": jax.random.key(0)})
    )
    np.testing.assert_array_equal(apply(0.0), X)
    np.testing.assert_array_equal(apply(1.0), np.zeros_like(X))
