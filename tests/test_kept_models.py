"""The model that is measured is the one that was trained, is saved, and comes back: whatever it is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from optax.contrib import schedule_free_adamw, schedule_free_eval_params, schedule_free_sgd

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.experiment import find_statics, model_arrays
from vmaptune.task import Hyperparameters

random = np.random.default_rng(0)
X = random.normal(size=(192, 3)).astype(np.float32)
Y = (np.sin(2 * X[:, 0]) + X[:, 1] ** 2).astype(np.float32)
DATA = vt.Data(train=(X[:128], Y[:128]), valid=(X[128:], Y[128:]))


def loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def experiment(model, **changes):
    parts = {
        "space": {"rate": vt.loguniform(1e-2, 0.1)}, "model": model, "optimizer": lambda hp: optax.adam(hp.rate),
        "loss": loss, "metrics": lambda model, batch: {"loss": loss(model, batch)}, "data": DATA, "batch_size": 128,
        "steps": 15, "name": "kept",
    }  # fmt: skip
    return vt.Experiment(**{**parts, **changes})


def hp(rate=0.05):
    return Hyperparameters({"rate": np.float32(rate)})


def trained(one, steps, seed=0):
    """A state after some steps, and what is measured of it."""
    task, key = one.build(), jax.random.key(seed)

    @jax.jit
    def run(key):
        def step(i, state):
            return task.step(state, hp(), jax.random.fold_in(key, i), *task.taken(state, hp(), i))[0]

        state = jax.lax.fori_loop(0, steps, step, task.init(hp(), key))
        return state, task.evaluate(state, hp())["loss"]

    state, value = run(key)
    return state, float(value)


def plain_loop(optimizer, loss, params, steps=15):
    """Parameters and the optimizer's state after some steps of an Optax loop."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


# ---- what a model draws besides its variables ---------------------------------------------------------


class Features(nnx.Module):
    """Random features: a plain array."""

    def __init__(self, rngs):
        self.frequencies = jax.random.normal(rngs.params(), (3, 8))
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.cos(x @ self.frequencies))[:, 0]


class Closed(nnx.Module):
    """The same, hidden in a function."""

    def __init__(self, rngs):
        frequencies = jax.random.normal(rngs.params(), (3, 8))
        self.features = nnx.static(lambda x: jnp.cos(x @ frequencies)) if hasattr(nnx, "static") else (
            lambda x: jnp.cos(x @ frequencies)
        )  # fmt: skip
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(self.features(x))[:, 0]


class LinenFeatures(linen.Module):
    frequencies: jax.Array

    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(jnp.cos(x @ self.frequencies))[:, 0]


DRAWN = {
    "nnx": lambda hp, rngs: Features(rngs),
    "nnx, in a function": lambda hp, rngs: Closed(rngs),
    "linen": lambda hp, rngs: LinenFeatures(jax.random.normal(rngs.params(), (3, 8))),
}


@pytest.mark.parametrize("model", DRAWN.values(), ids=DRAWN)
def test_each_seed_draws_its_own_and_keeps_it(model, monkeypatch):
    """The same model trained by a plain loop, from the same seed."""
    one = experiment(model)
    head = {}
    for seed in (1, 2):
        _, value = trained(one, 15, seed)
        built = model(None, nnx.Rngs(jax.random.key(seed)))
        if isinstance(built, linen.Module):
            # `loss` initialises it with a key of its own
            key = jax.random.fold_in(jax.random.key(seed), 0)
            params = built.init({"params": key, "dropout": jax.random.fold_in(key, 1)}, X[:128])

            def out(params, x, built=built):
                return built.apply(params, x)
        else:
            graph, params, rest = nnx.split(built, nnx.Param, ...)

            def out(params, x, graph=graph, rest=rest):
                return nnx.merge(graph, params, rest)(x)

        def of(params, x, y, out=out):
            return ((out(params, x) - y) ** 2).mean()

        params, _ = plain_loop(optax.adam(np.float32(0.05)), lambda p, of=of: of(p, X[:128], Y[:128]), params)
        assert value == pytest.approx(float(of(params, X[128:], Y[128:])), rel=1e-4)
        head[seed] = value
    assert head[1] != head[2]


def test_the_best_model_gives_the_ledgers_numbers(tmp_path):
    one = experiment(DRAWN["nnx"])
    study = vt.run(one, trials=8, rounds=1, out=tmp_path / "s", report=False)
    trial = study.ledger.trial(study.meta["weights"]["best"])
    assert trial.seed != 0
    assert float(loss(study.best_model(one), DATA.valid)) == pytest.approx(trial.value, rel=1e-5)


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.calls = jnp.zeros(())
        self.head = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.head(x)[:, 0]


class NumpyFeatures(nnx.Module):
    def __init__(self, rngs, random):
        self.frequencies = random.normal(size=(3, 8)).astype(np.float32)
        self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.cos(x @ self.frequencies))[:, 0]


