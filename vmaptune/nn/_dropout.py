"""Dropout with a rate per lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from vmaptune.nn._sizes import Held, Size


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout` whose rate may be a traced setting: `vt.nn.Dropout(hp.dropout, rngs=rngs)`.

    Between masked layers it is told how many units there are, `vt.nn.Dropout(hp.dropout, units=width, rngs=rngs)`: then
    it drops what it would drop of the narrow layer's; the random numbers of another shape are others.

    Zeroes each number with probability `rate` and divides the others by `1 - rate`, in training mode; the same
    arguments, random stream and masks as Flax's. Rate 0 returns the input to the bit, rate 1 zeros.

    Source: Srivastava et al., "Dropout", JMLR 2014; agrees with `flax.nnx.Dropout`.
    """

    def __init__(self, rate: Any, *, units: Size | int | None = None, **kwargs: Any):
        super().__init__(0.5, **kwargs)
        self.rate = Held(rate)  # type: ignore[assignment]
        self.units = Held(units)

    def __call__(self, inputs: Any, *, deterministic: bool | None = None, rngs: Any = None) -> jax.Array:
        held = self.rate
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic is None:
            raise ValueError("vt.nn.Dropout: call model.train() or model.eval() first, or pass deterministic=")
        if deterministic:
            return inputs
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError("vt.nn.Dropout: pass rngs=rngs when it is built, or to the call")
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs[self.rng_collection]
        key = rngs if isinstance(rngs, jax.Array) else rngs()
        return dropout(inputs, held.value, key, self.broadcast_dims, self.units.value)  # type: ignore[attr-defined]


class LinenDropout(linen.Module):
    """`flax.linen.Dropout` whose rate may be a traced setting: `vt.nn.LinenDropout(self.rate)(x, deterministic=...)`.

    `units`: as `vt.nn.Dropout`'s.

    Source: Srivastava et al., "Dropout", JMLR 2014; agrees with `flax.linen.Dropout`.
    """

    rate: Any
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    units: Any = None

    @linen.compact
    def __call__(self, inputs: Any, deterministic: bool | None = None, rng: Any = None) -> jax.Array:
        deterministic = linen.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic:
            return inputs
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return dropout(inputs, self.rate, key, self.broadcast_dims, self.units)


def dropout(
    inputs: Any, rate: Any, key: jax.Array, broadcast_dims: Sequence[int] = (), units: Size | int | None = None
) -> jax.Array:
    """Inputs with a share `rate` zeroed, the rest divided by `1 - rate`. The key is consumed; same shape.

    Where the last axis is padded, `units` says how many there are: the others are zeroed as those alone would be.
    """
    shape = [1 if d in broadcast_dims else size for d, size in enumerate(inputs.shape)]
    keep = jnp.asarray(1.0 - rate, jnp.float32)
    if isinstance(units, Size) and units.is_traced and shape[-1] == units.most:
        count = math.prod(shape)  # a random number hangs on its position in the narrow array
        drawn = jax.random.bernoulli(key, p=keep, shape=(count,))
        rows, unit = jnp.arange(count // units.most)[:, None], jnp.arange(units.most)
        mask = drawn[jnp.where(unit < units.value, rows * units.value + unit, 0)].reshape(shape)
    else:
        mask = jax.random.bernoulli(key, p=keep, shape=shape)
    mask = jnp.broadcast_to(mask, inputs.shape)
    divisor = jnp.where(keep > 0, keep, 1.0).astype(inputs.dtype)  # no 0/0, in the gradient either
    return jnp.where(mask, inputs / divisor, jnp.zeros_like(inputs))
