"""Optax's optimizers as it documents them, unwrapped: each against a plain loop of Optax over the trial's batches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import vmaptune as vt
from vmaptune.engine.compiling import hurry
from vmaptune.experiment import find_statics
from vmaptune.store.rows import TrialRow
from vmaptune.store.states import State
from vmaptune.task import Hyperparameters

STEPS = 7  # no multiple of a period, so that what lies between is seen
RATE = float(np.float32(0.02))
random = np.random.default_rng(0)
X = random.normal(size=(24, 4)).astype(np.float32)
Y = (X[:, 0] + 0.3 * random.normal(size=24) > 0).astype(np.int32)
DATA = vt.Data(train=(X, Y), valid=(X[:12], Y[:12]))


def model(hp, key):
    first, last = jax.random.split(key)
    return {"w": 0.5 * jax.random.normal(first, (4, 6)), "b": jnp.zeros(6), "v": 0.5 * jax.random.normal(last, (6, 2))}


def loss(params, batch):
    logits = jnp.tanh(batch[0] @ params["w"] + params["b"]) @ params["v"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


PLAIN = [
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "adan", "amsgrad", "fromage",
    "lamb", "lars", "lbfgs", "lion", "nadam", "nadamw", "noisy_sgd", "novograd", "optimistic_adam",
    "optimistic_adam_v2", "optimistic_gradient_descent", "radam", "rmsprop", "rprop", "sgd", "sign_sgd", "sm3", "yogi",
]  # fmt: skip
CONTRIB = [
    "acprop", "ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "galore", "madgrad", "momo", "momo_adam",
    "muon", "prodigy", "schedule_free_adamw", "schedule_free_sgd", "simplified_ademamix", "sophia",
]  # fmt: skip
IN_A_HURRY = hurry()
OPTIMIZERS = {
    **{name: lambda rate, make=getattr(optax, name, None): make(rate) for name in PLAIN},
    **{name: lambda rate, make=getattr(contrib, name, None): make(rate) for name in CONTRIB},
    "polyak_sgd": lambda rate: optax.polyak_sgd(max_learning_rate=rate),
    "noisy_sgd": lambda rate: optax.noisy_sgd(rate, key=0),
    "simplified_ademamix": lambda rate: contrib.simplified_ademamix(rate, alpha=1.0),
    "cocob": lambda rate: contrib.cocob(learning_rate=50 * rate),
    "lbfgs": lambda rate: optax.lbfgs(),
    "galore": lambda rate: contrib.galore(rate, rank=1),  # of two classes' gradients
    "mechanize": lambda rate: contrib.mechanize(optax.adam(rate)),
    "MultiSteps": lambda rate: optax.MultiSteps(optax.adam(rate), every_k_schedule=2),
    "lookahead": lambda rate: optax.lookahead(optax.adam(rate), sync_period=3, slow_step_size=0.5),
    "sam": lambda rate: contrib.sam(optax.sgd(rate), optax.chain(contrib.normalize(), optax.sgd(0.05))),
    "sam, opaque": lambda rate: contrib.sam(
        optax.sgd(rate), optax.chain(contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
    ),
    "sam after clipping": lambda rate: optax.chain(
        optax.clip_by_global_norm(0.1), contrib.sam(optax.sgd(rate), optax.chain(contrib.normalize(), optax.sgd(0.05)))
    ),
    "plateau": lambda rate: optax.chain(optax.adam(rate), contrib.reduce_on_plateau(patience=1, cooldown=0)),
}  # fmt: skip
THERE = {
    name: make
    for name, make in OPTIMIZERS.items()
    if name not in (*PLAIN, *CONTRIB) or hasattr(optax, name) or hasattr(contrib, name)
}
INEXACT = {"muon": 2e-3}  # its orthogonalisation multiplies rounding errors


def experiment_with(make, **more):
    return vt.Experiment(
        space={"rate": vt.loguniform(1e-3, 0.1)}, model=model, optimizer=lambda hp: make(hp.rate), loss=loss, data=DATA,
        batch_size=8, steps=STEPS, **more,
    )  # fmt: skip


def by_a_plain_loop(make, experiment, trial):
    """Trains as Optax's documentation does; returns the training loss of each step and the weights to use."""
    params = model(None, jax.random.fold_in(jax.random.key(trial.seed), 0))
    optimizer = make(jnp.float32(trial.params["rate"]))
    ahead = "lookahead" in getattr(optimizer.init, "__qualname__", "")
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    params = optax.LookaheadParams.init_synced(params) if ahead else params
    sam = "sam" in getattr(optimizer.init, "__qualname__", "") or make is THERE.get("sam after clipping")
    state, losses = optimizer.init(params), []

    @functools.partial(jax.jit, compiler_options=IN_A_HURRY)
    def step(params, state, batch):
        def at(params):
            return loss(params, batch)

        value, grads = jax.value_and_grad(at)(params.fast if ahead else params)
        more = {"value": value, "grad": grads, "value_fn": at}
        if sam:
            more = {"grad_fn": lambda params, i: jax.grad(at)(params)}
        if make is THERE["sophia"]:
            more = {"obj_fn": at}
        updates, state = optax.with_extra_args_support(optimizer).update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state, value

    for batch in vt.batches(experiment, trial):
        params, state, value = step(params, state, batch)
        losses.append(float(value))
    if ahead:
        return losses, params.slow
    if isinstance(state, contrib.ScheduleFreeState):
        return losses, contrib.schedule_free_eval_params(state, params)
    inner = state[1] if isinstance(state, tuple) and len(state) == 2 else state
    if isinstance(inner, contrib.SAMState) and inner.cache is not None and STEPS % 2:
        return losses, inner.cache
    return losses, params