REFUSED = {
    "drawn with NumPy": (lambda hp, rngs: NumpyFeatures(rngs, np.random), "the same numbers each time"),
    "initial weights of NumPy": (
        lambda hp, rngs: Head(jnp.asarray(np.random.normal(size=3), jnp.float32)), "np.random.default_rng",
    ),
    "linen, drawn with NumPy": (
        lambda hp, rngs: LinenFeatures(np.random.normal(size=(3, 8)).astype(np.float32)), "the same numbers",
    ),
    "a plain array that changes": (lambda hp, rngs: Counting(rngs), "must be an nnx.Variable, but the attribute calls"),
}  # fmt: skip


@jax.tree_util.register_pytree_node_class
class Head:
    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return x @ self.w

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@pytest.mark.parametrize(("model", "words"), REFUSED.values(), ids=REFUSED)
def test_what_no_state_would_hold_is_refused(model, words):
    with pytest.raises(InputError, match=words):
        find_statics(experiment(model))


def test_what_numpy_draws_from_a_seed_of_its_own_is_a_constant():
    find_statics(experiment(lambda hp, rngs: NumpyFeatures(rngs, np.random.default_rng(0))))


# ---- running averages of a linen model that is called twice -------------------------------------------


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        return linen.Dense(1)(linen.BatchNorm(use_running_average=not train, momentum=0.5)(x))[:, 0]


def test_running_averages_start_where_flax_starts_them():
    def twice(model, batch):
        return ((model(batch[0]) - model(batch[0] + 1.0)) ** 2).mean()

    one = experiment(
        lambda hp, rngs: Normed(), loss=twice, metrics=lambda m, b: {"loss": (m(b[0], train=False) ** 2).mean()}
    )
    state = one.build().init(hp(), jax.random.key(0))
    mean = state["rest"]["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_array_equal(mean, np.zeros(3))
    state, _ = trained(one, 1)
    x = X[:128].mean(0)
    mean = state["rest"]["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.5 * (0.5 * x) + 0.5 * (x + 1), rtol=1e-4, atol=1e-6)


# ---- schedule-free optimizers -------------------------------------------------------------------------


def parts_of(params):
    return {"w": "free", "b": "plain"} if isinstance(params, dict) else None


def line(hp, rngs):
    return {"w": jax.random.normal(rngs.params(), (3,)), "b": jnp.ones(())}


def line_loss(model, batch):
    return ((batch[0] @ model["w"] + model["b"] - batch[1]) ** 2).mean()


FREE = {
    "sgd": lambda rate: schedule_free_sgd(rate, warmup_steps=3),
    "adamw": lambda rate: schedule_free_adamw(rate, b1=0.95),
    "in a chain": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), schedule_free_sgd(rate)),
    "of some parameters": lambda rate: optax.multi_transform(
        {"free": schedule_free_sgd(rate), "plain": optax.sgd(rate)}, parts_of
    ),
}


def x_of(name, state, params):
    """By hand: where in the state the schedule-free part is."""
    if name == "in a chain":
        return schedule_free_eval_params(state[1], params)
    if name == "of some parameters":
        free = state.inner_states["free"].inner_state
        return {"w": (params["w"] - (1 - free.b1) * free.z["w"]) / free.b1, "b": params["b"]}
    return schedule_free_eval_params(state, params)


@pytest.mark.parametrize("name", FREE)
def test_schedule_free_models_are_measured_and_kept_at_x(name):
    one = experiment(
        line, loss=line_loss, metrics=lambda m, b: {"loss": line_loss(m, b)}, optimizer=lambda hp: FREE[name](hp.rate)
    )
    state, value = trained(one, 15, 1)
    params = line(None, nnx.Rngs(jax.random.key(1)))
    params, opt = plain_loop(FREE[name](np.float32(0.05)), lambda p: line_loss(p, (X[:128], Y[:128])), params)
    x = x_of(name, opt, params)
    expected = float(line_loss(x, DATA.valid))
    assert abs(expected - float(line_loss(params, DATA.valid))) > 1e-3 * expected  # y is another model
    assert value == pytest.approx(expected, rel=1e-4)
    for name_, array in model_arrays(jax.tree.map(np.asarray, jax.device_get(state)))["params"].items():
        np.testing.assert_allclose(array, x[name_], rtol=1e-3, atol=1e-5)


def test_a_schedule_free_study_saves_what_it_measured(tmp_path):
    one = experiment(
        line, loss=line_loss, metrics=lambda m, b: {"loss": line_loss(m, b)}, optimizer=lambda hp: FREE["sgd"](hp.rate)
    )
    study = vt.run(one, trials=8, rounds=1, out=tmp_path / "s", report=False)
    trial = study.ledger.trial(study.meta["weights"]["best"])
    assert float(line_loss(study.best_model(one), DATA.valid)) == pytest.approx(trial.value, rel=1e-5)
