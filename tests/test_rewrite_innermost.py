"""Convolutional layers with the examples innermost: the model as it is written is the oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from rewritten import normal

import vmaptune as vt
from vmaptune.rewrite import find_convolutions, fit_for_cpu, with_fast_convolutions
from vmaptune.rewrite._choose import Choice, examples_belong_innermost
from vmaptune.rewrite._products import long_products_as_they_are_used

KERNELS = {1: "NWC", 2: "NHWC", 3: "NDHWC"}


def conv(x, kernel, stride=1):
    n = x.ndim - 2
    letters = "DHW"[3 - n :]
    return lax.conv_general_dilated(
        x, kernel, (stride,) * n, "SAME", dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C")
    )


def kernels(x, channels=5):
    spatial = (3,) * (x.ndim - 2)
    return [normal(1, *spatial, x.shape[-1], channels), normal(2, *spatial, channels, channels), normal(3, channels)]


def pooled(x, operator, start):
    window = (1, *(2,) * (x.ndim - 2), 1)
    return lax.reduce_window(x, start, operator, window, window, "VALID")


def over_examples(x):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-3)


# What lies between two convolutions: arrays of [examples, *spatial, 5].
BETWEEN = {
    "a bias and relu": lambda x, b: jax.nn.relu(x + b),
    "other activations": lambda x, b: jax.nn.gelu(x) + jax.nn.silu(x * b) + jax.nn.elu(x),
    "maximum pooling": lambda x, b: pooled(x, lax.max, -jnp.inf),
    "average pooling": lambda x, b: pooled(x, lax.add, 0.0) / 4,
    "normalised over examples": lambda x, b: over_examples(x) * b,
    "normalised over channels": lambda x, b: (x - x.mean(-1, keepdims=True)) * b,
    "a residual": lambda x, b: x + jnp.tanh(x) * b,
    "gates of channels": lambda x, b: x * jax.nn.sigmoid(x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)),
    "channels side by side": lambda x, b: jnp.concatenate([x[..., :2], jnp.sin(x), x], -1)[..., 3:8],
    "padding": lambda x, b: jnp.pad(x, [(0, 0), *[(1, 0)] * (x.ndim - 2), (0, 0)]),
    "a mask of numbers": lambda x, b: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0.0),
    "a choice by the sign": lambda x, b: jnp.where(x > b, x, jnp.exp(-x)),
    "examples against each other": lambda x, b: x - x.max(0) + x[::-1],
    "clipped": lambda x, b: jnp.clip(x, -1.0, 1.0),
    "in a scan": lambda x, b: lax.scan(lambda c, _: (jnp.cos(c) + b, None), x, length=2)[0],
    "kept for the gradient": lambda x, b: jax.checkpoint(lambda y: jnp.sin(y) * b)(x),
    "whole numbers": lambda x, b: x * (jnp.floor(x).astype(jnp.int32) % 2).astype(jnp.float32),
}  # fmt: skip


def model_with(between, x):
    def model(first, second, bias):
        hidden = between(conv(x, first), bias)
        return jnp.sin(conv(hidden, second, 2)).mean(tuple(range(1, x.ndim - 1)))

    return model


def with_gradients(function, *args):
    """Values, and gradients both ways."""

    def loss(*args):
        out = function(*args)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    grads, out = jax.grad(loss, range(len(args)), has_aux=True)(*args)
    return out, grads, jax.jvp(function, args, tuple(jnp.cos(a) for a in args))[1]


def assert_close(new, old):
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * max(1.0, float(jnp.abs(b).max())))


def innermost(_):
    return "innermost"


@pytest.mark.parametrize("between", BETWEEN, ids=lambda name: name.replace(" ", "_"))
def test_a_model_equals_itself(between):
    x = normal(0, 16, 6, 7, 2)
    model = model_with(BETWEEN[between], x)
    weights = kernels(x)
    old = jax.jit(lambda *a: with_gradients(model, *a))(*weights)
    new = jax.jit(lambda *a: with_gradients(with_fast_convolutions(model, innermost), *a))(*weights)
    assert_close(new, old)


@given(st.integers(1, 3), st.integers(1, 17), st.integers(1, 3), st.integers(3, 6), st.sampled_from(sorted(BETWEEN)))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_shape(spatial, examples, channels, size, between):
    x = normal(4, examples, *(size + i for i in range(spatial)), channels)
    if spatial == 2 or "pool" not in between:
        model = model_with(BETWEEN[between], x)
        old = jax.jit(lambda *a: with_gradients(model, *a))(*kernels(x))
        new = jax.jit(lambda *a: with_gradients(with_fast_convolutions(model, innermost), *a))(*kernels(x))
        assert_close(new, old)


def transposed_shapes(jaxpr):
    """The shapes of all arrays of four axes that are transposed."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "transpose" and eqn.invars[0].aval.ndim == 4:
            found.append(eqn.invars[0].aval.shape)
        for value in eqn.params.values():
            if hasattr(getattr(value, "jaxpr", None), "eqns"):
                found += transposed_shapes(value.jaxpr)
    return found


