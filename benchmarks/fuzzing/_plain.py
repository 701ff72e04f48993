"""A case trained by a plain loop of jitted steps, one model after another, in float32 and in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fuzzing._case import Case, Net
from vmaptune.engine.compiling import hurry

try:
    from jax import enable_x64
except ImportError:  # older versions of JAX have it there
    from jax.experimental import enable_x64

QUICKLY = hurry()  # an oracle is to be right, not fast: compiling it takes a third of the time
CANCELLED = 1e-3  # the size of the terms of a gradient, at least: all of it may be 0
Points = dict[int, dict[str, float]]  # by step: the mean training loss since the point before, and the metrics


class Plain:
    """The loop, in one precision. A first model is float32 in both, and cast."""

    def __init__(self, case: Case, *, wide: bool):
        self.case, self.wide = case, wide
        self.graph: Any = None
        # the (params, rest) of a key, float32
        self.first = jax.jit(lambda key: self.split(case.model(key)), compiler_options=QUICKLY)
        self._begin = jax.jit(lambda params, rate: jax.tree.map(jnp.asarray, case.optimizer(rate).init(params)),
                              compiler_options=QUICKLY)  # fmt: skip
        self._step = jax.jit(self.step, compiler_options=QUICKLY)
        self._evaluate = jax.jit(self.evaluate, compiler_options=QUICKLY)
        self.train_part, self.valid_part = (jax.tree.map(self.cast, part) for part in case.data)

    def precision(self) -> Any:
        return enable_x64(True) if self.wide else contextlib.nullcontext()

    def cast(self, a: Any) -> Any:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return a
        return np.asarray(a).astype(np.float64 if self.wide else np.float32) if is_float(a) else np.asarray(a)

    def split(self, model: Any) -> tuple[Any, Any]:
        if not isinstance(model, Net):
            return model, ()
        self.graph, params, rest = nnx.split(model, nnx.Param, ...)
        return params, rest

    def merged(self, params: Any, rest: Any, train: bool) -> Any:
        if self.case.spec["kind"] != "nnx":
            return params
        params, rest = jax.tree.map(lambda a: a, (params, rest))  # variables of this trace, which may be written
        model = nnx.merge(self.graph, params, rest)
        model.train() if train else model.eval()
        return model

    def step(self, params: Any, rest: Any, opt: Any, batch: Any, rate: Any, key: Any, off: Any, draw: Any) -> Any:
        def loss_of(params: Any) -> Any:
            model = self.merged(params, rest, True)
            loss = self.case.loss(model, batch, key)
            return loss, nnx.state(model, nnx.Not(nnx.Param)) if isinstance(model, Net) else ()

        (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        grads = jax.lax.cond(off > 0, lambda: with_rounding(grads, off, draw), lambda: grads)
        optimizer = optax.with_extra_args_support(self.case.optimizer(rate))
        updates, opt = optimizer.update(grads, opt, params, value=loss, grad=grads, value_fn=lambda p: loss_of(p)[0])
        return optax.apply_updates(params, updates), new, opt, loss

    def evaluate(self, params: Any, rest: Any, part: Any) -> dict[str, jax.Array]:
        return self.case.metrics(self.merged(params, rest, False), part)

    def run(
        self,
        first: Any,
        rate: float,
        rows: np.ndarray,
        keys: Sequence[Any],
        stops: Sequence[int],
        nudge: float = 0.0,
        draw: int = 0,
    ) -> Points:
        """Trains a `first` model on the batches that hold `rows` [S, B] and with the `keys` of each step.

        With a `nudge`, each parameter is multiplied by 1 ± `nudge` before, and all inputs by one number as near to 1:
        equal inputs stay equal, so that ties stay what they are. Each gradient is off by as much of the largest one:
        where terms cancel, what is left is rounding, of which some optimisers make whole steps.
        """
        signs = np.random.default_rng(draw)

        def nudged(a: Any) -> Any:
            a = np.asarray(a)
            return a * (1 + np.float32(nudge) * signs.choice(np.float32([-1, 1]), a.shape)) if nudge else a

        scale = np.float32(1 + nudge * signs.integers(-2, 3))
        train_part, valid_part = (
            (part[0] * part[0].dtype.type(scale) if is_float(part[0]) else part[0], *part[1:])
            for part in (self.train_part, self.valid_part)
        )
        points: Points = {}
        with self.precision():
            params = jax.tree.map(lambda a: self.cast(nudged(a)), first[0])
            rest = jax.tree.map(self.cast, first[1])
            size = self.cast(np.float32(rate))
            opt = self._begin(params, size)
            rounding = self.cast(np.float32(nudge)), np.uint32(draw)
            losses: list[Any] = []
            for t, (these, key) in enumerate(zip(rows, keys, strict=True), 1):
                batch = tuple(a[these] for a in train_part)
                params, rest, opt, loss = self._step(params, rest, opt, batch, size, key, *rounding)
                losses.append(loss)
                if t in stops:
                    measured = jax.device_get(self._evaluate(params, rest, valid_part))
                    mean = float(np.mean(np.asarray(jax.device_get(losses), np.float64)))
                    points[t] = {"training loss": mean, **{name: float(v) for name, v in measured.items()}}
                    losses = []
        return points


def with_rounding(grads: Any, off: Any, draw: Any) -> Any:
    """Gradients that are off by `off` of the largest number among them, up or down."""
    leaves, tree = jax.tree.flatten(grads)
    most = jnp.max(jnp.stack([jnp.max(jnp.abs(g), initial=CANCELLED).astype(jnp.float32) for g in leaves]))
    keys = jax.random.split(jax.random.key(draw), len(leaves))
    signs = [jax.random.rademacher(key, g.shape, jnp.float32) for key, g in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(
        tree, [(g + off * most * sign).astype(g.dtype) for g, sign in zip(leaves, signs, strict=True)]
    )


def is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)
