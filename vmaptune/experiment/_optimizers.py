"""A person's optimizer, used as Optax documents it, and the weights by which what it trains is measured."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import SAMState, ScheduleFreeState

from vmaptune.arguments import Signature
from vmaptune.errors import InputError
from vmaptune.experiment._places import at, kind
from vmaptune.task import Hyperparameters

if TYPE_CHECKING:
    from vmaptune.experiment._experiment import Experiment

SIGNATURE = Signature("optimizer", ("hp", "steps"))
QUOTED = re.compile(r"'(\w+)'")


def optimizer_for(experiment: Experiment, hp: Hyperparameters) -> optax.GradientTransformationExtraArgs:
    """What the person's `optimizer` returns, or an error that says what it should have been."""
    assert experiment.optimizer is not None
    optimizer = SIGNATURE.call(experiment.optimizer, {"hp": hp, "steps": experiment.total_steps(hp)})
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(
            f"optimizer() must return an optax optimizer, such as optax.adam(hp.learning_rate), "
            f"but it returned {kind(optimizer)}{at(experiment.optimizer)}"
        )
    return optax.with_extra_args_support(optimizer)


def begin(optimizer: optax.GradientTransformationExtraArgs, params: Any) -> tuple[Any, Any]:
    """What is trained of a model's first parameters, and the optimizer's first state.

    `optax.lookahead` trains pairs of fast and slow weights.
    """
    with _without_a_warning():
        opt = optimizer.init(params)
    if next(_parts(opt, optax.LookaheadState), None) is not None:
        params = optax.LookaheadParams.init_synced(params)
    return params, opt


def trained(params: Any) -> Any:
    """The parameters at which the gradient is taken."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def updated(
    optimizer: optax.GradientTransformationExtraArgs, grads: Any, opt: Any, params: Any, more: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The parameters and the optimizer's state after a step.

    Args:
      more: what optimizers may ask for besides, by name. An optimizer may refuse what it doesn't know, such as
        `optax.contrib.sam`, wherever in a chain it stands: then it isn't given that.
    """
    given = dict(more)
    while True:
        try:
            updates, opt = optimizer.update(grads, opt, params, **given)
            return optax.apply_updates(params, updates), opt
        except TypeError as error:
            refused = QUOTED.findall(str(error)) if "nexpected keyword argument" in str(error) else []
            if not any(name in given for name in refused):
                raise
            given = {name: value for name, value in given.items() if name not in refused}


def weights_to_measure(params: Any, opt: Any) -> Any:
    """The parameters by which a model is measured and kept: those that its step trains, but for

    - a schedule-free optimizer, which trains at y: the average x of what it came by. Source: Defazio et al., "The Road
      Less Scheduled" (2024); agrees with `optax.contrib.schedule_free_eval_params`;
    - `optax.lookahead`: the slow weights. Source: Zhang et al., "Lookahead Optimizer" (2019);
    - `optax.contrib.sam` between the two of its steps: the weights from which it went to look around.

    It finds such a part wherever in the optimizer's state it stands.
    """
    if isinstance(params, optax.LookaheadParams):
        return params.slow
    for part in _parts(opt, ScheduleFreeState):
        params = jax.tree.map(
            lambda z, y, b1=part.b1: y if isinstance(z, optax.MaskedNode) else ((y - (1 - b1) * z) / b1),
            part.z, params, is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )  # fmt: skip
    for part in _parts(opt, SAMState):
        if part.cache is not None:
            there = part.steps_since_sync == 0
            params = jax.tree.map(lambda p, c, there=there: jnp.where(there, p, c), params, part.cache)
    return params


def no_average(params: Any) -> dict[str, Any]:
    """The average of no weights yet: a sum of what came by, and the weight of it, both decaying."""
    return {"sum": jax.tree.map(jnp.zeros_like, trained(params)), "weight": jnp.zeros(())}


def average(before: Mapping[str, Any], params: Any, decay: Any) -> dict[str, Any]:
    """The average after one more step, which led to these parameters."""
    total = jax.tree.map(
        lambda s, p: (decay * s + (1 - decay) * p).astype(p.dtype) if _is_float(p) else p, before["sum"], params
    )
    return {"sum": total, "weight": decay * before["weight"] + (1 - decay)}


def of_average(average: Mapping[str, Any], params: Any) -> Any:
    """The averaged parameters; before the first step the parameters themselves."""
    weight = average["weight"]
    begun = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(
        lambda s, p: jnp.where(weight > 0, s / begun, p).astype(p.dtype) if _is_float(p) else p, average["sum"], params
    )


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _parts(opt: Any, wanted: type) -> Iterator[Any]:
    leaves = jax.tree.leaves(opt, is_leaf=lambda node: isinstance(node, wanted))
    return (leaf for leaf in leaves if isinstance(leaf, wanted))


@contextmanager
def _without_a_warning() -> Iterator[None]:
    """Optax warns where lookahead begins with one set of weights; it gets both as soon as it is known that it's one."""
    logger = logging.getLogger("absl")

    def other(record: logging.LogRecord) -> bool:
        return "no attribute `fast`" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
