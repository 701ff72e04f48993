"""No padded program that is another model: found by comparing it with the dense one, and told."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_masked import shapes_experiment

import vmaptune as vt
from vmaptune.engine.alone import Alone
from vmaptune.engine.functions import LaneFunctions
from vmaptune.experiment import find_statics, lane_arguments
from vmaptune.nn._dropout import dropout
from vmaptune.study._padding import Padding

SMALL = {"rate": vt.loguniform(1e-3, 1e-1), "width": vt.ordinal([3, 6, 9]), "depth": 1}
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def ruled_out(experiment: vt.Experiment):
    task = experiment.build()
    statics = find_statics(experiment, task)
    space = experiment.space
    return Padding(task, space, statics).ruled_out(space.rows(space.sample(8, 0)))


def with_optimizer(optimizer) -> vt.Experiment:
    space = {**SMALL, "batch": 8}
    return dataclasses.replace(shapes_experiment(), space=space, optimizer=optimizer, _cache={})


@pytest.mark.parametrize(
    ("optimizer", "padded"),
    [
        (lambda hp, steps: optax.adafactor(hp.rate), False),
        (lambda hp, steps: optax.chain(optax.centralize(), optax.sgd(hp.rate)), False),
        (lambda hp, steps: optax.chain(optax.clip_by_block_rms(0.01), optax.sgd(hp.rate)), False),
        (lambda hp, steps: optax.chain(optax.clip_by_global_norm(0.1), optax.lamb(hp.rate, weight_decay=0.1)), True),
    ],
)  # fmt: skip
def test_an_optimiser_that_averages_over_a_layer_rules_masked_widths_out(optimizer, padded):
    assert list(ruled_out(with_optimizer(optimizer))) == ([] if padded else ["width"])


def batches(loss, model=lambda hp, rngs: {"w": jnp.ones((3, 4))}) -> vt.Experiment:
    """Two rows of three numbers an example; the batch size is a lane's own."""
    x = X.reshape(40, 2, 3)
    return vt.Experiment(
        space={"rate": vt.loguniform(1e-2, 1e-1), "batch": vt.ordinal([4, 8, 16])}, model=model, loss=loss,
        optimizer=lambda hp, steps: optax.sgd(hp.rate), data=vt.Data(train=(x[:32],), valid=(x[32:],)),
        batch_size="batch", steps=4,
    )  # fmt: skip


class Normed(nnx.Module):
    def __init__(self, rngs, flat):
        self.norm, self.flat = vt.nn.BatchNorm(3, rngs=rngs), flat

    def __call__(self, x):
        return self.norm(x.reshape(-1, 3)).reshape(x.shape) if self.flat else self.norm(x)


def info_nce(w, batch):
    h = batch[0].reshape(-1, 6) @ jnp.tile(w["w"], (2, 1))
    logits = h @ h.T / 10  # every other example of the batch is a negative one, the padding's too
    return vt.nn.batch_mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(h))))


@pytest.mark.parametrize(
    ("loss", "model", "padded"),
    [
        (lambda w, b: vt.nn.batch_mean((b[0] @ w["w"]) ** 2), None, True),
        (lambda w, b: vt.nn.batch_mean((b[0] @ w["w"] - (b[0] @ w["w"]).mean(0)) ** 2), None, False),
        (info_nce, None, False),
        (lambda m, b: vt.nn.batch_mean((m(b[0]) - 1) ** 3), lambda hp, rngs: Normed(rngs, flat=False), True),
        (lambda m, b: vt.nn.batch_mean((m(b[0]) - 1) ** 3), lambda hp, rngs: Normed(rngs, flat=True), False),
    ],
    ids=["mean", "centred", "contrastive", "norm", "norm of rows"],
)
def test_a_batch_that_is_padded_where_its_padding_counts_is_ruled_out(loss, model, padded):
    experiment = batches(loss, model) if model else batches(loss)
    assert find_statics(experiment).structure == ("batch",)
    assert list(ruled_out(experiment)) == ([] if padded else ["batch"])


def test_such_a_study_has_a_program_for_each_batch_size_and_says_so(tmp_path):
    """What its trials come to is what an experiment of their own fixed batch size comes to."""
    options = {"structure": "masks", "plan": "devices=1,every=4", "report": False}
    study = vt.run(batches(info_nce), trials=12, rounds=1, out=tmp_path / "s", **options)
    assert sorted(row.static["batch"] for row in study.ledger.groups()) == [4, 8, 16]
    (decision,) = study.ledger.decisions("padding")
    assert list(decision.data["differs"]) == ["batch"]
    assert any("batch: has a program for each of its values" in text for text in study.result["warnings"])
    row = next(t for t in study.trials() if t.params["batch"] == 4)
    fixed = dataclasses.replace(batches(info_nce), batch_size=4, space={"rate": vt.loguniform(1e-2, 1e-1)}, _cache={})
    functions = LaneFunctions(fixed.build(), {}, lane_arguments(fixed.space, ("rate",)))
    (point,) = Alone(functions, {"rate": row.params["rate"]}, row.seed).train([4])
    assert study.curve(row.trial)[-1].loss == pytest.approx(point.loss, rel=1e-5)


class Dropped(nnx.Module):
    def __init__(self, hp, rngs, told):
        width = vt.nn.size(hp, "width")
        self.first = vt.nn.Linear(5, width, rngs=rngs)
        self.dropout = vt.nn.Dropout(0.5, rngs=rngs, **({"units": width} if told else {}))
        self.last = vt.nn.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jax.nn.relu(self.first(x))))


class OwnNumbers(nnx.Module):
    """Its first numbers hang on the padded shape."""

    def __init__(self, hp, rngs):
        self.width = vt.nn.size(hp, "width")
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (5, self.width.most)))
        self.last = vt.nn.Linear(self.width, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.width.keep(x @ self.kernel[...]))


@pytest.mark.parametrize(
    ("model", "padded"),
    [(lambda hp, rngs: Dropped(hp, rngs, True), True), (lambda hp, rngs: Dropped(hp, rngs, False), False),
     (OwnNumbers, False)],
    ids=["dropout that is told", "dropout", "first numbers"],
)  # fmt: skip
def test_random_numbers_of_the_padded_shape_rule_it_out(model, padded):
    experiment = dataclasses.replace(shapes_experiment(), model=model, space={**SMALL, "batch": 8}, _cache={})
    assert list(ruled_out(experiment)) == ([] if padded else ["width"])


def test_dropout_over_padded_units_drops_what_the_narrow_layer_drops():
    x = jax.random.normal(jax.random.key(0), (2, 3, 7))
    for width in (1, 4):
        wide = dropout(x, 0.4, jax.random.key(3), units=vt.nn.Size(jnp.int32(width), 7))
        narrow = nnx.Dropout(0.4, deterministic=False)(x[..., :width], rngs=jax.random.key(3))
        np.testing.assert_array_equal(wide[..., :width], narrow)


def test_a_population_takes_a_masked_width_with_its_state(tmp_path):
    experiment = with_optimizer(lambda hp, steps: optax.sgd(hp.rate))
    study = vt.run(experiment, trials=10, method="pbt", structure="masks", out=tmp_path / "s", plan="devices=1,every=5")
    assert "width" not in study.meta["static"]
    width = {t.trial: t.params["width"] for t in study.trials()}
    copies = [copy for d in study.ledger.decisions("pbt") for copy in d.data["copies"]]
    assert copies
    for copy in copies:
        assert copy["params"]["width"] == width[copy["parent"]]
        width[copy["trial"]] = copy["params"]["width"]
