"""Flax nnx layers with a number of units per lane.

Each is Flax's own layer over the padded units; padding is zeroed on the way in and on the way out, so that it
contributes nothing to a value and receives gradients that are exactly zero. Its parameters begin as zeros and,
under any optimiser that takes a zero gradient of a zero parameter to a zero update, they and their moments stay so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from vmaptune.nn._batch import example_mask
from vmaptune.nn._laws import Initializer, initializer, vector
from vmaptune.nn._sizes import Held, Size, as_size

ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones


class Linear(nnx.Linear):
    """`flax.nnx.Linear` between sizes: `vt.nn.Linear(64, vt.nn.size(hp, "width"), rngs=rngs)`.

    Args:
      in_features, out_features: a `Size` or a plain number.
      kernel_init: a name (`lecun_normal`, ... `glorot_uniform`), whose fans are the true ones, or an
        initializer; in a masked layer one that does not depend on the shape.
      kwargs: as Flax's.
    """

    def __init__(
        self,
        in_features: Size | int,
        out_features: Size | int,
        *,
        kernel_init: str | Initializer = "lecun_normal",
        bias_init: Initializer = ZEROS,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        into, out = as_size(in_features), as_size(out_features)
        super().__init__(
            into.most, out.most, kernel_init=initializer(kernel_init, (into, out)), bias_init=vector(bias_init, out),
            rngs=rngs, **kwargs,
        )  # fmt: skip
        self.sizes = Held((into, out))

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        into, out = self.sizes.value
        return out.keep(super().__call__(into.keep(inputs), *args, **kwargs))


class Conv(nnx.Conv):
    """`flax.nnx.Conv` between numbers of channels: `vt.nn.Conv(1, vt.nn.size(hp, "width"), (3, 3), rngs=rngs)`.

    Arguments as `Linear`'s and Flax's; without feature groups.
    """

    def __init__(
        self,
        in_features: Size | int,
        out_features: Size | int,
        kernel_size: int | Sequence[int],
        *args: Any,
        kernel_init: str | Initializer = "lecun_normal",
        bias_init: Initializer = ZEROS,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        into, out = as_size(in_features), as_size(out_features)
        window = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        super().__init__(
            into.most, out.most, kernel_size, *args,
            kernel_init=initializer(kernel_init, (*map(as_size, window), into, out)),
            bias_init=vector(bias_init, out), rngs=rngs, **kwargs,
        )  # fmt: skip
        self.sizes = Held((into, out))

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        into, out = self.sizes.value
        return out.keep(super().__call__(into.keep(inputs), *args, **kwargs))


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` over the units that are there. Arguments as Flax's; `num_features` may be a `Size`."""

    def __init__(
        self,
        num_features: Size | int,
        *,
        bias_init: Initializer = ZEROS,
        scale_init: Initializer = ONES,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        units = as_size(num_features)
        super().__init__(
            units.most, bias_init=vector(bias_init, units), scale_init=vector(scale_init, units), rngs=rngs, **kwargs
        )
        self.units = Held(units)

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        units = self.units.value
        if units.is_traced:
            kwargs["mask"] = units.mask()
        return units.keep(super().__call__(units.keep(x), *args, **kwargs))


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` over the units that are there. Arguments as Flax's; `num_features` may be a `Size`."""

    def __init__(
        self, num_features: Size | int, *, scale_init: Initializer = ONES, rngs: nnx.Rngs, **kwargs: Any
    ):  # fmt: skip
        units = as_size(num_features)
        super().__init__(units.most, scale_init=vector(scale_init, units), rngs=rngs, **kwargs)
        self.units = Held(units)

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        units = self.units.value
        if units.is_traced:
            kwargs["mask"] = units.mask()
        return units.keep(super().__call__(units.keep(x), *args, **kwargs))


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` over the units and the examples that are there. Arguments as Flax's."""

    def __init__(
        self,
        num_features: Size | int,
        *,
        bias_init: Initializer = ZEROS,
        scale_init: Initializer = ONES,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ):
        units = as_size(num_features)
        super().__init__(
            units.most, bias_init=vector(bias_init, units), scale_init=vector(scale_init, units), rngs=rngs, **kwargs
        )
        self.units = Held(units)

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        units = self.units.value
        examples = example_mask(x)
        if examples is not None:
            kwargs.setdefault("mask", examples)
        return units.keep(super().__call__(units.keep(x), *args, **kwargs))
