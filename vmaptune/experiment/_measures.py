"""What an experiment's `loss`, `metrics` and `combine` say of a model: the one place where anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.arguments import Signature
from vmaptune.errors import InputError
from vmaptune.experiment._kinds import ModelKind, model_kind
from vmaptune.experiment._optimizers import SIGNATURE as OPTIMIZER
from vmaptune.experiment._optimizers import of_average, weights_to_measure
from vmaptune.experiment._places import at, kind
from vmaptune.experiment._structure import limits_of, structured
from vmaptune.rewrite import bytes_at_once, with_bfloat16_products
from vmaptune.space import Space
from vmaptune.task import Hyperparameters, Task

if TYPE_CHECKING:
    from vmaptune.experiment._experiment import Experiment

BLOCK = 1024  # examples of one forward pass, where not all go in at once
MOST_LETTERS = 100  # of a metric's name, or an experiment's
WHOLE_BYTES = 2**29  # of one model, that measuring a whole part at once may take
SIGNATURES = {
    "model": Signature("model", ("hp", "rngs"), ("key",)),
    "optimizer": OPTIMIZER,
    "loss": Signature("loss", ("model", "batch", "hp", "key"), ("step", "steps")),
    "metrics": Signature("metrics", ("model", "batch", "hp"), ("key", "steps")),
    "combine": Signature("combine", ("sums", "hp")),
    "predict": Signature("predict", ("model", "x", "hp")),
}


def kind_for(experiment: Experiment, hp: Hyperparameters) -> ModelKind:
    """Which kind of model the experiment's `model()` returns for these settings."""
    function = experiment.model
    assert function is not None
    return model_kind(function, SIGNATURES["model"], hp)


def evaluation_params(state: Mapping[str, Any]) -> Any:
    """The parameters by which a lane's model is measured and kept."""
    params = weights_to_measure(state["params"], state["opt"])
    return of_average(state["ema"], params) if "ema" in state else params


def model_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a lane's state that make its model, as it was measured: what is saved of it."""
    return {"params": evaluation_params(state), "rest": state["rest"]}


def bind_model(experiment: Experiment, hp: Hyperparameters, arrays: Mapping[str, Any]) -> Any:
    """A model of `model_arrays` as `metrics` receives it: parameters and other variables in place, evaluation mode."""
    return kind_for(experiment, hp).bind(hp, arrays["params"], arrays["rest"], None, train=False)


def in_precision(experiment: Experiment, function: Any) -> Any:
    """A function of arrays computed in the experiment's precision."""
    return with_bfloat16_products(function) if experiment.precision == "bfloat16" else function


def loss_and_more(
    experiment: Experiment, model: Any, batch: Any, hp: Hyperparameters, key: jax.Array, step: Any = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the person's `loss` returns, with its scalars by name, or an error that says what it should have been."""
    function = experiment.loss
    assert function is not None
    given = {"model": model, "batch": batch, "hp": hp, "key": key, "step": step}
    value = SIGNATURES["loss"].call(function, given | _steps(experiment, "loss", hp))
    more: Any = {}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping):
        value, more = value
        more = checked_scalars(more, at(function), "loss")
        if "loss" in more:
            raise InputError(
                f"loss(): the loss itself is called 'loss', so name the other scalar otherwise{at(function)}"
            )
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, float, int)):
        raise InputError(
            f"loss() must return a scalar array, but it returned {kind(value)}; return the loss alone, or with a dict "
            f"of scalars{at(function)}"
        )
    loss = jnp.asarray(value)
    if loss.shape != ():
        raise InputError(
            f"loss() must return a scalar, but its shape is {loss.shape}; take the mean over the batch{at(function)}"
        )
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        way = "take its real part or its absolute value" if jnp.iscomplexobj(loss) else (
            "compute it from the model's outputs in floating point: an integer has no gradient"
        )  # fmt: skip
        raise InputError(f"loss() must return a real float, but its dtype is {loss.dtype}; {way}{at(function)}")
    return loss, more


