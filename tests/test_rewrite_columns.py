"""Rows of a few entries laid column by column: the function itself is the oracle, XLA's layouts show the effect."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from rewritten import normal

import vmaptune as vt
from vmaptune.rewrite import fit_for_cpu, weights_in_columns, with_fast_convolutions
from vmaptune.rewrite._columns import short_rows_in_columns
from vmaptune.rewrite._walk import inner_jaxprs


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


def largest(*arrays):
    """What makes each of them wanted in columns."""
    return sum(jnp.max(a, -1).sum() * i for i, a in enumerate(arrays, 1))


def pair(x):
    return jnp.sin(x), jnp.cos(2 * x)


@jax.custom_vjp
def of_own(x):
    return pair(x)


of_own.defvjp(lambda x: (pair(x), x), lambda x, g: (3 * g[0] - g[1] * x,))


@jax.custom_jvp
def with_rule(x):
    return pair(x)


with_rule.defjvp(lambda x, t: (pair(x[0]), (t[0] * 2, -t[0])))


def two_carries(x):
    return lax.scan(lambda c, t: ((c[1] * t, c[0] + 1), c), pair(x), jnp.arange(1.0, 4))[0]


# Each gives two arrays of one shape as the results of one equation.
PAIRS = {
    "split": lambda x: jnp.split(jnp.concatenate(pair(x), 1), 2, 1),
    "jitted": jax.jit(pair),
    "checkpointed": jax.checkpoint(pair),
    "a scan's carries": two_carries,
    "a scan's results": lambda x: lax.scan(lambda c, t: (c, pair(c * t)), x, jnp.arange(3.0))[1],
    "a loop's carries": lambda x: lax.fori_loop(0, 3, lambda i, c: (c[1] * 0.9, c[0] + i), pair(x)),
    "a while's carries": lambda x: lax.while_loop(lambda c: c[0].max() < 9, lambda c: (c[0] + 1, -c[1]), pair(x)),
    "a branch's": lambda x: lax.cond(x[0, 0] > 0, pair, lambda x: pair(-x)[::-1], x),
    "sorted by another": lambda x: lax.sort(pair(x), dimension=0, num_keys=1),
    "of a custom_vjp": of_own,
    "of a custom_jvp": with_rule,
    "behind a barrier": lambda x: lax.optimization_barrier(pair(x)),
    "three of one": lambda x: jnp.split(jnp.concatenate((*pair(x), x), 1), 3, 1),
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_results_of_one_equation_stay_apart(form):
    """Plain JAX is the oracle, of values and, where it has them, gradients."""
    x = normal(0, 24, 10)

    def heads(x):
        return largest(*PAIRS[form](x))

    backward = heads if form.startswith("a while") else jax.value_and_grad(heads)
    for rewrite in (short_rows_in_columns, fit_for_cpu, lambda jaxpr: fit_for_cpu(jaxpr, compiled_products=True)):
        closed = jax.make_jaxpr(backward)(x)
        got = jax.jit(
            lambda x, closed=closed, rewrite=rewrite: jax.core.eval_jaxpr(rewrite(closed.jaxpr), closed.consts, x)
        )(x)
        for a, b in zip(got, jax.tree.leaves(jax.jit(backward)(x)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert "layout_constraint" in str(short_rows_in_columns(jax.make_jaxpr(heads)(x).jaxpr))
    got, expected = (jax.jit(jax.vmap(f))(jnp.stack([x, 2 * x, -x])) for f in (with_fast_convolutions(heads), heads))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_no_variable_is_defined_twice():
    x = normal(0, 24, 10)

    def heads(x):
        return sum(largest(*function(x)) for function in PAIRS.values())

    def check(jaxpr):
        results = [v for eqn in jaxpr.eqns for v in eqn.outvars]
        assert len(results) == len(set(results))
        for eqn in jaxpr.eqns:
            for inner in inner_jaxprs(eqn):
                check(inner)

    check(short_rows_in_columns(jax.make_jaxpr(jax.jit(heads))(x).jaxpr))


def test_a_study_of_two_heads_trains_both(tmp_path):
    """A plain Flax and Optax loop is the oracle."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, 16)).astype(np.float32)
    y = np.stack([(x @ rng.normal(size=(16, 10))).argmax(1) for _ in range(2)], 1)

    def logits(model, x):
        return jnp.split(model(x), 2, axis=-1)

    def loss(model, batch):
        heads = zip(logits(model, batch["x"]), (batch["y"][:, 0], batch["y"][:, 1]), strict=True)
        return sum(optax.softmax_cross_entropy_with_integer_labels(h, y).mean() for h, y in heads)

    def metrics(model, batch):
        first, second = logits(model, batch["x"])
        wrong = (first.argmax(-1) != batch["y"][:, 0]), (second.argmax(-1) != batch["y"][:, 1])
        return {"first": wrong[0].mean(), "second": wrong[1].mean(), "loss": loss(model, batch)}

    study = vt.run(
        vt.Experiment(
            space={"rate": vt.loguniform(1e-2, 2e-2)}, model=lambda hp, rngs: nnx.Linear(16, 20, rngs=rngs),
            optimizer=lambda hp, steps: optax.adam(hp.rate), loss=loss, metrics=metrics,
            data=vt.Data(train={"x": x, "y": y}, valid={"x": x, "y": y}), objective="loss", batch_size=160, steps=80,
        ), trials=4, rounds=1, out=tmp_path / "s",
    )  # fmt: skip
    for row in study.trials():
        model = nnx.Linear(16, 20, rngs=nnx.Rngs(jax.random.fold_in(jax.random.key(row.seed), 0)))
        optimizer, batch = nnx.Optimizer(model, optax.adam(row.params["rate"]), wrt=nnx.Param), {"x": x, "y": y}
        step = nnx.jit(lambda model, optimizer, batch: optimizer.update(model, nnx.grad(loss)(model, batch)))
        for _ in range(80):
            step(model, optimizer, batch)
        expected = metrics(model, batch)
        assert expected["first"] < 0.2
        assert row.metrics["first"] == pytest.approx(float(expected["first"]), abs=0.01)
        assert row.value == pytest.approx(float(expected["loss"]), rel=1e-3)
