"""What check and run say of an experiment that trains: a setting that nothing reads, seeds that are all alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vmaptune as vt
from vmaptune.experiment import find_statics
from vmaptune.view.summary import check_text

X = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
DATA = vt.Data(train=(X, X[:, 0]), valid=(X, X[:, 0]))
RATE = vt.loguniform(1e-3, 0.1)
UNREAD = "the experiment's code never reads {}, so that it changes nothing"


def drawn(hp, key):
    return {"w": jax.random.normal(key, (4,))}


def loss(model, batch):
    return ((batch[0] @ model["w"] - batch[1]) ** 2).mean()


def experiment_with(space, model=drawn, optimizer=lambda hp: optax.sgd(hp.rate), **more):
    return vt.Experiment(space=space, model=model, optimizer=optimizer, loss=loss, data=DATA, steps=2, **more)


def two_optimizers(hp):
    return optax.sgd(hp.rate, hp.momentum) if hp.kind == "sgd" else optax.adam(hp.rate, b1=hp.beta)


SPACES = {
    "traced": ({"rate": RATE, "unused": vt.uniform(0, 1)}, None, "hp.unused"),
    "whole": ({"rate": RATE, "depth": vt.randint(1, 3), "width": vt.ordinal([2, 4])}, None, "hp.depth, hp.width"),
    "choice": ({"rate": RATE, "act": vt.choice(["relu", "tanh"])}, None, "hp.act"),
    "all are read": ({"rate": RATE}, None, ""),
    "by another value": (
        {"rate": RATE, "kind": vt.choice(["sgd", "adam"]), "momentum": vt.uniform(0, 0.9), "beta": vt.uniform(0, 0.9)},
        two_optimizers, "",
    ),
    "where it exists": (
        {"rate": RATE, "kind": vt.choice(["sgd", "adam"]), "momentum": vt.uniform(0, 0.9, when={"kind": "sgd"}),
         "beta": vt.uniform(0, 0.9, when={"kind": "adam"}), "more": vt.uniform(0, 1)},
        two_optimizers, "hp.more",
    ),
    "unpacked": ({"learning_rate": RATE, "b1": vt.uniform(0, 0.9)}, lambda hp: optax.adam(**hp), ""),
    "as the number of steps": ({"rate": RATE, "steps": vt.ordinal([2, 3])}, None, ""),
}  # fmt: skip


@pytest.mark.parametrize(("space", "optimizer", "unread"), SPACES.values(), ids=SPACES)
def test_a_setting_that_the_code_never_reads_is_told(space, optimizer, unread):
    more = {} if optimizer is None else {"optimizer": optimizer}
    if "steps" in space:
        more["steps"] = None
    experiment = vt.Experiment(
        **{"space": space, "model": drawn, "optimizer": lambda hp: optax.sgd(hp.rate), "loss": loss, "data": DATA,
           "steps": 2} | more
    )  # fmt: skip
    notes = find_statics(experiment).notes
    assert [note.startswith(UNREAD.format(unread)) for note in notes] == ([True] if unread else [])


def test_a_batch_size_is_read_by_its_name():
    assert find_statics(experiment_with({"rate": RATE, "n": vt.ordinal([4, 8])}, batch_size="n")).notes == ()


@pytest.mark.parametrize(("order", "words"), [("own", "by their order of the data"), ("shared", "in nothing but")])
def test_a_model_that_is_the_same_for_every_seed_is_told(order, words):
    experiment = experiment_with({"rate": RATE}, lambda hp: {"w": jnp.ones(4) * hp.rate}, order=order)
    (note,) = find_statics(experiment).notes
    assert note.startswith("model() makes the same first weights for every seed")
    assert words in note


def test_check_and_run_say_so(tmp_path):
    experiment = experiment_with({"rate": RATE, "unused": vt.uniform(0, 1)}, lambda hp: {"w": jnp.ones(4)})
    said = check_text(vt.check(experiment, trials=4))
    study = vt.run(experiment, trials=4, rounds=1, out=tmp_path / "s", report=False)
    for words in (UNREAD.format("hp.unused"), "model() makes the same first weights"):
        assert f"note: {words}" in said
        assert any(warning.startswith(words) for warning in study.result["warnings"])
