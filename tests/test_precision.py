"""Products in bfloat16: NumPy with operands rounded by ml_dtypes is the oracle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.rewrite import with_bfloat16_products

rng = np.random.default_rng(0)
X = rng.normal(size=(96, 5)).astype(np.float32)
Y = np.tanh(X[:, :1] - X[:, 1:2]).astype(np.float32)


def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def test_a_gradient_has_rounded_operands_and_exact_sums():
    w1, w2 = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(7, 1)).astype(np.float32)

    @jax.jit
    def loss(w1, w2):
        return jnp.mean(jnp.tanh(X @ w1) @ w2)

    value, (g1, g2) = with_bfloat16_products(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.asarray(w1), jnp.asarray(w2))
    h = np.tanh(rounded(X) @ rounded(w1))
    expected = (rounded(h) @ rounded(w2)).mean()
    d = np.full((96, 1), 1 / 96)
    dh = rounded(d) @ rounded(w2).T
    e2 = rounded(h).T @ rounded(d)
    e1 = rounded(X).T @ rounded((1 - h**2) * dh)
    # activations that lie on a rounding boundary may fall on its other side: one in 2^8 of a term
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(g2, e2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(g1, e1, rtol=1e-3, atol=1e-5)
    exact = np.asarray(jax.grad(loss)(w1, w2))
    assert np.abs(g1 - exact).max() > 1e-4 * np.abs(exact).max()  # so the comparison above could have failed


def test_convolutions_and_other_dtypes():
    x, k = jnp.asarray(rng.normal(size=(1, 6, 2)), jnp.float32), jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)

    def both(x, k):
        conv = jax.lax.conv_general_dilated(x, k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return conv, jnp.ones((2, 2), jnp.int32) @ jnp.ones((2, 2), jnp.int32)

    conv, whole = with_bfloat16_products(both)(x, k)
    expected = sum(rounded(x)[0, i : i + 4] @ rounded(k)[i] for i in range(3))
    np.testing.assert_allclose(conv[0], expected, rtol=1e-5, atol=1e-5)
    assert conv.dtype == jnp.float32
    assert whole.dtype == jnp.int32


def test_a_cpu_is_asked_for_no_product_of_bfloat16_numbers():
    """It has no kernel for some: replay and panda ended in XLA's error, or rounded otherwise than run."""

    def both(x, k, w):
        conv = jax.lax.conv_general_dilated(x, k, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        return (conv @ w).sum()

    args = jnp.ones((2, 6, 2)), jnp.ones((3, 2, 4)), jnp.ones((4, 3))
    text = jax.jit(with_bfloat16_products(jax.grad(both, argnums=(0, 1, 2)))).lower(*args).as_text()
    assert "bf16" not in text
    assert "reduce_precision" in text


class ConvNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.conv(x)).mean((1, 2)))


def test_a_trial_with_convolutions_in_bfloat16_is_replayed(tmp_path):
    images = rng.normal(size=(64, 12, 12, 1)).astype(np.float32)
    target = np.tanh(images[:, :3, :3].sum((1, 2)))
    exp = vt.Experiment(
        space={"learning_rate": vt.loguniform(1e-2, 1e-1)},
        model=lambda hp, rngs: ConvNet(rngs),
        optimizer=lambda hp: optax.adam(hp.learning_rate),
        loss=lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean(),
        data=vt.Data(train=(images, target), valid=(images[:32], target[:32])),
        batch_size=16,
        steps=6,
        precision="bfloat16",
    )
    study = vt.run(exp, out=tmp_path / "s", trials=4, rounds=1, report=False)
    found = vt.replay(study, 0, exp)
    assert found.agrees
    assert found.difference < 1e-5


def experiment(precision, **more):
    def mse(model, batch):
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    return vt.Experiment(
        space={"learning_rate": vt.loguniform(1e-3, 1e-1)},
        model=lambda hp, rngs: nnx.Sequential(nnx.Linear(5, 16, rngs=rngs), jnp.tanh, nnx.Linear(16, 1, rngs=rngs)),
        optimizer=lambda hp, steps: optax.adam(hp.learning_rate),
        loss=mse,
        metrics=lambda model, batch: {"mse": mse(model, batch)},
        data=vt.Data(train=(X[:64], Y[:64]), valid=(X[64:], Y[64:])),
        objective="mse",
        batch_size=16,
        steps=100,
        precision=precision,
        **more,
    )


def test_a_study_in_bfloat16_trains_float32_weights(tmp_path):
    studies = {
        name: vt.run(experiment(name), out=tmp_path / name, trials=6, rounds=1, seed=3)
        for name in ("float32", "bfloat16")
    }
    values = {name: [t.value for t in study.trials()] for name, study in studies.items()}
    np.testing.assert_allclose(values["bfloat16"], values["float32"], rtol=0.2)
    assert values["bfloat16"] != values["float32"]
    model = studies["bfloat16"].best_model()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_other_precisions_are_refused():
    with pytest.raises(InputError, match="`precision` must be 'float32' or 'bfloat16', but got 'float16'"):
        experiment("float16")
