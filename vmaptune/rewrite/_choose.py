"""Which implementation a convolution gets: a heuristic, and a stopwatch.

The heuristic is from measurements on a CPU of two cores (JAX 0.10), where im2col was the fastest of all convolutions
tried but the depthwise ones. A model whose layers have few channels each takes half the time with the examples
innermost throughout; one of which some layers are computed so, and some aren't, takes longer than either. On
accelerators it has not been measured; XLA would make a grouped convolution of kernels that differ by lane there too, so
products are the default, and `fastest` says whether that holds.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vmaptune.rewrite._convolution import ConvShape, convolve, supported

LARGEST_KERNEL = 64  # positions; above, a chain of slices compiles slowly and gains little
INNERMOST = "innermost"
FEW_CHANNELS, FEWEST_EXAMPLES = 16, 16  # of layers with the examples innermost: at most, and at least
SOME_CHANNELS = 64  # up to which a model may be faster so, as its pooling and its strides have it
BUDGET_SECONDS = 0.6  # of one convolution's measurement; a candidate that would start later is not measured
RUN_SECONDS = 0.03  # of one timing
# Forward operations of one timed call. XLA's own convolution does 1 to 2 GFLOP/s on a CPU, the products 20 and more.
WORK, WORK_OF_XLA, WORK_OF_ACCELERATOR = 1e8, 1e7, 3e9

_measured: dict[tuple[ConvShape, int, str], dict[str, float]] = {}


def default_choice(shape: ConvShape) -> str:
    """The method for a convolution whose kernel differs by lane, without measuring: see `fastest` for that."""
    return candidates(shape)[0]


def examples_belong_innermost(shapes: Iterable[ConvShape], most_channels: int = FEW_CHANNELS) -> bool:
    """Whether a model with these convolutions is computed faster with the examples innermost throughout; with
    `SOME_CHANNELS`, whether it may be."""
    shapes = list(shapes)
    return (
        _on_cpu()
        and bool(shapes)
        and all(
            supported(shape)
            and shape.has_channels_last
            and shape.feature_group_count == 1
            and shape.out_channels <= most_channels
            and shape.batch >= FEWEST_EXAMPLES
            and 1 < math.prod(shape.kernel) <= LARGEST_KERNEL
            for shape in shapes
        )
    )


def candidates(shape: ConvShape) -> tuple[str, ...]:
    """The methods that can compute a convolution, the likely fastest first; "xla" is one of them."""
    blocks = shape.positions_are_blocks
    if not supported(shape) or (math.prod(shape.kernel) > LARGEST_KERNEL and not blocks):
        return ("xla",)
    if shape.feature_group_count > 1 and shape.in_channels == shape.feature_group_count:
        return ("depthwise", "shifted", "im2col", "xla")
    return ("im2col", "xla") if blocks else ("im2col", "shifted", "xla")


def measure(shape: ConvShape, lanes: int, methods: Iterable[str] | None = None) -> dict[str, float]:
    """Seconds of one model's convolution and gradient, by method, when `lanes` models run at once on this device.

    Each lane has its own input and kernel, and both gradients are taken. Takes about a second on a CPU, compiling
    included: a large convolution is timed on fewer lanes and a smaller batch and its time scaled, and "xla", the
    slowest to time, comes last and is left out if the others took the budget; on an accelerator it comes second and is
    never left out. Times are kept for the life of the process.
    """
    key = (shape, lanes, jax.default_backend())
    if methods is None and key in _measured:
        return _measured[key]
    started = time.perf_counter()
    times: dict[str, float] = {}
    order, least = methods, 1
    if order is None:
        order = candidates(shape)
        if not _on_cpu():
            order, least = (order[0], *reversed(order[1:])), 2
    for method in order:
        if len(times) >= least and time.perf_counter() - started > BUDGET_SECONDS:
            break
        times[method] = _seconds(shape, method, lanes, min(times.values(), default=math.inf))
    if methods is None:
        _measured[key] = times
    return times


def fastest(convs: Iterable[ConvShape], lanes: int) -> dict[ConvShape, str]:
    """For each convolution the method that was measured to be the fastest under a `vmap` of `lanes` lanes."""
    result = {}
    for shape in convs:
        methods = candidates(shape)
        times = measure(shape, lanes) if len(methods) > 1 else {methods[0]: 0.0}
        result[shape] = min(times, key=times.__getitem__)
    return result


class Choice:
    """The methods of an experiment's convolutions: as chosen, or by the heuristic; and which ones it has."""

    def __init__(self) -> None:
        self.asked: dict[ConvShape, None] = {}  # every convolution met, in the order of its first appearance
        self.chosen: dict[str, str] = {}  # method by the record's text
        self._tried: list[str] | None = None  # the convolutions of what is traced while `trying`

    def __call__(self, shape: ConvShape) -> str:
        self.asked[shape] = None
        chosen = self.chosen.get(str(shape))
        return chosen if chosen not in (None, INNERMOST) else default_choice(shape)

    def of_model(self, shapes: Sequence[ConvShape]) -> str | None:
        """The method of a model's convolutions where they have one in common, as chosen before or by the heuristic."""
        names = [str(shape) for shape in shapes]
        if self._tried is not None and examples_belong_innermost(shapes, SOME_CHANNELS):
            self._tried += names
            return INNERMOST
        if self.chosen.keys().isdisjoint(names) and examples_belong_innermost(shapes):
            self.prefer_innermost(names)
        methods = {self.chosen.get(name) for name in names}
        return methods.pop() if len(methods) == 1 else None

    def trying(self, trace: Callable[[], Any]) -> tuple[Any, list[str]]:
        """What `trace` returns, with the examples innermost in models that may be faster so, and the convolutions of
        these; nothing is chosen by that."""
        tried: list[str] = []
        self._tried = tried
        try:
            return trace(), list(dict.fromkeys(tried))
        finally:
            self._tried = None

    def prefer_innermost(self, names: Iterable[str]) -> None:
        """Chooses the examples innermost for the convolutions of these records."""
        self.chosen |= dict.fromkeys(names, INNERMOST)

    def settle(self, measured: Mapping[str, str]) -> bool:
        """Fixes the method of every convolution met so far, once and for all: as measured, or by the heuristic.

        Returns whether one of them was computed differently before.
        """
        changed = False
        for shape in self.asked:
            if str(shape) not in self.chosen:
                self.chosen[str(shape)] = measured.get(str(shape)) or default_choice(shape)
                changed = changed or self.chosen[str(shape)] != default_choice(shape)
        return changed


