"""Sums and maxima along rows: NumPy in double precision is the oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from rewritten import fitted, in_64_bits, normal

from vmaptune.rewrite import fit_for_cpu
from vmaptune.rewrite._reductions import product_with_ones

OURS = ("sum_of_rows", "sum_over_rows", "sum_of_all", "extreme_of_rows")


def ours(jaxpr):
    """Which of our reductions a jaxpr holds."""
    return [name for name in OURS if name in str(jaxpr)]


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=3), axes=st.sets(st.integers(0, 2), min_size=1),
       name=st.sampled_from(["sum", "max", "min"]), lanes=st.integers(1, 3))  # fmt: skip
def test_any_reduction_is_numpy_s(shape, axes, name, lanes):
    axes = tuple(sorted({axis % len(shape) for axis in axes}))
    x = normal(sum(shape), lanes, *shape)
    call, _ = fitted(lambda x: getattr(jnp, name)(x, axes), x[0], compiled_products=True)
    expected = getattr(np, name)(np.asarray(x, np.float64), tuple(axis + 1 for axis in axes))
    got = jax.vmap(call)(x)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.prod(shape) ** 0.5)


@pytest.mark.parametrize(
    ("shape", "axes", "name", "expected"),
    [
        ((4, 64), (1,), "sum", ["sum_of_rows"]),
        ((4, 8, 8), (1, 2), "sum", ["sum_of_rows"]),
        ((8, 8, 32), (0, 1), "sum", ["sum_over_rows"]),
        ((64, 64), (0, 1), "sum", ["sum_of_all"]),
        ((5, 33), (1,), "max", ["extreme_of_rows"]),
        ((5, 512), (1,), "min", ["extreme_of_rows"]),
        ((5, 513), (1,), "max", []),  # a long chain of pieces
        ((64, 10), (1,), "sum", []),  # short rows, as of ten classes
        ((64, 10), (1,), "max", []),
        ((64, 32), (0,), "sum", []),  # whole vectors already
        ((8, 8, 4), (0, 1), "sum", []),
        ((8, 3, 32), (0, 2), "sum", []),
        ((100,), (0,), "sum", []),  # one number
        ((31, 77), (0, 1), "sum", []),  # no number of columns that fills vectors
    ],
)
def test_what_is_exchanged(shape, axes, name, expected):
    x = normal(0, *shape)
    call, jaxpr = fitted(lambda x: getattr(jnp, name)(x, axes), x, compiled_products=True)
    assert ours(jaxpr) == expected
    np.testing.assert_allclose(call(x), getattr(np, name)(np.asarray(x, np.float64), axes), rtol=1e-5, atol=1e-4)


def test_reductions_that_keep_axes_of_length_one_have_xla_s_shape():
    """A batch norm of one channel, an attention over times and Muon's norm of a matrix, as people write them."""
    images, scores, w = normal(0, 64, 8, 8, 1), normal(1, 16, 20, 1), normal(2, 64, 32)
    state = optax.contrib.muon(0.1).init(w)

    def muon(w):
        return optax.contrib.muon(0.1).update(jnp.sin(w), state, w)[0]

    for function, x in (
        (lambda x: nnx.BatchNorm(1, rngs=nnx.Rngs(0))(x), images),
        (lambda s: jax.nn.softmax(s, axis=1), scores),
        (muon, w),
    ):
        call, jaxpr = fitted(function, x, compiled_products=True)
        assert ours(jaxpr)
        np.testing.assert_allclose(jax.jit(call)(x), jax.jit(function)(x), rtol=1e-3, atol=1e-4)


def test_nothing_is_exchanged_where_xla_calls_its_library():
    """Which reduces rows fast, and fuses what comes before."""
    x = normal(0, 8, 8, 32)
    for axes in ((0, 1), (2,)):
        assert not ours(fit_for_cpu(jax.make_jaxpr(lambda x, axes=axes: jnp.sum(x, axes))(x).jaxpr))


def test_other_types_stay():
    for x in (jnp.arange(64).reshape(2, 32), jnp.ones((2, 32), jnp.bfloat16), jnp.ones((2, 32), bool)):
        _, jaxpr = fitted(lambda x: lax.reduce_max(x, (1,)), x, compiled_products=True)
        assert not ours(jaxpr)


@pytest.mark.parametrize("size", [17, 31, 32, 48, 100])
@pytest.mark.parametrize("name", ["max", "min"])
def test_an_extreme_is_exact_wherever_it_lies_and_keeps_what_is_not_finite(name, size):
    """Every place of a row holds the extreme once; the oracle is NumPy's, to the bit."""
    x = np.array(normal(size, size, size))
    np.fill_diagonal(x, 9 if name == "max" else -9)
    x = np.concatenate([x, np.full((1, size), -np.inf), np.full((1, size), np.inf), x[:1]])
    x[-1, size // 2] = np.nan
    call, jaxpr = fitted(lambda x: getattr(jnp, name)(x, 1), jnp.asarray(x), compiled_products=True)
    assert ours(jaxpr) == ["extreme_of_rows"]
    np.testing.assert_array_equal(call(jnp.asarray(x)), getattr(np, name)(x, 1))


@pytest.mark.parametrize("rows", [True, False])
def test_a_sum_is_each_lane_s_own(rows):
    x, axis = normal(0, 5, 10, 32), 2 if rows else 1

    def call(x):
        return product_with_ones(x, rows)

    together = jax.jit(jax.vmap(call))(x)
    np.testing.assert_allclose(together, x.sum(axis), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(call(x[0]), x[0].sum(axis - 1), rtol=1e-5, atol=1e-5)
    spoilt = jax.jit(jax.vmap(call))(x.at[1].set(jnp.nan).at[2, 0, 0].set(jnp.inf))
    assert np.isnan(spoilt[1]).all()
    np.testing.assert_array_equal(np.delete(spoilt, (1, 2), 0), np.delete(together, (1, 2), 0))
    assert np.isposinf(spoilt[2, 0])
    few = jax.jit(jax.vmap(call))(x[2:4])
    np.testing.assert_array_equal(few, together[2:4])


def test_a_layer_norm_and_an_attention_hold_no_reduction_along_rows_after_differentiation():
    x, w = normal(1, 4, 32, 32), normal(2, 32, 32)

    def loss(w, x):
        h = x @ w
        h = (h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-6)
        return jnp.sum(jax.nn.softmax(h @ h.swapaxes(1, 2)) ** 2)

    closed = jax.make_jaxpr(jax.grad(loss))(w, x)
    jaxpr = fit_for_cpu(closed.jaxpr, compiled_products=True)
    (got,) = jax.core.eval_jaxpr(jaxpr, closed.consts, w, x)
    assert set(ours(jaxpr)) == {"sum_of_rows", "extreme_of_rows", "sum_of_all"}
    with in_64_bits():
        expected = jax.grad(loss)(jnp.asarray(np.asarray(w, np.float64)), jnp.asarray(np.asarray(x, np.float64)))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
