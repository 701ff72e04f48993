"""Rows of a few entries laid column by column: the function itself is the oracle, XLA's layouts show the effect."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import normal

from vmaptune.rewrite import fit_for_cpu, weights_in_columns, with_fast_convolutions
from vmaptune.rewrite._columns import short_rows_in_columns


def constrained(function, *args) -> list[tuple[int, ...]]:
    """The shapes of the arrays that are laid column by column, in inner jaxprs as well."""
    text = str(short_rows_in_columns(jax.make_jaxpr(function)(*args).jaxpr))
    return [tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\] = layout_constraint", text)]


def loss(w, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jnp.tanh(x @ w), y).mean()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 40), classes=st.integers(2, 20), lanes=st.integers(1, 4))
def test_a_loss_and_its_gradient_are_the_same(rows, classes, lanes):
    x, w = normal(0, rows, 6), normal(1, lanes, 6, classes)
    y = jnp.arange(rows) % classes

    def got(w):
        return jax.value_and_grad(lambda w: with_fast_convolutions(loss)(w, x, y))(w)

    values, gradients = jax.jit(jax.vmap(got))(w)
    expected = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(0, None, None)))(w, x, y)
    np.testing.assert_allclose(values, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradients, expected[1], rtol=1e-4, atol=1e-6)
    assert ("layout_constraint" in str(jax.make_jaxpr(got)(w[0]))) == (classes <= min(rows, 16))


def test_the_exponentials_of_all_lanes_lie_with_the_examples_innermost():
    x, w, y = normal(0, 64, 6), normal(1, 3, 6, 10), jnp.zeros(64, jnp.int32)

    def layouts(function):
        gradient = jax.grad(lambda w: function(w, x, y))
        text = jax.jit(jax.vmap(gradient)).lower(w).compile().as_text()
        return set(re.findall(r"f32\[3,64,10\]\{([\d,]+)\} exponential", text))

    assert layouts(with_fast_convolutions(loss)) == {"1,2,0"}
    assert layouts(loss) == {"2,1,0"}


def test_rows_that_fill_vectors_and_few_of_them_stay_as_they_are():
    assert constrained(lambda x: jax.nn.softmax(x + 1), normal(0, 64, 10)) == [(64, 10)]
    assert constrained(lambda x: jax.nn.softmax(x + 1), normal(0, 4, 64, 10)) == [(4, 64, 10)]
    assert constrained(lambda x: jax.nn.softmax(x + 1), normal(0, 64, 96)) == []  # a vocabulary
    assert constrained(lambda x: jax.nn.softmax(x + 1), normal(0, 8, 10)) == []
    assert constrained(lambda x: jax.nn.softmax(x + 1), normal(0, 10)) == []
    assert constrained(lambda x: jax.nn.softmax(x + 1, axis=0), normal(0, 10, 64)) == []  # in columns already
    assert constrained(lambda x: (x + 1).argmax(-1), normal(0, 64, 10)) == [(64, 10)]
    assert constrained(jax.nn.softmax, normal(0, 64, 10)) == []  # an argument lies as its caller has it
    assert constrained(lambda: jnp.max(jnp.ones((64, 10)), -1)) == [(64, 10)]


def test_an_array_is_found_through_calls_and_in_loops():
    inner = jax.jit(lambda x: jnp.max(x, -1))

    def loops(x):
        return jax.lax.scan(lambda x, _: (x - inner(2 * x)[:, None], None), x, length=3)[0]

    assert constrained(lambda x: inner(jnp.exp(x)), normal(0, 64, 10)) == [(64, 10)]
    assert constrained(jax.checkpoint(lambda x: inner(jnp.exp(x))), normal(0, 64, 10)) == [(64, 10)]
    assert constrained(loops, normal(0, 64, 10)) == [(64, 10)]
    closed = jax.make_jaxpr(loops)(normal(0, 64, 10))
    got = jax.core.eval_jaxpr(short_rows_in_columns(closed.jaxpr), closed.consts, normal(0, 64, 10))
    np.testing.assert_allclose(got[0], loops(normal(0, 64, 10)), rtol=1e-6)


def test_what_lies_in_columns_is_left_alone():
    x, w, y = normal(0, 64, 6), normal(1, 6, 10), jnp.zeros(64, jnp.int32)
    gradient = jax.make_jaxpr(jax.grad(with_fast_convolutions(loss)))(w, x, y).jaxpr
    assert str(gradient).count("layout_constraint") == 2  # the logits and their gradient
    assert str(fit_for_cpu(gradient)).count("layout_constraint") == 2
    plain = jax.make_jaxpr(lambda x: x + 1)(x).jaxpr
    assert short_rows_in_columns(plain) is plain


def test_without_layouts_rows_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vmaptune.rewrite._columns.Layout", None)
    assert constrained(lambda x: jax.nn.softmax(x + 1), normal(0, 64, 10)) == []


def test_weights_whose_rows_fill_no_vector_lie_in_columns_in_a_whole_loop():
    tree = {"last": normal(0, 64, 10), "first": normal(1, 64, 32), "narrow": normal(2, 8, 10), "bias": normal(3, 10)}

    def train(laid):
        def body(_, tree):
            return laid(jax.tree.map(lambda x: x - 0.1 * jnp.sqrt(1 + x * x), laid(tree)))

        return jax.jit(lambda tree, n: jax.lax.fori_loop(0, n, body, tree)).lower(tree, 3).compile()

    def carried(program):
        (carry,) = set(re.findall(r"= \((s32\[\].*?)\) while\(", program.as_text()))
        return {(shape, layout) for shape, layout in re.findall(r"f32\[([\d,]+)\]\{([\d,]+)\}", carry)}

    columns, rows = train(weights_in_columns), train(lambda tree: tree)
    assert carried(columns) == {("64,10", "0,1"), ("64,32", "1,0"), ("8,10", "1,0"), ("10", "0")}
    assert ("64,10", "1,0") in carried(rows)
    for name, value in columns(tree, 3).items():
        np.testing.assert_array_equal(value, rows(tree, 3)[name])


def test_keys_and_counts_stay_as_they_are():
    tree = {"n": jnp.int32(3), "words": jnp.ones((64, 10), jnp.uint32), "w": normal(0, 64, 10)}
    for name, value in jax.jit(weights_in_columns)(tree).items():
        np.testing.assert_array_equal(value, tree[name])
