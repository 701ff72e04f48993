"""Every program is compared with the model as it is written: a planted fault is found, and rounding is none."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vmaptune as vt
from vmaptune.engine import check as checking
from vmaptune.engine.check import AsWritten, Checked, check, layer_of
from vmaptune.engine.compiling import products_are_compiled
from vmaptune.engine.functions import LaneFunctions
from vmaptune.engine.plan import Plan
from vmaptune.engine.program import Program
from vmaptune.experiment import find_statics, lane_arguments
from vmaptune.rewrite import (
    _columns,
    _innermost,
    _jaxpr,
    _products,
    _quotients,
    _random,
    _recurrent,
    _reductions,
    _turned,
)

rng = np.random.default_rng(0)
X = rng.normal(size=(96, 8, 8, 1)).astype(np.float32)
Y = (X.sum((1, 2, 3)) > 0).astype(np.int32) + 2 * (X[:, 0].sum((1, 2)) > 0)
PARTS = {"train": (X[:64], Y[:64]), "valid": (X[64:], Y[64:])}


class Dense(nnx.Module):
    """Biases before a norm, whose gradients are rounding alone, which Adam blows up to whole steps."""

    def __init__(self, rngs):
        self.a, self.norm = nnx.Linear(64, 32, rngs=rngs), nnx.BatchNorm(32, rngs=rngs)
        self.drop, self.b = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(nnx.relu(self.norm(self.a(x.reshape(len(x), -1))))))


class Conv(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.b = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.a(x)), (2, 2), (2, 2))
        return self.b(x.reshape(len(x), -1))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.cell, self.head = nnx.GRUCell(8, 32, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        carry = jnp.zeros((len(x), 32))
        carry, _ = jax.lax.scan(lambda h, x: self.cell(h, x), carry, x[..., 0].swapaxes(0, 1))
        return self.head(nnx.LayerNorm(32, rngs=nnx.Rngs(0))(carry))


class Heads(nnx.Module):
    """Two classifiers from one layer: two results of one equation, each reduced along its short rows."""

    def __init__(self, rngs):
        self.both = nnx.Linear(64, 20, rngs=rngs)

    def __call__(self, x):
        first, second = jnp.split(self.both(x.reshape(len(x), -1)), 2, axis=-1)
        return jax.nn.log_softmax(first) - jax.nn.log_softmax(second)


@jax.custom_jvp
def centred(x):
    return jnp.sin(x)


@centred.defjvp
def _of_the_whole_batch(primals, tangents):
    """Element by element it is not: each example's gradient depends on the others'."""
    (x,), (dx,) = primals, tangents
    return centred(x), jnp.cos(x) * (dx - dx.mean(0))


class Ruled(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.b(centred(self.a(x))).reshape(len(x), -1))


def entropy(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()


def experiment(module, rate=1.0, **changes) -> vt.Experiment:
    parts = {
        "space": {"rate": vt.loguniform(1e-4 * rate, 1e-1 * rate)},
        "model": lambda hp, rngs: module(rngs),
        "optimizer": lambda hp, steps: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(hp.rate)),
        "loss": entropy,
        "metrics": lambda m, batch: {"error": (m(batch[0]).argmax(-1) != batch[1]).mean(), "loss": entropy(m, batch)},
        "data": vt.Data(**PARTS), "objective": "error", "batch_size": 32, "steps": 20,
    }  # fmt: skip
    return vt.Experiment(**{**parts, **changes})


@functools.cache
def written(module, **changes):
    """What an experiment with this model is compared with: compiled once for all faults."""
    asked = experiment(module, **changes)
    traced = lane_arguments(asked.space, find_statics(asked).traced)
    return asked, AsWritten(LaneFunctions(asked.build(), {}, traced, plain=True), 20)


def verdict(module, **changes) -> Checked:
    """What the check says of the program of an experiment with this model."""
    asked, plain = written(module, **changes)
    functions = LaneFunctions(asked.build(), {}, plain.functions.traced)
    assert functions.failure is None
    program = Program(functions, functions.traced, Plan(devices=1, lanes=2, tiles=3, every=10))
    return check(program, plain, asked.space.rows(asked.space.sample(6, seed=(0, 0))), range(6))


WRITTEN = [(Dense, "shared"), *((module, "own") for module in (Dense, Conv, Recurrent, Heads, Ruled))]


@pytest.mark.parametrize(("module", "order"), WRITTEN)
def test_what_is_rewritten_trains_what_is_written(module, order):
    found = verdict(module, order=order)
    assert found.equal, found
    assert 0 < found.largest <= checking.FLOOR
    assert found.lanes == 3


def test_rounding_in_bfloat16_and_wild_rates_are_no_difference():
    assert verdict(Dense, precision="bfloat16").equal
    assert verdict(Dense, rate=1e3).equal


def scaled(function):
    """The function with its results, or those that are numbers, off by 2 %."""

    def off(*args, **named):
        found = function(*args, **named)
        return jax.tree.map(lambda x: x * 1.02 if jnp.issubdtype(x.dtype, jnp.inexact) else x, found)

    return off


def reversed_bits(function):
    def off(record, *args):
        found = function(record, *args)
        return jnp.flip(found) if record.kind == "bits" else found

    return off


def one_for_all(function):
    """As JAX traces it: equal shapes share a variable."""
    kept = functools.cache(lambda shape, dtype: function(jax.ShapeDtypeStruct(shape, dtype)))
    return lambda aval: kept(aval.shape, aval.dtype)


FAULTS = {
    "one variable for two results": (_columns, "_constraint", one_for_all, Heads),
    "a rule taken for element-wise": (_innermost, "_is_by_number", lambda function: lambda *args: True, Ruled),
    "a product": (_products, "product", scaled, Conv),
    "a quotient": (_quotients, "quotient", scaled, Dense),
    "a sum of rows": (_reductions, "sum_of_matrix", scaled, Recurrent),
    "a sum of a batch": (_turned, "product_with_ones", scaled, Dense),
    "a convolution, examples innermost": (_jaxpr, "convolve_innermost", scaled, Conv),
    "a pooling": (_jaxpr, "pool", scaled, Conv),
    "a pick": (_jaxpr, "pick", scaled, Dense),
    "a sum after a loop": (_recurrent, "_over_time", scaled, Recurrent),
    "random bits": (_random, "draw", reversed_bits, Dense),
}


CHANGES = {"a sum of a batch": {"order": "shared"}, "a sum after a loop": {"batch_size": 8}}
COMPILED = {"a sum of rows", "a sum of a batch", "a sum after a loop"}  # are there where products are compiled


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    module, name, plant, model = FAULTS[fault]
    planted = plant(getattr(module, name))
    called = []
    monkeypatch.setattr(module, name, lambda *args, **named: called.append(1) or planted(*args, **named))
    found = verdict(model, **CHANGES.get(fault, {"order": "own"}))
    if not products_are_compiled() and fault in COMPILED:
        assert not called
        return
    assert called
    assert not found.equal, found
    assert found.where
    assert found.largest > checking.FLOOR


def test_what_differs_is_compared_with_what_jax_compiles_for_everyone(monkeypatch):
    """In a hurry XLA once made a NaN of a maximum's derivative where neither JAX nor the rewritten program did."""

    def wrong(lowered):
        usual = lowered.compile()
        return lambda *args: jax.tree.map(lambda x: x * 1.5 if x.dtype == jnp.float32 else x, usual(*args))

    monkeypatch.setattr(checking, "compiled_in_a_hurry", wrong)
    assert verdict(Dense, order="own").equal


