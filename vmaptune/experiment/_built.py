"""How a supervised experiment becomes a Task: init, step and evaluate of one lane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.experiment._experiment import SHARED_ORDER, Experiment
from vmaptune.experiment._measures import (
    BLOCK,
    SIGNATURES,
    in_precision,
    kind_for,
    loss_and_more,
    measured,
    metrics_on,
)
from vmaptune.experiment._models import PytreeModel
from vmaptune.experiment._optimizers import (
    average,
    begin,
    no_average,
    optimizer_for,
    trained,
    updated,
    weights_to_measure,
)
from vmaptune.experiment._order import batches
from vmaptune.experiment._structure import limits_of, structured
from vmaptune.nn import Size, padded_batch
from vmaptune.rewrite import with_fast_convolutions
from vmaptune.space import Space
from vmaptune.task import Hyperparameters, Task


def _on_device(array: np.ndarray) -> jax.Array:
    """A copy; `jnp.asarray` would compile a program for it, and `device_put` alone may share the memory."""
    return jax.device_put(np.array(array))


def built(experiment: Experiment) -> Task:
    """A supervised experiment as three functions of one lane."""
    data = experiment.loaded_data()
    experiment.check_sizes()
    train, valid = (jax.tree.map(_on_device, part) for part in (data.train, data.valid))
    n_train, n_valid = data.size("train"), data.size("valid")
    shared = experiment.order == "shared"

    def init(hp: Hyperparameters, key: jax.Array) -> Any:
        batch_size = experiment.lane_batch(hp)
        first = jax.tree.map(lambda a: a[: batch_size.most], train)

        names: list[str] = []

        def use(model: Any) -> jax.Array:
            loss, more = loss_on(batch_size, model, first, hp, key, jnp.int32(0))
            names[:] = more
            return loss

        def ask(training: Any, evaluating: Any) -> Any:
            return use(training), measured(experiment, evaluating, jax.tree.map(lambda a: a[:BLOCK], valid), hp)

        kind = kind_for(experiment, hp)
        params, rest = kind.init(hp, key, use, ask)
        if isinstance(kind, PytreeModel):  # the others have been called
            jax.eval_shape(use, params)
        params, opt = begin(optimizer_for(experiment, hp), params)
        return {
            "params": params,
            "rest": rest,
            "opt": opt,
            **({} if experiment.ema is None else {"ema": no_average(params)}),
            **({"more": dict.fromkeys(names, jnp.float32(jnp.nan))} if names else {}),
            **({} if shared else {"order": order_key(experiment, key)}),
        }

    def loss_on(size: Size, model: Any, batch: Any, hp: Hyperparameters, key: jax.Array, step: Any) -> Any:
        if not size.is_traced:
            return loss_and_more(experiment, model, batch, hp, key, step)
        with padded_batch(size) as padded:
            found = loss_and_more(experiment, model, batch, hp, key, step)
        if not padded.averaged:  # found out by the tracing: then the batch size is static
            raise TypeError("a traced batch size needs a loss that takes its mean with vt.nn.batch_mean")
        return found

    assert experiment.loss is not None
    counted = SIGNATURES["loss"].asks_for(experiment.loss, "step")

    def with_numbers(rows: jax.Array, step: jax.Array, count: int) -> Any:
        return (rows, step + jnp.arange(count, dtype=jnp.int32)) if counted else rows

    def own_rows(state: Any, hp: Hyperparameters, step: jax.Array, count: int) -> Any:
        size = experiment.lane_batch(hp)
        most = size.most if size.is_traced else None
        return with_numbers(batches(state["order"], step, count, size.value, n_train, most), step, count)

    def shared_rows(step: jax.Array, count: int) -> Any:
        key = order_key(experiment, None)
        return with_numbers(batches(key, step, count, experiment.lane_batch_size({}), n_train), step, count)

    def step(state: Any, hp: Hyperparameters, key: jax.Array, taken: Any) -> tuple[Any, jax.Array]:
        kind, params = kind_for(experiment, hp), trained(state["params"])
        rows, number = taken if counted else (taken, None)
        batch = jax.tree.map(lambda a: a[rows], train)

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = kind.bind(hp, params, state["rest"], key, train=True)
            loss, more = loss_on(experiment.lane_batch(hp), model, batch, hp, key, number)
            return loss, (kind.collect(model, state["rest"]), more)

        loss_fn = with_fast_convolutions(loss_fn, experiment.convolutions)

        def value_fn(params: Any) -> jax.Array:
            return in_precision(experiment, loss_fn)(params)[0]

        (loss, (rest, said)), grads = in_precision(experiment, jax.value_and_grad(loss_fn, has_aux=True))(params)
        more = {"value": loss, "grad": grads, "value_fn": value_fn, "obj_fn": value_fn,
                "grad_fn": lambda params, _=0: jax.grad(value_fn)(params)}  # fmt: skip
        optimizer = optimizer_for(experiment, hp)
        params, opt = updated(optimizer, grads, state["opt"], state["params"], more)
        after = {**state, "params": params, "rest": rest, "opt": opt}
        if experiment.ema is not None:
            after["ema"] = average(state["ema"], weights_to_measure(params, opt), experiment.decay(hp))
        if said:
            after["more"] = said
        return after, loss

    def evaluate(state: Any, hp: Hyperparameters) -> dict[str, jax.Array]:
        of_training = {f"train_{name}": value for name, value in state.get("more", {}).items()}
        return of_training | metrics_on(experiment, state, hp, valid, n_valid)

    rows_of: dict[str, Any] = {"shared": shared_rows} if shared else {"inputs": own_rows}
    return Task(init=init, step=step, evaluate=evaluate, has_loss=True, **rows_of)


def order_key(experiment: Experiment, key: jax.Array | None) -> jax.Array:
    """The two words of the order in which a trial takes its batches; `key` is the one that its model is made from."""
    return jax.random.key_data(
        jax.random.key(SHARED_ORDER) if experiment.order == "shared" or key is None else jax.random.fold_in(key, 1)
    )


def lane_settings(experiment: Experiment, values: Mapping[str, Any]) -> Hyperparameters:
    """Static and traced settings of one lane as the experiment's functions receive them."""
    assert isinstance(experiment.space, Space)
    return structured(Hyperparameters({n: values[n] for n in experiment.space}), limits_of(experiment.space))