def by_xla(shape: ConvShape, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The convolution of `shape` as XLA computes it."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides=shape.window_strides,
        padding=shape.padding,
        lhs_dilation=shape.lhs_dilation,
        rhs_dilation=shape.rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(shape.lhs_spec, shape.rhs_spec, shape.out_spec),
        feature_group_count=shape.feature_group_count,
        batch_group_count=shape.batch_group_count,
        precision=shape.precision,
        preferred_element_type=shape.preferred_element_type,
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _seconds(shape: ConvShape, method: str, lanes: int, best: float) -> float:
    """The least of some timings, per model; few timings if the first are far from `best`."""
    work = (WORK_OF_XLA if method == "xla" else WORK) if _on_cpu() else WORK_OF_ACCELERATOR
    small, lanes, scale = _smaller(shape, lanes, work)
    run = _compiled(small, method, lanes)
    lhs, rhs = jnp.full((lanes, *small.lhs), 0.01, small.dtype), jnp.full((lanes, *small.rhs), 0.01, small.dtype)

    def seconds(repeats: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(run(lhs, rhs, jnp.int32(repeats)))
        return (time.perf_counter() - started) / repeats / lanes * scale

    first = seconds(1)
    if first > 50 * best:
        return first
    first = min(first, seconds(1))  # a first run also finds its memory and its threads
    if first > 3 * best:
        return first
    repeats = max(1, int(RUN_SECONDS / (first / scale * lanes)))
    return min(seconds(repeats) for _ in range(3))


def _compiled(shape: ConvShape, method: str, lanes: int) -> Callable[..., Any]:
    def loss(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        out = by_xla(shape, lhs, rhs) if method == "xla" else convolve(shape, method, lhs, rhs)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    def body(_: Any, carry: Any) -> Any:
        grads = jax.vmap(jax.grad(loss, argnums=(0, 1)))(*carry)
        # Each turn depends on the one before, so that none is dropped; the values stay what they are.
        return jax.tree.map(lambda x, g: x + g.astype(x.dtype) * 1e-20, carry, grads)

    def run(lhs: jax.Array, rhs: jax.Array, repeats: jax.Array) -> Any:
        return lax.fori_loop(0, repeats, body, (lhs, rhs))

    like = [jax.ShapeDtypeStruct((lanes, *s), shape.dtype) for s in (shape.lhs, shape.rhs)]
    return jax.jit(run).lower(*like, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def _smaller(shape: ConvShape, lanes: int, work: float) -> tuple[ConvShape, int, float]:
    """A convolution of fewer examples on fewer lanes (two, if there are) near `work`, and what to multiply with."""
    fewer = max(min(lanes, 2), min(lanes, int(work // max(shape.flops, 1))))
    batch = max(1, min(shape.batch, int(work * shape.batch // max(shape.flops * fewer, 1))))
    if shape.batch_group_count > 1:
        batch = shape.batch
    lhs = tuple(batch if d == shape.lhs_spec[0] else size for d, size in enumerate(shape.lhs))
    return dataclasses.replace(shape, lhs=lhs), fewer, shape.batch / batch
