"""Kinds of models and what of theirs differs from one another: sown values, bound methods, Equinox, haiku."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.experiment import find_statics
from vmaptune.task import Hyperparameters

random = np.random.default_rng(0)
X = random.normal(size=(24, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
DATA = vt.Data(train=(X, Y), valid=(X[:12], Y[:12]))
SPACE = {"rate": vt.loguniform(1e-3, 0.1), "drop": vt.uniform(0.1, 0.5)}


def loss(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()


def experiment_with(model, loss=loss, optimizer=lambda hp: optax.sgd(hp.rate), **more):
    return vt.Experiment(
        **({"space": SPACE, "model": model, "optimizer": optimizer, "loss": loss, "data": DATA, "batch_size": 8,
            "steps": 3} | more),
    )  # fmt: skip


def one_step(experiment):
    """A state after one step, with its loss."""
    hp, key = Hyperparameters({"rate": jnp.float32(0.05), "drop": jnp.float32(0.3)}), jax.random.key(3)
    task = experiment.build()
    state = task.init(hp, key)
    return task.step(state, hp, key, *task.taken(state, hp, jnp.int32(0)))


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        h = self.dense(x)
        self.sow(nnx.Intermediate, "h", h)
        return h


class LinenSowing(linen.Module):
    collection: str

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(2)(x)
        self.sow(self.collection, "h", h)
        return h


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
@pytest.mark.parametrize("model", [lambda hp, rngs: Sowing(rngs), lambda hp, rngs: LinenSowing("intermediates")])
def test_what_a_call_sows_is_no_part_of_the_state(model):
    experiment = experiment_with(model)
    find_statics(experiment)
    state, _ = one_step(experiment)
    assert len(jax.tree.leaves(state["params"])) == 2
    assert jax.tree.leaves(state["rest"]) == []


def test_variables_that_grow_are_told_by_their_names(tmp_path):
    experiment = experiment_with(lambda hp, rngs: LinenSowing("losses"))
    with pytest.raises(InputError) as error:
        vt.run(experiment, trials=4, rounds=1, out=tmp_path / "s", report=False)
    said = str(error.value)
    assert "['rest']['losses']['h'][1]: float32[8, 2] is new" in said
    assert "way out: a model's variable must be there from the start" in said
    assert "PyTreeDef" not in said
    assert len(said) < 500


class Methods(linen.Module):
    width: int = 3

    def setup(self):
        self.first, self.last = linen.Dense(self.width), linen.Dense(2)

    def __call__(self, x):
        return self.classify(x)

    def classify(self, x):
        return self.last(jnp.tanh(self.first(x)))


def test_a_linen_models_methods_are_called_as_its_own():
    plain = experiment_with(lambda hp, rngs: Methods())
    named = experiment_with(
        lambda hp, rngs: Methods(),
        lambda model, batch: loss(lambda x: model.classify(x), batch) + 0 * model.width,
    )
    (a, loss_a), (b, loss_b) = one_step(plain), one_step(named)
    assert loss_a == loss_b
    jax.tree.map(np.testing.assert_array_equal, a["params"], b["params"])


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        h = linen.BatchNorm(use_running_average=not train)(linen.Dense(3)(x))
        self.sow("intermediates", "h", h)
        return linen.Dense(2)(h)


def test_a_linen_model_with_running_averages_gives_its_sown_values_too():
    def sown(model, batch, key):
        logits, extra = model(batch[0], train=True, mutable=["intermediates"])
        (h,) = extra["intermediates"]["h"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean() + 0.01 * (h**2).mean()

    def plain(model, batch, key):
        return optax.softmax_cross_entropy_with_integer_labels(model(batch[0], train=True), batch[1]).mean()

    def metrics(model, batch):
        return {"loss": loss(lambda x: model(x, train=False), batch)}

    states = [one_step(experiment_with(lambda hp, rngs: Normed(), f, metrics=metrics))[0] for f in (sown, plain)]
    assert set(states[0]["rest"]) == {"batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, states[0]["rest"], states[1]["rest"])  # one call's averages


def test_programs_cannot_be_trained_with_jit_turned_off():
    with jax.disable_jit(), pytest.raises(InputError, match=r"jax_disable_jit must be off.*JAX_DISABLE_JIT"):
        find_statics(experiment_with(lambda hp, rngs: Sowing(rngs)))


# ---- Equinox -------------------------------------------------------------------------------------------


def equinox_net(hp, key, drop=None):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: eqx.nn.Linear
        last: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        shift: jax.Array  # whole numbers: not trained
        act: object = jnp.tanh

        def __call__(self, x, key=None):
            def one(x, key):
                h = self.dropout(self.act(self.first(x)) + self.shift, key=key)
                return self.last(h)

            keys = None if key is None else jax.random.split(key, len(x))
            return jax.vmap(one)(x, keys)

    a, b, c = jax.random.split(key, 3)
    return Net(
        eqx.nn.Linear(4, 5, key=a), eqx.nn.Linear(5, 2, key=b), eqx.nn.Dropout(hp.drop if drop is None else drop),
        jax.random.randint(c, (5,), 0, 2),
    )  # fmt: skip


def test_an_equinox_module_is_partitioned_and_trained_as_by_its_own_functions(tmp_path):
    eqx = pytest.importorskip("equinox")

    def noisy(model, batch, key):
        logits = model(batch[0], key=key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    experiment = experiment_with(
        lambda hp, key: equinox_net(hp, key), noisy, lambda hp: optax.adam(hp.rate),
        metrics=lambda model, batch: {"loss": loss(model, batch)},
    )  # fmt: skip
    study = vt.run(experiment, trials=6, rounds=1, out=tmp_path / "s", report=False)
    for row in [study.trials(round=0)[0], study.ledger.trial(study.meta["weights"]["best"])]:
        hp, key = Hyperparameters(row.params), jax.random.key(row.seed)
        net, optimizer = equinox_net(hp, jax.random.fold_in(key, 0)), optax.adam(row.params["rate"])
        state = optimizer.init(eqx.filter(net, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(net, state, batch, key, optimizer=optimizer):
            value, grads = eqx.filter_value_and_grad(noisy)(net, batch, key)
            updates, state = optimizer.update(grads, state, eqx.filter(net, eqx.is_inexact_array))
            return eqx.apply_updates(net, updates), state, value

        losses = []
        for i, batch in enumerate(vt.batches(experiment, row)):
            net, state, value = step(net, state, batch, jax.random.fold_in(key, i + 1))
            losses.append(float(value))
        measured = loss(eqx.nn.inference_mode(net), DATA.valid)
        np.testing.assert_allclose(study.curve(row.trial)[-1].loss, np.mean(losses), rtol=1e-5)
        np.testing.assert_allclose(row.value, measured, rtol=1e-5)
    best = study.best_model(experiment)
    assert best.dropout.inference
    np.testing.assert_allclose(loss(best, DATA.valid), measured, rtol=1e-5)
    np.testing.assert_array_equal(best.shift, net.shift)


def test_a_number_of_an_equinox_module_that_may_or_may_not_be_trained_is_refused():
    pytest.importorskip("equinox")
    experiment = experiment_with(
        lambda hp, key: equinox_net(hp, key, drop=hp.drop / 2),
        lambda model, batch, key: loss(lambda x: model(x, key=key), batch),
    )
    with pytest.raises(InputError, match=r"dropout\.p is a number made from settings alone.*keep the setting itself"):
        find_statics(experiment)


# ---- haiku ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("stateful", [False, True])
def test_a_haiku_model_trains_as_by_its_own_functions(stateful, tmp_path):
    hk = pytest.importorskip("haiku")

    def forward(x, is_training):
        h = hk.Linear(5)(x)
        if stateful:
            h = hk.BatchNorm(True, True, 0.9)(h, is_training)
        if is_training:
            h = hk.dropout(hk.next_rng_key(), 0.2, h)
        return hk.Linear(2)(jnp.tanh(h))

    make = hk.transform_with_state if stateful else hk.transform

    def of(train):
        return lambda model, batch: loss(lambda x: model(x, is_training=train), batch)

    experiment = experiment_with(
        lambda hp: make(forward), of(True), lambda hp: optax.sgd(hp.rate, 0.9),
        metrics=lambda model, batch: {"loss": of(False)(model, batch)}, space={"rate": vt.loguniform(1e-3, 0.1)},
    )  # fmt: skip
    study = vt.run(experiment, trials=6, rounds=1, out=tmp_path / "s", report=False)
    net = make(forward)
    for row in [study.trials(round=0)[0], study.ledger.trial(study.meta["weights"]["best"])]:
        key, optimizer = jax.random.key(row.seed), optax.sgd(row.params["rate"], 0.9)
        batch_list = list(vt.batches(experiment, row))
        made = net.init(jax.random.fold_in(jax.random.fold_in(key, 0), 0), batch_list[0][0], True)
        params, state = made if stateful else (made, {})
        opt = optimizer.init(params)

        def value(params, state, batch, key, train):
            rng = None if key is None else jax.random.fold_in(key, 0)
            out = net.apply(params, state, rng, batch[0], train) if stateful else (
                net.apply(params, rng, batch[0], train), state
            )  # fmt: skip
            return loss(lambda _: out[0], batch), out[1]

        step = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=4)
        for i, batch in enumerate(batch_list):
            (_, state), grads = step(params, state, batch, jax.random.fold_in(key, i + 1), True)
            updates, opt = optimizer.update(grads, opt, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(row.value, value(params, state, DATA.valid, None, False)[0], rtol=2e-5)
    model = study.best_model(experiment)
    np.testing.assert_allclose(of(False)(model, DATA.valid), row.value, rtol=1e-5)
