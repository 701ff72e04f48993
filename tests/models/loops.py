"""Plain loops of each framework, as its own documentation trains a model: the oracle of `test_models.py`.

Each kind of model says what it begins with and what a loss sees of it; nothing here is the package's but the batches.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import vmaptune as vt
from vmaptune.engine.compiling import hurry

IN_A_HURRY = hurry()


def call(function, names, **given):
    """A person's function with what it takes: `model`, `batch`, and a key where its third argument is called so."""
    wanted = list(inspect.signature(function).parameters)
    return function(
        *(given[name] for name in names[: len(wanted)]), **({"key": given["key"]} if "key" in wanted else {})
    )


class Called:
    """A model whose calls are `apply(variables, call's key, *args) -> (out, variables)`."""

    def __init__(self, apply, variables, key):
        self.apply, self.variables, self.key, self.calls = apply, variables, key, 0

    def __call__(self, *args, **kwargs):
        key = None if self.key is None else jax.random.fold_in(self.key, self.calls)
        self.calls += 1
        out, self.variables = self.apply(self.variables, key, *args, **kwargs)
        return out


def parts(built: Any, first: Any, key: jax.Array):
    """`(params, rest, bind)` of a model that `model()` returned; `bind(params, rest, key, train)` is what a loss sees,
    and what it leaves is `rest_of(bound)`. `first` calls a model once."""
    if isinstance(built, nnx.Module):
        graph, params, rest = nnx.split(built, nnx.Param, ...)

        def bind(params, rest, key, train):
            module = nnx.merge(graph, params, jax.tree.map(lambda a: a, rest))  # variables of this trace
            module.train() if train else module.eval()
            return module

        return params, rest, bind, lambda module: nnx.split(module, nnx.Param, ...)[2]
    haiku, equinox = sys.modules.get("haiku"), sys.modules.get("equinox")
    if isinstance(built, linen.Module):

        def rngs(key):
            return None if key is None else {"params": key, "dropout": jax.random.fold_in(key, 1)}

        def init(_, key, *args):
            return built.init_with_output(rngs(key), *args)

        model = Called(init, None, key)
        first(model)
        variables = model.variables

        def bind(params, rest, key, train):
            def apply(variables, key, *args):
                mutable = list(rest) if train and rest else False
                out = built.apply(variables, *args, rngs=rngs(key), mutable=mutable)
                return (out[0], {**variables, **out[1]}) if mutable else (out, variables)

            return Called(apply, {"params": params, **rest}, key)

        rest = {name: value for name, value in variables.items() if name != "params"}
        return variables["params"], rest, bind, lambda model: {name: model.variables[name] for name in rest}
    if haiku is not None and isinstance(built, haiku.Transformed):
        draws = "rng" in inspect.signature(built.apply).parameters

        def applied(params, key, *args):
            return built.apply(params, *((key,) if draws else ()), *args)

        def init(_, key, *args):
            params = built.init(key, *args)
            return applied(params, key, *args), params

        model = Called(init, None, key)
        first(model)

        def bind(params, rest, key, train):
            return Called(lambda variables, key, *args: (applied(variables, key, *args), variables), params, key)

        return model.variables, (), bind, lambda model: ()
    if equinox is not None and isinstance(built, equinox.Module):
        params, static = equinox.partition(built, equinox.is_inexact_array)
        return params, (), lambda params, rest, key, train: equinox.combine(params, static), lambda model: ()
    return built, (), lambda params, rest, key, train: params, lambda model: ()


def train(case, experiment, row):
    """The training loss of each step, and the metrics of the trained model on the validation part."""
    batches = list(vt.batches(experiment, row))
    names = ("model", "batch")

    def trained(rate, seed, batches, valid):
        root = jax.random.key(seed)
        start = jax.random.fold_in(root, 0)
        built = call_model(case.model, {"hp": None, "rngs": nnx.Rngs(start), "key": start})
        first = jax.tree.map(lambda a: a[0], batches)
        params, rest, bind, rest_of = parts(
            built, lambda model: call(case.loss, names, model=model, batch=first, key=start), start
        )
        optimizer = optax.sgd(rate, 0.9)

        def step(carry, taken):
            (params, rest, state), (batch, i) = carry, taken
            key = jax.random.fold_in(root, i + 1)

            def value(params):
                model = bind(params, rest, key, True)
                return call(case.loss, names, model=model, batch=batch, key=key), rest_of(model)

            (loss, after), grads = jax.value_and_grad(value, has_aux=True)(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), after, state), loss

        steps = jnp.arange(len(jax.tree.leaves(batches)[0]))
        (params, rest, _), losses = jax.lax.scan(step, (params, rest, optimizer.init(params)), (batches, steps))
        return losses, said(case, bind(params, rest, None, False), valid)

    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    valid = experiment.loaded_data().valid
    compiled = jax.jit(trained, compiler_options=IN_A_HURRY)
    losses, metrics = compiled(np.float32(row.params["rate"]), np.uint32(row.seed), stacked, valid)
    return np.asarray(losses), {name: float(value) for name, value in metrics.items()}


def said(case, model, batch):
    """What a case says of a model on a part of the data."""
    if case.metrics is not None:
        return case.metrics(model, batch)
    return {"loss": call(case.loss, ("model", "batch"), model=model, batch=batch, key=jax.random.key(0))}


def measured(case, model, batch):
    """The same of a model that is there, as numbers."""
    if isinstance(model, nnx.Module):  # which may change while it is called
        found = nnx.jit(lambda model, batch: said(case, model, batch))(model, batch)
    else:
        found = jax.jit(lambda batch: said(case, model, batch), compiler_options=IN_A_HURRY)(batch)
    return {name: float(value) for name, value in found.items()}


def call_model(function, given):
    """A person's `model()` by the names of its arguments."""
    return function(*(given[name] for name in inspect.signature(function).parameters))
