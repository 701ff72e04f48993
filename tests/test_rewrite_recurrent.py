"""Gradients that a loop over time adds up: the jaxpr as traced is the oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from rewritten import fitted, normal

from vmaptune.rewrite import fit_for_cpu
from vmaptune.rewrite._recurrent import _counts

NAME = "sums_after_loop"


def scans(jaxpr):
    """The scans of a jaxpr and of what it calls, from outside to inside."""
    found = []
    for eqn in jaxpr.eqns:
        found += [eqn] if eqn.primitive.name == "scan" else []
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            found += scans(inner) if hasattr(inner, "eqns") else []
    return found


def recurrent(w, v, b, h, xs, reverse=False):
    """The sum over time of a plain recurrent network's squared states; xs [T, B, D]."""

    def step(h, x):
        h = jnp.tanh(h @ w + x @ v + b)
        return h, jnp.sum(h**2)

    return jnp.sum(lax.scan(step, h, xs, reverse=reverse)[1])


@settings(max_examples=6, deadline=None)
@given(times=st.integers(1, 6), examples=st.integers(1, 4), units=st.integers(8, 24), inputs=st.integers(8, 24),
       reverse=st.booleans(), lanes=st.integers(1, 3))  # fmt: skip
def test_gradients_of_any_recurrent_network_are_equal(times, examples, units, inputs, reverse, lanes):
    args = (0.3 * normal(0, lanes, units, units), 0.3 * normal(1, lanes, inputs, units), normal(2, lanes, units),
            normal(3, lanes, examples, units), normal(4, lanes, times, examples, inputs))  # fmt: skip
    gradient = jax.grad(lambda *args: recurrent(*args, reverse=reverse), argnums=range(5))
    call, jaxpr = fitted(gradient, *(a[0] for a in args), compiled_products=True)
    assert (NAME in str(jaxpr)) == (units >= 4 * examples or units * inputs >= 2 * examples * (units + inputs))
    for got, expected in zip(jax.jit(jax.vmap(call))(*args), jax.vmap(gradient)(*args), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cell", [nnx.SimpleCell, nnx.LSTMCell, nnx.GRUCell])
def test_flax_cells_carry_no_gradient_of_weights_through_time(cell):
    model = nnx.RNN(cell(16, 32, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = normal(1, 4, 9, 16)
    start = model.cell.initialize_carry((4, 16), nnx.Rngs(0))

    def loss(params):
        return jnp.sum(nnx.merge(graph, params, rest)(x, initial_carry=start) ** 2)

    call, jaxpr = fitted(jax.grad(loss), params, compiled_products=True)
    carried = [v.aval.shape for eqn in scans(jaxpr) for v in eqn.outvars[: _counts(eqn)[1]]]
    assert carried
    assert all(4 in shape for shape in carried), carried  # states of four examples, no weights
    got, expected = (jax.tree.leaves(f(params)) for f in (jax.jit(call), jax.jit(jax.grad(loss))))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_loop_in_a_loop_and_a_branch_are_reached():
    w, v, b, h = 0.3 * normal(0, 16, 16), 0.3 * normal(1, 16, 16), normal(2, 16), normal(3, 2, 16)
    xs = normal(4, 3, 5, 2, 16)

    @jax.jit
    def gradients(w, v):
        def step(total, x):
            g = jax.grad(lambda w: lax.cond(jnp.sum(x) > -1e9, recurrent, lambda *a: 0.0, w, v, b, h, x))(w)
            return total + g, None

        return lax.scan(step, jnp.zeros_like(w), xs)[0]

    call, jaxpr = fitted(gradients, w, v, compiled_products=True)
    assert NAME in str(jaxpr)
    np.testing.assert_allclose(call(w, v), gradients(w, v), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("what", ["nothing", "before", "after", "product"])
def test_what_is_read_elsewhere_stays_in_the_loop(what):
    """A sum that a step reads or puts out as well has to be there at each step."""
    closed = jax.make_jaxpr(jax.grad(lambda x: jnp.sin(x) * x))(1.0)
    add_any = next(eqn.primitive for eqn in closed.eqns if eqn.primitive.name == "add_any")
    a, b = normal(0, 6, 2, 16), normal(1, 6, 2, 16)

    def summed(w):
        def step(before, ab):
            product = ab[0].T @ ab[1]
            after = add_any.bind(before, product)
            return after, {"nothing": 0.0, "before": before, "after": after, "product": product}[what]

        return lax.scan(step, w, (a, b))

    w = normal(4, 16, 16)
    call, jaxpr = fitted(summed, w, compiled_products=True)
    assert (NAME in str(jaxpr)) == (what == "nothing")
    for got, expected in zip(call(w), summed(w), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_matrix_that_is_small_beside_its_factors_stays_in_the_loop():
    shapes = [(16, 16), (16, 16), (16,), (40, 16), (6, 40, 16)]
    closed = jax.make_jaxpr(jax.grad(recurrent))(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    assert NAME not in str(fit_for_cpu(closed.jaxpr, compiled_products=True))


def test_many_rows_stay_in_the_loop():
    """A product of very many rows would leave the cache; XLA's library takes none that contracts the rows of both."""
    for times, wanted in ((1024, True), (1025, False)):
        shapes = [(32, 32), (32, 32), (32,), (4, 32), (times, 4, 32)]
        closed = jax.make_jaxpr(jax.grad(recurrent))(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        assert (NAME in str(fit_for_cpu(closed.jaxpr, compiled_products=True))) == wanted
        assert NAME not in str(fit_for_cpu(closed.jaxpr))


def test_a_lane_that_diverges_leaves_the_others():
    args = (0.3 * normal(0, 3, 16, 16), 0.3 * normal(1, 3, 16, 16), normal(2, 3, 16), normal(3, 3, 2, 16),
            normal(4, 3, 5, 2, 16))  # fmt: skip
    call, jaxpr = fitted(jax.grad(recurrent), *(a[0] for a in args), compiled_products=True)
    assert NAME in str(jaxpr)
    together = jax.jit(jax.vmap(call))(*args)
    spoilt = jax.jit(jax.vmap(call))(args[0].at[1].set(jnp.nan), *args[1:])
    assert np.isnan(spoilt[1]).any()
    np.testing.assert_array_equal(np.delete(spoilt, 1, 0), np.delete(together, 1, 0))