def test_an_array_is_named_as_the_model_has_it():
    assert layer_of("['params']['layers'][0]['kernel'].value") == "the weights layers.0.kernel"
    assert layer_of("['opt'][0].mu['b']['bias']") == "the optimiser's 0.mu.b.bias"


@pytest.fixture
def faulty(monkeypatch, tmp_path):
    """A rewrite that is wrong, and no memory of earlier checks."""
    monkeypatch.setenv("VMAPTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_turned, "product_with_ones", scaled(_turned.product_with_ones))
    monkeypatch.setattr(_products, "product", scaled(_products.product))
    monkeypatch.setattr(_quotients, "quotient", scaled(_quotients.quotient))


def curves(study):
    return [(p.loss, p.value) for trial in study.trials() for p in study.curve(trial.trial)]


def test_a_wrong_program_is_trained_as_written_and_the_person_told(faulty, tmp_path):
    asked = experiment(Dense)
    study = vt.run(asked, trials=8, rounds=1, out=tmp_path / "a", report=False)
    (group,) = study.ledger.groups()
    assert group.info["checked"]["equal"] is False
    (note,) = (text for text in study.result["warnings"] if "as written" in text)
    assert "plain JAX at the weights" in note
    assert "Please report" in note
    plain = vt.run(asked, trials=8, rounds=1, out=tmp_path / "b", report=False, as_written=True)
    assert curves(study) == curves(plain)
    assert plain.ledger.groups()[0].info["checked"] is None
    assert plain.meta["options"]["as_written"] is True


def test_what_was_found_is_remembered_for_the_same_program_and_data(faulty, tmp_path, monkeypatch):
    asked = experiment(Dense)
    first = vt.run(asked, trials=8, rounds=1, out=tmp_path / "a", report=False)
    looked = []
    monkeypatch.setattr("vmaptune.study._groups.check", lambda *args: looked.append(1) or Checked(True))
    again = vt.run(asked, trials=8, rounds=1, out=tmp_path / "b", report=False)
    assert not looked
    assert curves(first) == curves(again)
    other = vt.Data(train=(X[:64] + 1, Y[:64]), valid=PARTS["valid"])
    vt.run(experiment(Dense, data=other), trials=8, rounds=1, out=tmp_path / "c", report=False)
    assert looked


def test_a_rewrite_that_fails_leaves_the_model_as_it_is_written(tmp_path, monkeypatch):
    def broken(*args):
        raise ValueError("slice start_indices must be greater than or equal to zero")

    asked = experiment(Dense)
    monkeypatch.setattr(_jaxpr, "pick", broken)
    study = vt.run(asked, trials=8, rounds=1, out=tmp_path / "a", report=False)
    (note,) = (text for text in study.result["warnings"] if "as written" in text)
    assert "slice start_indices" in note
    monkeypatch.undo()
    plain = vt.run(asked, trials=8, rounds=1, out=tmp_path / "b", report=False, as_written=True)
    assert curves(study) == curves(plain)


def test_an_error_of_the_person_s_own_stays_one(tmp_path):
    def loss(model, batch):
        raise ValueError("mine")

    with pytest.raises(vt.InputError, match="mine"):
        vt.run(experiment(Dense, loss=loss), trials=8, rounds=1, out=tmp_path / "a", report=False)


def test_a_program_that_ended_a_process_is_trained_as_written(tmp_path, monkeypatch):
    asked, products = experiment(Dense), products_are_compiled()  # others are no danger
    monkeypatch.setattr("vmaptune.engine.functions.crashed", lambda text: True)
    study = vt.run(asked, trials=8, rounds=1, out=tmp_path / "a", report=False)
    assert [text for text in study.result["warnings"] if "ended a process" in text] or not products
    assert study.ledger.groups()[0].info["checked"]["equal"] is not products


def test_what_is_not_rewritten_is_not_compared(tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("compared")

    monkeypatch.setattr("vmaptune.study._groups.AsWritten", never)
    task = vt.Task(
        init=lambda hp, key: jax.random.normal(key, (3,)),
        step=lambda x, hp, key: x - hp.rate * (x + 0.1 * jax.random.normal(key, (3,))),
        evaluate=lambda x, hp: {"loss": (x**2).mean()},
    )
    asked = vt.Experiment(space={"rate": vt.loguniform(1e-3, 1.0)}, task=task, steps=10)
    study = vt.run(asked, trials=8, rounds=1, out=tmp_path / "a", report=False)
    assert [row.info["checked"] for row in study.ledger.groups()] == [None]
