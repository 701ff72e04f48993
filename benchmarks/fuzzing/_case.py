"""A random case: drawn from a seed as plain values, and as the functions of an experiment."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import fuzzing._flax
import fuzzing._layers_of_axes
import fuzzing._layers_of_space  # noqa: F401 - they add to the layers
from fuzzing._draw import Draw, Weights
from fuzzing._layers import IN_OUT, LAYERS, OUT_IN, Context, computed, weights_for
from fuzzing._processes import mode_of
from fuzzing._training import INPUTS, LOSSES, OPTIMIZERS, examples

MOST_NUMBERS, MOST_WEIGHTS = 1500, 20_000  # of an example between two layers, and of a layer
TOKENS = 7
FLAX = {name for name, kind in LAYERS.items() if getattr(kind, "flax", False)}
WRAPS = ("checkpoint", "jit", "residual")
KEY = jax.eval_shape(lambda: jax.random.key(0))
Spec = dict[str, Any]


def spec_of(seed: int) -> Spec:
    """The case of a seed, as plain values: the same for the same seed."""
    g = Draw(seed)
    rank = g.pick([1, 1, 1, 1, 2, 2, 2, 3, 3])
    shape = {1: [g.size()], 2: [g.int(1, 8), g.size(12)], 3: [g.int(1, 9), g.int(1, 9), g.pick([1, 1, 2, 3])]}[rank]
    batch = g.pick([1, 2, g.int(3, 16), g.int(3, 16), g.int(8, 40), g.int(8, 40), 16, 24, 32, g.int(33, 64)])
    steps = g.int(3, 6)
    mode = mode_of({"seed": seed})
    spec: Spec = {
        "seed": seed, "mode": mode, "kind": g.pick(["pytree", "pytree", "nnx"]),
        "via": g.pick(["experiment"] * 6 + ["task"]), "order": g.pick(["own", "shared"]),
        "plan": {"devices": g.int(1, 2) if mode == "compiled" else 1, "lanes": g.pick([1, 2, 2, 3, 4]),
                 "tiles": g.int(1, 2), "every": g.pick([1, 2, 3, steps])},
        "batch": batch, "steps": steps, "trials": g.int(3, 5), "examples": batch + g.int(0, 30), "valid": g.int(1, 40),
        "input": {"kind": g.pick(INPUTS), "shape": shape}, "outputs": g.pick([1, 2, 2, 3, 5, g.int(4, 20), 10]),
        "loss": g.pick([*LOSSES, "cross entropy", "two heads"]),
        "optimizer": g.pick([*OPTIMIZERS, "sgd", "adam", "muon"]), "layers": [],
    }  # fmt: skip
    spec["head"] = {"form": g.pick(IN_OUT + OUT_IN), "bias": g.chance(0.6), "mean": g.chance(0.4)}
    if spec["via"] == "task":
        spec["kind"] = "pytree"
    wanted = g.int(1, 6)
    for _ in range(40):
        if len(spec["layers"]) == wanted:
            break
        names = [name for name in sorted(LAYERS) if spec["kind"] == "nnx" or name not in FLAX]
        name = g.pick([name for name in names for _ in range(round(LAYERS[name].weight * 2))])
        kind, before = LAYERS[name], Case(spec).shapes[-1]
        settings = kind.draw(g, before)
        wrap = g.pick(WRAPS) if g.chance(0.12) and name not in FLAX else None
        if settings is None:
            continue
        added = {**spec, "layers": [*spec["layers"], [name, settings, wrap]]}
        try:
            case = Case(added)
            fits = all(math.prod(s) <= MOST_NUMBERS for s in case.shapes) and case.weights <= MOST_WEIGHTS
        except (TypeError, ValueError, ZeroDivisionError, IndexError):
            continue  # a layer that takes no such shape
        if fits and math.prod(case.shapes[-1]) > 0:
            spec = added
    return spec


class Net(nnx.Module):
    """The layers of a case as an nnx module; the arrays of plain ones are its parameters."""

    def __init__(self, parts: list[Any]):
        self.count = len(parts)
        for i, part in enumerate(parts):
            setattr(self, f"part{i}", part if isinstance(part, nnx.Module) else Arrays(part))

    def parts(self) -> list[Any]:
        found = [getattr(self, f"part{i}") for i in range(self.count)]
        return [part.arrays() if isinstance(part, Arrays) else part for part in found]


class Arrays(nnx.Module):
    """A flat dict of parameters."""

    def __init__(self, arrays: dict[str, Any]):
        self.names = tuple(arrays)
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(array))

    def arrays(self) -> dict[str, Any]:
        return {name: getattr(self, name)[...] for name in self.names}


class Case:
    """The functions of a case: model, loss, metrics and optimiser, of one lane."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.layers = [("tokens", {}, None)] * (spec["input"]["kind"] == "tokens") + [tuple(x) for x in spec["layers"]]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of an example before each layer and after the last."""
        self.weights = 0
        shape, shapes = tuple(self.spec["input"]["shape"]), []
        for name, settings, wrap in self.layers:
            shapes.append(shape)
            if name == "tokens":
                shape = (*shape, TOKENS)
                continue
            x = jax.ShapeDtypeStruct((self.spec["batch"], *shape), jnp.float32)
            used = []

            def run(key, pool, x, name=name, settings=settings, wrap=wrap, shape=shape, used=used) -> Any:
                w = Weights(key, pool)
                p = LAYERS[name].init(w, shape, **settings)
                used.append(w.used)
                return applied(name, settings, wrap, p, x, Context(key, True))

            out = jax.eval_shape(run, KEY, jax.ShapeDtypeStruct((2 * MOST_WEIGHTS,), jnp.float32), x)
            self.weights += used[0]
            if not jnp.issubdtype(out.dtype, jnp.floating) or out.shape[0] != self.spec["batch"] or out.ndim < 2:
                raise ValueError("no batch of arrays")
            shape = out.shape[1:]
        return [*shapes, shape]

    def parts(self, key: jax.Array) -> list[Any]:
        """The weights of each layer, and of the head."""
        shapes, parts = self.shapes, []
        last, head = shapes[-1], self.spec["head"]
        features = last[-1] if head["mean"] or len(last) == 1 else math.prod(last)
        count = self.weights + TOKENS**2 + features * self.spec["outputs"]
        w = Weights(key, jax.random.normal(key, (count,), jnp.float32))
        for i, ((name, settings, _), shape) in enumerate(zip(self.layers, shapes, strict=False)):
            w.key = key if name not in FLAX else jax.random.fold_in(key, i)
            parts.append({"table": w(TOKENS, TOKENS)} if name == "tokens" else LAYERS[name].init(w, shape, **settings))
        return [*parts, weights_for(w, features, self.spec["outputs"], head["form"], head["bias"])]

    def model(self, key: jax.Array) -> Any:
        parts = self.parts(key)
        return Net(parts) if self.spec["kind"] == "nnx" else parts

    def outputs(self, model: Any, x: jax.Array, key: Any, train: bool) -> jax.Array:
        """[B, K]"""
        *parts, last = model.parts() if isinstance(model, Net) else model
        for i, ((name, settings, wrap), p) in enumerate(zip(self.layers, parts, strict=True)):
            if name == "tokens":
                x = p["table"][x]
            else:
                x = applied(
                    name, settings, wrap, p, x, Context(None if key is None else jax.random.fold_in(key, i), train)
                )
        head = self.spec["head"]
        if x.ndim > 2:
            x = x.mean(tuple(range(1, x.ndim - 1))) if head["mean"] else x.reshape(len(x), -1)
        return computed(last, x, head["form"], head["bias"])

    def loss(self, model: Any, batch: Any, key: Any = None, train: bool = True) -> jax.Array:
        x, label, target = batch
        return LOSSES[self.spec["loss"]](self.outputs(model, x, key, train), label, target)

    def metrics(self, model: Any, batch: Any) -> dict[str, jax.Array]:
        """The loss, and a number of each array of the model that tells it from any other."""
        leaves = jax.tree.leaves(nnx.state(model) if isinstance(model, Net) else model)
        leaves = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return {"loss": self.loss(model, batch, None, False)} | {
            f"w{i}": (leaf * self.signs(i, leaf.shape)).sum() for i, leaf in enumerate(leaves)
        }

    @staticmethod
    def signs(i: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng([i, *shape]).normal(size=shape).astype(np.float32)

    def optimizer(self, rate: Any) -> Any:
        return OPTIMIZERS[self.spec["optimizer"]][1](rate)

    @property
    def rates(self) -> tuple[float, float]:
        middle = OPTIMIZERS[self.spec["optimizer"]][0]
        return middle / 3, middle * 3

    @cached_property
    def data(self) -> tuple[Any, Any]:
        """The training and the validation part, each (x, labels, targets)."""
        spec = self.spec
        n = spec["examples"]
        given = examples(
            spec["seed"], spec["input"]["kind"], spec["input"]["shape"], n + spec["valid"], spec["outputs"]
        )
        return tuple(a[:n] for a in given), tuple(a[n:] for a in given)

    @property
    def is_coarse(self) -> bool:
        """Whether numbers are rounded to 16 bits somewhere: compilers may leave such roundings out."""
        return any("float16" in str(settings) for _, settings, _ in self.layers)


def applied(name: str, settings: Any, wrap: str | None, p: Any, x: jax.Array, ctx: Context) -> jax.Array:
    def run(p: Any, x: jax.Array) -> jax.Array:
        return LAYERS[name].apply(p, x, ctx, **settings)

    if wrap == "checkpoint":
        return jax.checkpoint(run)(p, x)
    if wrap == "jit":
        return jax.jit(run)(p, x)
    out = run(p, x)
    return x + out if wrap == "residual" and out.shape == x.shape else out
