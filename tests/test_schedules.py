"""Schedules against Optax's, traced against concrete, and properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmaptune import schedules as s

COUNTS = np.arange(0, 130)
PAIRS = {
    "constant": (lambda v: s.constant(v), lambda v: optax.constant_schedule(v)),
    "linear": (lambda v: s.linear(v, 0.01, 100), lambda v: optax.linear_schedule(v, 0.01, 100)),
    "polynomial": (
        lambda v: s.polynomial(v, 0.01, 2.0, 100), lambda v: optax.polynomial_schedule(v, 0.01, 2.0, 100)
    ),
    "cosine": (lambda v: s.cosine(v, 100), lambda v: optax.cosine_decay_schedule(v, 100)),
    "cosine with warm-up": (
        lambda v: s.cosine(v, 100, warmup=10, end=0.001),
        lambda v: optax.warmup_cosine_decay_schedule(0.0, v, 10, 100, 0.001),
    ),
    "warmup_cosine": (
        lambda v: s.warmup_cosine(v, 100, 7, init=0.01, end=0.002),
        lambda v: optax.warmup_cosine_decay_schedule(0.01, v, 7, 100, 0.002),
    ),
    "exponential": (lambda v: s.exponential(v, 0.9, 13), lambda v: optax.exponential_decay(v, 13, 0.9)),
    "staircase": (
        lambda v: s.exponential(v, 0.5, 20, staircase=True),
        lambda v: optax.exponential_decay(v, 20, 0.5, staircase=True),
    ),
    "step_decay": (
        lambda v: s.step_decay(v, [20, 60], [0.1, 0.5]),
        lambda v: optax.piecewise_constant_schedule(v, {20: 0.1, 60: 0.5}),
    ),
    "onecycle": (lambda v: s.onecycle(v, 100), lambda v: optax.cosine_onecycle_schedule(100, v)),
    "sgdr": (
        lambda v: s.sgdr(v, 30, mult=1),
        lambda v: optax.sgdr_schedule(
            [{"init_value": v, "peak_value": v, "warmup_steps": 0, "decay_steps": 30, "end_value": 0.0}] * 5
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("peak", [0.1, 3.0])
def test_agrees_with_optax(name, peak):
    ours, theirs = (make(peak) for make in PAIRS[name])
    np.testing.assert_allclose([ours(c) for c in COUNTS], [theirs(c) for c in COUNTS], rtol=2e-6, atol=2e-7 * peak)


@pytest.mark.parametrize("name", PAIRS)
def test_a_traced_peak_is_the_concrete_one(name):
    ours = PAIRS[name][0]
    peaks = jnp.array([0.01, 0.5, 2.0])
    traced = jax.jit(jax.vmap(lambda peak: jax.vmap(ours(peak))(jnp.asarray(COUNTS))))(peaks)
    for row, peak in zip(traced, peaks, strict=True):
        np.testing.assert_allclose(row, [ours(float(peak))(c) for c in COUNTS], rtol=2e-5, atol=1e-8)


def test_every_number_may_be_traced():
    def all_of(v, n, w):
        made = [
            s.linear(v, w, n), s.polynomial(v, w, w, n), s.cosine(v, n, warmup=n / 5, end=w),
            s.warmup_cosine(v, n, n / 3, init=w, end=w), s.exponential(v, w, n),
            s.step_decay(v, [n / 2, n], [w, w]), s.onecycle(v, n, rise=w), s.sgdr(v, n / 4, end=w),
        ]  # fmt: skip
        return jnp.stack([f(jnp.int32(3)) for f in made])

    out = jax.jit(jax.vmap(all_of))(jnp.array([0.1, 1.0]), jnp.array([100.0, 50.0]), jnp.array([0.1, 0.2]))
    assert out.shape == (2, 8)
    assert np.isfinite(out).all()


@settings(max_examples=100, deadline=None)
@given(
    peak=st.floats(1e-6, 1e3), end=st.floats(0, 1e-6), steps=st.integers(0, 300), warmup=st.integers(0, 400),
    count=st.integers(0, 1000),
)  # fmt: skip
def test_finite_and_between_its_ends(peak, end, steps, warmup, count):
    for schedule in (
        s.cosine(peak, steps, warmup=warmup, end=end), s.linear(peak, end, steps), s.onecycle(peak, steps),
        s.sgdr(peak, steps, end=end),
    ):  # fmt: skip
        value = float(schedule(count))
        assert np.isfinite(value)
        assert -1e-9 <= value <= peak * (1 + 1e-6)
