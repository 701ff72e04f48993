"""Training steps with the examples innermost: a plain Optax loop is the oracle, a trial's bits stay its own."""

from __future__ import annotations

import re
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewritten import normal

from vmaptune.engine import functions
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.lanes import Job, Lanes, Paused
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.rewrite import NOTHING, fit_for_cpu, turned, what_to_turn
from vmaptune.task import Task

TRACED = {"rate": jax.ShapeDtypeStruct((), jnp.float32)}
ROWS, INPUTS = 96, 6


X, Y = normal(0, ROWS, INPUTS), jnp.arange(ROWS) % 5


def classifier(params, x):
    *hidden, last = params
    for w, b in hidden:
        x = jnp.tanh(x @ w + b)
    return x @ last[0] + last[1]


def loss_of(params, rows):
    return optax.softmax_cross_entropy_with_integer_labels(classifier(params, X[rows]), Y[rows]).mean()


def task_of(units: tuple[int, ...], examples: int, one_batch: bool = True) -> Task:
    """A classifier of five classes, trained with Adam at the setting `rate`."""
    widths = (INPUTS, *units, 5)

    def init(hp, key):
        keys = jax.random.split(key, len(widths) - 1)
        shapes = list(pairwise(widths))
        params = [(jax.random.normal(k, s) * s[0] ** -0.5, jnp.zeros(s[1])) for k, s in zip(keys, shapes, strict=True)]
        return params, optax.adam(0.1).init(params)

    def step(state, hp, key, rows):
        params, adam = state
        loss, gradient = jax.value_and_grad(loss_of)(params, rows)
        change, adam = optax.adam(hp.rate).update(gradient, adam)
        return (optax.apply_updates(params, change), adam), loss

    def rows_of(seed, done):
        return jax.random.randint(jax.random.fold_in(jax.random.key(seed), done), (examples,), 0, ROWS)

    def shared(done, count):
        return jax.vmap(lambda i: rows_of(7, done + i))(jnp.arange(count))

    def inputs(state, hp, done, count):
        return shared(done, count)

    def evaluate(state, hp):
        return {"loss": loss_of(state[0], jnp.arange(ROWS))}

    given = {"shared": shared} if one_batch else {"inputs": inputs}
    return Task(init, step, evaluate, has_loss=True, **given)


def plain_loop(units, examples, seed, rate, steps):
    """The weights and losses that Optax gives, a step at a time, without anything of the engine but the key."""
    task = task_of(units, examples)
    hp = type("HP", (), {"rate": rate})
    state = task.init(hp, jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 0))
    losses = []
    for t in range(steps):
        state, loss = jax.jit(lambda state, rows: task.step(state, hp, None, rows))(state, task.shared(t, 1)[0])
        losses.append(float(loss))
    return state, losses


def program_of(task, lanes=4, tiles=1, every=5):
    return Program(
        LaneFunctions(task, {}, TRACED), TRACED, Plan(devices=2, lanes=lanes, tiles=tiles, every=every), uneven=False
    )


def train(program, jobs):
    points, states = {}, {}
    lanes = Lanes(
        program, capacity=100,
        on_points=lambda found: [points.setdefault(p.trial, []).append(p) for p in found] and [],
        on_state=lambda job, state: states.__setitem__(job.trial, state),
    )  # fmt: skip
    lanes.train(jobs)
    return points, states, lanes


def job(trial, rate=0.01, steps=10):
    return Job(trial, 100 + trial, {"rate": rate}, steps, keep=True)


def columns_of(task) -> list[tuple[int, ...]]:
    """The shapes of the state's arrays that are held transposed."""
    lane = LaneFunctions(task, {}, TRACED)
    leaves = jax.tree.leaves(lane.state)
    return [leaf.shape for leaf, turned in zip(leaves, lane.step.columns, strict=True) if turned]


