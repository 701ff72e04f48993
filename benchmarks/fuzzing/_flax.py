"""Layers of Flax's nnx, for models that are an nnx module."""

from __future__ import annotations

from flax import nnx

from fuzzing._layers import layer


class OfFlax:
    """`init` returns the module, and `apply` calls it."""

    flax = True

    @staticmethod
    def apply(module, x, ctx, **settings):
        return module(x)


@layer(6)
class NnxLinear(OfFlax):
    @staticmethod
    def draw(g, shape):
        return {"units": g.size(), "bias": g.chance(0.7)}

    @staticmethod
    def init(w, shape, units, bias):
        return nnx.Linear(shape[-1], units, use_bias=bias, rngs=nnx.Rngs(w.key))


@layer(4)
class NnxConv(OfFlax):
    @staticmethod
    def draw(g, shape):
        if len(shape) not in (2, 3):
            return None
        kernel = [g.int(1, 3) for _ in shape[:-1]]
        return {"channels": g.pick([1, 2, 4, 6, 8]), "kernel": kernel, "stride": g.pick([1, 1, 2])}

    @staticmethod
    def init(w, shape, channels, kernel, stride):
        strides = (stride,) * len(kernel)
        return nnx.Conv(shape[-1], channels, tuple(kernel), strides, rngs=nnx.Rngs(w.key))


@layer(4)
class NnxNorm(OfFlax):
    @staticmethod
    def draw(g, shape):
        return {"kind": g.pick(["BatchNorm", "BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm"])}

    @staticmethod
    def init(w, shape, kind):
        extra = {"num_groups": 1} if kind == "GroupNorm" else {}
        return getattr(nnx, kind)(shape[-1], epsilon=1e-3, rngs=nnx.Rngs(w.key), **extra)


@layer(2)
class NnxAttention(OfFlax):
    @staticmethod
    def draw(g, shape):
        return {"heads": g.int(1, 2), "units": g.int(1, 6)} if len(shape) == 2 else None

    @staticmethod
    def init(w, shape, heads, units):
        return nnx.MultiHeadAttention(heads, shape[-1], heads * units, decode=False, rngs=nnx.Rngs(w.key))


@layer(2)
class NnxCell(OfFlax):
    @staticmethod
    def draw(g, shape):
        return {"kind": g.pick(["GRUCell", "LSTMCell", "SimpleCell"]), "units": g.size(12)} if len(shape) == 2 else None

    @staticmethod
    def init(w, shape, kind, units):
        rngs = nnx.Rngs(w.key)
        return nnx.RNN(getattr(nnx, kind)(shape[-1], units, rngs=rngs), rngs=rngs)