@pytest.mark.parametrize(
    "between", ["a bias and relu", "maximum pooling", "average pooling", "normalised over examples", "a residual"]
)
def test_between_two_layers_nothing_is_transposed(between):
    x = normal(0, 16, 6, 6, 2)
    fast = with_fast_convolutions(model_with(BETWEEN[between], x), innermost)
    moved = [shape for shape in transposed_shapes(jax.make_jaxpr(fast)(*kernels(x)).jaxpr) if shape[0] == 16]
    assert moved == [x.shape]  # and kernels, which are small


def test_a_layer_of_each_kind_by_hand():
    x = jnp.arange(2.0 * 3 * 16).reshape(16, 3, 2)
    kernel = jnp.array([[[1.0], [10.0]]])  # one position: a sum of channels

    def model(kernel):
        return jax.nn.relu(lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        ) - 900)  # fmt: skip

    found = with_fast_convolutions(model, innermost)(kernel)
    np.testing.assert_array_equal(found[..., 0], np.maximum(x[..., 0] + 10 * x[..., 1] - 900, 0))


class Net(nnx.Module):
    def __init__(self, rngs, channels=8, kernel=3):
        self.first = nnx.Conv(1, channels, (kernel, kernel), rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.second = nnx.Conv(channels, channels, (kernel, kernel), rngs=rngs)
        self.last = nnx.Linear(channels * 4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm(self.first(x))), (2, 2), strides=(2, 2))
        x = nnx.avg_pool(nnx.relu(self.second(x)), (2, 2), strides=(2, 2))
        return self.last(x.reshape(x.shape[0], -1))