@pytest.mark.parametrize("name", THERE)
def test_an_optimizer_trains_as_a_plain_loop_of_optax_does(name):
    experiment = experiment_with(THERE[name])
    trial = TrialRow(0, 0, 0, State.RUNNING, None, 12345, 0, None, {"rate": RATE}, None, {})
    task, hp, key = experiment.build(), Hyperparameters({"rate": jnp.float32(RATE)}), jax.random.key(trial.seed)
    state, trained = task.init(hp, jax.random.fold_in(key, 0)), []

    @functools.partial(jax.jit, compiler_options=IN_A_HURRY)
    def step(state, i):
        return task.step(state, hp, jax.random.fold_in(key, i + 1), *task.taken(state, hp, i))

    for i in range(STEPS):
        state, value = step(state, i)
        trained.append(float(value))
    losses, params = by_a_plain_loop(THERE[name], experiment, trial)
    tolerance = INEXACT.get(name, 2e-5)
    np.testing.assert_allclose(trained, losses, rtol=tolerance)
    np.testing.assert_allclose(task.evaluate(state, hp)["loss"], loss(params, DATA.valid), rtol=tolerance)
    assert losses[-1] != losses[0]


def test_there_are_enough_of_them():
    assert len(THERE) >= 46


def test_a_study_trains_them_in_lanes_and_keeps_the_weights_that_it_measured(tmp_path):
    space = {"rate": vt.loguniform(1e-3, 0.1), "optimizer": vt.choice(["optimistic_gradient_descent", "lookahead"])}
    experiment = vt.Experiment(
        space=space, model=model, loss=loss, data=DATA,
        optimizer=lambda hp: OPTIMIZERS[hp.optimizer](hp.rate), batch_size=8, steps=STEPS,
    )  # fmt: skip
    study = vt.run(experiment, trials=8, rounds=1, out=tmp_path / "s", report=False)
    for row in study.trials(round=0)[:3]:
        losses, params = by_a_plain_loop(OPTIMIZERS[row.params["optimizer"]], experiment, row)
        np.testing.assert_allclose(row.value, loss(params, DATA.valid), rtol=1e-4)
        np.testing.assert_allclose(study.curve(row.trial)[0].loss, np.mean(losses), rtol=1e-4)
    kept = study.ledger.trial(study.meta["weights"]["best"])
    np.testing.assert_allclose(loss(study.best_model(experiment), DATA.valid), kept.value, rtol=1e-5)


def test_an_optimizers_own_error_about_its_arguments_is_told():
    def make(rate):
        return optax.GradientTransformationExtraArgs(lambda params: (), lambda updates, state: (updates, state))

    with pytest.raises(vt.InputError, match="positional argument"):
        find_statics(experiment_with(make))
