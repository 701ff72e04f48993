"""A person's functions get their arguments by name, wherever they stand, and nothing that they did not ask for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.task import Hyperparameters

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
DATA = vt.Data(train=(X, X[:, 0]), valid=(X[:32], X[:32, 0]))


def squared(model, batch):
    return ((batch[0] @ model["w"] - batch[1]) ** 2).mean()


def experiment(**changes):
    parts = {
        "space": {"rate": vt.loguniform(1e-3, 0.3), "weight_decay": vt.loguniform(1e-4, 1e-2)},
        "model": lambda hp, rngs: {"w": jax.random.normal(rngs.params(), (3,))},
        "optimizer": lambda hp, steps: optax.sgd(hp.rate), "loss": squared,
        "metrics": lambda model, batch: {"loss": squared(model, batch)}, "data": DATA, "batch_size": 16, "steps": 7,
    }  # fmt: skip
    return vt.Experiment(**{**parts, **changes})


def traced(one):
    """Traces all of a lane."""
    task, hp = one.build(), Hyperparameters({"rate": np.float32(0.1), "weight_decay": np.float32(1e-3)})
    key = jax.random.key(0)
    state = task.init(hp, key)
    task.evaluate(task.step(state, hp, key, *task.taken(state, hp, jnp.int32(4)))[0], hp)


def seen(function, part, one=experiment):
    """What a function, built from a recorder of its arguments, was given at last."""
    found = {}
    traced(one(**{part: function(found)}))
    return found


def is_hp(value):
    return isinstance(value, Hyperparameters)


def is_key(value):
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def test_a_default_of_another_name_is_never_overwritten():
    def optimizer(found):
        def made(hp, weight_decay=1e-4, *, steps):
            found.update(hp=hp, weight_decay=weight_decay, steps=steps)
            return optax.adamw(hp.rate, weight_decay=weight_decay)

        return made

    found = seen(optimizer, "optimizer")
    assert is_hp(found["hp"])
    assert (found["weight_decay"], found["steps"]) == (1e-4, 7)

    def metrics(found):
        def measured(model, b, train=False):
            found.update(train=train, b=b)
            return {"loss": squared(model, b)}

        return measured

    found = seen(metrics, "metrics")
    assert found["train"] is False
    assert len(found["b"]) == 2


def test_keys_are_given_by_their_names_wherever_they_stand():
    def by_rng(found):
        def loss(model, batch, rng):
            found.update(key=rng)
            return squared(model, batch)

        return loss

    def by_keyword(found):
        def loss(model, batch, *, key, hp=None):
            found.update(key=key, hp=hp)
            return squared(model, batch)

        return loss

    def swapped(found):
        def loss(batch, key, model, hp):
            found.update(key=key, hp=hp)
            return squared(model, batch)

        return loss

    assert is_key(seen(by_rng, "loss")["key"])
    for written in (by_keyword, swapped):
        found = seen(written, "loss")
        assert is_key(found["key"])
        assert is_hp(found["hp"])


def test_other_names_get_theirs_by_position_as_was_promised():
    def loss(found):
        def written(params, xy, h, k):
            found.update(h=h, k=k)
            return squared(params, xy)

        return written

    found = seen(loss, "loss")
    assert is_hp(found["h"])
    assert is_key(found["k"])

    def model(found):
        def written(config, r):
            found.update(config=config, r=r)
            return {"w": jax.random.normal(r.params(), (3,))}

        return written

    found = seen(model, "model")
    assert is_hp(found["config"])
    assert isinstance(found["r"], nnx.Rngs)


def test_a_model_may_take_a_key_or_nothing_but_rngs():
    def from_key(found):
        def model(hp, key):
            found.update(key=key)
            return {"w": jax.random.normal(key, (3,))}

        return model

    def from_rngs(found):
        def model(rngs):
            found.update(rngs=rngs)
            return {"w": jax.random.normal(rngs.params(), (3,))}

        return model

    assert is_key(seen(from_key, "model")["key"])
    assert isinstance(seen(from_rngs, "model")["rngs"], nnx.Rngs)


def test_what_a_partial_binds_stays_bound():
    def loss(found):
        def written(model, batch, hp, scale):
            found.update(hp=hp, scale=scale)
            return scale * squared(model, batch)

        return functools.partial(written, hp=3, scale=2.0)

    found = seen(loss, "loss")
    assert (found["hp"], found["scale"]) == (3, 2.0)


REFUSED = [
    ({"loss": lambda model, batch, train: 0.0}, r"loss\(\): its arguments .*hp, key, step.*`train`"),
    ({"loss": lambda model, batch, *, noise: 0.0}, "`noise` is none of them"),
    ({"metrics": lambda model, batch, hp, extra: {}}, r"metrics\(\): .*`extra`"),
    ({"optimizer": lambda hp, weight_decay: optax.sgd(0.1)}, r"take it from hp \(hp.weight_decay\)"),
    ({"optimizer": lambda hp, key: optax.sgd(0.1)}, r"optimizer\(\): .*`key`"),
    ({"model": lambda hp, rngs, width: {}}, r"model\(\): .*`width`"),
    ({"predict": lambda model, x, hp, key: x}, r"predict\(\): .*`key`"),
    ({"loss": lambda model, batch, step: 0.0, "metrics": None}, "`step` can't be measured"),
    ({"combine": lambda sums: sums, "metrics": None}, "`combine` needs `metrics`"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_nothing_can_be_given_to_is_refused_before_anything_is_traced(changes, words):
    with pytest.raises(InputError, match=words):
        experiment(**changes)


def test_a_loss_knows_the_number_of_its_step(tmp_path):
    """A loss that is the number of the step, whatever the order: the curve's are the means of each segment."""
    for order in ("own", "shared"):
        one = experiment(
            loss=lambda model, batch, step, steps: 0 * squared(model, batch) + step + 100 * steps, order=order, steps=6
        )
        study = vt.run(one, trials=8, rounds=1, plan="every=3", out=tmp_path / order, report=False)
        assert [p.loss for p in study.curve(5)] == [601.0, 604.0]


def test_metrics_may_take_a_key_the_same_for_all():
    keys = []

    def metrics(model, batch, key):
        keys.append(np.asarray(jax.random.key_data(key)))
        return {"loss": squared(model, batch)}

    traced(experiment(metrics=metrics))
    assert len({tuple(k) for k in keys}) == 1


# ---- tasks --------------------------------------------------------------------------------------------


def test_the_functions_of_a_task_are_matched_by_name_too():
    task = vt.Task(
        init=lambda key, hp: jax.random.normal(key) * hp.a,
        step=lambda key, x, rate=0.5, *, hp: x - rate * hp.a + 0 * jax.random.normal(key),
        evaluate=lambda x: {"loss": x},
    )
    hp = Hyperparameters({"a": 2.0})
    x = task.init(hp, jax.random.key(1))
    assert float(x) == pytest.approx(2 * float(jax.random.normal(jax.random.key(1))))
    assert float(task.step(x, hp, jax.random.key(2))) == pytest.approx(float(x) - 1.0)
    assert float(task.evaluate(x, hp)["loss"]) == float(x)


def test_a_task_that_cannot_be_called_is_refused():
    def init(hp, key):
        return jnp.zeros(())

    def evaluate(state, hp):
        return {"loss": state}

    with pytest.raises(InputError, match=r"Task: step.*`more`"):
        vt.Task(init, lambda state, hp, key, more: state, evaluate)
    with pytest.raises(InputError, match="fourth argument"):
        vt.Task(init, lambda state, hp, key, rate=0.1: state, evaluate, shared=lambda step, count: jnp.zeros(count))