def shapes_of(examples=16, **sizes):
    net = Net(nnx.Rngs(0), **sizes)
    net.eval()
    return find_convolutions(jax.make_jaxpr(net)(normal(0, examples, 8, 8, 1)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's heuristic")
def test_the_heuristic_takes_small_layers_and_batches_that_fill_vectors():
    assert examples_belong_innermost(shapes_of())
    assert not examples_belong_innermost(shapes_of(channels=32))
    assert not examples_belong_innermost(shapes_of(kernel=1))
    assert not examples_belong_innermost(shapes_of(examples=8))
    assert not examples_belong_innermost([])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a CPU's heuristic")
def test_what_a_model_was_given_stays():
    shapes = shapes_of()
    fresh = Choice()
    assert fresh.of_model(shapes) == "innermost"
    assert set(fresh.chosen.values()) == {"innermost"}
    before = Choice()
    before.chosen |= {str(shape): "im2col" for shape in shapes}
    assert before.of_model(shapes) == "im2col"
    mixed = Choice()
    mixed.chosen[str(shapes[0])] = "innermost"
    assert mixed.of_model(shapes) is None
    assert mixed(shapes[0]) == "im2col"  # of a model of which one layer alone would lie so


def test_a_convolution_out_of_reach_leaves_the_model_as_it_was():
    x, kernel = normal(0, 16, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def model(kernel):
        return lax.scan(lambda c, _: (conv(c, kernel), None), conv(x, kernel, 1), length=2)[0]

    choice = Choice()
    assert_close(with_fast_convolutions(model, choice)(kernel), model(kernel))
    assert "innermost" not in choice.chosen.values()


def experiment():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 64)

    def loss(model, batch):
        return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()

    return vt.Experiment(
        space={"learning_rate": vt.loguniform(1e-3, 1e-2)},
        model=lambda hp, rngs: Net(rngs),
        optimizer=lambda hp, steps: optax.adam(hp.learning_rate),
        loss=loss,
        data=vt.Data(train={"x": x, "y": y}, valid={"x": x[:16], "y": y[:16]}),
        objective="loss",
        batch_size=16,
        steps=6,
    )


def test_a_study_trains_so_and_says_so(tmp_path):
    study = vt.run(experiment(), trials=6, rounds=1, out=tmp_path / "s", seed=3)
    (row,) = study.ledger.groups()
    assert set(row.info["convolutions"].values()) == {"innermost"}
    alone = vt.run(experiment(), trials=6, rounds=1, out=tmp_path / "t", seed=3, plan="devices=1,tiles=6,lanes=1")
    for a, b in zip(study.trials(), alone.trials(), strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-3)


def test_long_products_come_out_as_they_are_used():
    g, w = normal(0, 4, 700), normal(1, 4, 9)

    def used(g, w):
        return jnp.sin(lax.dot_general(g, w, (((0,), (0,)), ((), ()))).T)

    def twice(g, w):
        out = lax.dot_general(g, w, (((0,), (0,)), ((), ())))
        return out.sum(0) + out.T.sum(1)

    for function, transposes in ((used, 0), (jax.jit(used), 0), (twice, 1)):
        old = jax.make_jaxpr(function)(g, w)
        new = long_products_as_they_are_used(old.jaxpr)
        assert str(new).count("transpose[") == transposes
        (out,) = jax.core.eval_jaxpr(new, old.consts, g, w)
        np.testing.assert_allclose(out, function(g, w), rtol=1e-5, atol=1e-5)
        (out,) = jax.core.eval_jaxpr(fit_for_cpu(old.jaxpr), old.consts, g, w)
        np.testing.assert_allclose(out, function(g, w), rtol=1e-5, atol=1e-5)
    small = jax.make_jaxpr(lambda g, w: used(g[:, :30], w))(g, w).jaxpr
    assert long_products_as_they_are_used(small) is small


def ruled(rule):
    """Twice an array, with a rule of differentiation."""

    @jax.custom_jvp
    def double(x):
        return 2 * x

    double.defjvp(lambda primals, tangents: (double(primals[0]), rule(primals[0], tangents[0])))
    return double


RATES = normal(9, 5)
RULES = {
    "of each number": lambda x, t: t * jnp.cos(x),
    "centred over the batch": lambda x, t: t - t.mean(0),
    "a rate of each channel": lambda x, t: t * RATES,
    "a rate of each place": lambda x, t: t * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),
    "in another rule": lambda x, t: ruled(lambda x, t: t - t.mean(0))(x) * t,
    "of another example": lambda x, t: t[::-1],
}


@pytest.mark.parametrize("rule", RULES, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("order", [1, 2])
def test_a_rule_of_differentiation_is_given_the_array_as_the_model_has_it(rule, order):
    x = normal(0, 16, 6, 7, 2)
    double = ruled(RULES[rule])
    model = model_with(lambda h, b: double(h) * h + b, x)

    def differentiated(function):
        def loss(*weights):
            return (function(*weights) ** 2).sum()

        if order == 1:
            return jax.grad(loss, (0, 1, 2))
        return lambda *weights: jax.jvp(jax.grad(loss, (0, 1, 2)), weights, weights)

    new, old = (jax.jit(differentiated(f))(*kernels(x)) for f in (with_fast_convolutions(model, innermost), model))
    assert_close(new, old)


@pytest.mark.parametrize("window", [(1, 2, 2, 1), (1, 2, 2, 2), (2, 1, 2, 1), (2, 2, 1, 5), (1, 1, 1, 5)])
def test_a_pooling_of_ties_follows_the_first_of_them(window):
    """Relu makes exact ties of zeros, and rounding some of other numbers; the gradient goes to XLA's choice."""
    x = normal(0, 16, 6, 6, 2)

    def model(first, second, bias):
        h = conv(x, first)
        h = jax.nn.relu(h + lax.stop_gradient(jnp.round(h) - h))  # rounded, with the gradient of what isn't
        pooled = lax.reduce_window(h, -jnp.inf, lax.max, window, window, "VALID")
        return (pooled * jnp.sin(jnp.arange(pooled.size)).reshape(pooled.shape)).sum() + conv(h, second).mean()

    new, old = (jax.grad(f)(*kernels(x)) for f in (with_fast_convolutions(model, innermost), model))
    np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)


def test_a_transposition_that_is_none_leaves_a_long_product():
    """JAX leaves out such a one, other code may not."""
    g, w = normal(0, 4, 700), normal(1, 4, 9)
    closed = jax.make_jaxpr(lambda g, w: lax.dot_general(g, w, (((0,), (0,)), ((), ()))).T.T)(g, w)
    product, first, second = closed.jaxpr.eqns
    same = first.replace(outvars=second.outvars, params={**first.params, "permutation": (0, 1)})
    jaxpr = closed.jaxpr.replace(eqns=[product, same])
    assert long_products_as_they_are_used(jaxpr) is jaxpr
