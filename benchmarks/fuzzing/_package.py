"""A case through the package: an experiment or a task, a study of a few trials, and its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vmaptune as vt
from fuzzing._case import Case


class Trained(NamedTuple):
    """One trial of the study."""

    trial: int
    seed: int
    rate: float
    points: dict[int, dict[str, float]]  # by step: the mean training loss since the last point, and the metrics
    state: str


def experiment(case: Case) -> vt.Experiment:
    spec, (low, high) = case.spec, case.rates
    space = {"learning_rate": vt.loguniform(low, high)}
    if spec["via"] == "task":
        return vt.Experiment(space=space, task=task(case), objective="loss", steps=spec["steps"], name="fuzz")
    train, valid = case.data
    return vt.Experiment(
        space=space, model=lambda hp, rngs: case.model(rngs.params()),
        optimizer=lambda hp, steps: case.optimizer(hp.learning_rate),
        loss=lambda model, batch, hp, key: case.loss(model, batch, key),
        metrics=lambda model, batch: case.metrics(model, batch),
        data=vt.Data(train=train, valid=valid), objective="loss", batch_size=spec["batch"], steps=spec["steps"],
        order=spec["order"], name="fuzz",
    )  # fmt: skip


def task(case: Case) -> vt.Task:
    """The smaller contract, of a model that is a pytree of arrays."""
    import optax

    train, valid = (jax.tree.map(jnp.asarray, part) for part in case.data)

    def init(hp, key):
        model = case.model(first_key(key))
        return model, case.optimizer(hp.learning_rate).init(model)

    def step(state, hp, key):
        model, opt = state
        batch = jax.tree.map(lambda a: a[rows_of_task(case, key)], train)
        loss, grads = jax.value_and_grad(case.loss)(model, batch, key)
        updates, opt = case.optimizer(hp.learning_rate).update(grads, opt, model)
        return (optax.apply_updates(model, updates), opt), loss

    return vt.Task(init, step, lambda state, hp: case.metrics(state[0], valid), has_loss=True)


def first_key(key: jax.Array) -> jax.Array:
    """The key that `rngs.params()` gives a model."""
    from flax import nnx

    return nnx.Rngs(key).params()


def rows_of_task(case: Case, key: jax.Array) -> jax.Array:
    return jax.random.randint(key, (case.spec["batch"],), 0, case.spec["examples"], jnp.int32)


def train(case: Case, directory: Path) -> tuple[list[Trained], list[str]]:
    """The trials of a study of the case, and what it warned of."""
    spec = case.spec
    plan = ",".join(f"{name}={value}" for name, value in spec["plan"].items())
    study = vt.run(
        experiment(case), trials=spec["trials"], rounds=1, seed=spec["seed"] % 1000, out=directory, plan=plan,
        report=False,
    )  # fmt: skip
    found = []
    for row in study.ledger.trials():
        points = {point.step: {"training loss": point.loss, **point.metrics} for point in study.curve(row.trial)}
        found.append(Trained(row.trial, row.seed, row.params["learning_rate"], points, str(row.state)))
    return found, list(study.meta["result"]["warnings"])


class Order:
    """What the plain loop takes from the package: the rows of each step's batch, and the keys of a trial."""

    def __init__(self, case: Case):
        from vmaptune.experiment._order import batch_indices

        spec = case.spec
        steps = jnp.arange(spec["steps"])

        def of(seed: Any) -> Any:
            key = jax.random.key(seed)
            keys = jax.vmap(lambda t: jax.random.fold_in(key, t + 1))(steps)
            first = jax.random.fold_in(key, 0)
            words = jax.random.key_data(
                jax.random.key(0) if spec["order"] == "shared" else jax.random.fold_in(first, 1)
            )
            if spec["via"] == "task":
                rows = jax.vmap(lambda k: rows_of_task(case, k))(keys)
            else:
                rows = jax.vmap(lambda t: batch_indices(words, t, spec["batch"], spec["examples"]))(steps)
            return rows, [keys[t] for t in range(spec["steps"])], first_key(first)

        self._of = jax.jit(of)

    def of(self, seed: int) -> tuple[np.ndarray, list[jax.Array], jax.Array]:
        """Of a trial's seed: rows [S, B], the key of each step, and that of its model's weights."""
        rows, keys, first = self._of(np.uint32(seed))
        return np.asarray(rows), keys, first
