"""The oracle from outside: a plain Optax loop, with nothing of the engine, reproduces a trial's curve."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vmaptune as vt

N, VALID, BATCH, STEPS = 48, 16, 16, 60
rng = np.random.default_rng(0)
X = rng.normal(size=(N + VALID, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] + 0.1 * rng.normal(size=N + VALID)).astype(np.float32)


class Net(nnx.Module):
    def __init__(self, rngs):
        # no bias: before a norm its gradient is rounding noise, which Adam would blow up to full steps
        self.a = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.b = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.norm(self.a(x))))[:, 0]


def mse(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def experiment() -> vt.Experiment:
    return vt.Experiment(
        space={"learning_rate": vt.loguniform(1e-3, 1e-1), "decay": vt.loguniform(1e-4, 1e-1, or_zero=0.3)},
        model=lambda hp, rngs: Net(rngs),
        optimizer=lambda hp, steps: optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(hp.learning_rate, weight_decay=hp.decay)
        ),
        loss=mse,
        metrics=lambda model, batch: {"mse": mse(model, batch)},
        data=vt.Data(train=(X[:N], Y[:N]), valid=(X[N:], Y[N:])),
        objective="mse", batch_size=BATCH, steps=STEPS,
    )  # fmt: skip


def plain_loop(learning_rate, decay, seed, order, stops):
    """Flax and Optax as their documentation uses them. `order[t]` are the rows of step t's batch."""
    key = jax.random.key(seed)
    net = Net(nnx.Rngs(jax.random.fold_in(key, 0)))
    optimizer = nnx.Optimizer(
        net, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=decay)),
        wrt=nnx.Param,
    )  # fmt: skip

    @nnx.jit
    def step(net, optimizer, x, y):
        loss, grads = nnx.value_and_grad(lambda m: mse(m, (x, y)))(net)
        optimizer.update(net, grads)
        return loss

    losses, values = [], []
    for t, rows in enumerate(order):
        net.train()
        losses.append(float(step(net, optimizer, jnp.asarray(X[rows]), jnp.asarray(Y[rows]))))
        if t + 1 in stops:
            net.eval()
            values.append(float(mse(net, (jnp.asarray(X[N:]), jnp.asarray(Y[N:])))))
    means = [np.mean(losses[a:b]) for a, b in zip([0, *stops], stops, strict=False)]
    return means, values


def test_a_trial_follows_a_plain_optax_loop(tmp_path):
    study = vt.run(experiment(), trials=16, rounds=1, out=tmp_path / "s", plan="every=20")
    for trial in (0, 5, 9):
        row, curve = study.ledger.trial(trial), study.curve(trial)
        assert [p.step for p in curve] == [20, 40, 60]
        order = batches_of(row.seed)
        # every example once an epoch, from the batches alone
        assert sorted(np.concatenate(order[: N // BATCH])) == list(range(N))
        means, values = plain_loop(row.params["learning_rate"], row.params["decay"], row.seed, order, [20, 40, 60])
        np.testing.assert_allclose([p.loss for p in curve], means, rtol=2e-4)
        np.testing.assert_allclose([p.value for p in curve], values, rtol=2e-3)


def batches_of(seed: int) -> list[np.ndarray]:
    """The rows of each batch of a trial: the one thing that the loop takes from the package."""
    from vmaptune.experiment._order import batch_indices

    key = jax.random.fold_in(jax.random.key(seed), 0)
    words = jax.random.key_data(jax.random.fold_in(key, 1))
    return [np.asarray(batch_indices(words, t, BATCH, N)) for t in range(STEPS)]
