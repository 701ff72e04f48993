"""A choice per lane: what wasn't chosen reaches neither values nor gradients. The static choice is the oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vmaptune as vt
from vmaptune.nn._choice import Chosen
from vmaptune.task import Hyperparameters

OPTIONS = {
    "sqrt": lambda x, y: jnp.sqrt(x),
    "log": lambda x, y: jnp.log(x) + y,
    "quotient": lambda x, y: y / x,
    "power": lambda x, y: x ** jnp.abs(y),
    "norm": lambda x, y: x / jnp.linalg.norm(x),
    "arccosh": lambda x, y: jnp.arccosh(x) * y,
    "same": lambda x, y: x + 2 * y,
}
X, Y = jnp.zeros(3), jnp.asarray([0.0, 1.0, -2.0])


@pytest.mark.parametrize("by_name", [False, True])
def test_every_lane_follows_its_static_choice(by_name):
    def of(hp):
        def loss(x, y):
            select = vt.nn.select(hp, "f", OPTIONS)
            out = select(x, y=y) if by_name else select(x, y)
            return jnp.sum(out * jnp.asarray([1.0, 2.0, 3.0])), out

        (_, out), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(X, Y)
        return out, gradients, jax.jvp(lambda x, y: loss(x, y)[1], (X, Y), (Y, Y))[1]

    together = jax.jit(jax.vmap(lambda i: of(Hyperparameters({"f": Chosen(i, tuple(OPTIONS))}))))(
        jnp.arange(len(OPTIONS))
    )
    for i, name in enumerate(OPTIONS):
        alone = of(Hyperparameters({"f": name}))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, err_msg=name)


def test_what_is_no_array_and_a_module_with_a_state_are_given_as_they_are():
    seen = []

    class Module:
        count = 0

    def option(module, x, scale, *, mode):
        module.count += 1
        seen.append((type(scale), mode))
        return x * scale

    module = Module()
    hp = Hyperparameters({"f": Chosen(jnp.int32(1), ("a", "b"))})
    out = vt.nn.select(hp, "f", {"a": option, "b": option})(module, jnp.ones(2), 3, mode="train")
    np.testing.assert_array_equal(out, [3.0, 3.0])
    assert module.count == 2
    assert seen == [(int, "train")] * 2
