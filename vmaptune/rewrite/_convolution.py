"""One convolution as slices and matrix products: `lax.conv_general_dilated` for models with few channels.

`vmap` over kernels that differ by lane turns XLA's convolution into a grouped one, which is slow everywhere, and on a
CPU it is slow even for one model. Here the same numbers come from strided slices and `dot_general`, of which `vmap`
makes a batched matrix product, and whose derivatives are pads and matrix products again.

Letters of the shapes: N batch, C input channels, O output channels, G feature groups, K kernel positions (the product
of the kernel's sizes), `*S` spatial sizes of the padded input, `*T` of the output, `*k` of the kernel.

"im2col" is the lowering of Chellapilla, Puri, Simard (2006), High performance convolutional neural networks for
document processing; "shifted" is the sum of 1x1 convolutions of Vasudevan, Anderson, Gregg (2017), Parallel multi
channel convolution using general matrix multiplication (kn2row, with the shift before the product). "innermost" is
im2col with the examples as the last axis, where all that lies between two convolutions fills vectors however few
channels there are (`_innermost.py` keeps them there from layer to layer).

Padding and the gaps of a dilation are zeros that are multiplied: a weight of NaN or infinity gives NaN there, where XLA
may pass over them. What isn't finite in an example's input reaches that example's outputs alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

METHODS = ("im2col", "shifted", "depthwise", "innermost")


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """All that decides how fast a convolution is: shapes, dtype and the parameters of `lax.conv_general_dilated`.

    The specs name the dimensions as `lax.ConvDimensionNumbers` does: `lhs_spec` and `out_spec` are (batch, feature,
    *spatial), `rhs_spec` is (out feature, in feature, *spatial).
    """

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    dtype: str
    lhs_spec: tuple[int, ...]
    rhs_spec: tuple[int, ...]
    out_spec: tuple[int, ...]
    window_strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    feature_group_count: int = 1
    batch_group_count: int = 1
    precision: Any = None
    preferred_element_type: Any = None

    @property
    def batch(self) -> int:
        return self.lhs[self.lhs_spec[0]]

    @property
    def in_channels(self) -> int:
        return self.lhs[self.lhs_spec[1]]

    @property
    def out_channels(self) -> int:
        return self.rhs[self.rhs_spec[0]]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's sizes without its dilation, [*k]."""
        return tuple(self.rhs[d] for d in self.rhs_spec[2:])

    @property
    def padded(self) -> tuple[int, ...]:
        """The input's sizes after its dilation and padding, [*S]."""
        sizes = (self.lhs[d] for d in self.lhs_spec[2:])
        return tuple(
            max((size - 1) * dilation + 1 if size else 0, 0) + low + high
            for size, dilation, (low, high) in zip(sizes, self.lhs_dilation, self.padding, strict=True)
        )

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """The output's sizes, [*T]."""
        reach = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.rhs_dilation, strict=True))
        return tuple(
            max((size - r) // stride + 1, 0)
            for size, r, stride in zip(self.padded, reach, self.window_strides, strict=True)
        )

    @property
    def flops(self) -> int:
        """Operations of the forward pass, a multiplication and an addition counted as two."""
        per_output = math.prod(self.kernel) * self.in_channels // self.feature_group_count
        return 2 * self.batch * math.prod(self.out_spatial) * self.out_channels * per_output

    @property
    def has_channels_last(self) -> bool:
        """Whether input and output are `[N, *S, C]`."""
        n = len(self.lhs)
        return self.lhs_spec == self.out_spec == (0, n - 1, *range(1, n - 1))

    @property
    def positions_are_blocks(self) -> bool:
        """Whether the windows tile the input, so that a reshape finds them and nothing is copied twice."""
        return all(
            (k == stride or size == 1) and (dilation == 1 or k == 1)
            for k, stride, size, dilation in zip(
                self.kernel, self.window_strides, self.out_spatial, self.rhs_dilation, strict=True
            )
        )


def supported(shape: ConvShape) -> bool:
    """Whether `convolve` computes this convolution; what it does not is left to XLA."""
    sizes = (*shape.lhs, *shape.rhs, *shape.out_spatial)
    return (
        shape.batch_group_count == 1
        and jnp.issubdtype(shape.dtype, jnp.floating)
        and all(size > 0 for size in sizes)
        and all(size > 0 for size in shape.padded)
    )


def convolve(shape: ConvShape, method: str, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """`lax.conv_general_dilated(lhs, rhs, ...)` with the parameters of `shape`, by one of `METHODS`.

    The result has XLA's shape and dtype and agrees with its values to rounding. Reverse and forward mode, `vmap` and
    `jit` see only slices, pads, reshapes and products. Raises ValueError for an unknown method, for a convolution that
    is not `supported` and for "depthwise" where a group has more than one input channel.
    """
    if method not in METHODS:
        raise ValueError(f"a convolution's method must be one of {', '.join(METHODS)}, but got {method!r}")
    if not supported(shape):
        raise ValueError(f"this convolution can only be left to XLA: {shape}")
    depth = shape.in_channels // shape.feature_group_count
    if method == "depthwise" and depth != 1:
        raise ValueError(f"depthwise needs one input channel in a group, but got {depth}: {shape}")
    dims = range(2, len(shape.lhs))
    lhs = _transpose(lhs, (shape.lhs_spec[0], *(shape.lhs_spec[d] for d in dims), shape.lhs_spec[1]))
    rhs = _transpose(rhs, (*(shape.rhs_spec[d] for d in dims), shape.rhs_spec[1], shape.rhs_spec[0]))
    lhs = _pad(lhs, shape)
    if method == "depthwise":
        out = _depthwise(shape, lhs, rhs)
    elif shape.feature_group_count > 1:
        out = _by_group(shape, method, lhs, rhs)
    else:
        out = _one_group(shape, method, lhs, rhs)
    order = (shape.out_spec[0], *shape.out_spec[2:], shape.out_spec[1])
    return _transpose(out, tuple(order.index(d) for d in range(len(order))))


def _by_group(shape: ConvShape, method: str, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The groups side by side, as lanes are. lhs [N, *S, C], rhs [*k, C/G, O]; [N, *T, O]."""
    groups = shape.feature_group_count
    one = dataclasses.replace(
        shape,
        lhs=tuple(size // groups if d == shape.lhs_spec[1] else size for d, size in enumerate(shape.lhs)),
        rhs=tuple(size // groups if d == shape.rhs_spec[0] else size for d, size in enumerate(shape.rhs)),
        feature_group_count=1,
    )
    # The groups come first before anything is copied K times, so that the products need no other transpose.
    lhs = jnp.moveaxis(lhs.reshape((*lhs.shape[:-1], groups, -1)), -2, 0)  # [G, N, *S, C/G]
    rhs = jnp.moveaxis(rhs.reshape((*rhs.shape[:-1], groups, -1)), -2, 0)  # [G, *k, C/G, O/G]
    out = jax.vmap(lambda x, kernel: _one_group(one, method, x, kernel))(lhs, rhs)  # [G, N, *T, O/G]
    out = jnp.moveaxis(out, 0, -2)
    return out.reshape((*out.shape[:-2], shape.out_channels))


def _one_group(shape: ConvShape, method: str, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """One product of all positions' slices beside each other, or the sum of a product for each.

    lhs [N, *S, C], rhs [*k, C, O]; [N, *T, O].
    """
    if method == "innermost":
        return ends_exchanged(_examples_last(shape, ends_exchanged(lhs), rhs))
    if shape.positions_are_blocks:
        return _product(shape, _blocks(lhs, shape), rhs, shape.preferred_element_type)
    if method == "im2col":
        patches = jnp.concatenate([_slice(lhs, shape, position) for position in _positions(shape)], axis=-1)
        return _product(shape, patches, rhs, shape.preferred_element_type)
    result = _result_type(shape)
    total: Any = None
    for position in _positions(shape):
        part = _product(shape, _slice(lhs, shape, position), rhs[position], _sum_type(result))
        total = part if total is None else total + part
    return total.astype(result)


def convolve_innermost(shape: ConvShape, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """`convolve` with the examples innermost in what it takes and returns, for a convolution of one group that
    `has_channels_last`. lhs [C, *S, N], the input before its padding; rhs as `shape` says; [O, *T, N]."""
    dims = range(2, len(shape.lhs))
    rhs = _transpose(rhs, (*(shape.rhs_spec[d] for d in dims), shape.rhs_spec[1], shape.rhs_spec[0]))
    return _examples_last(shape, _pad(lhs, shape), rhs)


def ends_exchanged(array: jax.Array) -> jax.Array:
    """The array with its first and its last axis exchanged: `[N, ..., C]` as `[C, ..., N]`, and back."""
    n = np.ndim(array)
    return array if n < 2 else lax.transpose(array, (n - 1, *range(1, n - 1), 0))


def _examples_last(shape: ConvShape, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """lhs [C, *S, N], rhs [*k, C, O]; [O, *T, N]."""
    slices = [_slice(lhs, shape, position) for position in _positions(shape)]
    patches = slices[0] if len(slices) == 1 else lax.concatenate(slices, 0)  # [K C, *T, N]
    product = lax.dot_general(
        rhs.reshape((-1, rhs.shape[-1])).T,
        patches.reshape((patches.shape[0], -1)),
        (((1,), (0,)), ((), ())),
        precision=shape.precision,
        preferred_element_type=shape.preferred_element_type,
    )
    return product.reshape((rhs.shape[-1], *shape.out_spatial, lhs.shape[-1]))


def _product(shape: ConvShape, patches: jax.Array, rhs: jax.Array, result: Any) -> jax.Array:
    """Patches times the kernel of as many positions. patches [N, *T, ...], rhs [..., O]; [N, *T, O]."""
    head, out = (shape.batch, *shape.out_spatial), shape.out_channels
    product = lax.dot_general(
        patches.reshape((math.prod(head), -1)),
        rhs.reshape((-1, out)),
        (((1,), (0,)), ((), ())),
        precision=shape.precision,
        preferred_element_type=result,
    )
    return product.reshape((*head, out))


def _depthwise(shape: ConvShape, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """A sum of elementwise products, for groups of one input channel. lhs [N, *S, G], rhs [*k, 1, O]."""
    groups, result = shape.feature_group_count, _result_type(shape)
    multiplier = shape.out_channels // groups
    total: Any = None
    for position in _positions(shape):
        kernel = rhs[position].reshape((groups, multiplier))
        part = _slice(lhs, shape, position)
        if multiplier > 1:
            part = part[..., None]
        else:
            kernel = kernel[:, 0]
        part = part.astype(_sum_type(result)) * kernel.astype(_sum_type(result))  # [N, *T, G] or [N, *T, G, O/G]
        total = part if total is None else total + part
    return total.reshape((shape.batch, *shape.out_spatial, shape.out_channels)).astype(result)


def _blocks(lhs: jax.Array, shape: ConvShape) -> jax.Array:
    """The windows of an input that they tile, by one reshape. lhs [N, *S, C]; [N, *T, *k, C]."""
    sizes, kernel = shape.out_spatial, shape.kernel
    lhs = lax.slice(
        lhs, (0,) * lhs.ndim, (shape.batch, *(t * k for t, k in zip(sizes, kernel, strict=True)), shape.in_channels)
    )
    split = itertools.chain.from_iterable(zip(sizes, kernel, strict=True))
    lhs = lhs.reshape((shape.batch, *split, shape.in_channels))
    n = len(sizes)
    return _transpose(lhs, (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1))


def _pad(lhs: jax.Array, shape: ConvShape) -> jax.Array:
    """Dilates and pads (or crops, where the padding is negative) the input. lhs [N, ..., C]; [N, *S, C], or both with
    the ends exchanged."""
    config = [(low, high, d - 1) for (low, high), d in zip(shape.padding, shape.lhs_dilation, strict=True)]
    if not any(map(any, config)):
        return lhs
    return lax.pad(lhs, np.zeros((), lhs.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def _positions(shape: ConvShape) -> Any:
    return itertools.product(*map(range, shape.kernel))


def _slice(lhs: jax.Array, shape: ConvShape, position: tuple[int, ...]) -> jax.Array:
    """What one kernel position sees at every output. lhs [N, *S, C] or [C, *S, N]; the same with *T for *S."""
    starts = [p * d for p, d in zip(position, shape.rhs_dilation, strict=True)]
    ends = [
        start + (size - 1) * stride + 1
        for start, size, stride in zip(starts, shape.out_spatial, shape.window_strides, strict=True)
    ]
    return lax.slice(lhs, (0, *starts, 0), (lhs.shape[0], *ends, lhs.shape[-1]), (1, *shape.window_strides, 1))


def _transpose(array: jax.Array, order: tuple[int, ...]) -> jax.Array:
    return array if order == tuple(range(len(order))) else lax.transpose(array, order)


def _result_type(shape: ConvShape) -> Any:
    return jnp.dtype(shape.preferred_element_type or shape.dtype)


def _sum_type(result: Any) -> Any:
    """Sums over kernel positions are kept in float32 where the result is shorter, as in a product's inside."""
    return jnp.promote_types(result, jnp.float32)