def measured(experiment: Experiment, model: Any, batch: Any, hp: Hyperparameters) -> dict[str, jax.Array]:
    """What `metrics` says of a model on some examples: metrics, or with `combine` sums over them."""
    key = jax.random.key(0)  # the same for all models: what differs between them is none of its noise
    function = experiment.metrics
    if function is None:
        loss, more = loss_and_more(experiment, model, batch, hp, key)
        return {"loss": loss, **more}
    given = {"model": model, "batch": batch, "hp": hp, "key": key} | _steps(experiment, "metrics", hp)
    found = SIGNATURES["metrics"].call(function, given)
    if experiment.combine is None:
        return checked_metrics(found, experiment.objective, at(function))
    if not isinstance(found, Mapping):
        raise InputError(
            f"metrics() with combine= must return a dict of sums over the batch's examples, but it returned "
            f"{kind(found)}{at(function)}"
        )
    return {str(name): jnp.asarray(value) for name, value in found.items()}


def combined(experiment: Experiment, found: dict[str, jax.Array], hp: Hyperparameters) -> dict[str, jax.Array]:
    """The metrics, of what was `measured` on all examples."""
    if experiment.combine is None:
        return found
    metrics = SIGNATURES["combine"].call(experiment.combine, {"sums": found, "hp": hp})
    return checked_metrics(metrics, experiment.objective, at(experiment.combine), "combine")


def _steps(experiment: Experiment, part: str, hp: Hyperparameters) -> dict[str, int]:
    """The number of a trial's steps for a part that asks for it: that must be a plain number."""
    asks = SIGNATURES[part].asks_for(getattr(experiment, part), "steps")
    return {"steps": experiment.total_steps(hp)} if asks else {}


def metrics_on(experiment: Experiment, state: Any, hp: Hyperparameters, part: Any, n: int) -> dict[str, jax.Array]:
    """The metrics of one lane's model on the `n` examples of a part of the data. Returns scalars by name.

    All examples go in at once, except where they are more than `BLOCK` and there are sums to `combine`, or where that
    would take more than `WHOLE_BYTES`: then `check_blocks` says whether metrics of blocks may be averaged.
    """
    model_kind, params = kind_for(experiment, hp), evaluation_params(state)

    def on(batch: Any) -> dict[str, jax.Array]:
        model = model_kind.bind(hp, params, state["rest"], None, train=False)
        return measured(experiment, model, batch, hp)

    def whole(part: Any) -> dict[str, jax.Array]:
        blocks = in_blocks(experiment, on, part, n)
        return combined(experiment, _by_blocks(on, part, n, experiment.combine is None) if blocks else on(part), hp)

    return in_precision(experiment, whole)(part)


def in_blocks(experiment: Experiment, on: Any, part: Any, n: int) -> bool:
    """Whether `on`, of one model, is asked block by block."""
    if n <= BLOCK or experiment.combine is not None:
        return n > BLOCK
    block = jax.tree.map(lambda a: jax.ShapeDtypeStruct((BLOCK, *a.shape[1:]), a.dtype), part)
    twice = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2 * BLOCK, *a.shape[1:]), a.dtype), part)
    one, two = (bytes_at_once(jax.make_jaxpr(on)(rows).jaxpr) for rows in (block, twice))
    # by the square of n where it grows by more than n, such as with all pairs of examples
    more = n / BLOCK
    needed = one * more if two <= 2 * one else one * more + (two - 2 * one) / 2 * more * (more - 1)
    if needed > WHOLE_BYTES:
        experiment.note_blocks(needed)
        return True
    return False


def _by_blocks(on: Any, part: Any, n: int, mean: bool) -> dict[str, jax.Array]:
    """What `on` says of blocks of a part, summed, or averaged by their examples."""
    blocks, left = divmod(n, BLOCK)
    head = jax.tree.map(lambda a: a[: blocks * BLOCK].reshape((blocks, BLOCK, *a.shape[1:])), part)
    totals = jax.tree.map(lambda m: m.sum(0) * (BLOCK if mean else 1), jax.lax.map(on, head))
    if left:
        last = on(jax.tree.map(lambda a: a[blocks * BLOCK :], part))
        totals = jax.tree.map(lambda total, m: total + m * (left if mean else 1), totals, last)
    return jax.tree.map(lambda total: total / n, totals) if mean else totals