@pytest.mark.parametrize(("units", "examples"), [((8,), 32), ((20, 10), 32), ((7, 9), 16), ((3,), 8), ((40,), 48)])
@pytest.mark.parametrize("one_batch", [True, False])
def test_a_turned_step_follows_a_plain_optax_loop(units, examples, one_batch):
    task = task_of(units, examples, one_batch)
    assert columns_of(task)
    points, states, _ = train(program_of(task, every=1), [job(0), job(1, rate=0.03)])
    for trial, rate in ((0, 0.01), (1, 0.03)):
        (expected, _), losses = plain_loop(units, examples, 100 + trial, rate, 10)
        np.testing.assert_allclose([p.loss for p in points[trial]], losses, rtol=2e-5)
        for got, wanted in zip(jax.tree.leaves(states[trial][0]), jax.tree.leaves(expected), strict=True):
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("is_turned", [True, False])
@pytest.mark.parametrize("lanes", [2, 3, 5])
def test_a_trial_has_the_same_bits_in_any_lane_of_a_tile_turned_or_not(lanes, is_turned, monkeypatch):
    """Ten and twenty units: the last rows of a product lie elsewhere in each lane of a tile. Within one plan, that is:
    XLA may compile tiles of two and of four lanes differently, and JAX 0.12's does."""
    if not is_turned:
        monkeypatch.setattr(functions, "what_to_turn", lambda *_: NOTHING)
    task = task_of((20, 10), 32)
    assert bool(columns_of(task)) == is_turned
    program = program_of(task, lanes=lanes, tiles=2)
    expected_points, expected, _ = train(program, [job(3)])
    points, states, _ = train(program, [job(k) for k in reversed(range(4 * lanes))])
    assert [p.loss for p in points[3]] == [p.loss for p in expected_points[3]]
    for a, b in zip(jax.tree.leaves(states[3]), jax.tree.leaves(expected[3]), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_same_trial_has_the_same_bits_in_every_lane_of_a_tile():
    task = task_of((20, 10), 32)
    jobs = [Job(k, 5, {"rate": 0.02}, 10, keep=True) for k in range(10)]
    _, states, _ = train(program_of(task, lanes=5), jobs)
    first = [np.asarray(a).tobytes() for a in jax.tree.leaves(states[0])]
    for k in range(1, 10):
        assert [np.asarray(a).tobytes() for a in jax.tree.leaves(states[k])] == first


def test_weights_and_their_averages_are_held_transposed_and_biases_are_not():
    found = columns_of(task_of((20, 10), 32))
    assert sorted(found) == sorted([(6, 20), (20, 10), (10, 5)] * 3)
    program = program_of(task_of((20, 10), 32), lanes=2)
    shapes = [s.shape for s in program.state_shapes()]
    state, _ = program.run(
        program.empty(), program.table({"rate": np.full(4, 0.01, np.float32)}, np.arange(4), np.full(4, 9), True),
        5, fill=True,
    )  # fmt: skip
    assert [a.shape for a in state] != shapes
    host = program.on_host(state)
    assert [a.shape for a in host] == shapes
    for a, b in zip(program.on_host(program.on_devices(host)), host, strict=True):
        np.testing.assert_array_equal(a, b)
    kept = [np.array(a) for a in host]
    program.run(state, program.table({"rate": np.full(4, 0.01, np.float32)}, np.arange(4), np.full(4, 99)), 5)
    for a, b in zip(host, kept, strict=True):
        np.testing.assert_array_equal(a, b)  # copies: the call took the state's own buffers


def test_a_trial_that_was_paused_goes_on_with_its_own_bits():
    program = program_of(task_of((20, 10), 32, one_batch=True))
    _, expected, _ = train(program, [job(0, steps=20)])
    _, half, _ = train(program, [job(0, steps=10)])
    leaves = (*(np.asarray(a) for a in jax.tree.leaves(half[0])), np.int32(10), np.int32(-1))
    begun = Job(0, 100, {"rate": 0.01}, 20, keep=True, begun=Paused(10, leaves))
    _, states, _ = train(program, [begun])
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(expected[0]), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_products_have_the_examples_as_their_columns():
    task = task_of((20, 10), 32)
    text = str(LaneFunctions(task, {}, TRACED).step.fitted)
    shapes = re.findall(r"f32\[(\d+),(\d+)\] = dot_general", text)
    gradients = {("20", "8"), ("10", "24"), ("5", "16")}  # with columns of zeros
    assert {(m, n) for m, n in shapes if (m, n) not in gradients} == {("20", "32"), ("10", "32"), ("5", "32")}
    assert gradients <= set(shapes)


@pytest.mark.parametrize(("units", "examples"), [
    ((20, 10), 30),  # a row of the batch fills no vectors
    ((64,), 16),  # fewer examples than two vectors, and many units
])  # fmt: skip
def test_what_would_not_pay_is_left_as_it_is(units, examples):
    assert columns_of(task_of(units, examples)) == []


def what(function, *states, one_batch=True):
    """What is turned in the jaxpr of a function whose arguments are a state, returned anew, and a batch."""
    jaxpr = jax.make_jaxpr(function)(*states).jaxpr
    n = len(jaxpr.outvars)
    return what_to_turn(jaxpr, zip(jaxpr.invars[:n], jaxpr.outvars, strict=True), one_batch)


def test_only_products_of_a_batch_and_weights_are_turned():
    w, x = normal(1, 8, 8), normal(2, 32, 8)
    assert what(lambda w, x: w + (x @ w).sum(), w, x) != NOTHING
    assert what(lambda w, x: w - 0.1 * w @ (w.T @ w), w, x) == NOTHING  # of the state alone, as an optimiser's own
    assert what(lambda w, x: w + x.T @ x, w, x) == NOTHING  # of the batch alone
    assert what(lambda w, x: w + (w @ x.T).sum(), w, x) == NOTHING  # a person's own order
    batches = normal(3, 2, 32, 8)
    assert what(lambda w, x: w + (x @ w).sum(), w, batches) == NOTHING  # more axes than two

    def loops(w, x):
        return jax.lax.scan(lambda w, _: (w + (x @ w).sum(), None), w, length=3)[0]

    assert what(loops, w, x) == NOTHING
    assert what(jax.jit(lambda w, x: w + jax.jit(jnp.matmul)(x, w).sum()), w, x) != NOTHING


@settings(max_examples=25, deadline=None)
@given(
    examples=st.sampled_from([8, 16, 40]), inputs=st.integers(1, 9), units=st.integers(1, 17), lanes=st.integers(1, 4),
    alike=st.booleans(), norm=st.booleans(), residual=st.booleans(),
)  # fmt: skip
def test_a_turned_gradient_is_the_same_for_any_shape(examples, inputs, units, lanes, alike, norm, residual):
    def gradient(w, v, x):
        def loss(w, v):
            h = jnp.sin(x @ w)
            if norm:
                h = (h - h.mean(0)) * jax.lax.rsqrt(h.var(1, keepdims=True) + 1)
            h = h + h[::-1] if residual else h
            return jnp.sum((h @ v) ** 2)

        value, (a, b) = jax.value_and_grad(loss, (0, 1))(w, v)
        return w - a, v - b, value

    w, v = normal(1, lanes, inputs, units), normal(2, lanes, units, 3)
    x = normal(3, *(() if alike else (lanes,)), examples, inputs)
    closed = jax.make_jaxpr(gradient)(w[0], v[0], x if alike else x[0])
    states = list(zip(closed.jaxpr.invars[:2], closed.jaxpr.outvars[:2], strict=True))
    found = what_to_turn(closed.jaxpr, states, alike)
    jaxpr, consts = turned(closed.jaxpr, found)
    fitted = fit_for_cpu(jaxpr, compiled_products=True, one_batch=alike)
    assert bool(found.products) == (examples >= min(32, max(units, 3)))

    def call(w, v, x):
        return jax.core.eval_jaxpr(fitted, [*closed.consts, *consts], w, v, x)

    got, expected = (jax.jit(jax.vmap(f, in_axes=(0, 0, None if alike else 0)))(w, v, x) for f in (call, gradient))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_an_embedding_s_gradient_and_own_masks_are_left_as_they_are():
    """What would have to be transposed for it takes as long as turning gains."""
    w, letters = normal(1, 8, 8), normal(2, 5, 8)
    x = normal(3, 32, 8)

    def embedding(w, letters, x):
        rows = jnp.arange(32) % 5
        a, b = jax.grad(lambda w, e: (jnp.tanh(e[rows] @ w) ** 2).sum(), (0, 1))(w, letters)
        return w - a, letters - b

    def dropout(w, x):
        mask = jax.random.bernoulli(jax.random.key(0), 0.5, (32, 8))
        return w - jax.grad(lambda w: (jnp.where(mask, jnp.tanh(x @ w), 0) ** 2).sum())(w)

    assert what(embedding, w, letters, x) == NOTHING
    assert what(dropout, w, x) != NOTHING
    assert what(dropout, w, x, one_batch=False) == NOTHING


LAYERS = {
    "softmax over the batch": lambda h: jax.nn.softmax(h, 0),
    "the largest": lambda h: h * (h == h.max(1, keepdims=True)),
    "the place of the largest": lambda h: h + h.argmax(1)[:, None] + h.argmin(0),
    "a norm of the batch": lambda h: (h - h.mean(0)) / jnp.sqrt(h.var(0) + 0.1),
    "everything": lambda h: h / (1 + jnp.abs(h).sum()),
    "turned by hand": lambda h: (h.T / (1 + jnp.abs(h.T).sum(0))).T,
    "sorted": lambda h: jnp.sort(h, 1),
    "cut and put together": lambda h: jnp.concatenate([h[:, 3:], h[:, :3]], 1),
    "of three axes": lambda h: (h.reshape(h.shape[0], 2, -1) ** 2).reshape(h.shape),
    "in a checkpoint": jax.checkpoint(lambda h: jnp.sin(h) * h),
    "in a loop": lambda h: jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x + h), h),
    "either": lambda h: jax.lax.cond(h.sum() > 0, jnp.sin, jnp.cos, h),
    "a drop": lambda h: jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, h.shape), h, 0),
    "gelu": jax.nn.gelu,
    "a rule of its own": jax.nn.silu,
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("alike", [True, False])
def test_whatever_comes_between_layers_is_computed_the_same(name, alike):
    def step(w, v, x):
        def loss(w, v):
            h = LAYERS[name](x @ w)
            return jnp.sum((LAYERS[name](h @ v)) ** 2)

        value, (a, b) = jax.value_and_grad(loss, (0, 1))(w, v)
        return w - 0.1 * a, v - 0.1 * b, value

    w, v = normal(1, 3, 6, 12), normal(2, 3, 12, 8)
    x = normal(3, *(() if alike else (3,)), 32, 6)
    closed = jax.make_jaxpr(step)(w[0], v[0], x if alike else x[0])
    states = list(zip(closed.jaxpr.invars[:2], closed.jaxpr.outvars[:2], strict=True))
    found = what_to_turn(closed.jaxpr, states, one_batch=True)
    assert found.products or name in {"sorted", "cut and put together", "of three axes", "in a loop", "either",
                                      "in a checkpoint", "the place of the largest"}  # fmt: skip
    jaxpr, consts = turned(closed.jaxpr, found)

    def call(w, v, x):
        return jax.core.eval_jaxpr(jaxpr, [*closed.consts, *consts], w, v, x)

    got = jax.jit(jax.vmap(call, in_axes=(0, 0, None if alike else 0)))(w, v, x)
    for i in range(3):
        for a, b in zip(got, step(w[i], v[i], x if alike else x[i]), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


def test_what_is_transposed_is_a_plain_copy():
    """XLA's own tiles take twice as long, and a copy that is part of a fusion eight times."""
    for lanes in (1, 4):
        text = program_of(task_of((20, 12), 32), lanes=lanes)._segment.as_text()
        body = max(text.split("\n\n"), key=lambda part: part.count(" dot("))
        assert "wrapped_copy" not in body
        copied = re.findall(r"= f32\[(?:\d+,)?(\d+,\d+)\]\S* copy\(", body)
        assert {"32,24", "32,16"} <= set(copied)  # both layers' activations, with columns of zeros
