"""The network that is tuned on a table: its hyperparameters, each a value per lane of one masked program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vmaptune import nn
from vmaptune.errors import InputError
from vmaptune.experiment import Data, Experiment
from vmaptune.space import Space, choice, loguniform, ordinal, reverseloguniform, uniform

LEAST_PROBABILITY = 1e-7
EPOCHS, LEAST_STEPS, MOST_STEPS = 100, 300, 20_000
MANY_INPUTS = 4096  # beyond which the first layer alone is as large as others' networks
LIST: Any = getattr(nnx, "List", list)  # before Flax 0.12 a module takes a plain list


class Block(nnx.Module):
    """A layer of the network: normalised, activated, with or without a path around it."""

    def __init__(self, hp: Any, width: nn.Size, rngs: nnx.Rngs):
        self.linear = nn.Linear(width, width, kernel_init="he_normal", rngs=rngs)
        self.norm = nn.LayerNorm(width, rngs=rngs)
        self.dropout = nn.Dropout(hp.dropout, units=width, rngs=rngs)
        self.normalised = nn.select(hp, "norm", {"layer": lambda norm, x: norm(x), "none": lambda norm, x: x})
        self.activation = nn.activation(hp, "activation")
        self.joined = nn.select(hp, "block", {"residual": lambda x, y: x + y, "plain": lambda x, y: y})

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.joined(x, self.dropout(self.activation(self.linear(self.normalised(self.norm, x)))))


class TableNetwork(nnx.Module):
    """Numbers and categories in, one number or the probabilities of classes out."""

    def __init__(self, hp: Any, inputs: int, embedded: list[int], outputs: int, rngs: nnx.Rngs):
        width = nn.size(hp, "width")
        sizes = [embedding_size(k) for k in embedded]
        self.embeddings = LIST([nnx.Embed(k + 1, size, rngs=rngs) for k, size in zip(embedded, sizes, strict=True)])
        self.scaled = nn.select(hp, "scaling", {"standard": lambda a, b: a, "quantile": lambda a, b: b})
        self.first = nn.Linear(inputs + sum(sizes), width, rngs=rngs)
        self.blocks = nn.Blocks(nn.size(hp, "depth"), lambda rngs: Block(hp, width, rngs), rngs=rngs)
        self.last = nn.Linear(width, outputs, rngs=rngs)

    def outputs(self, x: Mapping[str, jax.Array]) -> jax.Array:
        """`[n, outputs]`: a standardised target, or logits."""
        embedded = [embed(x["codes"][:, i]) for i, embed in enumerate(self.embeddings)]
        inputs = jnp.concatenate([self.scaled(x["standard"], x["quantile"]), x["rest"], *embedded], 1)
        return self.last(self.blocks(self.first(inputs)))

    def __call__(self, x: Mapping[str, jax.Array]) -> jax.Array:
        out = self.outputs(x)
        return out[:, 0] if out.shape[1] == 1 else jax.nn.softmax(out)


def embedding_size(categories: int) -> int:
    """The numbers by which a column of so many categories is embedded."""
    return min(16, math.ceil(math.sqrt(categories)))


def table_space(n: int, width: int, fixed: Mapping[str, Any]) -> Space:
    """The hyperparameters for so many rows and inputs; `fixed` takes the place of some."""
    widths = [16, 32] if width > MANY_INPUTS else [32, 64, 128] if n < 5000 else [64, 128, 256]
    space = Space(
        {
            "learning_rate": loguniform(1e-4, 3e-2),
            "weight_decay": loguniform(1e-5, 0.3, or_zero=0.2),
            "dropout": uniform(0.0, 0.5),
            "beta1": reverseloguniform(0.8, 0.99),
            "beta2": reverseloguniform(0.95, 0.9999),
            "width": ordinal(widths),
            "depth": ordinal([1, 2, 3]),
            "block": choice(["plain", "residual"]),
            "norm": choice(["none", "layer"]),
            "activation": choice(["relu", "gelu", "silu"]),
            "scaling": choice(["standard", "quantile"]),
        }
    )
    for name in fixed:
        if name not in space:
            raise InputError(f"space: the network has no hyperparameter {name!r}; it has: {', '.join(space)}")
    return space.replace(**fixed) if fixed else space


def table_experiment(
    inputs: Mapping[str, np.ndarray],
    target: np.ndarray,
    weights: np.ndarray,
    valid: np.ndarray,
    embedded: list[int],
    classes: int | None,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> Experiment:
    """The experiment that trains on the rows that do not validate.

    Args:
      inputs: as `Columns` gives them. target: `[n]`, standardised numbers or positions of classes.
      weights: `[n]`. valid: `[n]` bool. embedded: the categories of each column that is embedded.
      classes: how many there are; None for a regression.
      fixed: name -> distribution or value, instead of the network's own hyperparameters.

    Raises:
      InputError: a name in `fixed` that the network doesn't have.
    """
    rows = {name: a.astype(np.int32 if name == "codes" else np.float32) for name, a in inputs.items()}
    y, w = target.astype(np.float32 if classes is None else np.int32), weights.astype(np.float32)
    everything = {**rows, "y": y, "w": w}

    def part(which: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[which] for name, array in everything.items()}

    train = part(~valid if not valid.all() else valid)  # a single row is all there is
    train["w"] = train["w"] / train["w"].mean()
    n, width = len(train["y"]), rows["standard"].shape[1] + rows["rest"].shape[1]
    batch = batch_size or int(min(n, 2 ** np.clip(round(math.log2(n / 16)), 4, 8)))
    steps = steps or int(np.clip(EPOCHS * n // batch, LEAST_STEPS, MOST_STEPS))

    def model(hp: Any, rngs: nnx.Rngs) -> TableNetwork:
        return TableNetwork(hp, width, embedded, classes or 1, rngs)

    def loss(model: TableNetwork, batch: Mapping[str, jax.Array]) -> jax.Array:
        out = model.outputs(batch)
        if classes is None:
            return (batch["w"] * (out[:, 0] - batch["y"]) ** 2).mean()
        return (batch["w"] * optax.softmax_cross_entropy_with_integer_labels(out, batch["y"])).mean()

    def metrics(model: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        out, w, y = model(batch), batch["w"], batch["y"]
        if classes is None:
            return {"mse": (w * (out - y) ** 2).sum(), "weight": w.sum()}
        likely = jnp.maximum(jnp.take_along_axis(out, y[:, None], 1)[:, 0], LEAST_PROBABILITY)
        return {
            "log_loss": -(w * jnp.log(likely)).sum(), "accuracy": (w * (out.argmax(1) == y)).sum(), "weight": w.sum(),
        }  # fmt: skip

    def combine(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: value / sums["weight"] for name, value in sums.items() if name != "weight"}

    return Experiment(
        space=table_space(n, width, fixed or {}), model=model, loss=loss, metrics=metrics, combine=combine,
        optimizer=lambda hp: optax.adamw(
            hp.learning_rate, b1=hp.beta1, b2=hp.beta2, weight_decay=hp.weight_decay
        ),
        predict=lambda model, x: model(x), data=Data(train=train, valid=part(valid)),
        objective="mse" if classes is None else "log_loss", batch_size=batch, steps=steps, name="table",
    )  # fmt: skip
