"""Flax linen layers with a number of units per lane; see `_layers` for how padding is kept out.

A linen layer sees the shape of its input alone: where that is padded, name its true size in `inputs`.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen

from vmaptune.nn._batch import example_mask
from vmaptune.nn._laws import Initializer, initializer, vector
from vmaptune.nn._sizes import Size, as_size


def _settle(layer: Any) -> None:
    """Splits a `Size` given as `features` into the padded number, which Flax reads, and the size itself."""
    if isinstance(layer.features, Size):
        object.__setattr__(layer, "size", layer.features)
        object.__setattr__(layer, "features", layer.features.most)


class LinenDense(linen.Dense):
    """`flax.linen.Dense` between sizes: `vt.nn.LinenDense(width, inputs=width)`.

    Args:
      features: a `Size` or a plain number.
      inputs: the size of the input's last axis, where it is padded.
      kernel_init: as `vt.nn.Linear`'s. The other arguments are Flax's.
    """

    kernel_init: Any = "lecun_normal"
    inputs: Any = None
    size: Any = None

    def __post_init__(self) -> None:
        _settle(self)
        super().__post_init__()

    def param(self, name: str, init: Any, *shape_and_more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().param(name, _law_of(self, name, init, ()), *shape_and_more, **kwargs)

    @linen.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        into, out = _sizes(self, inputs.shape[-1])
        return out.keep(super().__call__(into.keep(inputs)))


class LinenConv(linen.Conv):
    """`flax.linen.Conv` between numbers of channels: `vt.nn.LinenConv(width, (3, 3), inputs=width)`.

    Arguments as `LinenDense`'s and Flax's; without feature groups.
    """

    kernel_init: Any = "lecun_normal"
    inputs: Any = None
    size: Any = None

    def __post_init__(self) -> None:
        _settle(self)
        super().__post_init__()

    def param(self, name: str, init: Any, *shape_and_more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        window = (self.kernel_size,) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
        return super().param(name, _law_of(self, name, init, window), *shape_and_more, **kwargs)

    @linen.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        into, out = _sizes(self, inputs.shape[-1])
        return out.keep(super().__call__(into.keep(inputs)))


class LinenLayerNorm(linen.LayerNorm):
    """`flax.linen.LayerNorm` over the units that are there: `vt.nn.LinenLayerNorm(inputs=width)`."""

    inputs: Any = None

    def param(self, name: str, init: Any, *shape_and_more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().param(name, _vector_law(self, init), *shape_and_more, **kwargs)

    @linen.compact
    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        units = as_size(self.inputs if self.inputs is not None else x.shape[-1])
        if units.is_traced:
            kwargs["mask"] = units.mask()
        return units.keep(super().__call__(units.keep(x), **kwargs))


class LinenBatchNorm(linen.BatchNorm):
    """`flax.linen.BatchNorm` over the units and the examples that are there: `vt.nn.LinenBatchNorm(inputs=width)`."""

    inputs: Any = None

    def param(self, name: str, init: Any, *shape_and_more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().param(name, _vector_law(self, init), *shape_and_more, **kwargs)

    @linen.compact
    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        units = as_size(self.inputs if self.inputs is not None else x.shape[-1])
        examples = example_mask(x)
        if examples is not None:
            kwargs.setdefault("mask", examples)
        return units.keep(super().__call__(units.keep(x), *args, **kwargs))


def _sizes(layer: Any, width: int) -> tuple[Size, Size]:
    into = as_size(layer.inputs if layer.inputs is not None else width)
    return into, layer.size if layer.size is not None else as_size(layer.features)


def _law_of(layer: Any, name: str, init: Any, window: tuple[int, ...]) -> Initializer:
    """Flax's initializer of a parameter, with the true sizes in the place of the padded ones."""

    def law(key: jax.Array, shape: tuple[int, ...], *rest: Any) -> jax.Array:
        into, out = _sizes(layer, shape[-2] if name == "kernel" else 1)
        if name == "kernel":
            return initializer(init, (*map(as_size, window), into, out))(key, shape, *rest)
        return vector(init, out)(key, shape, *rest)

    return law


def _vector_law(layer: Any, init: Any) -> Initializer:
    if not isinstance(layer.inputs, Size):
        return init
    return vector(init, layer.inputs)