def check_blocks(experiment: Experiment, task: Task, values: Mapping[str, Any]) -> None:
    """Compares what blocks give, where metrics are averages over them or `combine` gets their sums, with what all
    examples give at once, on a few models.

    Args:
      values: the settings of the models, plain ones.

    Raises:
      InputError: a metric is no mean over examples, or a part of `combine` no sum over them, so that no blocks can give
        it.
    """
    noisy = SIGNATURES["metrics"].asks_for(experiment.metrics, "key") if experiment.metrics else False
    summed = experiment.combine is not None and not noisy
    if not (experiment.block_bytes or summed) or "blocks checked" in experiment._cache:
        return
    assert isinstance(experiment.space, Space)
    hp = structured(Hyperparameters(values), limits_of(experiment.space))
    rows, part = BLOCK + BLOCK // 2, experiment.loaded_data().valid
    part = jax.tree.map(lambda a: jnp.asarray(a[:rows]), part)
    n = jax.tree.leaves(part)[0].shape[0]
    if n < 2:
        return

    def both(key: jax.Array, noise: float) -> Any:
        state = task.init(hp, key)
        leaves, tree = jax.tree.flatten(evaluation_params(state))
        leaves = [
            p + noise * jax.random.normal(jax.random.fold_in(key, i), p.shape, p.dtype)
            if jnp.issubdtype(p.dtype, jnp.floating) else p
            for i, p in enumerate(leaves)
        ]  # fmt: skip
        params = jax.tree.unflatten(tree, leaves)

        def on(batch: Any) -> Any:
            model = kind_for(experiment, hp).bind(hp, params, state["rest"], None, train=False)
            return measured(experiment, model, batch, hp)

        if not summed:
            return _by_blocks(on, part, n, True), on(part)
        one = on(jax.tree.map(lambda a: a[: n // 2], part))
        two = on(jax.tree.map(lambda a: a[n // 2 :], part))
        return jax.tree.map(jnp.add, one, two), on(part)

    apart: dict[str, list[tuple[float, float]]] = {}
    for seed, noise in enumerate((0.0, 0.3, 1.0)):
        blocks, whole = jax.device_get(jax.jit(both)(jax.random.key(seed), noise))
        for name in blocks:
            a, b = (np.asarray(found[name], np.float64) for found in (blocks, whole))
            if not np.allclose(a, b, rtol=1e-3, atol=1e-6 if not summed else 1e-5, equal_nan=True):
                apart.setdefault(name, []).append((float(a.sum()), float(b.sum())))
    where = at(experiment.metrics or experiment.loss)
    for name, pairs in apart.items():
        one, other = pairs[0]
        if not summed:
            raise InputError(
                f"metrics(): {name!r} must be a mean over examples where these are too many to be measured at once "
                f"(that would take {experiment.block_bytes / 2**30:.2g} GiB for each model), but an untrained "
                f"model's is {one:.6g} as the mean of blocks and {other:.6g} of all {n} together; way out: return sums "
                f"from metrics() and give Experiment(combine=...), which makes the metrics of the sums over all "
                f"examples, or take fewer validation examples{where}"
            )
        if len(pairs) > 1:  # once, the numbers may have cancelled each other out
            raise InputError(
                f"metrics(): with `combine`, {name!r} must be a sum over the batch's examples, but an untrained "
                f"model's is {one:.6g} for two parts of the validation part added up and {other:.6g} for both at "
                f"once; return sums and counts, and divide in combine(){where}"
            )
    experiment._cache["blocks checked"] = True


def checked_metrics(metrics: Any, objective: str, at: str = "", what: str = "metrics") -> dict[str, jax.Array]:
    """Metrics as real scalars by name, or an error that says what they should have been."""
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"{what}() must return a dict of scalars, but it returned {kind(metrics)}; "
            f"give each a name, such as {{{objective!r}: ...}}{at}"
        )
    if objective not in metrics:
        raise InputError(
            f"the objective {objective!r} must be one of the metrics, but they are "
            f"{', '.join(map(repr, metrics)) or 'none'}; return it from {what}(), or name one of these as "
            f"objective={at}"
        )
    return checked_scalars(metrics, at, what)


def checked_scalars(metrics: Mapping[Any, Any], at: str, what: str) -> dict[str, jax.Array]:
    """Real scalars by name, or an error that says what they should have been."""
    checked = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not 0 < len(name) <= MOST_LETTERS or not name.isprintable():
            raise InputError(
                f"{what}(): each metric's name must be a text of 1 to {MOST_LETTERS} printable characters, since "
                f"tables, pages and files name it, but got {name!r:.300}; rename it{at}"
            )
        array = jnp.asarray(value)
        if array.shape != () or jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise InputError(
                f"{what}(): {name!r} must be a real scalar, but its shape is {array.shape} and its dtype "
                f"{array.dtype}; take the mean over the batch's examples{at}"
            )
        checked[str(name)] = array.astype(jnp.result_type(float))
    return checked
