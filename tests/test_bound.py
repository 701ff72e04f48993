"""The machine's bound: operations counted in a traced step, rates measured once and kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import vmaptune as vt
from vmaptune.engine import bound
from vmaptune.engine.bound import MachineRates, linear_flops
from vmaptune.engine.functions import LaneFunctions
from vmaptune.study._bound import Bound


def flops(function, *shapes):
    return linear_flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)))


def test_operations_of_products_by_hand():
    assert flops(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    assert flops(lambda a, b: jax.lax.fori_loop(0, 6, lambda _, c: c @ b, a), (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5
    assert flops(jax.jit(lambda a, b: jnp.tanh(a) @ b), (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    both = flops(lambda a, b: jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: (a @ b) @ b), (5, 5), (5, 5))
    assert both == 2 * 2 * 5**3


def test_operations_of_convolutions_by_hand():
    def convolved(x, w, groups):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                                            feature_group_count=groups)  # fmt: skip

    whole = flops(lambda x, w: convolved(x, w, 1), (2, 8, 8, 3), (3, 3, 3, 16))
    assert whole == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
    depthwise = flops(lambda x, w: convolved(x, w, 3), (2, 8, 8, 3), (3, 3, 1, 3))
    assert depthwise == 2 * (2 * 8 * 8 * 3) * (3 * 3 * 1)


def test_a_linear_model_takes_three_products_a_step():
    """Forward, and back for the weights and, of a first layer, not for the inputs: two."""
    x = jnp.ones((32, 10))

    def loss(w):
        return ((x @ w["first"] @ w["last"]) ** 2).mean()

    task = vt.Task(
        lambda hp, key: {"first": jnp.ones((10, 20)), "last": jnp.ones((20, 4))},
        lambda w, hp, key: jax.tree.map(lambda a, g: a - hp.rate * g, w, jax.grad(loss)(w)),
        lambda w, hp: {"loss": loss(w)},
    )
    functions = LaneFunctions(task, {}, {"rate": jax.ShapeDtypeStruct((), jnp.float32)})
    first, last = 2 * 32 * 10 * 20, 2 * 32 * 20 * 4
    assert MachineRates(1.0, 1e99).step_seconds(functions) == 2 * first + 3 * last
    assert MachineRates(1e99, 1.0).step_seconds(functions) == 2 * 4 * (10 * 20 + 20 * 4)


def test_rates_are_measured_once_and_a_damaged_file_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAPTUNE_CACHE", str(tmp_path))
    bound._file.cache_clear()
    assert bound.known_rates() is None
    rates = bound.measured_rates()
    assert rates.flops > 1e8
    assert rates.bytes > 1e7
    assert bound.known_rates() == rates
    bound._file().write_text("{")
    assert bound.known_rates() is None
    bound._file.cache_clear()


def test_a_short_study_measures_nothing_and_nobody_looking_neither(monkeypatch):
    class Group:
        number = 0
        functions = None

    monkeypatch.setattr("vmaptune.study._bound.known_rates", lambda: None)
    monkeypatch.setattr("vmaptune.study._bound.measured_rates", lambda: pytest.fail("measured"))
    assert Bound(wanted=False).of([Group()], 10**12) is None
    monkeypatch.setattr(Group, "functions", type("F", (), {"costs": lambda self: type("C", (), {"step_flops": 1.0})})())
    monkeypatch.setattr(Group, "plan", type("P", (), {"devices": 1}), raising=False)
    assert Bound().of([Group()], 1000) is None


def test_the_bound_of_groups_side_by_side(monkeypatch):
    class Rates:
        def step_seconds(self, functions):
            return functions

    class Group:
        def __init__(self, number, seconds):
            self.number, self.functions = number, seconds

    monkeypatch.setattr("vmaptune.study._bound.known_rates", Rates)
    slow, fast = Group(0, 3.0), Group(1, 1.0)
    assert Bound().of([slow, fast, fast, slow], 1) == pytest.approx(4 / (3 + 1 + 1 + 3))
